//! The kernel's routes.

use core::mem;

use aya_ebpf::{EbpfContext as _, bindings::bpf_fib_lookup, helpers::generated, programs::TcContext};
use pod_steer_ebpf::{PROTO_TCP, Tuple};

/// What the kernel would do with a packet.
pub struct Route {
    /// One of `BPF_FIB_LKUP_RET_`.
    pub verdict: i64,
    /// Index of the device by which it leaves.
    pub device: u32,
}

/// The route of a packet with these addresses and ports that comes by a device.
#[inline(always)]
pub fn route(ctx: &TcContext, ifindex: u32, tuple: &Tuple) -> Route {
    // SAFETY: integers and arrays of them.
    let mut fib: bpf_fib_lookup = unsafe { mem::zeroed() };
    fib.family = tuple.family;
    fib.l4_protocol = PROTO_TCP;
    fib.ifindex = ifindex;
    fib.sport = tuple.source_port;
    fib.dport = tuple.destination_port;
    fib.__bindgen_anon_3.ipv6_src = tuple.source;
    fib.__bindgen_anon_4.ipv6_dst = tuple.destination;
    // SAFETY: the context and the parameters are valid.
    let verdict =
        unsafe { generated::bpf_fib_lookup(ctx.as_ptr().cast(), &raw mut fib, size_of::<bpf_fib_lookup>() as i32, 0) };
    Route { verdict, device: fib.ifindex }
}
