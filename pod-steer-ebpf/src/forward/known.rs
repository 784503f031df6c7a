//! Finds the connection that a packet belongs to, and keeps the entries of both its directions.

use aya_ebpf::{bindings::BPF_NOEXIST, programs::TcContext};
use pod_steer_ebpf::{FLOW_FIN, FLOW_FIN_REPLY, FLOW_LOCAL, FLOW_PEER, FLOW_RST, Flow, NONE, Tuple};

use super::{
    REPEAT, adopt,
    headers::{ACK, FIN, RST, SYN, Work},
    local, now,
    sockets::{NO_SOCKET, TCP_NEW_SYN_RECV, is_alive, state},
};
use crate::maps::{FLOWS, PENDING, SERVICE_COUNTERS, count, is_listening};

/// The time of a connection's last packet is written so often at most, and its server's socket is looked for so often.
const SEEN_EVERY_NS: u64 = 1_000_000_000;

/// The service of a flow whose packets are rewritten; `None` if they pass.
#[inline(always)]
pub fn towards(flow: &Flow) -> Option<u32> {
    if flow.flags & FLOW_LOCAL == 0 { Some(flow.service) } else { None }
}

/// The error of an entry that is there already (`include/uapi/asm-generic/errno-base.h`).
const EEXIST: i32 = 17;

/// Neither map has the connection.
const UNKNOWN: u32 = NONE - 3;

/// Sets what a packet of a client becomes and returns the service; [`NONE`] if it passes.
#[inline(never)]
pub fn from_client(ctx: &TcContext, ifindex: u32, work: &mut Work) -> u32 {
    let service = of_kept_client(ctx, work);
    if service != UNKNOWN {
        return service;
    }
    let Some(flow) = pending(&work.tuple, &mut work.flow) else {
        // Another processor may have kept it meanwhile.
        let service = of_kept_client(ctx, work);
        return if service == UNKNOWN { adopt::adopt(ctx, ifindex, work) } else { service };
    };
    if towards(&work.flow).is_none() {
        return NONE;
    }
    let service = note_pending(flow, work, FLOW_FIN);
    // The copy is from before. Its other flags stay: the entry may have become another connection's meanwhile.
    work.flow.flags = work.flow.flags & !FLOW_RST | work.noted & (ENDS | FLOW_RST);
    if work.is_over != 0 && work.is_due == 0 {
        return service;
    }
    let state = state(ctx, &work.to, work.flow.nsid);
    // Another container may have got the address of one that has ended.
    if work.is_due != 0 && state == NO_SOCKET {
        forget(work);
        return NONE;
    }
    // A half-open connection may be that of a spoofed packet.
    if work.is_over == 0 && is_alive(state, TCP_NEW_SYN_RECV) {
        // The copy may be of long ago.
        work.flow.seen_ns = now();
        if !keep(ifindex, work) {
            count!(SERVICE_COUNTERS, service, flows_full);
        }
    }
    service
}

#[inline(never)]
fn of_kept_client(ctx: &TcContext, work: &mut Work) -> u32 {
    let Some(flow) = FLOWS.get_ptr_mut(&work.tuple) else { return UNKNOWN };
    // SAFETY: the verifier checked the pointer. This field never changes.
    let nsid = unsafe { (*flow).nsid };
    let service = note(flow, flow, work, FLOW_FIN);
    if work.is_over != 0 {
        demote(work);
        return service;
    }
    // Another container may have got the address of one that has ended.
    if work.is_due != 0 && state(ctx, &work.to, nsid) == NO_SOCKET {
        forget(work);
        return NONE;
    }
    service
}

/// The same for a packet of a container; [`REPEAT`] if its client must not see it.
#[inline(never)]
pub fn from_server(work: &mut Work) -> u32 {
    work.tuple.reply = 1;
    // The connection of a SYN's answer is rarely kept already.
    let service = if work.flags & SYN != 0 { UNKNOWN } else { note_kept(work, FLOW_FIN_REPLY) };
    if service != UNKNOWN {
        return service;
    }
    let Some(flow) = pending(&work.tuple, &mut work.flow) else {
        // Another processor may have kept it meanwhile.
        let service = note_kept(work, FLOW_FIN_REPLY);
        return if service == UNKNOWN { NONE } else { service };
    };
    if refuses_syn(work) && !is_listening(work.flow.cookie) {
        // The listener has closed since it was chosen. The SYN that the client sends again goes to another one.
        count!(SERVICE_COUNTERS, work.flow.service, stale_slots);
        return REPEAT;
    }
    note_pending(flow, work, FLOW_FIN_REPLY)
}

/// [`note`] in an entry of [`PENDING`], of which `work.flow` is a copy. Another processor may just be keeping the connection, for a packet
/// before this one: then an end that this packet tells is noted in the kept entries too.
#[inline(always)]
fn note_pending(flow: *mut Flow, work: &mut Work, fin: u32) -> u32 {
    let copy = &raw const work.flow;
    let service = note(copy, flow, work, fin);
    if work.flags & (FIN | RST) != 0 {
        note_kept(work, fin);
    }
    service
}

#[inline(never)]
fn note_kept(work: &mut Work, fin: u32) -> u32 {
    let Some(flow) = FLOWS.get_ptr_mut(&work.tuple) else { return UNKNOWN };
    let service = note(flow, flow, work, fin);
    if work.is_over != 0 {
        demote(work);
    }
    service
}

/// Whether a packet is the reset that answers a SYN: only that one has the sequence number zero (RFC 9293, 3.5.2).
#[inline(always)]
fn refuses_syn(work: &Work) -> bool {
    work.flags & (RST | ACK) == RST | ACK && work.sequence == 0
}

/// The connection has ended, or a packet says so: its entries may be evicted from now on. If it goes on, they are kept again.
#[inline(never)]
fn demote(work: &mut Work) {
    let other = work.to.reversed();
    // Of a connection that was reset, the other direction may have told its end before.
    let noted = (work.noted | ends_of(&other)) & (ENDS | FLOW_RST);
    release(&work.tuple, &other, noted, &mut work.flow);
    release(&other, &work.tuple, noted & ENDS, &mut work.flow);
}

/// Removes an entry that nothing evicts, and notes the ends of its connection in the one that it was made from. If that was evicted, or is
/// of another connection, it is written anew by way of `copy`.
#[inline(always)]
fn release(key: &Tuple, origin: &Tuple, ends: u32, copy: &mut Flow) {
    match PENDING.get_ptr_mut(key) {
        // SAFETY: the verifier checked the pointer. At worst another connection takes its place just now. It is taken for one that has
        // ended, and goes on by the entry that may be evicted.
        Some(flow) if local::same(unsafe { &(*flow).to }, origin) => unsafe {
            (*flow).flags = (*flow).flags & !(ENDS | FLOW_RST) | ends;
            (*flow).seen_ns = now();
        },
        _ => {
            // SAFETY: the entry is copied; another processor may change its time and flags.
            let Some(flow) = (unsafe { FLOWS.get(key) }) else { return };
            *copy = *flow;
            let _ = PENDING.insert(key, copy, 0);
        }
    }
    let _ = FLOWS.remove(key);
}

/// Copies an entry of a connection that is not established. It may be evicted at any time, and another may take its place in memory: so it
/// is looked up again, and must be where it was.
#[inline(always)]
pub fn pending(tuple: &Tuple, copy: &mut Flow) -> Option<*mut Flow> {
    let found = PENDING.get_ptr_mut(tuple)?;
    // SAFETY: the verifier checked the pointer.
    *copy = unsafe { *found };
    // Linux before 6.2 does not conclude from the comparison that the second pointer is not null either.
    PENDING.get_ptr_mut(tuple).is_some_and(|again| again == found).then_some(found)
}

/// Reads an entry, and notes in it how the connection goes on. Where its packets go is read from `entry`: the same one, or a copy of it if
/// it may be evicted, because then its place in memory may become another's.
#[inline(always)]
fn note(entry: *const Flow, flow: *mut Flow, work: &mut Work, fin: u32) -> u32 {
    let now = now();
    // SAFETY: the verifier checked the pointer. Another processor may write the same fields for a packet of this direction, each at once. The
    // ends of the other direction are written by its own packets, in its own entry, and only read here: so none is lost.
    unsafe {
        work.to = (*entry).to;
        go(work, (*entry).device, (*entry).flags, (*entry).backend);
        work.is_due = u32::from(now.wrapping_sub((*flow).seen_ns) > SEEN_EVERY_NS);
        if work.is_due != 0 {
            (*flow).seen_ns = now;
        }
        let before = (*flow).flags;
        let mut flags = before;
        if work.flags & FIN != 0 {
            flags |= fin;
        }
        // A reset that the server did not believe has ended nothing.
        flags = if work.flags & RST != 0 { flags | FLOW_RST } else { flags & !FLOW_RST };
        if flags != before {
            (*flow).flags = flags;
        }
        if flags & ENDS != 0 {
            flags |= ends_of(&work.to.reversed());
        }
        work.noted = flags;
        work.is_over = u32::from(flags & FLOW_RST != 0 || flags & ENDS == ENDS);
        (*entry).service
    }
}

/// Sets where the packets of a flow are handed over to.
#[inline(always)]
pub fn go(work: &mut Work, device: u32, flags: u32, backend: u32) {
    (work.device, work.peer) = (device, NONE);
    if flags & FLOW_PEER != 0 {
        // The other end of a pair expects an Ethernet header. A packet may come by another device than its connection's SYN.
        (work.device, work.peer) = if work.l2 == 0 { (0, NONE) } else { (device, backend) };
    }
}

/// Both ends have sent FIN.
pub const ENDS: u32 = FLOW_FIN | FLOW_FIN_REPLY;

/// How far a connection has ended by the entry of one direction.
#[inline(always)]
fn ends_of(key: &Tuple) -> u32 {
    // SAFETY: the field is copied.
    unsafe { FLOWS.get(key).or_else(|| PENDING.get(key)) }.map_or(0, |flow| flow.flags & ENDS)
}

/// A socket was seen: from now on no other packet can evict the connection's entries. `work.flow` is that of the client's direction. False if
/// there is no room; then other entries stay as they are.
#[inline(never)]
pub fn keep(ifindex: u32, work: &mut Work) -> bool {
    if let Err(error) = FLOWS.insert(&work.tuple, &work.flow, BPF_NOEXIST.into()) {
        // Another processor may have kept it meanwhile, and may have noted an end in its entries.
        return error == -EEXIST;
    }
    let back = work.to.reversed();
    reply(ifindex, work);
    let written = FLOWS.insert(&back, &work.flow, 0).is_ok();
    request(work);
    if !written {
        let _ = FLOWS.remove(&work.tuple);
        return false;
    }
    // The entries that may be evicted stay, and are read no more while these are there.
    let noted = pending_flags(&work.tuple) | pending_flags(&back);
    let Some(flow) = FLOWS.get_ptr_mut(&work.tuple) else {
        // Another processor has seen its end meanwhile.
        let _ = FLOWS.remove(&back);
        return true;
    };
    if noted & !work.flow.flags != 0 {
        // Another processor has noted an end since the entry was read.
        // SAFETY: the verifier checked the pointer.
        unsafe { (*flow).flags |= noted };
    }
    true
}

#[inline(always)]
fn pending_flags(key: &Tuple) -> u32 {
    // SAFETY: the field is copied.
    unsafe { PENDING.get(key) }.map_or(0, |flow| flow.flags & (ENDS | FLOW_RST))
}

/// The same for a connection of which no socket was seen.
#[inline(never)]
pub fn hold(ifindex: u32, work: &mut Work) -> bool {
    let back = work.to.reversed();
    reply(ifindex, work);
    let written = PENDING.insert(&back, &work.flow, 0).is_ok();
    request(work);
    written && PENDING.insert(&work.tuple, &work.flow, 0).is_ok()
}

/// Makes `work.flow` the entry of the server's direction. The replies of a client whose packets are handed over to a device go to the one that
/// they came by.
#[inline(always)]
fn reply(ifindex: u32, work: &mut Work) {
    work.device = work.flow.device;
    work.flow.to = work.tuple.reversed();
    if work.device != 0 || work.flow.flags & FLOW_PEER != 0 {
        work.flow.device = ifindex;
    }
}

/// Makes it that of the client's direction again.
#[inline(always)]
fn request(work: &mut Work) {
    work.flow.to = work.to;
    work.flow.device = work.device;
}

/// Removes a connection's entries. That of the reply's direction may be another connection's.
#[inline(never)]
fn forget(work: &Work) {
    let back = work.to.reversed();
    // SAFETY: the field is copied, and never changes.
    if unsafe { FLOWS.get(&back) }.is_some_and(|flow| local::same(&flow.to, &work.tuple)) {
        let _ = FLOWS.remove(&back);
    }
    // SAFETY: the same.
    if unsafe { PENDING.get(&back) }.is_some_and(|flow| local::same(&flow.to, &work.tuple)) {
        let _ = PENDING.remove(&back);
    }
    let _ = FLOWS.remove(&work.tuple);
    let _ = PENDING.remove(&work.tuple);
}

/// A client connects to the container itself: what is left of a connection between the same two ports must not catch its replies.
#[inline(never)]
pub fn forget_reply(ctx: &TcContext, tuple: &Tuple) {
    let back = tuple.reversed();
    // SAFETY: the fields are copied, and never change.
    if let Some(flow) = unsafe { FLOWS.get(&back) } {
        let (forward, nsid) = (flow.to.reversed(), flow.nsid);
        // It goes on, and the server refuses the other one.
        if is_alive(state(ctx, tuple, nsid), NO_SOCKET) {
            return;
        }
        let _ = FLOWS.remove(forward);
        let _ = FLOWS.remove(&back);
    }
    // SAFETY: the same.
    if let Some(forward) = unsafe { PENDING.get(&back) }.map(|flow| flow.to.reversed()) {
        let _ = PENDING.remove(forward);
        let _ = PENDING.remove(&back);
    }
}
