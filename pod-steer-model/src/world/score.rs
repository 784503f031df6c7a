//! The rule by which Linux chooses a listener for a client, as a function on values. `bpf_sk_assign` checks only the
//! family of all this, so a table holds only sockets that this rule would choose.
//!
//! `inet_lookup_listener` and `compute_score` in `net/ipv4/inet_hashtables.c`, and their counterparts in `net/ipv6`,
//! compare namespace and port first; the rest is here. Two criteria are left out, because they decide between sockets
//! that all take the client: `SO_INCOMING_CPU`; and that the kernel, at one address, stops at the first socket of its
//! list that has `SO_REUSEPORT`, whether or not a later one is bound to the packet's device.

use std::net::IpAddr;

use pod_steer_ebpf::{FAMILY_V4, FAMILY_V6};

use super::Socket;
pub use crate::address::ANY_ADDRESS;
use crate::{address::address_bytes, listener::Listener, rule::RuleKey};

/// The kernel looks for an exact address before any address, whatever else it compares.
const ADDRESS: u8 = 8;
/// The kernel adds one for an `AF_INET` socket, and one for a device. If two sockets have one each, it takes the first
/// in its list, in which `AF_INET6` sockets that share their port come last (`__inet_hash`): all managed sockets share
/// theirs.
const PF_INET: u8 = 3;
const DEVICE: u8 = 2;

/// The properties of a listening socket that the kernel compares, besides its namespace and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Address that it is bound to; that of an `AF_INET6` socket may be an IPv4-mapped one.
    pub ip: IpAddr,
    /// Whether it takes IPv6 clients only; `None` if that is not known yet.
    pub v6only: Option<bool>,
    /// Index of the device that it is bound to, or zero.
    pub ifindex: u32,
}

impl From<&Socket> for Bound {
    fn from(socket: &Socket) -> Self {
        Self { ip: socket.ip, v6only: socket.v6only, ifindex: socket.ifindex }
    }
}

impl From<&Listener> for Bound {
    fn from(listener: &Listener) -> Self {
        Self { ip: listener.ip, v6only: listener.v6only, ifindex: listener.ifindex }
    }
}

impl Bound {
    /// The same, but IPv6-only if it may be.
    pub fn surely(self) -> Self {
        // The kernel binds no IPv6-only socket to an IPv4-mapped address.
        let is_mapped = matches!(self.ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
        Self { v6only: Some(self.v6only.unwrap_or(!is_mapped)), ..self }
    }

    /// The address by which it takes clients of a family, in the form of a rule's key. `None` if it takes none of them.
    pub fn address(&self, family: u8) -> Option<[u8; 16]> {
        match (self.ip, family) {
            (IpAddr::V4(_), FAMILY_V4) => Some(address_bytes(self.ip)),
            (IpAddr::V6(ip), FAMILY_V4) if self.v6only != Some(true) => match ip.to_ipv4_mapped() {
                Some(ip4) => Some(address_bytes(ip4.into())),
                None => ip.is_unspecified().then_some(ANY_ADDRESS),
            },
            // Only IPv4 clients connect to an IPv4-mapped address.
            (IpAddr::V6(ip), FAMILY_V6) if ip.to_ipv4_mapped().is_none() => Some(ip.octets()),
            _ => None,
        }
    }

    /// The rank of this socket in the kernel's lookup for clients of the address and device in a rule's key. A zero
    /// there stands for an address, or a device, that no socket is bound to. `None` if the kernel never gives such
    /// clients to it.
    pub fn score(&self, to: &RuleKey) -> Option<u8> {
        let addr = self.address(to.family)?;
        let (by_address, by_device) = (addr != ANY_ADDRESS, self.ifindex != 0);
        if by_address && addr != to.addr || by_device && self.ifindex != to.ifindex {
            return None;
        }
        let points = [(by_address, ADDRESS), (self.ip.is_ipv4(), PF_INET), (by_device, DEVICE)];
        Some(points.into_iter().filter(|(has, _)| *has).map(|(_, points)| points).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(ip: &str, v6only: bool, ifindex: u32) -> Bound {
        Bound { ip: ip.parse().unwrap(), v6only: Some(v6only), ifindex }
    }

    fn to(ip: &str, ifindex: u32) -> RuleKey {
        let ip: IpAddr = ip.parse().unwrap();
        let family = if ip.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 };
        RuleKey { addr: address_bytes(ip), family, ifindex, ..RuleKey::default() }
    }

    /// The sockets that take such clients, in the kernel's order of preference. `tests/tests/addresses.rs` asks the
    /// kernel.
    fn order(key: RuleKey) -> Vec<&'static str> {
        let all = [
            ("four", bound("0.0.0.0", false, 0)),
            ("four dev", bound("0.0.0.0", false, 5)),
            ("four one", bound("10.9.1.1", false, 0)),
            ("four one dev", bound("10.9.1.1", false, 5)),
            ("dual", bound("::", false, 0)),
            ("dual dev", bound("::", false, 5)),
            ("six", bound("::", true, 0)),
            ("six one", bound("fd09::1", false, 0)),
            ("six one dev", bound("fd09::1", true, 5)),
            ("mapped", bound("::ffff:10.9.1.1", false, 0)),
            ("mapped dev", bound("::ffff:10.9.1.1", false, 5)),
            ("mapped any", bound("::ffff:0.0.0.0", false, 0)),
        ];
        let mut scored: Vec<_> = all.iter().filter_map(|(name, bound)| Some((bound.score(&key)?, *name))).collect();
        scored.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
        scored.into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn an_address_comes_first_then_the_family_and_the_device() {
        assert_eq!(
            order(to("10.9.1.1", 5)),
            ["four one dev", "four one", "mapped dev", "mapped", "four dev", "four", "dual dev", "dual", "mapped any"]
        );
        assert_eq!(order(to("10.9.1.1", 6)), ["four one", "mapped", "four", "dual", "mapped any"]);
        assert_eq!(order(to("10.9.1.2", 5)), ["four dev", "four", "dual dev", "dual", "mapped any"]);
        assert_eq!(order(to("0.0.0.0", 0)), ["four", "dual", "mapped any"], "an address that no socket is bound to");
        assert_eq!(order(to("fd09::1", 5)), ["six one dev", "six one", "dual dev", "dual", "six"]);
        assert_eq!(order(to("fd09::1", 6)), ["six one", "dual", "six"]);
        assert_eq!(order(to("fd09::2", 5)), ["dual dev", "dual", "six"]);
    }

    #[test]
    fn a_mapped_address_takes_no_ipv6_clients() {
        let mapped = bound("::ffff:10.9.1.1", false, 0);
        assert!(mapped.score(&to("::1", 0)).is_none() && mapped.score(&to("::", 0)).is_none());
        assert!(mapped.score(&to("10.9.1.1", 0)).is_some() && mapped.score(&to("10.9.1.2", 0)).is_none());
    }

    #[test]
    fn a_socket_that_may_be_ipv6_only_surely_takes_no_ipv4_clients() {
        let unknown = Bound { v6only: None, ..bound("::", false, 0) };
        assert!(unknown.score(&to("10.9.1.1", 0)).is_some());
        assert!(unknown.surely().score(&to("10.9.1.1", 0)).is_none());
        assert!(unknown.surely().score(&to("::1", 0)).is_some());
        assert!(bound("10.9.1.1", false, 0).surely().score(&to("10.9.1.1", 0)).is_some());
        // A mapped address cannot be bound by an IPv6-only socket, so such a socket is known.
        let mapped = Bound { v6only: None, ..bound("::ffff:10.9.1.1", false, 0) };
        assert!(mapped.surely().score(&to("10.9.1.1", 0)).is_some());
    }
}
