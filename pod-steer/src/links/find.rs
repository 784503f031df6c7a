//! Concludes how a container is connected, from what its namespace and the ingress namespace have. No I/O of its own.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

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

/// How a container is connected. `outside` gives devices of the ingress namespace by their index.
pub fn bridge(
    inside: &Inside,
    ingress: Netns,
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
    let mut routes = inside.routes.iter().filter(|route| route.index == own.index);
    let gateway = |is_v6: bool| routes.clone().find(|route| route.is_v6 == is_v6)?.gateway;
    Ok(Ok(Bridge {
        ingress,
        nsid,
        end: end_index,
        device: device.index,
        name: device.name,
        v4,
        v6,
        gateway_v4: gateway(false).and_then(v4_of),
        gateway_v6: gateway(true).and_then(v6_of),
        inner: own.index,
        is_internal: routes.next().is_none(),
    }))
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
    let is_usable = |address: &&Address| {
        address.index == index && address.is_global && address.flags & (IFA_F_DADFAILED | IFA_F_DEPRECATED) == 0
    };
    let mut own: Vec<&Address> = inside.addresses.iter().filter(is_usable).collect();
    own.sort_by_key(|address| address.flags & IFA_F_SECONDARY != 0);
    let v4 = own.iter().filter_map(|address| v4_of(address.ip)).find(|ip| !ip.is_link_local() && !ip.is_loopback());
    let mut v6 = own.iter().filter_map(|address| v6_of(address.ip));
    let v6 = v6.find(|ip| !ip.is_unicast_link_local() && !ip.is_loopback());
    (v4, v6)
}

fn v4_of(ip: IpAddr) -> Option<Ipv4Addr> {
    if let IpAddr::V4(ip) = ip { Some(ip) } else { None }
}

fn v6_of(ip: IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(ip) = ip { Some(ip) } else { None }
}

#[cfg(test)]
mod tests;
