//! The packets and contexts that dry runs get, and what programs make of them. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use pod_steer_ebpf::{FAMILY_V4, PROTO_TCP, Packet};

use super::Syn;

const ETHERNET_BYTES: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const TCP_BYTES: usize = 20;
const TCP_SYN: u8 = 2;
const TTL: u8 = 64;
/// Where the index of the device is in `struct __sk_buff`.
const SKB_IFINDEX: usize = 40;
/// A locally administered address: that of the sender matters to no program.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A SYN as it comes by an Ethernet device. No program reads its checksums, which are zero.
pub fn frame(syn: &Syn) -> Vec<u8> {
    let ethertype = if syn.source.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    let mut bytes = [&syn.arrival.layer_address[..], &SENDER, &ethertype].concat();
    match (syn.source.ip(), syn.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = ((IPV4_BYTES + TCP_BYTES) as u16).to_be_bytes();
            bytes.extend([0x45, 0, total[0], total[1], 0, 0, 0x40, 0, TTL, PROTO_TCP, 0, 0]);
            bytes.extend(source.octets().into_iter().chain(destination.octets()));
        }
        (source, destination) => {
            let payload = (TCP_BYTES as u16).to_be_bytes();
            bytes.extend([0x60, 0, 0, 0, payload[0], payload[1], PROTO_TCP, TTL]);
            for ip in [source, destination] {
                bytes.extend(v6(ip).octets());
            }
        }
    }
    bytes.extend(syn.source.port().to_be_bytes().into_iter().chain(syn.destination.port().to_be_bytes()));
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, TCP_SYN, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

fn v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// Where a frame goes to; `None` if it is cut off.
pub fn destination(frame: &[u8]) -> Option<SocketAddr> {
    let ethertype: [u8; 2] = frame.get(ETHERNET_BYTES - 2..)?.first_chunk().copied()?;
    let ip = frame.get(ETHERNET_BYTES..)?;
    let (address, length) = if ethertype == ETHERTYPE_IPV4 {
        (IpAddr::from(Ipv4Addr::from(*ip.get(16..)?.first_chunk::<4>()?)), IPV4_BYTES)
    } else {
        (IpAddr::from(Ipv6Addr::from(*ip.get(24..)?.first_chunk::<16>()?)), IPV6_BYTES)
    };
    let port = u16::from_be_bytes(*ip.get(length + 2..)?.first_chunk()?);
    Some(SocketAddr::new(address, port))
}

/// `struct __sk_buff` (`include/uapi/linux/bpf.h`), and room for what later kernels add: all of it is written back.
pub fn device_context(syn: &Syn) -> [u8; 256] {
    let mut context = [0; 256];
    context[SKB_IFINDEX..SKB_IFINDEX + 4].copy_from_slice(&syn.arrival.index.to_ne_bytes());
    context
}

/// `struct bpf_sk_lookup`, without the device, which the kernel takes in no dry run. Its first eight bytes become the cookie of the socket.
pub fn lookup_context(packet: &Packet) -> [u8; 72] {
    let is_v4 = packet.family == u32::from(FAMILY_V4);
    let split = |address: [u32; 4]| if is_v4 { (address[0], [0; 4]) } else { (0, address) };
    let ((remote_v4, remote_v6), (local_v4, local_v6)) = (split(packet.remote), split(packet.local));
    // The remote port has 16 bits in network byte order, and as many of padding.
    let remote_port = [packet.remote_port.to_ne_bytes(), [0; 2]].concat();
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    let fields = [
        words(&[0, 0, packet.family, packet.protocol, remote_v4]),
        words(&remote_v6),
        remote_port,
        words(&[local_v4]),
        words(&local_v6),
        words(&[packet.local_port, 0, 0]),
    ];
    let mut context = [0; 72];
    context.iter_mut().zip(fields.concat()).for_each(|(byte, field)| *byte = field);
    context
}

/// The cookie of the socket that a lookup has chosen; 0 if it has chosen none.
pub fn chosen(context: &[u8; 72]) -> u64 {
    context.first_chunk().map_or(0, |cookie| u64::from_ne_bytes(*cookie))
}

#[cfg(test)]
mod tests {
    use pod_steer_ebpf::FAMILY_V6;

    use super::{super::Arrival, *};

    fn syn(source: &str, destination: &str) -> Syn {
        let arrival =
            Arrival { index: 7, name: "eth0".to_owned(), layer_address: [2, 4, 6, 8, 10, 12], lookup_index: 9 };
        Syn { source: source.parse().unwrap(), destination: destination.parse().unwrap(), arrival }
    }

    #[test]
    fn a_frame_has_its_addresses_and_ports() {
        let syns = [syn("203.0.113.5:4711", "10.0.0.1:80"), syn("[2001:db8::7]:4711", "[fd00::1]:443")];
        for (syn, ip_bytes) in syns.into_iter().zip([IPV4_BYTES, IPV6_BYTES]) {
            let frame = frame(&syn);
            assert_eq!(frame.len(), ETHERNET_BYTES + ip_bytes + TCP_BYTES);
            assert_eq!(frame[..6], syn.arrival.layer_address);
            assert_eq!(destination(&frame), Some(syn.destination));
            let tcp = &frame[ETHERNET_BYTES + ip_bytes..];
            assert_eq!((&tcp[..2], tcp[13]), (&4711u16.to_be_bytes()[..], TCP_SYN));
            assert!((0..frame.len() - TCP_BYTES).all(|length| destination(&frame[..length]).is_none()));
            assert_eq!(device_context(&syn)[SKB_IFINDEX..][..4], 7u32.to_ne_bytes());
        }
    }

    #[test]
    fn a_context_has_the_fields_where_the_kernel_reads_them() {
        let v4 = lookup_context(&syn("203.0.113.5:4711", "10.0.0.1:80").packet());
        assert_eq!((v4[8], v4[12]), (FAMILY_V4, PROTO_TCP));
        assert_eq!((&v4[16..20], &v4[36..38]), (&[203, 0, 113, 5][..], &4711u16.to_be_bytes()[..]));
        assert_eq!((&v4[40..44], &v4[60..64]), (&[10, 0, 0, 1][..], &80u32.to_ne_bytes()[..]));
        assert_eq!(v4[64..], [0; 8], "the kernel refuses a device");
        let v6 = lookup_context(&syn("[2001:db8::7]:4711", "[fd00::1]:443").packet());
        assert_eq!((v6[8], v6[20], v6[35], v6[44], v6[59]), (FAMILY_V6, 0x20, 7, 0xfd, 1));
        assert_eq!((v6[16..20].to_vec(), v6[40..44].to_vec()), (vec![0; 4], vec![0; 4]));
        let mut chose = v6;
        chose[..8].copy_from_slice(&77u64.to_ne_bytes());
        assert_eq!((chosen(&v6), chosen(&chose)), (0, 77));
    }
}
