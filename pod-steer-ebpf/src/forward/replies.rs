//! A reply that the kernel forwards passes two devices. The first one's program finds its connection, and leaves here what the packet becomes.
//! The second one's need not look again: a processor forwards a packet before it takes the next one. Where it does not, another packet is
//! here, or none, and the connection is looked up once more.

use core::ptr;

use aya_ebpf::programs::TcContext;
use pod_steer_ebpf::{FAMILY_V4, Left};

use super::headers::{
    ETH_P_IP, IPV4_DESTINATION, IPV4_LEN, IPV4_SOURCE, IPV6_DESTINATION, IPV6_LEN, IPV6_SOURCE, TCP_READ, Work,
};
use crate::maps::LEFT;

/// Leaves what a reply becomes. It is no fragment.
#[inline(never)]
pub fn leave(work: &Work, service: u32) {
    let Some(left) = LEFT.get_ptr_mut(0) else { return };
    let Work { tuple, to, sequence, flags, tcp, .. } = work;
    // SAFETY: the verifier checked the pointer, and only this processor uses the entry.
    unsafe { *left = Left { tuple: *tuple, to: *to, sequence: *sequence, flags: *flags, service, tcp: *tcp } };
}

/// What was left for this packet, whose IP header begins at `l2`. It has neither options nor extension headers.
#[inline(always)]
pub fn take(ctx: &TcContext, l2: usize, protocol: u32) -> Option<&'static Left> {
    let left = LEFT.get(0)?;
    if is_for(left, ctx, l2, protocol) { Some(left) } else { None }
}

/// Whether it was left for this packet: addresses, ports, sequence number and flags are the same.
#[inline(never)]
fn is_for(left: &Left, ctx: &TcContext, l2: usize, protocol: u32) -> bool {
    let (ip, tuple) = (ctx.data() + l2, &left.tuple);
    let is_v4 = protocol == ETH_P_IP;
    let tcp = if is_v4 { IPV4_LEN } else { IPV6_LEN };
    if is_v4 != (tuple.family == FAMILY_V4) || left.tcp as usize != l2 + tcp || ip + tcp + TCP_READ > ctx.data_end() {
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
    addresses | u32::from(ports) | (sequence ^ left.sequence) | (flags ^ left.flags) == 0
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
