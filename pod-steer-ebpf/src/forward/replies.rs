//! Caches the last reply of each processor. A reply that the kernel forwards passes two devices. The program of the first one finds its
//! connection, and stores what the packet becomes. The program of the second one rewrites it without another lookup, if it is the same
//! packet: a processor usually forwards one before it takes the next.

use core::ptr;

use aya_ebpf::programs::TcContext;
use pod_steer_ebpf::{FAMILY_V4, Reply};

use super::headers::{
    ETH_P_IP, IPV4_DESTINATION, IPV4_LEN, IPV4_SOURCE, IPV6_DESTINATION, IPV6_LEN, IPV6_SOURCE, TCP_READ, Work,
};
use crate::maps::REPLY;

/// Stores what a reply becomes. It is no fragment.
#[inline(never)]
pub fn store(work: &Work, service: u32) {
    let Some(reply) = REPLY.get_ptr_mut(0) else { return };
    let Work { tuple, to, sequence, flags, tcp, .. } = work;
    // SAFETY: the verifier checked the pointer, and only this processor uses the entry.
    unsafe { *reply = Reply { tuple: *tuple, to: *to, sequence: *sequence, flags: *flags, service, tcp: *tcp } };
}

/// The entry of this packet, whose IP header begins at `l2`. It has neither options nor extension headers.
#[inline(always)]
pub fn stored(ctx: &TcContext, l2: usize, protocol: u32) -> Option<&'static Reply> {
    let reply = REPLY.get(0)?;
    if is_of(reply, ctx, l2, protocol) { Some(reply) } else { None }
}

/// Whether the entry is of this packet: addresses, ports, sequence number and flags are the same.
#[inline(never)]
fn is_of(reply: &Reply, ctx: &TcContext, l2: usize, protocol: u32) -> bool {
    let (ip, tuple) = (ctx.data() + l2, &reply.tuple);
    let is_v4 = protocol == ETH_P_IP;
    let tcp = if is_v4 { IPV4_LEN } else { IPV6_LEN };
    if is_v4 != (tuple.family == FAMILY_V4) || reply.tcp as usize != l2 + tcp || ip + tcp + TCP_READ > ctx.data_end() {
        return false;
    }
    // SAFETY: all of these bytes are in the packet, as was compared.
    let header = unsafe { ptr::read_unaligned((ip + tcp) as *const [u16; 7]) };
    let addresses = if is_v4 {
        differs(ip + IPV4_SOURCE, tuple.source[0]) | differs(ip + IPV4_DESTINATION, tuple.destination[0])
    } else {
        differ(ip + IPV6_SOURCE, &tuple.source) | differ(ip + IPV6_DESTINATION, &tuple.destination)
    };
    let sequence = u32::from(header[2]) | u32::from(header[3]) << 16;
    let ports = (header[0] ^ tuple.source_port) | (header[1] ^ tuple.destination_port);
    let flags = u32::from(u16::from_be(header[6]));
    addresses | u32::from(ports) | (sequence ^ reply.sequence) | (flags ^ reply.flags) == 0
}

#[inline(always)]
fn differ(at: usize, address: &[u32; 4]) -> u32 {
    (0..4).fold(0, |all, word| all | differs(at + 4 * word, address[word]))
}

/// Zero if the packet has this word at this place.
#[inline(always)]
fn differs(at: usize, word: u32) -> u32 {
    // SAFETY: the caller has compared the place with the packet's end.
    word ^ unsafe { ptr::read_unaligned(at as *const u32) }
}
