//! What a choice needs to know of a packet.

use core::ptr;

use aya_ebpf::programs::SkLookupContext;
use pod_steer_ebpf::FAMILY_V4;
pub use pod_steer_ebpf::Packet;

/// ::1, in network byte order.
pub const LOOPBACK_V6: [u32; 4] = [0, 0, 0, 1u32.to_be()];

/// The packet that a lookup is for.
#[inline(always)]
pub fn of(ctx: &SkLookupContext) -> Packet {
    let l = ctx.lookup;
    // SAFETY: the context is valid for the whole run. Volatile and unconditional: otherwise the compiler merges
    // reads of two branches into one at a computed offset, which the verifier rejects.
    let (mut packet, local_ip4, remote_ip4) = unsafe {
        let packet = Packet {
            family: ptr::read_volatile(&raw const (*l).family),
            protocol: ptr::read_volatile(&raw const (*l).protocol),
            local_port: ptr::read_volatile(&raw const (*l).local_port),
            remote_port: ptr::read_volatile(&raw const (*l).remote_port),
            // In the context since Linux 5.17.
            ifindex: ptr::read_volatile(&raw const (*l).ingress_ifindex),
            local: ptr::read_volatile(&raw const (*l).local_ip6),
            remote: ptr::read_volatile(&raw const (*l).remote_ip6),
        };
        (packet, ptr::read_volatile(&raw const (*l).local_ip4), ptr::read_volatile(&raw const (*l).remote_ip4))
    };
    if packet.family == u32::from(FAMILY_V4) {
        packet.local = [local_ip4, 0, 0, 0];
        packet.remote = [remote_ip4, 0, 0, 0];
    }
    packet
}
