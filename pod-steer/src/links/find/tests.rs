use std::collections::BTreeMap;

use super::*;
use crate::ids::NetnsCookie;

const INGRESS: Netns = Netns { dev: 4, inode: 4_026_531_840, cookie: NetnsCookie(1) };
/// The number of the ingress namespace in the container's, and the reverse.
const OUTSIDE: i32 = 0;
const NSID: i32 = 7;

fn lo() -> Link {
    Link { index: 1, name: "lo".to_owned(), is_up: true, is_loopback: true, ..Link::default() }
}

/// As Docker's default bridge makes it: `eth0@if9` in the container, `veth1b2c3d4@if8` in `docker0`.
fn eth0() -> Link {
    let name = "eth0".to_owned();
    let kind = "veth".to_owned();
    Link { index: 8, name, kind, is_up: true, link: Some(9), link_nsid: Some(OUTSIDE), ..Link::default() }
}

fn of_kind(kind: &str) -> Link {
    // The parent of a macvlan or an ipvlan is in the ingress namespace too.
    let is_stacked = kind.starts_with("macv") || kind.starts_with("ipv");
    let (link, link_nsid) = if is_stacked { (Some(2), Some(OUTSIDE)) } else { (None, None) };
    Link { kind: kind.to_owned(), link, link_nsid, ..eth0() }
}

fn outside() -> BTreeMap<u32, Link> {
    let end = Link {
        index: 9,
        name: "veth1b2c3d4".to_owned(),
        kind: "veth".to_owned(),
        is_up: true,
        link: Some(8),
        link_nsid: Some(NSID),
        master: Some(3),
        ..Link::default()
    };
    let docker0 =
        Link { index: 3, name: "docker0".to_owned(), kind: "bridge".to_owned(), is_up: true, ..Link::default() };
    BTreeMap::from([(9, end), (3, docker0)])
}

fn address(index: u32, ip: &str) -> Address {
    let ip: IpAddr = ip.parse().unwrap();
    let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    // IFA_F_PERMANENT
    Address { index, ip, prefix: if ip.is_ipv4() { 16 } else { 64 }, is_global: !is_link_local, flags: 0x80 }
}

fn route(gateway: &str) -> Route {
    let gateway: IpAddr = gateway.parse().unwrap();
    Route { is_v6: gateway.is_ipv6(), index: 8, gateway: Some(gateway), metric: 0 }
}

/// A container on Docker's default bridge.
fn docker() -> Inside {
    Inside {
        links: vec![lo(), eth0()],
        addresses: vec![address(8, "172.17.0.2")],
        routes: vec![route("172.17.0.1")],
        ingress: Some(OUTSIDE),
    }
}

fn found(inside: &Inside) -> Result<Bridge, Unreached> {
    found_among(inside, &outside()).unwrap()
}

fn found_among(inside: &Inside, outside: &BTreeMap<u32, Link>) -> io::Result<Result<Bridge, Unreached>> {
    found_with(inside, outside, &["172.17.0.1", "fd00:1::1"].map(|ip| address(3, ip)))
}

fn found_with(
    inside: &Inside,
    outside: &BTreeMap<u32, Link>,
    here: &[Address],
) -> io::Result<Result<Bridge, Unreached>> {
    bridge(inside, INGRESS, here, |index| Ok(outside.get(&index).cloned()))
}

#[test]
fn a_container_behind_a_bridge() {
    let bridge = found(&docker()).unwrap();
    assert_eq!((bridge.ingress, bridge.nsid), (INGRESS, NSID));
    assert_eq!((bridge.device, bridge.name.as_str()), (3, "docker0"));
    assert_eq!((bridge.v4, bridge.v6), (Some(Ipv4Addr::new(172, 17, 0, 2)), None));
    assert_eq!((bridge.gateway_v4, bridge.gateway_v6), (Some(Ipv4Addr::new(172, 17, 0, 1)), None));
    assert!(!bridge.is_internal);
}

#[test]
fn both_families_and_addresses_that_do_not_count() {
    let mut inside = docker();
    let secondary = Address { flags: 0x81, ..address(8, "172.17.0.9") };
    let failed = Address { flags: IFA_F_DADFAILED, ..address(8, "fd00:1::9") };
    let of_link = ["169.254.1.2", "fe80::42:acff:fe11:2"].map(|ip| address(8, ip));
    let others = [address(1, "127.0.0.1"), address(1, "::1"), address(5, "10.0.0.2"), secondary, failed];
    inside.addresses = others.into_iter().chain(of_link).chain(inside.addresses).collect();
    inside.addresses.push(address(8, "fd00:1::2"));
    inside.routes.push(route("fd00:1::1"));
    let bridge = found(&inside).unwrap();
    let ips: Vec<String> = bridge.addresses().map(|ip| ip.to_string()).collect();
    assert_eq!(ips, ["172.17.0.2", "fd00:1::2"]);
    assert_eq!(bridge.gateway_v6, Some("fd00:1::1".parse().unwrap()));
}

#[test]
fn a_default_route_chooses_among_networks() {
    let mut inside = docker();
    let second = Link { index: 10, name: "eth1".to_owned(), link: Some(11), ..eth0() };
    inside.links.insert(1, second);
    inside.addresses.insert(0, address(10, "172.18.0.2"));
    assert_eq!(found(&inside).unwrap().v4, Some(Ipv4Addr::new(172, 17, 0, 2)));
    // That of IPv4 counts before that of IPv6.
    inside.routes.insert(0, Route { index: 10, ..route("fd00:2::1") });
    assert_eq!(found(&inside).unwrap().v4, Some(Ipv4Addr::new(172, 17, 0, 2)));
    inside.routes.truncate(1);
    let mut outside = outside();
    outside.insert(11, Link { index: 11, link: Some(10), ..outside[&9].clone() });
    assert_eq!(found_among(&inside, &outside).unwrap().unwrap().v4, Some(Ipv4Addr::new(172, 18, 0, 2)));
}

#[test]
fn an_internal_network_has_no_default_route() {
    let inside = Inside { routes: Vec::new(), ..docker() };
    let bridge = found(&inside).unwrap();
    assert!(bridge.is_internal, "{bridge:?}");
    // It answers its own network alone, in which the host's address stands for all other clients.
    assert_eq!(bridge.gateway_v4, Some(Ipv4Addr::new(172, 17, 0, 1)));
    assert_eq!(bridge.elsewhere, BTreeSet::from([(LOOPBACK, Ipv4Net::default().into())]));
    assert_eq!(bridge.name, "docker0");
}

#[test]
fn clients_on_its_other_networks_are_answered_past_the_ingress_namespace() {
    let mut inside = docker();
    inside.addresses.push(address(8, "fd00:1::2"));
    inside.routes.push(route("fd00:1::1"));
    assert!(found(&inside).unwrap().elsewhere.is_empty());
    inside.links.push(Link { index: 10, name: "eth1".to_owned(), link: Some(11), ..eth0() });
    inside.addresses.extend([address(10, "172.18.0.2"), address(10, "fe80::2"), address(10, "fd00:2::2")]);
    let (mut outside, end) = (outside(), outside()[&9].clone());
    outside.insert(11, Link { index: 11, link: Some(10), master: Some(4), ..end });
    let bridge = found_among(&inside, &outside).unwrap().unwrap();
    assert_eq!((bridge.device, bridge.v4), (3, Some(Ipv4Addr::new(172, 17, 0, 2))));
    let networks = ["172.18.0.0/16", "fd00:2::/64"].map(|network| (4, network.parse().unwrap()));
    assert_eq!(bridge.elsewhere, BTreeSet::from(networks));
    // One that was disconnected meanwhile, and one that is in no bridge of ours.
    outside.remove(&11);
    assert!(found_among(&inside, &outside).unwrap().unwrap().elsewhere.is_empty());
    inside.links[2].kind = "macvlan".to_owned();
    assert!(found_among(&inside, &outside).unwrap().unwrap().elsewhere.is_empty());
}

#[test]
fn a_default_route_by_another_router_than_the_host() {
    let inside = Inside { routes: vec![route("172.17.0.254")], ..docker() };
    let of = |here: &[&str]| {
        let here: Vec<Address> = here.iter().map(|ip| address(3, ip)).collect();
        found_with(&inside, &outside(), &here).unwrap().unwrap()
    };
    let on_bridge = of(&["10.0.0.1", "172.17.0.9"]);
    assert_eq!(on_bridge.gateway_v4, Some(Ipv4Addr::new(172, 17, 0, 9)), "it is answered directly");
    assert_eq!(on_bridge.elsewhere, BTreeSet::from([(LOOPBACK, "0.0.0.0/0".parse().unwrap())]));
    // Without such an address, nothing better is known than the client's own.
    let without = of(&["10.0.0.1"]);
    assert!(without.gateway_v4.is_none() && without.elsewhere.is_empty() && !without.is_internal, "{without:?}");
    // An address of another device may be the next hop too: Linux answers for all of them.
    let here = [Address { index: 5, ..address(3, "172.17.0.254") }];
    let by_another = found_with(&inside, &outside(), &here).unwrap().unwrap();
    assert_eq!((by_another.gateway_v4, by_another.elsewhere.len()), (Some(Ipv4Addr::new(172, 17, 0, 254)), 0));
    // In a pair without a bridge, the next hop may be an address that the host answers for (proxy_arp).
    let mut outside = outside();
    outside.get_mut(&9).unwrap().master = None;
    let pair = found_with(&inside, &outside, &[]).unwrap().unwrap();
    assert_eq!((pair.gateway_v4, pair.elsewhere.len()), (Some(Ipv4Addr::new(172, 17, 0, 254)), 0));
}

#[test]
fn a_pair_without_a_bridge_and_one_in_a_vrf() {
    let mut outside = outside();
    let named = |outside: &BTreeMap<u32, Link>| found_among(&docker(), outside).unwrap().map(|bridge| bridge.name);
    outside.get_mut(&3).unwrap().kind = "vrf".to_owned();
    assert_eq!(named(&outside).as_deref(), Ok("veth1b2c3d4"));
    outside.get_mut(&9).unwrap().master = None;
    assert_eq!(named(&outside).as_deref(), Ok("veth1b2c3d4"));
}

#[test]
fn no_network() {
    let none = Inside { links: vec![lo()], ..Inside::default() };
    assert_eq!(found(&none), Err(Unreached::NoNetwork));
    // Some modules give every namespace such a device.
    let down = Link { index: 2, name: "tunl0".to_owned(), kind: "ipip".to_owned(), ..Link::default() };
    assert_eq!(found(&Inside { links: vec![lo(), down.clone()], ..Inside::default() }), Err(Unreached::NoNetwork));
    let mut inside = docker();
    inside.links.insert(1, down);
    assert!(found(&inside).is_ok());
}

#[test]
fn devices_of_other_kinds() {
    let device = || "eth0".to_owned();
    let of = |kind: &str| found(&Inside { links: vec![lo(), of_kind(kind)], ..docker() }).unwrap_err();
    for kind in ["macvlan", "macvtap"] {
        assert_eq!(of(kind), Unreached::Macvlan { device: device() });
    }
    for kind in ["ipvlan", "ipvtap"] {
        assert_eq!(of(kind), Unreached::Ipvlan { device: device() });
    }
    assert_eq!(of("tun"), Unreached::Tun { device: device() });
    assert_eq!(of("wireguard"), Unreached::OtherDevice { device: device(), kind: "wireguard".to_owned() });
    assert_eq!(of(""), Unreached::OtherDevice { device: device(), kind: String::new() }, "hardware");
}

#[test]
fn the_other_end_is_not_in_the_ingress_namespace() {
    let elsewhere = Err(Unreached::Elsewhere { device: "eth0".to_owned() });
    // An overlay network's namespace has another number than ours, or ours has none.
    assert_eq!(found(&Inside { ingress: Some(OUTSIDE + 1), ..docker() }), elsewhere);
    assert_eq!(found(&Inside { ingress: None, ..docker() }), elsewhere);
    let both_inside = Link { link_nsid: None, ..eth0() };
    assert_eq!(found(&Inside { links: vec![lo(), both_inside.clone()], ..docker() }), elsewhere);
    assert_eq!(found(&Inside { links: vec![lo(), both_inside], ingress: None, ..docker() }), elsewhere);
}

#[test]
fn no_usable_address() {
    let no_address = Err(Unreached::NoAddress { device: "eth0".to_owned() });
    for addresses in [vec![], vec![address(1, "127.0.0.1")], vec![address(8, "fe80::2"), address(8, "169.254.0.2")]] {
        assert_eq!(found(&Inside { addresses, ..docker() }), no_address);
    }
}

#[test]
fn devices_that_change_meanwhile_are_an_error() {
    for change in [
        (|outside| drop(outside.remove(&9))) as fn(&mut BTreeMap<u32, Link>),
        |outside| outside.get_mut(&9).unwrap().link = Some(12),
        |outside| outside.get_mut(&9).unwrap().link_nsid = None,
    ] {
        let mut outside = outside();
        change(&mut outside);
        assert!(found_among(&docker(), &outside).is_err());
    }
    assert!(bridge(&docker(), INGRESS, &[], |_| Err(io::Error::other("refused"))).is_err());
}
