//! Addresses in the form of the contract. Pure.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};

/// Any address, in a rule's key.
pub const ANY_ADDRESS: [u8; 16] = [0; 16];

/// The 16 bytes of the contract: network byte order, IPv4 in the first four.
pub fn address_bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The reverse of [`address_bytes`].
pub fn address_from_bytes(family: u8, bytes: [u8; 16]) -> IpAddr {
    if family == pod_steer_ebpf::FAMILY_V4 {
        IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
    } else {
        Ipv6Addr::from(bytes).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_contract() {
        for ip in ["127.0.0.1", "::1", "2001:db8::7"] {
            let ip: IpAddr = ip.parse().unwrap();
            let family = if ip.is_ipv4() { pod_steer_ebpf::FAMILY_V4 } else { pod_steer_ebpf::FAMILY_V6 };
            assert_eq!(address_from_bytes(family, address_bytes(ip)), ip);
        }
    }
}
