//! Asks rtnetlink(7) for the qdiscs and filters of the namespace that the calling thread is in, and changes them.

use std::{collections::BTreeMap, io, os::fd::BorrowedFd};

use aya::programs::TcAttachType;

use super::message::{self, Filter, Message};
use crate::netlink;

/// Maximum number of filters of a direction, and of qdiscs, that are read.
const FILTERS_MAX: usize = 4096;
const QDISCS_MAX: usize = 65_536;

/// A socket of rtnetlink(7).
pub struct Requests(netlink::Socket);

/// The filters of one direction of a device.
#[derive(Debug, Default)]
pub struct Filters {
    /// Those that could be ours.
    pub candidates: Vec<Filter>,
    /// There are others.
    pub has_others: bool,
}

impl Requests {
    /// Opens one in the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        netlink::Socket::open(None).map(Self)
    }

    /// The kinds of the qdiscs that have filters, by the index of their device.
    pub fn qdiscs(&mut self) -> io::Result<BTreeMap<u32, String>> {
        let (mut found, mut count) = (BTreeMap::new(), 0);
        self.ask(&message::qdiscs(), &mut |message| {
            if let Message::Qdisc { device, kind } = message {
                found.insert(device, kind);
            }
            count += 1;
            at_most(count, QDISCS_MAX, "qdiscs")
        })?;
        Ok(found)
    }

    /// All filters of one direction; none if there is no such qdisc, or no such device.
    pub fn filters(&mut self, device: u32, direction: TcAttachType) -> io::Result<Filters> {
        let (mut found, mut count) = (Filters::default(), 0);
        self.ask(&message::filters(device, direction), &mut |message| {
            match message {
                Message::Candidate(filter) => found.candidates.push(filter),
                Message::OtherFilter => found.has_others = true,
                Message::Qdisc { .. } | Message::Other => {}
            }
            count += 1;
            at_most(count, FILTERS_MAX, "filters")
        })?;
        Ok(found)
    }

    /// Adds a clsact qdisc.
    pub fn add_qdisc(&mut self, device: u32) -> io::Result<()> {
        self.change(&message::add_qdisc(device))
    }

    /// Removes it, and its filters.
    pub fn delete_qdisc(&mut self, device: u32) -> io::Result<()> {
        self.change(&message::delete_qdisc(device))
    }

    /// Adds a filter with this program.
    pub fn add(&mut self, filter: &Filter, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        self.change(&message::set_filter(filter, true, program, name))
    }

    /// Replaces the program of a filter. The device is never without one.
    pub fn replace(&mut self, filter: &Filter, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        self.change(&message::set_filter(filter, false, program, name))
    }

    /// Removes a filter.
    pub fn delete(&mut self, filter: &Filter) -> io::Result<()> {
        self.change(&message::delete_filter(filter))
    }

    fn change(&mut self, request: &[u8]) -> io::Result<()> {
        self.ask(request, &mut |_| Ok(()))
    }

    fn ask(&mut self, request: &[u8], each: &mut dyn FnMut(Message) -> io::Result<()>) -> io::Result<()> {
        let asked = self.0.ask(request, each);
        if asked.is_err() {
            // The rest of this answer must not be taken for that to the next request.
            self.0 = netlink::Socket::open(None)?;
        }
        asked.map(drop)
    }
}

fn at_most(count: usize, max: usize, what: &str) -> io::Result<()> {
    if count <= max { Ok(()) } else { Err(io::Error::other(format!("there are more than {max} {what}"))) }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLM_F_DUMP;

    use super::*;

    /// `include/uapi/linux/rtnetlink.h`.
    const RTM_GETLINK: u16 = 18;

    #[test]
    fn the_own_namespace_is_read() {
        let mut requests = Requests::open().unwrap();
        requests.qdiscs().unwrap();
        // The same socket answers again, also for a device that does not exist.
        let none = requests.filters(i32::MAX.cast_unsigned(), TcAttachType::Ingress).unwrap();
        assert!(none.candidates.is_empty() && !none.has_others);
    }

    #[test]
    fn after_a_request_that_fails_the_next_one_is_made() {
        let mut requests = Requests::open().unwrap();
        let mut refused = |_| Err(io::Error::other("as a test wants it"));
        // Of links there is always one.
        requests.ask(&netlink::request(RTM_GETLINK, NLM_F_DUMP, &[0; 16]), &mut refused).unwrap_err();
        requests.qdiscs().unwrap();
        let none = requests.filters(i32::MAX.cast_unsigned(), TcAttachType::Ingress).unwrap();
        assert!(none.candidates.is_empty() && !none.has_others);
    }
}
