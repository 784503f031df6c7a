//! Asks rtnetlink(7) for the devices, addresses and default routes of the namespace that the calling thread is in.

use std::{io, net::IpAddr};

use super::message::{self, Address, Link, Message, Route};
use crate::netlink;

/// Maximum number of devices, addresses and routes that are read.
#[derive(Clone, Copy, Debug)]
struct Limits {
    devices: usize,
    addresses: usize,
    routes: usize,
}

/// A container with privileges may make as many as it likes.
const OF_CONTAINERS: Limits = Limits { devices: 1024, addresses: 4096, routes: 65_536 };
/// A host has a device for each container, and may have the routes of a whole internet.
const OF_HOST: Limits = Limits { devices: 262_144, addresses: 262_144, routes: 4_194_304 };

/// A socket of rtnetlink(7).
pub struct Socket(netlink::Socket, Limits);

impl Socket {
    /// Opens one in the namespace of the calling thread, which is the ingress namespace.
    pub fn open() -> io::Result<Self> {
        netlink::Socket::open(None).map(|socket| Self(socket, OF_HOST))
    }

    /// The same in a container's.
    pub fn open_inside() -> io::Result<Self> {
        netlink::Socket::open(None).map(|socket| Self(socket, OF_CONTAINERS))
    }

    /// All devices.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let (mut links, max) = (Vec::new(), self.1.devices);
        self.0.ask(&message::links(), &mut |message| {
            if let Message::Link(link) = message {
                links.push(link);
            }
            at_most(links.len(), max, "network devices")
        })?;
        Ok(links)
    }

    /// The device with this index; `None` if there is none.
    pub fn link(&mut self, index: u32) -> io::Result<Option<Link>> {
        let mut found = None;
        let asked = self.0.ask(&message::link(index), &mut |message| {
            if let Message::Link(link) = message {
                found = Some(link);
            }
            Ok(())
        });
        match asked {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            asked => asked.map(|_| found),
        }
    }

    /// All addresses.
    pub fn addresses(&mut self) -> io::Result<Vec<Address>> {
        let (mut addresses, max) = (Vec::new(), self.1.addresses);
        self.0.ask(&message::addresses(), &mut |message| {
            if let Message::Address(address) = message {
                addresses.push(address);
            }
            at_most(addresses.len(), max, "addresses")
        })?;
        Ok(addresses)
    }

    /// The default route of each family that the kernel prefers.
    pub fn default_routes(&mut self) -> io::Result<Vec<Route>> {
        let (mut v4, mut v6, mut count, max) = (None, None, 0, self.1.routes);
        self.0.ask(&message::routes(), &mut |message| {
            if let Message::Route(route) = message {
                let best = if route.is_v6 { &mut v6 } else { &mut v4 };
                if best.is_none_or(|best: Route| route.metric < best.metric) {
                    *best = Some(route);
                }
            }
            count += 1;
            at_most(count, max, "routes")
        })?;
        Ok(v4.into_iter().chain(v6).collect())
    }

    /// Index of the device by which packets to an address leave; that of the loopback device for an address of this machine. An error if
    /// there is no route.
    pub fn leaves_by(&mut self, ip: IpAddr) -> io::Result<Option<u32>> {
        let mut found = None;
        self.0.ask(&message::route_to(ip), &mut |message| {
            match message {
                Message::Hop(index) => found = Some(index),
                Message::Route(route) => found = Some(route.index),
                _ => {}
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The answer to a request for the number of a namespace.
    pub fn nsid(&mut self, request: &[u8]) -> io::Result<Option<i32>> {
        let mut found = None;
        self.0.ask(request, &mut |message| {
            if let Message::Nsid(nsid) = message {
                found = Some(nsid);
            }
            Ok(())
        })?;
        Ok(found)
    }
}

fn at_most(count: usize, max: usize, what: &str) -> io::Result<()> {
    if count <= max { Ok(()) } else { Err(io::Error::other(format!("it has more than {max} {what}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_read() {
        let mut socket = Socket::open().unwrap();
        let links = socket.links().unwrap();
        let lo = links.iter().find(|link| link.is_loopback).expect("every namespace has a loopback device");
        assert_eq!((lo.name.as_str(), lo.kind.as_str(), lo.link, lo.master), ("lo", "", None, None));
        // The same socket answers again.
        assert_eq!(socket.link(lo.index).unwrap().as_ref(), Some(lo));
        assert_eq!(socket.link(i32::MAX.cast_unsigned()).unwrap(), None);
        let addresses = socket.addresses().unwrap();
        assert!(addresses.iter().all(|address| links.iter().any(|link| link.index == address.index)));
        for loopback in [IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 83, 84, 1])] {
            assert_eq!(socket.leaves_by(loopback).unwrap(), Some(lo.index), "{loopback}");
        }
        let routes = socket.default_routes().unwrap();
        assert!(routes.len() <= 2 && routes.iter().all(|route| links.iter().any(|link| link.index == route.index)));
    }

    #[test]
    fn what_is_read_is_limited() {
        let max = OF_CONTAINERS.devices;
        assert!(at_most(max, max, "network devices").is_ok());
        let error = at_most(max + 1, max, "network devices").unwrap_err();
        assert_eq!(error.to_string(), "it has more than 1024 network devices");
    }
}
