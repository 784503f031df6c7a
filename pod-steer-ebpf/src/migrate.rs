//! `sk_reuseport/migrate`: a listener closes, and what waits in its queue moves to a live socket of the same table.
//!
//! It can move only within one reuseport group (same namespace, address, port and effective uid), and only to a socket of the table: a
//! group may have members of another service, or of a process that is not managed. What has no heir is reset. For ordinary
//! selection within a group, which only happens where no rule claims the port, it leaves the choice to the kernel.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        bpf_sock,
        sk_action::{SK_DROP, SK_PASS},
    },
    helpers::{bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_sk_select_reuseport},
    macros::sk_reuseport,
    programs::SkReuseportContext,
};
use pod_steer_ebpf::{FAMILY_V6, Move, NONE, PROBE_SOURCE_V4, ProbeKey, Slot, table_index};

use crate::{
    lookup::LOOPBACK_V6,
    maps::{BACKEND_COUNTERS, LISTENERS, MOVED, PROBES, SOCKETS, TABLES, count, differ, switch},
    own,
    table::{Chooser, Visit, every, visit},
};

/// `TCP_NEW_SYN_RECV`: the socket being moved is a request, its handshake not yet complete.
const TCP_NEW_SYN_RECV: u32 = 12;
const TCP_CLOSE: u32 = 7;

#[sk_reuseport(migrate)]
pub fn migrate(ctx: SkReuseportContext) -> u32 {
    differ();
    let Some(moving) = ctx.migrating_sk() else { return SK_PASS };
    // SAFETY: `sk` is the closing listener; both pointers are valid for the whole run.
    let closing = unsafe { bpf_get_socket_cookie(ctx.sk().sock.cast()) };
    // SAFETY: the daemon replaces the value as a whole and never frees it while the socket lives.
    let Some(from) = (unsafe { SOCKETS.get(closing) }) else { return SK_PASS };
    // A probe, or a connection of the backend itself, is for the closing listener and no other: it fails with it, uncounted.
    let (from_backend, netns_cookie) = (from.backend, from.netns_cookie);
    let newest = own::newest(from);
    // SAFETY: `moving` is not null, and valid for the whole run.
    if unsafe { is_probe(moving.sock, netns_cookie) || own::is_moving(moving.sock, netns_cookie, from_backend) } {
        return SK_DROP;
    }
    if from.service == NONE {
        // No client was steered to it: they came by the kernel's own lookup, and so does its queue.
        return SK_PASS;
    }
    // None if it has just been opened: its clients were given to it as the backend's newest listener.
    let table = TABLES.get(table_index(from.table, switch(from.service)));

    // SAFETY: takes no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let hash = u64::from(random) << 32 | u64::from(random);
    let mut heir = Heir { ctx: &ctx, closing, backend: from_backend, nobody_serves: true };
    let mut taken = Visit::TryNext;
    if let Some(table) = table {
        taken = visit(table, hash, false, &mut heir);
    }
    let nobody_serves = heir.nobody_serves;
    if let Visit::TryNext = taken
        && let Some(cookie) = newest
    {
        // A listener that was opened since the table was made, as by a server that reloads.
        taken = heir.offer(&Slot::new(cookie, from_backend, 0));
    }
    if let Visit::TryNext = taken
        && nobody_serves
        && let Some(table) = table
    {
        // The service is paused or drained: those who are inside stay inside.
        taken = every(table, &mut heir);
    }
    let to_backend = heir.backend;
    let Visit::Taken = taken else {
        // Others in the group may be another service's, or not managed: left to itself, the kernel would choose among all of them.
        count!(BACKEND_COUNTERS, from_backend, not_moved);
        return SK_DROP;
    };

    // SAFETY: `moving` is not null; `state` may be read of every kind of socket.
    let state = unsafe { (*moving.sock).state };
    if state == TCP_NEW_SYN_RECV {
        count!(BACKEND_COUNTERS, from_backend, moved_half_open);
    } else if state != TCP_CLOSE && to_backend != from_backend {
        // One that was reset while it waited is moved too, to be accepted and found dead: it was counted as closed then.
        // SAFETY: as above.
        let cookie = unsafe { bpf_get_socket_cookie(moving.sock.cast()) };
        if MOVED.insert(cookie, Move { from: from_backend, to: to_backend }, 0).is_ok() {
            count!(BACKEND_COUNTERS, from_backend, moved_out);
            count!(BACKEND_COUNTERS, to_backend, moved_in);
        }
    }
    SK_PASS
}

/// Whether a connection comes from a probe.
#[inline(always)]
unsafe fn is_probe(moving: *mut bpf_sock, netns_cookie: u64) -> bool {
    // SAFETY: the caller's; volatile and unconditional, as in `lookup`.
    let (ip4, ip, port, to, to_port) = unsafe {
        (
            ptr::read_volatile(&raw const (*moving).dst_ip4),
            ptr::read_volatile(&raw const (*moving).dst_ip6),
            ptr::read_volatile(&raw const (*moving).dst_port),
            ptr::read_volatile(&raw const (*moving).src_ip6),
            ptr::read_volatile(&raw const (*moving).src_port),
        )
    };
    if ip4 == u32::from_ne_bytes(PROBE_SOURCE_V4) {
        return true;
    }
    let key = ProbeKey::seen(netns_cookie, FAMILY_V6, port, &to, to_port as u16);
    // SAFETY: only whether there is one is asked.
    ip == LOOPBACK_V6 && unsafe { PROBES.get(key) }.is_some()
}

struct Heir<'a> {
    ctx: &'a SkReuseportContext,
    closing: u64,
    backend: u32,
    /// No backend's socket was offered: a paused service has the pause's alone in its table, a drained one has none.
    nobody_serves: bool,
}

impl Chooser for Heir<'_> {
    #[inline(always)]
    fn offer(&mut self, slot: &Slot) -> Visit {
        let mut cookie = slot.cookie;
        self.nobody_serves &= slot.backend == NONE;
        if cookie == self.closing {
            return Visit::TryNext;
        }
        let map = ptr::from_ref(&LISTENERS).cast_mut().cast();
        // SAFETY: the map and the key are valid; the helper checks that the socket is of this group.
        let chosen = unsafe { bpf_sk_select_reuseport(self.ctx.as_ptr().cast(), map, (&raw mut cookie).cast(), 0) };
        if chosen != 0 {
            return Visit::TryNext;
        }
        self.backend = slot.backend;
        Visit::Taken
    }
}
