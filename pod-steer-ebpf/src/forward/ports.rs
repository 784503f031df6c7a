//! The ports of a packet, read in place and before anything else: most packets belong to no forwarded connection.

use core::ptr;

use aya_ebpf::programs::TcContext;
use pod_steer_ebpf::{PROTO_TCP, PROTO_UDP};

use super::headers::{ACK, ETH_P_IP, ETH_P_IPV6, IPV4_LEN, IPV6_LEN, SYN, TCP_READ};

/// What the first look at a packet tells.
pub enum Look {
    /// It is none of a TCP connection.
    Other,
    /// It is of TCP.
    Tcp(Ports),
    /// It has to be read more closely: it is of another protocol, is a fragment, has options or extension headers, or its
    /// headers are in pages.
    Closer,
}

/// The ports of a packet, in network byte order.
#[derive(Clone, Copy)]
pub struct Ports {
    pub source: u16,
    pub destination: u16,
    /// It is a SYN without ACK.
    pub begins: bool,
}

/// First byte of an IPv4 header without options.
const IPV4_PLAIN: u8 = 0x45;
const IPV4_PROTOCOL: usize = 9;
/// Where its flags and the offset of a fragment are, and those of any fragment, in network byte order.
const IPV4_FRAGMENT_AT: usize = 6;
const IPV4_FRAGMENT: u16 = 0x3fff_u16.to_be();
const IPV6_NEXT_HEADER: usize = 6;
/// Place of the flags in the TCP header.
const TCP_FLAGS: usize = 13;

/// Looks at a packet whose IP header begins at `l2`, given `skb->protocol`.
#[inline(always)]
pub fn look(ctx: &TcContext, l2: usize, protocol: u32) -> Look {
    let (ip, end) = (ctx.data() + l2, ctx.data_end());
    let (length, protocol_at) = match protocol {
        ETH_P_IP => (IPV4_LEN, IPV4_PROTOCOL),
        ETH_P_IPV6 => (IPV6_LEN, IPV6_NEXT_HEADER),
        _ => return Look::Other,
    };
    if ip + length + TCP_READ > end {
        return Look::Closer;
    }
    // SAFETY: all of these bytes are in the packet, as was compared.
    let (first, transport, ports, flags) = unsafe {
        let tcp = ip + length;
        let (ports, flags) = (ptr::read_unaligned(tcp as *const [u16; 2]), *((tcp + TCP_FLAGS) as *const u8));
        (*(ip as *const u8), *((ip + protocol_at) as *const u8), ports, u32::from(flags))
    };
    // SAFETY: the same.
    let fragment = unsafe { ptr::read_unaligned((ip + IPV4_FRAGMENT_AT) as *const u16) };
    if protocol == ETH_P_IP && (first != IPV4_PLAIN || fragment & IPV4_FRAGMENT != 0) {
        return Look::Closer;
    }
    match transport {
        PROTO_TCP => Look::Tcp(Ports { source: ports[0], destination: ports[1], begins: flags & (SYN | ACK) == SYN }),
        PROTO_UDP => Look::Other,
        _ => Look::Closer,
    }
}
