//! What a rule is for. Pure.
#![forbid(unsafe_code)]

use crate::{
    address::ANY_ADDRESS,
    ids::NetnsCookie,
    ports::{Port, Proto},
};

/// What a lookup is matched against, as [`pod_steer_ebpf::RuleKey`] has it in plain numbers; in the same order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleKey {
    /// The ingress namespace.
    pub netns_cookie: NetnsCookie,
    /// Local address in network byte order, IPv4 in the first four bytes; [`ANY_ADDRESS`] for any address of this family.
    pub addr: [u8; 16],
    /// Local port.
    pub port: Port,
    /// [`pod_steer_ebpf::FAMILY_V4`] or [`pod_steer_ebpf::FAMILY_V6`].
    pub family: u8,
    /// Index of the device that the packet comes by; zero for any.
    pub ifindex: u32,
}

impl RuleKey {
    /// The key of the rule for every address and device of the same port and family.
    pub fn of_port(&self) -> Self {
        Self { addr: ANY_ADDRESS, ifindex: 0, ..*self }
    }

    /// Whether the rule is for every address and device of its port.
    pub fn is_of_port(&self) -> bool {
        *self == self.of_port()
    }

    /// The same without the port: rules of a service that differ by their port alone may have equal tables.
    pub fn without_port(&self) -> Self {
        Self { port: Port { number: 0, proto: self.port.proto }, ..*self }
    }

    /// As the kernel's map holds it.
    pub fn written(&self) -> pod_steer_ebpf::RuleKey {
        let Self { netns_cookie, addr, port, family, ifindex } = *self;
        let (port, proto) = (port.number, port.proto.number());
        pod_steer_ebpf::RuleKey { netns_cookie: netns_cookie.0, addr, port, proto, family, ifindex }
    }

    /// The reverse of [`RuleKey::written`]; nothing if it is for a protocol that is not known here.
    pub fn read(key: &pod_steer_ebpf::RuleKey) -> Option<Self> {
        let pod_steer_ebpf::RuleKey { netns_cookie, addr, port, proto, family, ifindex } = *key;
        let port = Port { number: port, proto: Proto::from_number(proto)? };
        Some(Self { netns_cookie: NetnsCookie(netns_cookie), addr, port, family, ifindex })
    }
}

#[cfg(test)]
mod tests {
    use pod_steer_ebpf::{FAMILY_V6, PROTO_UDP};

    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let key = RuleKey {
            netns_cookie: NetnsCookie(7),
            addr: [9; 16],
            port: Port::tcp(443),
            family: FAMILY_V6,
            ifindex: 3,
        };
        assert_eq!(RuleKey::read(&key.written()), Some(key));
        assert_eq!(RuleKey::read(&pod_steer_ebpf::RuleKey { proto: PROTO_UDP, ..key.written() }), None);
        assert!(key.of_port().is_of_port() && !key.is_of_port());
    }
}
