//! Limits the number of a backend's registered sockets, so that others have room in the socket map, and the rate at
//! which it opens listeners, so that the daemon has time for others. Both limits are checked before the socket is
//! counted, so programs on several CPUs may let in one more each.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use pod_steer_ebpf::{
    COUNT_OF_ALL, EVENT_LEFT_OUT, Event, LEFT_OUT_FAST, LEFT_OUT_MANY, SocketInfo, TELL_EVERY_NS, count_of, may_take,
    next_listen,
};

use crate::maps::{LISTEN_RATES, SOCKET_COUNTS, add, emit, increment, listeners_max};

/// A number of sockets. It may be below zero for a moment: a close may be counted before its open.
#[inline(always)]
fn count(index: u32) -> u32 {
    match SOCKET_COUNTS.get(index) {
        Some(count) if *count >> 63 == 0 => *count as u32,
        _ => 0,
    }
}

/// Counts a socket that is about to be registered, or returns why it must not be.
#[inline(always)]
pub fn take(backend: u32) -> Result<(), u32> {
    if !may_take(listeners_max() as u32, count(COUNT_OF_ALL), count(count_of(backend))) {
        return Err(LEFT_OUT_MANY);
    }
    let Some(rate) = LISTEN_RATES.get_ptr_mut(backend) else { return Ok(()) };
    // SAFETY: takes no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the verifier checked the pointer; aligned words are read and written, each at once.
    unsafe {
        let Some(next) = next_listen((*rate).next_ns, now) else { return Err(LEFT_OUT_FAST) };
        (*rate).next_ns = next;
    }
    change(backend, 1);
    Ok(())
}

/// Counts that a socket is no longer registered.
#[inline(always)]
pub fn give_back(backend: u32) {
    change(backend, u64::MAX);
}

#[inline(always)]
fn change(backend: u32, by: u64) {
    for index in [COUNT_OF_ALL, count_of(backend)] {
        if let Some(count) = SOCKET_COUNTS.get_ptr_mut(index) {
            add(count, by);
        }
    }
}

/// Reports a listener that was left out, unless one was reported a moment ago: one backend must not fill the ring.
#[inline(always)]
pub fn tell(reason: u32, socket: SocketInfo, cookie: u64) {
    let Some(rate) = LISTEN_RATES.get_ptr_mut(socket.backend) else { return };
    // SAFETY: takes no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the verifier checked the pointer; aligned words are read and written, each at once.
    unsafe {
        increment(&raw mut (*rate).left_out);
        if now.wrapping_sub((*rate).told_ns) < TELL_EVERY_NS {
            return;
        }
        (*rate).told_ns = now;
    }
    emit(&Event { kind: EVENT_LEFT_OUT, errno: reason, cookie, socket });
}
