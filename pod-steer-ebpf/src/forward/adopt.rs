//! Finds a connection again whose entries are lost: they were evicted, or their map is new. The server's socket still has it. Many packets
//! may look like one of a socket whose client has another port for it: such a socket has entries of its own connection, or other numbers.

use aya_ebpf::{btf_maps::PerCpuArray, cty::c_void, helpers::bpf_loop, macros::btf_map, programs::TcContext};
use pod_steer_ebpf::{
    ADOPTION_STEPS, ADOPTION_STEPS_PER_S, Candidate, CandidateKey, FAMILY_V4, FLOW_ADOPTED, FLOW_FIN, FLOW_FIN_REPLY,
    FLOW_PEER, FLOW_RST, FLOW_SOURCE, Flow, NONE, Tuple, WALK_MAX,
};

use super::{
    headers::{ACK, FIN, RST, Work},
    known::{self, ENDS},
    local::{self, LOOPBACK, SOURCE_PORTS},
    now,
    sockets::{
        MISFIT, NO_SOCKET, Numbers, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK,
        TCP_NEW_SYN_RECV, is_alive, state_for,
    },
    syn,
};
use crate::maps::{CANDIDATES, DESTINATIONS, MISSES, SERVICE_COUNTERS, count, netns_cookie};

const SECOND_NS: u64 = 1_000_000_000;

/// The steps of this processor's looks in a second.
#[repr(C)]
struct Looks {
    second: u64,
    steps: u64,
}

#[btf_map]
static LOOKS: PerCpuArray<Looks, 1> = PerCpuArray::new();

/// Sets what a packet of an unknown connection becomes and returns the service; [`NONE`] if it passes.
#[inline(never)]
pub fn adopt(ctx: &TcContext, ifindex: u32, work: &mut Work) -> u32 {
    let now = now();
    // SAFETY: only the presence of an entry matters.
    if unsafe { MISSES.get(&work.tuple) }.is_some() {
        return NONE;
    }
    let service = syn::rule_of(&work.tuple, ifindex).map_or(NONE, |rule| rule.service);
    let front = u16::from_be(work.tuple.destination_port);
    let count = if service == NONE { 0 } else { candidate(service, front, 0).map_or(0, |count| count.backend) };
    if count == 0 || ifindex != LOOPBACK && !syn::is_for_here(ctx, ifindex, &work.tuple) {
        return NONE;
    }
    let Ok([sequence, acknowledgement]) = ctx.load::<[u32; 2]>(work.tcp as usize + 4) else { return NONE };
    let Some(looks) = looks(now) else {
        count!(SERVICE_COUNTERS, service, adopt_limited);
        return NONE;
    };
    work.flow = Flow { to: work.tuple, seen_ns: now, service, backend: NONE, ..Flow::default() };
    let mut search = Search {
        ctx,
        front,
        ifindex,
        by_bridge: work.bridge,
        count,
        numbers: Numbers {
            sequence: u32::from_be(sequence),
            acknowledgement: u32::from_be(acknowledgement),
            acknowledges: work.flags & ACK,
        },
        state: NO_SOCKET,
        others: 0,
        tuple: &work.tuple,
        flow: &mut work.flow,
    };
    let steps = count.min(2 * WALK_MAX).wrapping_mul(SOURCE_PORTS + 1).min(2 * WALK_MAX);
    // SAFETY: the callback has the signature that the helper calls, and `search` outlives the call.
    let done = unsafe { bpf_loop(steps, step as *mut c_void, (&raw mut search).cast(), 0) };
    // SAFETY: the verifier checked the pointer; only this processor uses the entry.
    unsafe { (*looks).steps += ADOPTION_STEPS + (done as u64).min(2 * u64::from(WALK_MAX)) };
    let (state, others) = (search.state, search.others);
    if work.flow.backend == NONE {
        // It is one of a socket here, or of none. Its next packets need no search. Where there was a socket, another packet may fit it.
        if others == 0 {
            let _ = MISSES.insert(&work.tuple, &now, 0);
        }
        return NONE;
    }
    let ends = ended(state, work.flags);
    work.flow.flags |= FLOW_ADOPTED | ends;
    if work.l2 == 0 {
        work.flow.flags &= !FLOW_PEER;
    }
    work.to = work.flow.to;
    let Flow { device, flags, backend, .. } = work.flow;
    known::go(work, device, flags, backend);
    count!(SERVICE_COUNTERS, service, adopted);
    let is_over = ends & FLOW_RST != 0 || ends & ENDS == ENDS;
    if is_over || !is_alive(state, TCP_NEW_SYN_RECV) || !known::keep(ifindex, work) {
        known::hold(ifindex, work);
    }
    service
}

/// How far a connection has ended, by the state of its server's socket and the flags of its client's packet. Both may be behind: what neither
/// says is noted when a packet says it.
#[inline(always)]
fn ended(state: u32, flags: u32) -> u32 {
    let mut ends = 0;
    if flags & FIN != 0 || matches!(state, TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING) {
        ends |= FLOW_FIN;
    }
    if matches!(state, TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_LAST_ACK | TCP_CLOSING) {
        ends |= FLOW_FIN_REPLY;
    }
    if flags & RST != 0 { ends | FLOW_RST } else { ends }
}

/// What was done in this second; nothing if no more may be. A flood of packets of no connection must not cost more than a part of a
/// processor, however many servers there are.
#[inline(always)]
fn looks(now: u64) -> Option<*mut Looks> {
    let looks = LOOKS.get_ptr_mut(0)?;
    let second = now / SECOND_NS;
    // SAFETY: the verifier checked the pointer; only this processor uses the entry.
    unsafe {
        if (*looks).second != second {
            *looks = Looks { second, steps: 0 };
        }
        if (*looks).steps < ADOPTION_STEPS_PER_S { Some(looks) } else { None }
    }
}

#[inline(always)]
fn candidate(service: u32, front: u16, number: u16) -> Option<&'static Candidate> {
    // SAFETY: a candidate is replaced as a whole.
    unsafe { CANDIDATES.get(CandidateKey { service, front, number }) }
}

/// Passed to the callback of `bpf_loop`.
struct Search<'a> {
    ctx: &'a TcContext,
    front: u16,
    ifindex: u32,
    /// [`Work::bridge`].
    by_bridge: u32,
    /// Of candidates.
    count: u32,
    /// Of the packet.
    numbers: Numbers,
    /// Of the socket that was found.
    state: u32,
    /// Sockets that are of other connections.
    others: u32,
    tuple: &'a Tuple,
    /// Its backend is set if one has the connection.
    flow: &'a mut Flow,
}

/// Looks at one candidate: first at each with the client's own port, then with those that it may have got. A non-zero result ends the
/// search.
extern "C" fn step(i: u32, context: *mut c_void) -> i64 {
    // SAFETY: `context` is the `search` of the caller, which nothing else uses meanwhile.
    let search = unsafe { &mut *context.cast::<Search<'_>>() };
    let flow = &mut *search.flow;
    // The caller has checked that there are some.
    let (try_number, number) = (i / search.count.max(1), i % search.count.max(1));
    let Some(candidate) = candidate(flow.service, search.front, number as u16 + 1) else { return 0 };
    // SAFETY: a destination is replaced as a whole.
    let Some(destination) = (unsafe { DESTINATIONS.get(candidate.backend) }) else { return 0 };
    if destination.ingress_cookie != netns_cookie() {
        return 0;
    }
    (flow.to, flow.flags, flow.device) = (*search.tuple, 0, 0);
    if !local::hand_over(flow, candidate.backend, destination, search.ifindex) {
        return 0;
    }
    if search.by_bridge != 0 || search.ifindex == LOOPBACK {
        local::stand_in(flow, candidate.backend, search.ifindex);
    }
    if search.by_bridge != 0 && flow.flags & FLOW_PEER == 0 {
        // The firewall may translate the client's source, and has let its SYN pass.
        flow.device = destination.device;
    }
    if try_number != 0 {
        flow.flags |= FLOW_SOURCE;
        flow.to.source_port = local::source_port(search.tuple, try_number - 1);
    } else if flow.flags & FLOW_SOURCE != 0 {
        return 0;
    }
    let is_v4 = search.tuple.family == FAMILY_V4;
    flow.to.destination = if is_v4 { [destination.v4, 0, 0, 0] } else { destination.v6 };
    flow.to.destination_port = candidate.port.to_be();
    let seen = state_for(search.ctx, &flow.to, destination.nsid, &search.numbers);
    search.state = seen & !MISFIT;
    if !is_alive(search.state, NO_SOCKET) {
        return 0;
    }
    if seen & MISFIT != 0 || local::is_of_another(&flow.to, search.tuple) {
        search.others += 1;
        return 0;
    }
    (flow.backend, flow.nsid) = (candidate.backend, destination.nsid);
    1
}
