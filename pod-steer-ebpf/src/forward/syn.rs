//! Chooses a backend for a new connection that comes by a device.

use aya_ebpf::{bindings::BPF_FIB_LKUP_RET_NOT_FWDED, programs::TcContext};
use pod_steer_ebpf::{
    Destination, FAMILY_V4, FLOW_LOCAL, FLOW_PEER, FLOW_RST, Flow, NONE, Rule, Slot, Tuple, WAY_FORWARD, is_on_link,
};

use super::{
    REPEAT,
    headers::{FORMER_KEPT, FORMER_PENDING, FORMER_REPLY, Work},
    known,
    local::{self, LOOPBACK},
    now,
    routes::{Route, route},
    sockets::{NO_SOCKET, is_alive, listener, state},
    translated,
};
use crate::{
    choose::choose,
    maps::{
        BACKEND_COUNTERS, DESTINATIONS, FLOWS, MISSES, PENDING, SERVICE_COUNTERS, count, is_listening, netns_cookie,
        switch,
    },
    packet::Packet,
    rules::find,
    table::{Chooser, Visit},
};

/// A choice is kept for retransmissions of its SYN for so long. Linux repeats an unanswered SYN after one second, then after two more; since
/// 6.5 each second, four times (`net.ipv4.tcp_syn_linear_timeouts`).
const RETRANSMITTED_NS: u64 = 4_000_000_000;

/// Chooses for a SYN. Sets what its packets become and returns the service; [`NONE`] if they pass, [`REPEAT`] if this one is dropped.
#[inline(always)]
pub fn choose_for(ctx: &TcContext, ifindex: u32, work: &mut Work) -> u32 {
    // One call after the other: the stack has no room for all of them at once.
    work.is_translated = 0;
    if ifindex == LOOPBACK {
        translated::find_socket(ctx, work);
    }
    let mut service = again(ctx, ifindex, work);
    if service == ANEW {
        // The loopback device has packets for this machine only.
        if ifindex == LOOPBACK || is_for_here(ctx, ifindex, &work.tuple) {
            choose_anew(ifindex, work);
        }
        settle(ifindex, work);
        service = remember(ctx, ifindex, work);
    }
    if work.is_translated != 0 {
        // The packet is rewritten from what it is.
        work.tuple.source = work.wire;
    }
    service
}

/// What a choice needs besides its backend. A call of its own, as above.
#[inline(never)]
fn settle(ifindex: u32, work: &mut Work) -> u32 {
    let Flow { backend, flags, .. } = work.flow;
    if flags & FLOW_LOCAL != 0 {
        if work.is_translated != 0 {
            // The lookup finds the choice by the packet's own source.
            work.tuple.source = work.wire;
        }
    } else if (work.bridge != 0 || ifindex == LOOPBACK) && backend != NONE {
        local::stand_in(&mut work.flow, backend, ifindex);
    }
    0
}

/// The connection is new.
const ANEW: u32 = NONE - 1;

/// The choice for a SYN that is repeated, or that meets a connection which lives: returns as [`choose_for`]. [`ANEW`] for any other.
#[inline(never)]
fn again(ctx: &TcContext, ifindex: u32, work: &mut Work) -> u32 {
    let now = now();
    let is_pending = known::pending(&work.tuple, &mut work.flow).is_some();
    work.former = if is_pending { FORMER_PENDING } else { 0 };
    if is_pending
        // Another connection from the same port begins with another number.
        && work.flow.sequence == work.sequence
        && now.wrapping_sub(work.flow.seen_ns) < RETRANSMITTED_NS
        && is_listening(work.flow.cookie)
        && is_current(&work.flow)
        && !answers_elsewhere(ifindex, work)
    {
        work.to = work.flow.to;
        let Flow { device, flags, backend, .. } = work.flow;
        known::go(work, device, flags, backend);
        return known::towards(&work.flow).unwrap_or(NONE);
    }
    // SAFETY: the fields are copied, and never change.
    if let Some(flow) = unsafe { FLOWS.get(&work.tuple) } {
        let (service, nsid, is_current) = (flow.service, flow.nsid, is_current(flow));
        work.to = flow.to;
        known::go(work, flow.device, flow.flags, flow.backend);
        // The server answers, and the client ends the old connection. At an address that its container has lost, it never does.
        if is_current && is_alive(state(ctx, &work.to, nsid), NO_SOCKET) {
            return service;
        }
        work.former |= FORMER_KEPT;
        // Its entries tell that what the server has in TIME_WAIT came by this very port and address.
    }
    work.flow = Flow { to: work.tuple, seen_ns: now, backend: NONE, sequence: work.sequence, ..Flow::default() };
    ANEW
}

/// Whether the packets of a choice would still go to its backend: a container that is connected to another network gets another address.
#[inline(always)]
fn is_current(flow: &Flow) -> bool {
    if flow.flags & FLOW_LOCAL != 0 {
        return true;
    }
    // SAFETY: a destination is replaced as a whole.
    let Some(destination) = (unsafe { DESTINATIONS.get(flow.backend) }) else { return false };
    let [a, b, c, d] = address_of(destination, flow.to.family);
    let to = &flow.to.destination;
    (a ^ to[0]) | (b ^ to[1]) | (c ^ to[2]) | (d ^ to[3]) == 0
}

/// Whether a choice is from before its backend was connected to the client's network too.
#[inline(always)]
fn answers_elsewhere(ifindex: u32, work: &Work) -> bool {
    let Flow { to, backend, .. } = &work.flow;
    let differs = |word: usize| to.source[word] ^ work.tuple.source[word];
    work.bridge != 0
        && differs(0) | differs(1) | differs(2) | differs(3) == 0
        && local::answers_elsewhere(*backend, ifindex, &work.tuple)
}

/// The address of a backend; zero if it has none of this family.
#[inline(always)]
fn address_of(destination: &Destination, family: u8) -> [u32; 4] {
    if family == FAMILY_V4 { [destination.v4, 0, 0, 0] } else { destination.v6 }
}

/// Writes the entries of a choice. Returns as [`choose_for`].
#[inline(never)]
fn remember(ctx: &TcContext, ifindex: u32, work: &mut Work) -> u32 {
    if work.flow.backend == NONE {
        // No backend, or the service is paused: the lookup decides.
        forget_former(work);
        let _ = PENDING.remove(&work.tuple);
        return NONE;
    }
    // Most SYNs have none, and a removal takes a lock.
    // SAFETY: only the presence of an entry matters.
    if unsafe { MISSES.get(&work.tuple) }.is_some() {
        let _ = MISSES.remove(&work.tuple);
    }
    if work.flow.flags & FLOW_LOCAL != 0 {
        forget_former(work);
        let _ = PENDING.insert(&work.tuple, &work.flow, 0);
        return NONE;
    }
    // The other end of a pair expects Ethernet headers.
    if work.l2 == 0 {
        work.flow.flags &= !FLOW_PEER;
    }
    if !local::has_port(ctx, work.flow.seen_ns, work) {
        count!(SERVICE_COUNTERS, work.flow.service, ports_exhausted);
        return REPEAT;
    }
    forget_former(work);
    work.to = work.flow.to;
    if work.former & FORMER_REPLY != 0 {
        let _ = FLOWS.remove(work.to.reversed());
    }
    if !known::hold(ifindex, work) {
        return NONE;
    }
    let Flow { device, flags, backend, .. } = work.flow;
    if work.bridge != 0 && device == 0 && flags & FLOW_PEER == 0 {
        translated::expect(ifindex, work);
    }
    known::go(work, device, flags, backend);
    count!(BACKEND_COUNTERS, work.flow.backend, steered);
    work.flow.service
}

/// Removes what is left of a former choice for the same addresses and ports, which went elsewhere. Its server may answer late, and its answer
/// must not reach the client in place of the new one's. The reply entry of a connection that has ended stays: it tells the next one from the
/// same port whose TIME_WAIT its server has.
#[inline(never)]
fn forget_former(work: &mut Work) {
    if work.former & FORMER_KEPT != 0
        // SAFETY: the field is copied, and never changes.
        && let Some(former) = unsafe { FLOWS.get(&work.tuple) }
    {
        work.to = former.to.reversed();
        // SAFETY: the same.
        if unsafe { FLOWS.get(&work.to) }.is_some_and(|back| local::same(&back.to, &work.tuple)) {
            let _ = FLOWS.remove(&work.to);
        }
        let _ = FLOWS.remove(&work.tuple);
        forget_pending_reply(work);
    }
    if work.former & FORMER_PENDING == 0 {
        return;
    }
    // SAFETY: the field is copied. The entry may be evicted and another take its place meanwhile: so the reply entry must lead back here.
    let Some(former) = (unsafe { PENDING.get(&work.tuple) }) else { return };
    work.to = former.to.reversed();
    forget_pending_reply(work);
}

/// Removes the reply entry `work.to` if it leads back to this connection, and does not tell of one that has ended.
#[inline(always)]
fn forget_pending_reply(work: &Work) {
    // SAFETY: the fields are copied.
    let Some(back) = (unsafe { PENDING.get(&work.to) }) else { return };
    if back.flags & (FLOW_RST | known::ENDS) == 0 && local::same(&back.to, &work.tuple) {
        let _ = PENDING.remove(&work.to);
    }
}

/// The rule for a packet's destination, which may have no table. A call of its own: its keys must not take stack while a table is walked
/// through. All frames together have 512 bytes, and Linux before 6.8 rounds each up to a multiple of 32.
#[inline(never)]
pub fn rule_of(tuple: &Tuple, ifindex: u32) -> Option<&'static Rule> {
    find(&Packet::of_tuple(tuple, ifindex))
}

/// Takes a slot for the connection; leaves `work.flow.backend` [`NONE`] if there is none.
#[inline(never)]
fn choose_anew(ifindex: u32, work: &mut Work) {
    let Some(rule) = rule_of(&work.tuple, ifindex).filter(|rule| rule.table != NONE) else { return };
    let packet = Packet::of_tuple(&work.tuple, ifindex);
    work.flow.service = rule.service;
    choose(&packet, rule, switch(rule.service), &mut Pick { flow: &mut work.flow, ifindex });
}

/// Whether the destination is an address of this machine. Packets that are only forwarded through it are left alone.
#[inline(never)]
pub fn is_for_here(ctx: &TcContext, ifindex: u32, tuple: &Tuple) -> bool {
    if is_on_link(tuple.family.into(), &tuple.source, &tuple.destination) {
        return false;
    }
    let Route { verdict, .. } = route(ctx, ifindex, tuple);
    // Also a destination that is unreachable or multicast; no rule's backend is taken for those, as no socket is.
    verdict == i64::from(BPF_FIB_LKUP_RET_NOT_FWDED)
}

/// Takes a slot's socket for a packet.
struct Pick<'a> {
    /// Set by the choice.
    flow: &'a mut Flow,
    /// The device that the packet came by.
    ifindex: u32,
}

impl Chooser for Pick<'_> {
    #[inline(always)]
    fn offer(&mut self, slot: &Slot) -> Visit {
        let way = slot.way();
        // As an offer that was declined may have left it.
        (self.flow.flags, self.flow.device) = (0, 0);
        if way != WAY_FORWARD {
            // A socket of this namespace, or the listener of a pause: `steer` assigns it.
            if slot.backend != NONE && !is_listening(slot.cookie) {
                count!(SERVICE_COUNTERS, self.flow.service, stale_slots);
                return Visit::TryNext;
            }
            self.flow.flags = FLOW_LOCAL;
            self.flow.cookie = slot.cookie;
            self.flow.backend = slot.backend;
            return Visit::Taken;
        }
        let index = slot.index();
        let service = self.flow.service;
        // SAFETY: a destination is replaced as a whole.
        let Some(destination) = (unsafe { DESTINATIONS.get(index) }) else {
            count!(SERVICE_COUNTERS, service, no_destination);
            return Visit::TryNext;
        };
        let is_v4 = self.flow.to.family == FAMILY_V4;
        let address = address_of(destination, self.flow.to.family);
        if destination.ingress_cookie != netns_cookie() || address == [0; 4] {
            count!(SERVICE_COUNTERS, service, no_destination);
            return Visit::TryNext;
        }
        let Some(listener) = listener(slot.cookie) else {
            count!(SERVICE_COUNTERS, service, stale_slots);
            return Visit::TryNext;
        };
        // Bound to another address of the container, it takes no packet for this one.
        let bound = if is_v4 { [listener.v4, 0, 0, 0] } else { listener.v6 };
        if bound != [0; 4] && bound != address {
            return Visit::TryNext;
        }
        if !local::hand_over(self.flow, index, destination, self.ifindex) {
            count!(SERVICE_COUNTERS, service, no_destination);
            return Visit::TryNext;
        }
        self.flow.to.destination = address;
        self.flow.to.destination_port = listener.port.to_be();
        self.flow.cookie = slot.cookie;
        self.flow.backend = index;
        self.flow.nsid = destination.nsid;
        Visit::Taken
    }
}
