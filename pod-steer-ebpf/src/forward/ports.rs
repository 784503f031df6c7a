//! The ports of a packet, read in place and before anything else: most packets belong to no forwarded connection.

use core::ptr;

use aya_ebpf::programs::TcContext;
use pod_steer_ebpf::{PROTO_TCP, PROTO_UDP};

use super::headers::{ETH_P_IP, ETH_P_IPV6, IPV6_LEN};

/// What the first look at a packet tells.
pub enum Look {
    /// It is none of a TCP connection.
    Other,
    /// It is of TCP; source and destination port, in network byte order.
    Tcp(u16, u16),
    /// It has to be read more closely: it is of another protocol, is a fragment, has options or extension headers, or its
    /// headers are in pages.
    Closer,
}

/// First byte of an IPv4 header without options, and its length.
const IPV4_PLAIN: u8 = 0x45;
const IPV4_LEN: usize = 20;
const IPV4_PROTOCOL: usize = 9;
/// Where its flags and the offset of a fragment are, and those of any fragment, in network byte order.
const IPV4_FRAGMENT_AT: usize = 6;
const IPV4_FRAGMENT: u16 = 0x3fff_u16.to_be();
const IPV6_NEXT_HEADER: usize = 6;
const PORTS_LEN: usize = 4;

/// Looks at a packet whose IP header begins at `l2`, given `skb->protocol`.
#[inline(always)]
pub fn look(ctx: &TcContext, l2: usize, protocol: u32) -> Look {
    let (ip, end) = (ctx.data() + l2, ctx.data_end());
    let (length, protocol_at) = match protocol {
        ETH_P_IP => (IPV4_LEN, IPV4_PROTOCOL),
        ETH_P_IPV6 => (IPV6_LEN, IPV6_NEXT_HEADER),
        _ => return Look::Other,
    };
    if ip + length + PORTS_LEN > end {
        return Look::Closer;
    }
    // SAFETY: all of these bytes are in the packet, as was compared.
    let (first, transport, ports) = unsafe {
        let ports = (ip + length) as *const [u16; 2];
        (*(ip as *const u8), *((ip + protocol_at) as *const u8), ptr::read_unaligned(ports))
    };
    // SAFETY: the same.
    let fragment = unsafe { ptr::read_unaligned((ip + IPV4_FRAGMENT_AT) as *const u16) };
    if protocol == ETH_P_IP && (first != IPV4_PLAIN || fragment & IPV4_FRAGMENT != 0) {
        return Look::Closer;
    }
    match transport {
        PROTO_TCP => Look::Tcp(ports[0], ports[1]),
        PROTO_UDP => Look::Other,
        _ => Look::Closer,
    }
}
