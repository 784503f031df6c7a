//! Clients on this machine whose source the host's firewall has translated, as Docker's MASQUERADE does for all that leaves a bridge. The
//! server has to see the client's own address: its answer would meet another entry of conntrack than the one that knows the translation. So
//! the translation is undone.
//!
//! A client of a container on another bridge is translated after FORWARD, which has let its SYN pass. Where the SYN leaves, its own source
//! is found by its sequence number. All later packets of the connection are handed over, past the rules that would translate them. A client
//! on the host is translated before its SYN comes out of the loopback device; there, its socket is found.

use aya_ebpf::programs::TcContext;
use pod_steer_ebpf::{EXPECTED_SYN, Tuple};

use super::{
    headers::Work,
    local, now, rewrite,
    sockets::{CURRENT_NAMESPACE, TCP_SYN_SENT, state},
};
use crate::maps::PENDING;

/// Longest time from a SYN's coming to its leaving. It may be queued for a program of the firewall (NFQUEUE).
const EXPECTED_NS: u64 = 3_000_000_000;

/// The key by which a rewritten SYN is found where it leaves.
#[inline(always)]
fn key(to: &Tuple, sequence: u32) -> Tuple {
    Tuple { source: [sequence, 0, 0, 0], source_port: 0, reply: EXPECTED_SYN, ..*to }
}

/// The SYN of `work`, which came by this device, leaves by another one: perhaps with another source.
#[inline(never)]
pub fn expect(ifindex: u32, work: &mut Work) {
    let key = key(&work.to, work.sequence);
    (work.flow.device, work.flow.seen_ns) = (ifindex, now());
    let _ = PENDING.insert(&key, &work.flow, 0);
    work.flow.device = 0;
}

/// Gives a rewritten SYN that leaves by this device its own source back, and makes later packets of its connection be handed over. False if
/// that fails midway. A SYN whose source is its own is not changed.
#[inline(never)]
pub fn restore(ctx: &TcContext, l2: usize, ifindex: u32, work: &mut Work) -> bool {
    let key = key(&work.tuple, work.sequence);
    if !copied(&key, work) {
        return true;
    }
    // A repeated SYN either is expected again, or is handed over.
    let _ = PENDING.remove(&key);
    let Work { flow, tuple, to, .. } = work;
    let differs = |a: &[u32; 4], b: &[u32; 4]| (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) != 0;
    // One that the firewall has dropped leaves its entry behind.
    let is_expected = flow.sequence == work.sequence
        && now().wrapping_sub(flow.seen_ns) < EXPECTED_NS
        && !differs(&flow.to.destination, &tuple.destination)
        && flow.to.destination_port == tuple.destination_port;
    if !is_expected || !differs(&flow.to.source, &tuple.source) && flow.to.source_port == tuple.source_port {
        return true;
    }
    *to = flow.to;
    let arrival = flow.device;
    let back = work.to.reversed();
    // Without its entries, the connection is found again by its server's socket.
    if copied(&back, work) && !differs(&work.flow.to.destination, &work.to.source) {
        let forward = work.flow.to.reversed();
        work.flow.device = arrival;
        let _ = PENDING.insert(&back, &work.flow, 0);
        if copied(&forward, work) && local::same(&work.flow.to.reversed(), &work.to) {
            work.flow.device = ifindex;
            let _ = PENDING.insert(&forward, &work.flow, 0);
        }
    }
    rewrite::rewrite(ctx, l2, &work.tuple, &work.to, work.tcp)
}

/// Copies an entry to `work.flow`, if there is one.
#[inline(never)]
fn copied(key: &Tuple, work: &mut Work) -> bool {
    // SAFETY: the entry is copied. Another may take its place meanwhile: the caller compares.
    let Some(flow) = (unsafe { PENDING.get(key) }) else { return false };
    work.flow = *flow;
    true
}

/// Finds out whether a SYN comes from a socket that has another address than the packet: the one that it connects to, as a client on this machine
/// has unless it chooses another. Then `work.tuple` gets that one, and `work.wire` that of the packet.
#[inline(never)]
pub fn find_socket(ctx: &TcContext, work: &mut Work) -> u32 {
    let Work { tuple, wire, flow, is_translated, .. } = work;
    *wire = tuple.source;
    let [a, b, c, d] = tuple.destination;
    if (wire[0] ^ a) | (wire[1] ^ b) | (wire[2] ^ c) | (wire[3] ^ d) == 0 {
        return 0;
    }
    // As the server's answer would come.
    flow.to = tuple.reversed();
    if state(ctx, &flow.to, CURRENT_NAMESPACE) == TCP_SYN_SENT {
        return 0;
    }
    flow.to.destination = tuple.destination;
    if state(ctx, &flow.to, CURRENT_NAMESPACE) == TCP_SYN_SENT {
        tuple.source = tuple.destination;
        *is_translated = 1;
    }
    0
}
