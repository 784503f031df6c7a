//! Concludes how a container is connected, from what its namespace and the ingress namespace have. No I/O of its own.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::message::{Address, Link, Route};
use crate::{
    netns::Netns,
    world::{Bridge, Unreached},
};

/// Flags of addresses (`include/uapi/linux/if_addr.h`): a further address of a network, a temporary one, or one that is not to be
/// used. Both of the first have the same bit.
const IFA_F_SECONDARY: u32 = 0x01;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_DEPRECATED: u32 = 0x20;

/// Index of the loopback device of every namespace.
const LOOPBACK: u32 = 1;

/// What the container's namespace has.
#[derive(Clone, Debug, Default)]
pub struct Inside {
    /// Its devices.
    pub links: Vec<Link>,
    /// Their addresses.
    pub addresses: Vec<Address>,
    /// Its default routes.
    pub routes: Vec<Route>,
    /// The number by which it knows the ingress namespace.
    pub ingress: Option<i32>,
}

/// How a container is connected. `here` are the addresses of the ingress namespace, and `outside` gives its devices by their index.
pub fn bridge(
    inside: &Inside,
    ingress: Netns,
    here: &[Address],
    mut outside: impl FnMut(u32) -> io::Result<Option<Link>>,
) -> io::Result<Result<Bridge, Unreached>> {
    let (own, end) = match device(inside).and_then(|own| Ok((own, other_end(inside, own)?))) {
        Ok(found) => found,
        Err(unreached) => return Ok(Err(unreached)),
    };
    let changed = || io::Error::other("its network devices have changed meanwhile");
    // The message of one end names the namespace of the other by its number.
    let end = outside(end)?.filter(|end| end.link == Some(own.index)).ok_or_else(changed)?;
    let end_index = end.index;
    let nsid = end.link_nsid.ok_or_else(changed)?;
    let master = end.master.map(&mut outside).transpose()?.flatten();
    let device = master.filter(|master| master.kind == "bridge").unwrap_or(end);
    let (v4, v6) = addresses(inside, own.index);
    if v4.is_none() && v6.is_none() {
        return Ok(Err(Unreached::NoAddress { device: own.name.clone() }));
    }
    // The only neighbour in a pair is the ingress namespace.
    let bridge = Some(device.index).filter(|index| *index != end_index);
    let routers = [false, true].map(|is_v6| router(inside, own.index, here, bridge, is_v6));
    let [gateway_v4, gateway_v6] = routers.map(|(gateway, _)| gateway);
    let mut elsewhere = other_networks(inside, own.index, &mut outside)?;
    let everywhere = [Ipv4Net::default().into(), Ipv6Net::default().into()];
    elsewhere.extend(
        routers.iter().zip(everywhere).filter(|((_, leads_here), _)| !leads_here).map(|(_, all)| (LOOPBACK, all)),
    );
    // Without an address that stands for the clients' there is nothing better than their own.
    elsewhere.retain(|(_, network)| if network.addr().is_ipv4() { gateway_v4 } else { gateway_v6 }.is_some());
    Ok(Ok(Bridge {
        ingress,
        nsid,
        end: end_index,
        device: device.index,
        name: device.name,
        v4,
        v6,
        gateway_v4: gateway_v4.and_then(v4_of),
        gateway_v6: gateway_v6.and_then(v6_of),
        elsewhere,
        is_internal: inside.routes.iter().all(|route| route.index != own.index),
    }))
}

/// The ingress namespace's address on the link of this device of a container, and whether it is the next hop of the container's default
/// route. If that leads to another router, an address of the link's bridge in the container's network is one that the container answers
/// directly.
fn router(inside: &Inside, index: u32, here: &[Address], bridge: Option<u32>, is_v6: bool) -> (Option<IpAddr>, bool) {
    let route = inside.routes.iter().find(|route| route.index == index && route.is_v6 == is_v6);
    let next_hop = route.and_then(|route| route.gateway);
    let Some(bridge) = bridge else { return (next_hop, true) };
    if next_hop.is_some_and(|ip| here.iter().any(|own| own.ip == ip)) {
        return (next_hop, true);
    }
    let networks: Vec<IpNet> = networks(inside, index).filter(|network| network.addr().is_ipv6() == is_v6).collect();
    let mut own = here.iter().filter(|own| own.index == bridge && is_usable(own));
    (own.find(|own| networks.iter().any(|network| network.contains(&own.ip))).map(|own| own.ip), false)
}

/// The networks of a container's device.
fn networks(inside: &Inside, index: u32) -> impl Iterator<Item = IpNet> {
    let own = inside.addresses.iter().filter(move |address| address.index == index && is_usable(address));
    own.filter_map(|address| IpNet::new(address.ip, address.prefix).ok()).map(|network| network.trunc())
}

/// The networks of a container's other devices, with the devices of the ingress namespace by which their clients come. The container answers
/// them directly.
fn other_networks(
    inside: &Inside,
    index: u32,
    outside: &mut impl FnMut(u32) -> io::Result<Option<Link>>,
) -> io::Result<BTreeSet<(u32, IpNet)>> {
    let mut all = BTreeSet::new();
    for other in inside.links.iter().filter(|other| other.is_up && other.index != index) {
        let Ok(end) = other_end(inside, other) else { continue };
        // One that is gone meanwhile has no clients.
        let Some(end) = outside(end)?.filter(|end| end.link == Some(other.index)) else { continue };
        let device = end.master.unwrap_or(end.index);
        all.extend(networks(inside, other.index).map(|network| (device, network)));
    }
    Ok(all)
}

/// The device by which the container is reached: that of its default route, by preference that of IPv4. Without one it is on internal
/// networks only; then its first device counts. Devices that are down do not: some modules give every namespace one.
fn device(inside: &Inside) -> Result<&Link, Unreached> {
    let mut up = inside.links.iter().filter(|link| link.is_up && !link.is_loopback);
    let routes = inside.routes.iter();
    let by_route =
        routes.min_by_key(|route| route.is_v6).and_then(|route| up.clone().find(|link| link.index == route.index));
    by_route.or_else(|| up.next()).ok_or(Unreached::NoNetwork)
}

/// Index of the other end of a pair, which is in the ingress namespace.
fn other_end(inside: &Inside, own: &Link) -> Result<u32, Unreached> {
    let device = own.name.clone();
    match own.kind.as_str() {
        "veth" => {
            let here = own.link_nsid.is_some() && own.link_nsid == inside.ingress;
            own.link.filter(|_| here).ok_or(Unreached::Elsewhere { device })
        }
        "macvlan" | "macvtap" => Err(Unreached::Macvlan { device }),
        "ipvlan" | "ipvtap" => Err(Unreached::Ipvlan { device }),
        "tun" => Err(Unreached::Tun { device }),
        kind => Err(Unreached::OtherDevice { device, kind: kind.to_owned() }),
    }
}

/// The first address of each family that the device can be reached by from other networks.
fn addresses(inside: &Inside, index: u32) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let mut own: Vec<&Address> =
        inside.addresses.iter().filter(|address| address.index == index && is_usable(address)).collect();
    own.sort_by_key(|address| address.flags & IFA_F_SECONDARY != 0);
    let v4 = own.iter().filter_map(|address| v4_of(address.ip)).find(|ip| !ip.is_link_local() && !ip.is_loopback());
    let mut v6 = own.iter().filter_map(|address| v6_of(address.ip));
    let v6 = v6.find(|ip| !ip.is_unicast_link_local() && !ip.is_loopback());
    (v4, v6)
}

/// Whether an address can be reached from other networks, and may be used.
fn is_usable(address: &Address) -> bool {
    address.is_global && address.flags & (IFA_F_DADFAILED | IFA_F_DEPRECATED) == 0
}

fn v4_of(ip: IpAddr) -> Option<Ipv4Addr> {
    if let IpAddr::V4(ip) = ip { Some(ip) } else { None }
}

fn v6_of(ip: IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(ip) = ip { Some(ip) } else { None }
}

#[cfg(test)]
mod tests;
