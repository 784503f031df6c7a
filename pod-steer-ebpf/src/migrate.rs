//! `sk_reuseport/migrate`: when a listener closes, moves its queue to a live socket of the same table.
//!
//! A queue can move only within one reuseport group (same namespace, address, port and effective uid), and moves only
//! to a socket of the table: a group may also have sockets of another service, or of an unmanaged process. A connection
//! without a migration target is reset. Ordinary selection within a group happens only where no rule claims the port,
//! and is left to the kernel.

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
use pod_steer_ebpf::{FAMILY_V6, Move, NONE, PROBE_SOURCE_V4, ProbeKey, Slot, SocketInfo, table_index};

use crate::{
    maps::{BACKEND_COUNTERS, LISTENERS, MOVED, PROBES, SOCKETS, TABLES, count, differ, switch},
    own,
    packet::LOOPBACK_V6,
    table::{Chooser, Visit, every, visit},
};

/// `TCP_NEW_SYN_RECV`: the migrating socket is a request, whose handshake is not yet complete.
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
    // A probe, or a connection of the backend to itself, is for the closing listener only: it is reset, and not
    // counted.
    let (from_backend, netns_cookie) = (from.backend, from.netns_cookie);
    let [a, b] = from.users;
    let holds = [a, b] == SocketInfo::HOLDS;
    let newest = own::newest(from);
    // SAFETY: `moving` is not null, and valid for the whole run.
    if unsafe { is_probe(moving.sock, netns_cookie) || own::is_moving(moving.sock, netns_cookie, from_backend) } {
        return SK_DROP;
    }
    if from.service == NONE {
        // No client was steered to this listener. The kernel's own lookup filled its queue, and the kernel chooses
        // where it moves.
        return SK_PASS;
    }
    // `None` for a listener that has just been opened: it got clients as the backend's newest listener.
    let table = TABLES.get(table_index(from.table, switch(from.service)));

    // SAFETY: takes no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let hash = u64::from(random) << 32 | u64::from(random);
    let mut target = Target { ctx: &ctx, closing, backend: from_backend, no_backend_offered: true, takes_holds: false };
    let mut taken = Visit::TryNext;
    if let Some(table) = table {
        taken = visit(table, hash, false, &mut target);
    }
    // A server that is left of a paused or drained service keeps its own clients; and what was held goes rather to a server without a share than
    // to none.
    let takes_withheld = target.no_backend_offered || holds;
    if let Visit::TryNext = taken
        && let Some(cookie) = newest
    {
        // A listener that was opened after the table was made, for example by a server that reloads.
        taken = target.offer(&Slot::new(cookie, from_backend, 0));
    }
    if let Visit::TryNext = taken
        && takes_withheld
        && let Some(table) = table
    {
        taken = every(table, &mut target);
        if let Visit::TryNext = taken {
            // No server is left. The clients wait with those that have come since the pause began.
            target.takes_holds = true;
            taken = every(table, &mut target);
        }
    }
    let to_backend = target.backend;
    let Visit::Taken = taken else {
        // Other sockets of the group may be another service's or unmanaged. On SK_PASS the kernel would choose among
        // all of them.
        count!(BACKEND_COUNTERS, from_backend, not_moved);
        return SK_DROP;
    };

    // SAFETY: `moving` is not null; `state` may be read for every kind of socket.
    let state = unsafe { (*moving.sock).state };
    if state == TCP_NEW_SYN_RECV {
        count!(BACKEND_COUNTERS, from_backend, moved_half_open);
    } else if state != TCP_CLOSE && to_backend != from_backend {
        // A connection that was reset while it waited moves too, to be accepted and found dead. It was counted as
        // closed at its reset.
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
    // SAFETY: guaranteed by the caller; volatile and unconditional, as in `lookup`.
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
    // SAFETY: only the presence of an entry matters.
    ip == LOOPBACK_V6 && unsafe { PROBES.get(key) }.is_some()
}

struct Target<'a> {
    ctx: &'a SkReuseportContext,
    closing: u64,
    backend: u32,
    /// No backend's socket was offered: a paused service has only listeners of the pause in its table, and a drained one
    /// has none.
    no_backend_offered: bool,
    /// Listeners that hold clients are taken too.
    takes_holds: bool,
}

impl Target<'_> {
    /// Moves the connection to a socket, if that is in the group.
    #[inline(always)]
    fn select(&mut self, mut cookie: u64, backend: u32) -> Visit {
        let map = ptr::from_ref(&LISTENERS).cast_mut().cast();
        // SAFETY: the map and the key are valid; the helper checks that the socket is of this group.
        let chosen = unsafe { bpf_sk_select_reuseport(self.ctx.as_ptr().cast(), map, (&raw mut cookie).cast(), 0) };
        if chosen != 0 {
            return Visit::TryNext;
        }
        self.backend = backend;
        Visit::Taken
    }
}

impl Chooser for Target<'_> {
    #[inline(always)]
    fn offer(&mut self, slot: &Slot) -> Visit {
        self.no_backend_offered &= slot.waits();
        if slot.cookie == self.closing {
            return Visit::TryNext;
        }
        // Servers come first: a pause keeps out new clients only.
        if slot.waits() && (slot.backend == NONE || !self.takes_holds) {
            return Visit::TryNext;
        }
        self.select(slot.cookie, slot.index())
    }
}
