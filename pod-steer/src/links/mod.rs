//! How a container with a network namespace of its own is connected. `dump` asks the kernel by rtnetlink(7), `message` reads its
//! answers, `nsid` asks for the numbers of namespaces, and `find` concludes, on values. Changing anything does not belong here.
#![forbid(unsafe_code)]

mod dump;
mod find;
mod message;
mod nsid;

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::IpAddr,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
};

use crate::{
    ids::NetnsCookie,
    kernel::{Device, dry_run::Arrival},
    netns::{self, Netns},
    sys,
    world::{Bridge, Unreached},
};
use find::Inside;

/// Finds how the namespace behind an open `ns/net` file is connected to that of the calling thread, which is the ingress namespace. Fails
/// if it is no longer the one with this cookie, or if it is changed meanwhile.
pub fn look(ns: &File, cookie: NetnsCookie) -> io::Result<Result<Bridge, Unreached>> {
    let own = File::open("/proc/thread-self/ns/net")?;
    let meta = own.metadata()?;
    let ingress = Netns { dev: meta.dev(), inode: meta.ino(), cookie: sys::own_netns_cookie()? };
    let inside = netns::run_in(ns, cookie, || {
        let mut socket = dump::Socket::open_inside()?;
        let (links, addresses) = (socket.links()?, socket.addresses()?);
        let routes = socket.default_routes()?;
        // The dump of a pair's end has given the namespace of the other end a number, if it had none.
        let ingress = nsid::of(&mut socket, own.as_fd())?;
        Ok(Inside { links, addresses, routes, ingress })
    })?;
    let mut socket = dump::Socket::open()?;
    let here = socket.addresses()?;
    find::bridge(&inside, ingress, &here, |index| socket.link(index))
}

/// The same from parts of answers, for the fuzz target.
pub(crate) fn conclude(inside: &[u8], outside: &[u8]) -> Option<Result<Bridge, Unreached>> {
    use crate::netlink::read_part;
    use message::Message;

    let mut found = Inside::default();
    let read = read_part(inside, &mut |message| {
        match message {
            Message::Link(link) => found.links.push(link),
            Message::Address(address) => found.addresses.push(address),
            Message::Route(route) => found.routes.push(route),
            Message::Nsid(nsid) => found.ingress = Some(nsid),
            Message::Hop(_) | Message::Other => {}
        }
        Ok(())
    });
    let (mut links, mut here) = (Vec::new(), Vec::new());
    let read_outside = read_part(outside, &mut |message| {
        match message {
            Message::Link(link) => links.push(link),
            Message::Address(address) => here.push(address),
            _ => {}
        }
        Ok(())
    });
    read.and(read_outside).ok()?;
    let ingress = Netns { dev: 0, inode: 0, cookie: NetnsCookie(1) };
    let outside = |index| Ok(links.iter().find(|link: &&message::Link| link.index == index).cloned());
    find::bridge(&found, ingress, &here, outside).ok()
}

/// The devices of the namespace of the calling thread that clients of other machines may come by: those with an address of a family that is
/// not only valid on the link.
pub fn with_addresses(is_v6: bool) -> io::Result<BTreeSet<String>> {
    let mut socket = dump::Socket::open()?;
    let is_own = |address: &message::Address| address.is_global && address.ip.is_ipv6() == is_v6;
    let own: BTreeSet<u32> =
        socket.addresses()?.iter().filter(|address| is_own(address)).map(|address| address.index).collect();
    let links = socket.links()?.into_iter().filter(|link| link.is_up && !link.is_loopback && own.contains(&link.index));
    Ok(links.map(|link| link.name).collect())
}

/// Whether packets to an address are for the namespace of the calling thread, and are not forwarded.
pub fn is_local(ip: IpAddr) -> io::Result<bool> {
    let mut socket = dump::Socket::open()?;
    // An address of a VRF has no route outside of it.
    if socket.addresses()?.iter().any(|address| address.ip == ip) {
        return Ok(true);
    }
    let loopback = socket.links()?.into_iter().find(|link| link.is_loopback).map(|link| link.index);
    Ok(socket.leaves_by(ip).is_ok_and(|index| index.is_some() && index == loopback))
}

/// The device of this name in the namespace of the calling thread, or that by which packets to the client leave. `None` if there is none.
pub fn arrival(device: Option<&str>, client: IpAddr, destination: IpAddr) -> io::Result<Option<Arrival>> {
    let mut socket = dump::Socket::open()?;
    let links = socket.links()?;
    let found = match device {
        Some(name) => links.iter().find(|link| link.name == name),
        None => match socket.leaves_by(client) {
            Ok(index) => links.iter().find(|link| Some(link.index) == index),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::EACCES)
                ) =>
            {
                None
            }
            Err(error) => return Err(error),
        },
    };
    let Some(link) = found else { return Ok(None) };
    let master = links.iter().find(|other| Some(other.index) == link.master && other.kind == "vrf");
    let mut lookup_index = master.map_or(link.index, |vrf| vrf.index);
    if link.is_loopback {
        // For a packet of this machine to itself, Linux takes the device that has the address (`inet_iif`, `ip6_rcv_core`).
        let owner = socket.addresses()?.into_iter().find(|address| address.ip == destination);
        lookup_index = owner.map_or(lookup_index, |address| address.index);
    }
    let message::Link { index, layer_address, .. } = *link;
    Ok(Some(Arrival { index, name: link.name.clone(), layer_address, lookup_index }))
}

/// Link layers whose packets begin with an Ethernet header: `ARPHRD_ETHER`, `ARPHRD_LOOPBACK` (`include/uapi/linux/if_arp.h`).
const ETHERNET: [u16; 2] = [1, 772];
/// Tunnels and modems whose packets begin with the IP header: `ARPHRD_PPP` and `ARPHRD_RAWIP` among them.
const WITHOUT_HEADER: [u16; 8] = [512, 519, 768, 769, 776, 778, 823, 0xfffe];

/// The devices of the namespace of the calling thread, with whether a bridge or bond has them.
pub fn devices() -> io::Result<Vec<Device>> {
    let links = dump::Socket::open()?.links()?;
    // The devices of a VRF have their packets themselves; those of a bridge or bond give them to it.
    let vrfs: Vec<u32> = links.iter().filter(|link| link.kind == "vrf").map(|link| link.index).collect();
    let device = |link: message::Link| {
        let is_ethernet = ETHERNET.contains(&link.layer);
        let is_known = is_ethernet || WITHOUT_HEADER.contains(&link.layer);
        let is_port = link.master.is_some_and(|master| !vrfs.contains(&master));
        let is_bridge = is_ethernet && link.kind == "bridge";
        is_known.then_some(Device {
            index: link.index,
            name: link.name,
            is_ethernet,
            is_bridge,
            is_port,
            filters: Vec::new(),
        })
    };
    Ok(links.into_iter().filter_map(device).collect())
}
