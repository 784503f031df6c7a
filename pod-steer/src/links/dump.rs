//! Asks rtnetlink(7) for the devices, addresses and default routes of the namespace that the calling thread is in.

use std::{io, net::IpAddr};

use super::message::{self, Address, Link, Message, Route};
use crate::netlink;

/// Maximum number of devices, addresses and routes that are read: a container with privileges may make as many as it likes.
const DEVICES_MAX: usize = 1024;
const ADDRESSES_MAX: usize = 4096;
const ROUTES_MAX: usize = 65_536;

/// A socket of rtnetlink(7).
pub struct Socket(netlink::Socket);

impl Socket {
    /// Opens one in the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        netlink::Socket::open(None).map(Self)
    }

    /// All devices.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        self.0.ask(&message::links(), &mut |message| {
            if let Message::Link(link) = message {
                links.push(link);
            }
            at_most(links.len(), DEVICES_MAX, "network devices")
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
        let mut addresses = Vec::new();
        self.0.ask(&message::addresses(), &mut |message| {
            if let Message::Address(address) = message {
                addresses.push(address);
            }
            at_most(addresses.len(), ADDRESSES_MAX, "addresses")
        })?;
        Ok(addresses)
    }

    /// The default route of each family that the kernel prefers.
    pub fn default_routes(&mut self) -> io::Result<Vec<Route>> {
        let (mut v4, mut v6, mut count) = (None, None, 0);
        self.0.ask(&message::routes(), &mut |message| {
            if let Message::Route(route) = message {
                let best = if route.is_v6 { &mut v6 } else { &mut v4 };
                if best.is_none_or(|best: Route| route.metric < best.metric) {
                    *best = Some(route);
                }
            }
            count += 1;
            at_most(count, ROUTES_MAX, "routes")
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
        assert!(at_most(DEVICES_MAX, DEVICES_MAX, "network devices").is_ok());
        let error = at_most(DEVICES_MAX + 1, DEVICES_MAX, "network devices").unwrap_err();
        assert_eq!(error.to_string(), "it has more than 1024 network devices");
    }
}
