//! What a choice needs to know of a packet.

use core::ptr;

use aya_ebpf::programs::SkLookupContext;
use pod_steer_ebpf::{FAMILY_V4, PROTO_TCP, Tuple};

/// ::1, in network byte order.
pub const LOOPBACK_V6: [u32; 4] = [0, 0, 0, 1u32.to_be()];

/// The fields of a packet that a lookup uses.
pub struct Packet {
    pub family: u32,
    pub protocol: u32,
    /// In host byte order.
    pub local_port: u32,
    /// In network byte order.
    pub remote_port: u16,
    /// The device by which it came in, which the kernel compares with a listener's; of one that belongs to a VRF, the VRF. 0 if there
    /// is none.
    pub ifindex: u32,
    /// In network byte order; IPv4 in the first word, the others zero.
    pub local: [u32; 4],
    pub remote: [u32; 4],
}

impl Packet {
    #[inline(always)]
    pub fn of(ctx: &SkLookupContext) -> Self {
        let l = ctx.lookup;
        // SAFETY: the context is valid for the whole run. Volatile and unconditional: otherwise the compiler merges
        // reads of two branches into one at a computed offset, which the verifier rejects.
        let (mut packet, local_ip4, remote_ip4) = unsafe {
            let packet = Self {
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

    /// A TCP packet that has come by a device.
    #[inline(always)]
    pub fn of_tuple(tuple: &Tuple, ifindex: u32) -> Self {
        Self {
            family: tuple.family.into(),
            protocol: PROTO_TCP.into(),
            local_port: u16::from_be(tuple.destination_port).into(),
            remote_port: tuple.source_port,
            ifindex,
            local: tuple.destination,
            remote: tuple.source,
        }
    }
}
