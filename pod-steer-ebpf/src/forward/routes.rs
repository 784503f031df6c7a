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
    /// Its next hop on the link of that device.
    pub hop: Hop,
}

/// The parameters of `bpf_redirect_neigh`, as `bpf_redir_neigh` in `include/uapi/linux/bpf.h` has them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Hop {
    /// `AF_INET` or `AF_INET6`; zero if it is not known.
    pub family: u32,
    /// In network byte order, IPv4 in the first word.
    pub address: [u32; 4],
}

impl Hop {
    /// The helper finds it by the packet's destination.
    pub const UNKNOWN: Self = Self { family: 0, address: [0; 4] };
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
    // The kernel has replaced the destination by the gateway, if there is one. That of an IPv4 route may be one of IPv6.
    // SAFETY: all variants are plain bytes.
    let hop = Hop { family: fib.family.into(), address: unsafe { fib.__bindgen_anon_4.ipv6_dst } };
    Route { verdict, device: fib.ifindex, hop }
}
