use super::*;

/// Bytes as Linux 6.18 sent them; of links some attributes are left out.
fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.as_chunks::<2>().0.iter();
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn read(kind: u16, hex: &str) -> Message {
    read_bytes(kind, &bytes(hex)).unwrap()
}

fn read_bytes(kind: u16, payload: &[u8]) -> Result<Message, DecodeError> {
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    Message::deserialize(&header, payload)
}

/// The end of a pair in a container: `eth0@if3`.
const ETH0: &str = "00000100 02000000 43100100 00000000
    0900 0300 65746830 00000000  0800 0d00 e8030000  0500 1000 06000000  0800 0400 dc050000
    1000 1200 0900 0100 76657468 00000000  0800 2500 00000000  0800 0500 03000000  0600 4400 00000000";
/// The other end in the ingress namespace: `v0@if2`, in the bridge with index 2.
const V0: &str = "00000100 03000000 43100100 00000000
    0700 0300 76300000  0800 0a00 02000000
    2800 1200 0900 0100 76657468 00000000 0b00 0400 62726964 67650000 0c00 0500 0500 0100 03000000
    0800 2500 02000000  0800 0500 02000000";
const BR0: &str = "00000100 02000000 43100100 00000000
    0800 0300 62723000  1c00 1200 0b00 0100 62726964 67650000 0c00 0200 0800 0100 dc050000";
const LO: &str = "00000403 01000000 49000100 00000000 0700 0300 6c6f0000 0800 0d00 e8030000 0500 1000 00000000";

#[test]
fn devices() {
    let link = |hex| match read(RTM_NEWLINK, hex) {
        Message::Link(link) => link,
        other => panic!("{other:?}"),
    };
    let eth0 = link(ETH0);
    assert_eq!((eth0.index, eth0.name.as_str(), eth0.kind.as_str()), (2, "eth0", "veth"));
    assert_eq!((eth0.link, eth0.link_nsid, eth0.master), (Some(3), Some(0), None));
    assert!(eth0.is_up && !eth0.is_loopback);
    let v0 = link(V0);
    assert_eq!((v0.name.as_str(), v0.kind.as_str(), v0.master), ("v0", "veth", Some(2)));
    assert_eq!((v0.link, v0.link_nsid), (Some(2), Some(2)));
    let br0 = link(BR0);
    assert_eq!((br0.index, br0.name.as_str(), br0.kind.as_str(), br0.link), (2, "br0", "bridge", None));
    let lo = link(LO);
    assert_eq!((lo.index, lo.kind.as_str(), lo.is_up, lo.is_loopback), (1, "", true, true));
}

#[test]
fn a_name_can_be_shown() {
    let named = |name: &[u8]| {
        let mut payload = bytes(LO)[..LINK_BYTES].to_vec();
        payload.extend((name.len() as u16 + 4).to_ne_bytes());
        payload.extend(IFLA_IFNAME.to_ne_bytes());
        payload.extend(name);
        match read_bytes(RTM_NEWLINK, &payload).unwrap() {
            Message::Link(link) => link.name,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(named(b"eth0\0"), "eth0");
    assert_eq!(named(b"\x1b[2J\0"), "\\u{1b}[2J");
    assert_eq!(named(b"a\xff\0"), "a\u{fffd}");
    assert_eq!(named(b""), "");
}

#[test]
fn addresses_of_both_families() {
    let read = |hex| match read(RTM_NEWADDR, hex) {
        Message::Address(Address { index, ip, is_global, flags, .. }) => (index, ip.to_string(), is_global, flags),
        other => panic!("{other:?}"),
    };
    let secondary = "02188100 02000000 0800 0100 0a010009 0800 0200 0a010009 0900 0300 65746830 00000000
        0800 0800 81000000 1400 0600 ffffffff ffffffff 22a27700 22a27700";
    assert_eq!(read(secondary), (2, "10.1.0.9".to_owned(), true, 0x81));
    // Of a point-to-point link: the peer's address, and the own one.
    let peer = "02208000 02000000 0800 0100 0a010001 0800 0200 0a010002 0800 0800 80000000";
    assert_eq!(read(peer), (2, "10.1.0.2".to_owned(), true, 0x80));
    let v6 = "0a408200 02000000 1400 0100 fd000000 00000000 00000000 00000002
        1400 0600 ffffffff ffffffff 22a27700 22a27700 0800 0800 82000000";
    assert_eq!(read(v6), (2, "fd00::2".to_owned(), true, 0x82));
    let of_link = "0a40c0fd 02000000 1400 0100 fe800000 00000000 2035b2ff fe0b344b 0800 0800 c0000000";
    assert_eq!(read(of_link), (2, "fe80::2035:b2ff:fe0b:344b".to_owned(), false, 0xc0));
}

#[test]
fn default_routes_of_the_main_table() {
    let route = |hex| match read(RTM_NEWROUTE, hex) {
        Message::Route(Route { is_v6, index, gateway, metric }) => {
            Some((is_v6, index, gateway.map(|gateway| gateway.to_string()), metric))
        }
        Message::Hop(_) | Message::Other => None,
        other => panic!("{other:?}"),
    };
    let gateway = |ip: &str| Some(ip.to_owned());
    let v4 = "02000000 fe030001 00000000 0800 0f00 fe000000 0800 0500 0a010001 0800 0400 02000000";
    assert_eq!(route(v4), Some((false, 2, gateway("10.1.0.1"), 0)));
    let v6 = "0a000000 fe030001 00000000 0800 0f00 fe000000 0800 0600 00040000
        1400 0500 fd000000 00000000 00000000 00000001 0800 0400 02000000";
    assert_eq!(route(v6), Some((true, 2, gateway("fd00::1"), 1024)));
    let hops = "02000000 fe030001 00000000 0800 0f00 fe000000 0800 0600 32000000
        2400 0900 10000000 02000000 0800 0500 0a010001 10000000 02000000 0800 0500 0a010003";
    assert_eq!(route(hops), Some((false, 2, gateway("10.1.0.1"), 50)));
    let on_link = "02000000 fe03fd01 00000000 0800 0f00 fe000000 0800 0400 02000000";
    assert_eq!(route(on_link), Some((false, 2, None, 0)));
    // A network, the local table, and an unreachable default route.
    let network = "02180000 fe02fd01 00000000 0800 0f00 fe000000 0800 0100 0a010000 0800 0400 02000000";
    let local = "02000000 ff02fe02 00000000 0800 0f00 ff000000 0800 0400 02000000";
    let unreachable = "0a000000 fe030007 00000000 0800 0f00 fe000000 0800 0600 ffffffff 0800 0400 01000000";
    assert_eq!([network, local, unreachable].map(route), [None, None, None]);
}

#[test]
fn numbers_of_namespaces() {
    assert_eq!(read(RTM_NEWNSID, "00000000 0800 0100 00000000"), Message::Nsid(0));
    assert_eq!(read(RTM_NEWNSID, "00000000 0800 0100 ffffffff"), Message::Nsid(-1));
    assert_eq!(read(RTM_NEWLINK + 1, ""), Message::Other);
}

#[test]
fn cut_off_messages_are_errors_or_lack_attributes() {
    for (kind, hex) in [(RTM_NEWLINK, V0), (RTM_NEWNSID, "00000000 0800 0100 00000000")] {
        let whole = bytes(hex);
        for length in 0..whole.len() {
            let _ = read_bytes(kind, &whole[..length]);
        }
        assert!(read_bytes(kind, &[]).is_err());
    }
    for kind in [RTM_NEWADDR, RTM_NEWROUTE] {
        assert!(read_bytes(kind, &[]).is_err());
    }
    // A next hop whose length is beyond its attribute.
    let hops = "02000000 fe030001 00000000 0c00 0900 ffff0000 02000000";
    assert!(read_bytes(RTM_NEWROUTE, &bytes(hops)).is_err());
}

#[test]
fn requests_have_their_length() {
    for request in [links(), link(7), addresses(), routes(), nsid(3)] {
        let length = u32::from_ne_bytes(*request.first_chunk().unwrap());
        assert_eq!(length as usize, request.len());
        assert!(request.len().is_multiple_of(4));
    }
}
