//! Fragments of IPv4 packets. The first one has the ports and is handled as every packet; the others follow it by what all of a packet's
//! fragments have in common. One that comes before the first is left as it is, and so its packet is lost.

use aya_ebpf::{bindings::TC_ACT_SHOT, btf_maps::LruHashMap, macros::btf_map, programs::TcContext};

use super::{
    NEXT,
    headers::{FRAGMENT_ID, IPV4_DESTINATION, IPV4_SOURCE, Work},
    leave, local, now,
    rewrite::ipv4_header_address,
    routes::Hop,
};

/// Packets of which fragments may be under way. Devices that come later have a map of their own: the fragments of a
/// packet come by one device.
const PACKETS_MAX: usize = 1_024;
/// The fragments of a packet come within this time. A sender that uses an identifier again does so later.
const FOLLOWS_NS: u64 = 1_000_000_000;

/// What the fragments of a packet have in common, by direction.
#[repr(C)]
#[derive(Clone, Copy)]
struct Fragmented {
    /// In network byte order.
    source: u32,
    /// The same.
    destination: u32,
    /// The identifier; above it, whether the packet leaves.
    id: u32,
}

/// What the first fragment became.
#[repr(C)]
#[derive(Clone, Copy)]
struct Became {
    source: u32,
    destination: u32,
    seen_ns: u64,
    device: u32,
    /// [`Work::peer`].
    peer: u32,
}

#[btf_map]
static FRAGMENTED: LruHashMap<Fragmented, Became, PACKETS_MAX> = LruHashMap::new();

impl Fragmented {
    #[inline(always)]
    fn of(work: &Work, leaves: bool) -> Self {
        let id = work.fragment & FRAGMENT_ID | u32::from(leaves) << 16;
        Self { source: work.tuple.source[0], destination: work.tuple.destination[0], id }
    }
}

/// The first fragment of a packet is there: what an earlier one with the same identifier became does not count any more.
#[inline(never)]
pub fn begin(work: &Work, leaves: bool) {
    if work.fragment != 0 {
        let _ = FRAGMENTED.remove(Fragmented::of(work, leaves));
    }
}

/// A packet has become one of `work.to`: if it is a first fragment, the others follow it.
#[inline(never)]
pub fn note(work: &Work, leaves: bool) {
    if work.fragment == 0 {
        return;
    }
    let key = Fragmented::of(work, leaves);
    let became = Became {
        source: work.to.source[0],
        destination: work.to.destination[0],
        seen_ns: now(),
        device: work.device,
        peer: work.peer,
    };
    let _ = FRAGMENTED.insert(&key, &became, 0);
}

/// A fragment without ports, whose IP header begins at `l2`.
#[inline(never)]
pub fn follow(ctx: &TcContext, l2: usize, work: &Work, leaves: bool, mark: u32) -> i32 {
    let key = Fragmented::of(work, leaves);
    // SAFETY: the entry is copied. It may be evicted and another take its place meanwhile, whose fragments then are lost.
    let Some(became) = (unsafe { FRAGMENTED.get(&key) }).copied() else { return NEXT };
    if now().wrapping_sub(became.seen_ns) > FOLLOWS_NS {
        return NEXT;
    }
    let done = ipv4_header_address(ctx, l2, IPV4_SOURCE, key.source, became.source)
        .and_then(|()| ipv4_header_address(ctx, l2, IPV4_DESTINATION, key.destination, became.destination));
    if done.is_err() {
        return TC_ACT_SHOT;
    }
    if leaves {
        return NEXT;
    }
    leave(ctx, became.device, &Hop::UNKNOWN, local::end(became.peer), mark)
}
