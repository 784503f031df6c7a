//! A backend's connections to its own ports. An engine's health check runs inside the container and connects to the
//! container's own port. It must reach this container's listener, although many containers share the port.
//!
//! `sockops` sees a connection after its source port was chosen and before the SYN leaves, and records the listener
//! that the connection is for. The lookup program runs for that SYN and finds the record by the addresses and ports.
//! Such connections are not counted, and do not move when the listener closes.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_NOEXIST, bpf_sock,
        sk_action::{SK_DROP, SK_PASS},
    },
    helpers::{bpf_get_netns_cookie, bpf_ktime_get_ns},
    programs::{SkLookupContext, SockOpsContext},
};
use pod_steer_ebpf::{
    FALLBACK_PASS, FAMILY_V6, NONE, OwnBlock, OwnConnection, OwnListener, OwnSocket, PORT_LISTENS, PROTO_TCP,
    RULE_FOREIGN, RULE_HIDDEN, RULE_OF_PORT, RULE_ON_DEMAND, Rule, Slot, SocketInfo, block_of, own_source, table_index,
};

use crate::{
    ends::{Ends, bytes, remote_port},
    lookup::{BPF_SK_LOOKUP_F_NO_REUSEPORT, BPF_SK_LOOKUP_F_REPLACE, EAFNOSUPPORT, ENOENT},
    maps::{
        LISTENERS, OWN_CONNECTIONS, OWN_LISTENERS, OWN_PORTS, OWN_SOURCES, SOCKETS, TABLES, add, is_listening,
        netns_cookie, purposes, switch,
    },
    packet::Packet,
    rules::find_apart,
    table::{Chooser, Visit, every},
};

const BPF_SOCK_OPS_STATE_CB_FLAG: i32 = 1 << 2;

/// Whether there may be an own connection from this port: an inlined array lookup, which every SYN pays for.
#[inline(always)]
pub fn may_come_from(port: u16) -> bool {
    OWN_SOURCES.get(own_source(port)).is_some_and(|count| *count != 0)
}

/// Adds to the counter in front of the map; `u64::MAX` subtracts one.
#[inline(always)]
fn count(port: u16, number: u64) {
    if let Some(counter) = OWN_SOURCES.get_ptr_mut(own_source(port)) {
        add(counter, number);
    }
}

/// The verdict on a packet of an own connection; `None` for any other packet.
#[inline(always)]
pub fn steer(ctx: &SkLookupContext, packet: &Packet) -> Option<u32> {
    if !may_come_from(u16::from_be(packet.remote_port)) {
        return None;
    }
    match decide(ctx, packet) {
        UNDECIDED => None,
        verdict => Some(verdict),
    }
}

/// The connection that a packet belongs to.
#[inline(always)]
pub fn connection(packet: &Packet) -> OwnConnection {
    OwnConnection {
        netns_cookie: netns_cookie(),
        source: bytes(&packet.remote),
        destination: bytes(&packet.local),
        source_port: u16::from_be(packet.remote_port),
        destination_port: packet.local_port as u16,
        family: packet.family as u8,
        pad: [0; 3],
    }
}

/// Neither `SK_PASS` nor `SK_DROP`.
const UNDECIDED: u32 = u32::MAX;

/// Not inlined: it seldom runs, and the caller has to stay small.
#[inline(never)]
fn decide(ctx: &SkLookupContext, packet: &Packet) -> u32 {
    let key = connection(packet);
    let Some(own) = OWN_CONNECTIONS.get_ptr_mut(key) else { return UNDECIDED };
    // SAFETY: the verifier checked the pointer. No other field of an entry changes: a later connection from the same
    // port gets a new entry.
    let own = unsafe {
        (*own).seen = 1;
        &*own
    };
    let rule = find_apart(packet);
    // An unmanaged listener keeps its clients.
    if rule.is_some_and(|rule| rule.flags & RULE_FOREIGN != 0) {
        return UNDECIDED;
    }
    let claim = rule.filter(|rule| rule.table != NONE);
    // Another service may have claimed this address of the port.
    let is_others = claim.is_some_and(|claim| claim.service != own.service);
    if is_others && own.service != NONE {
        return UNDECIDED;
    }
    if own.cookie != 0 {
        if own.service == NONE && is_preceded(&key, own, claim) {
            return UNDECIDED;
        }
        match LISTENERS.redirect_sk_lookup(ctx, own.cookie, BPF_SK_LOOKUP_F_NO_REUSEPORT | BPF_SK_LOOKUP_F_REPLACE) {
            Ok(()) => return SK_PASS,
            // The listener has closed since, or takes IPv6 clients only. Both have the same effect here.
            Err(ENOENT | EAFNOSUPPORT) => {}
            Err(_) => return SK_DROP,
        }
    }
    if is_others {
        return UNDECIDED;
    }
    if claim.is_some_and(|claim| is_in_table(ctx, own.backend, claim)) {
        return SK_PASS;
    }
    if own.cookie != 0 && !is_listening(own.cookie) {
        // The entry may be left over from a connection whose end no program saw.
        return UNDECIDED;
    }
    // The backend does not listen there. Another backend must not answer; an unmanaged listener may.
    match claim {
        Some(claim) if claim.fallback != FALLBACK_PASS => SK_DROP,
        _ if is_managed(ctx, &key) => SK_DROP,
        Some(_) => SK_PASS,
        None => UNDECIDED,
    }
}

/// Gives a connection to any of the backend's listeners in the table of its service's claim, whether or not that
/// listener serves clients. `OWN_LISTENERS` has the newest listener only; after it has closed, the daemon writes
/// another one.
#[inline(always)]
fn is_in_table(ctx: &SkLookupContext, backend: u32, claim: &Rule) -> bool {
    let Some(table) = TABLES.get(table_index(claim.table, switch(claim.service))) else { return false };
    matches!(every(table, &mut Own { ctx, backend }), Visit::Taken)
}

/// Takes the listeners of one backend.
struct Own<'a> {
    ctx: &'a SkLookupContext,
    backend: u32,
}

impl Chooser for Own<'_> {
    #[inline(always)]
    fn offer(&mut self, slot: &Slot) -> Visit {
        if slot.backend != self.backend {
            return Visit::TryNext;
        }
        let flags = BPF_SK_LOOKUP_F_NO_REUSEPORT | BPF_SK_LOOKUP_F_REPLACE;
        match LISTENERS.redirect_sk_lookup(self.ctx, slot.cookie, flags) {
            Ok(()) => Visit::Taken,
            Err(_) => Visit::TryNext,
        }
    }
}

/// Whether the kernel's own lookup prefers another service's listener to the backend's, which listens on every address:
/// the other service has claimed this address alone, or listens on it.
#[inline(always)]
fn is_preceded(to: &OwnConnection, own: &OwnSocket, claim: Option<&Rule>) -> bool {
    let OwnConnection { netns_cookie, destination, destination_port, family, .. } = *to;
    let mut key =
        OwnListener { netns_cookie, addr: destination, backend: own.backend, port: destination_port, family, pad: 0 };
    // SAFETY: only the presence of an entry matters.
    if unsafe { OWN_LISTENERS.get(key) }.is_some() {
        return false;
    }
    // Without the first flag it is the claim of an address; a rule with one of the others claims nothing.
    if claim.is_some_and(|claim| claim.flags & (RULE_OF_PORT | RULE_HIDDEN | RULE_ON_DEMAND) == 0) {
        return true;
    }
    key.backend = NONE;
    // SAFETY: eight aligned bytes are read at once.
    let Some(exact) = (unsafe { OWN_LISTENERS.get(key) }) else { return false };
    let (theirs, ours) = (service_of(*exact), service_of(own.cookie));
    theirs != NONE && ours != NONE && theirs != ours
}

/// The service in whose tables a listener is, or [`NONE`].
#[inline(always)]
fn service_of(cookie: u64) -> u32 {
    // SAFETY: the daemon replaces the value as a whole, and four aligned bytes of it are read at once.
    unsafe { SOCKETS.get(cookie) }.map_or(NONE, |socket| socket.service)
}

/// Whether the kernel's own lookup might give a connection to a managed listener. No helper can ask that, so this tries
/// whether the newest managed listener for the destination takes the connection. The caller then drops it.
#[inline(always)]
fn is_managed(ctx: &SkLookupContext, to: &OwnConnection) -> bool {
    let newest = listener(to.netns_cookie, NONE, to.destination_port, to.family, to.destination);
    newest.is_some_and(|cookie| {
        let tried = LISTENERS.redirect_sk_lookup(ctx, cookie, BPF_SK_LOOKUP_F_NO_REUSEPORT | BPF_SK_LOOKUP_F_REPLACE);
        // With EAFNOSUPPORT the listener takes IPv6 clients only. If it has closed, another managed one may be left.
        tried != Err(EAFNOSUPPORT)
    })
}

/// Gives a client to the newest listener of the only backend that may serve it: a listener that has just been opened is
/// in no table yet.
#[inline(never)]
pub fn steer_to_newest(ctx: &SkLookupContext, packet: &Packet, rule: &Rule) -> bool {
    let (family, addr) = (packet.family as u8, bytes(&packet.local));
    let Some(cookie) = listener(netns_cookie(), rule.only, rule.target, family, addr) else { return false };
    if let Some(socket) = SOCKETS.get_ptr_mut(cookie) {
        // From now on clients have been steered into its queue, which `migrate` has to know.
        // SAFETY: the verifier checked the pointer; four aligned bytes are read and written at once. The daemon writes the same
        // service, with a table.
        unsafe {
            let service = &raw mut (*socket).service;
            if ptr::read_volatile(service) == NONE {
                ptr::write_volatile(service, rule.service);
            }
        }
    }
    LISTENERS.redirect_sk_lookup(ctx, cookie, BPF_SK_LOOKUP_F_NO_REUSEPORT).is_ok()
}

/// A process of the backend connects (`BPF_SOCK_OPS_TCP_CONNECT_CB`): records the listener if the destination is the
/// backend's own.
#[inline(always)]
pub fn connects(ctx: &SockOpsContext, backend: u32) {
    let port = remote_port(ctx);
    let purposes = purposes(backend, port, PROTO_TCP);
    if purposes == 0 {
        return;
    }
    let ends = Ends::of(ctx);
    let Some((service, target)) = target(backend, purposes, &ends) else { return };
    // SAFETY: the context is this hook's own.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let cookie = listener(netns_cookie, backend, target, ends.family, ends.remote).unwrap_or(0);
    // SAFETY: takes no arguments.
    let born_ns = unsafe { bpf_ktime_get_ns() };
    let own = OwnSocket { cookie, born_ns, backend, service, seen: 0, pad: 0 };
    let key = ends.outgoing(netns_cookie);
    // The counter is never lower than the number of entries: it is incremented before an entry is made, and decremented
    // by the side that has removed one.
    count(ends.local_port, 1);
    forget(key, ends.local_port);
    if OWN_CONNECTIONS.insert(key, own, BPF_NOEXIST.into()).is_err() {
        // The map is full: this connection is steered like a client's.
        count(ends.local_port, u64::MAX);
        return;
    }
    // The kernel reports the close of this socket, however it closes.
    let _ = ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/// The service, and the port that the backend listens on, if the destination is the backend's own: its service has
/// claimed it for this address or for all addresses, or its server listens on the port.
#[inline(always)]
fn target(backend: u32, purposes: u32, ends: &Ends) -> Option<(u32, u16)> {
    let port = ends.remote_port;
    let mut key = OwnBlock { addr: ends.remote, backend, block: block_of(port), family: ends.family, pad: 0 };
    if let Some(claimed) = claimed(key, port) {
        return Some(claimed);
    }
    key.addr = [0; 16];
    if let Some(claimed) = claimed(key, port) {
        return Some(claimed);
    }
    (purposes & PORT_LISTENS != 0).then_some((NONE, port))
}

#[inline(always)]
fn claimed(key: OwnBlock, port: u16) -> Option<(u32, u16)> {
    // SAFETY: aligned words are read, each at once; the daemon replaces the value as a whole.
    let ports = unsafe { OWN_PORTS.get(key) }?;
    Some((ports.service, ports.target(port)?))
}

/// The newest listener of the same backend for the same address and port.
#[inline(always)]
pub fn newest(of: &SocketInfo) -> Option<u64> {
    // SAFETY: eight aligned bytes are read at once.
    unsafe { OWN_LISTENERS.get(of.own_listener()?) }.copied()
}

/// The listener that the kernel's own lookup would find if no other socket listened: one on the address, else one on
/// all addresses.
#[inline(always)]
fn listener(netns_cookie: u64, backend: u32, port: u16, family: u8, addr: [u8; 16]) -> Option<u64> {
    let mut key = OwnListener { netns_cookie, addr, backend, port, family, pad: 0 };
    // SAFETY: eight aligned bytes are read at once.
    if let Some(cookie) = unsafe { OWN_LISTENERS.get(key) } {
        return Some(*cookie);
    }
    key.addr = [0; 16];
    // SAFETY: as above.
    if let Some(cookie) = unsafe { OWN_LISTENERS.get(key) } {
        return Some(*cookie);
    }
    // It may take IPv4 clients too. If it does not, the kernel refuses to assign it.
    key.family = FAMILY_V6;
    // SAFETY: as above.
    unsafe { OWN_LISTENERS.get(key) }.copied()
}

/// Whether a connection that this backend has accepted comes from the backend itself. One that another backend accepts
/// counts as that backend's client.
#[inline(always)]
pub fn was_accepted(ctx: &SockOpsContext, backend: u32) -> bool {
    if !may_come_from(remote_port(ctx)) {
        return false;
    }
    // SAFETY: the context is this hook's own.
    let key = Ends::of(ctx).incoming(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) });
    // SAFETY: aligned words are read, which do not change while the connection lives.
    unsafe { OWN_CONNECTIONS.get(key) }.is_some_and(|own| own.cookie != 0 && own.backend == backend)
}

/// The client's end of a connection is established: forgets it if no lookup of this namespace has seen its SYN, because
/// it then leads to another machine. A proxy may hold many connections to ports of other machines that have the number
/// of its own.
#[inline(always)]
pub fn established(ctx: &SockOpsContext) {
    let port = ctx.local_port() as u16;
    if !may_come_from(port) {
        return;
    }
    // SAFETY: the context is this hook's own.
    let key = Ends::of(ctx).outgoing(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) });
    // SAFETY: four aligned bytes are read at once.
    if unsafe { OWN_CONNECTIONS.get(key) }.is_some_and(|own| own.seen == 0) {
        forget(key, port);
    }
}

/// A socket closes: forgets its own connection, and returns whether it was the client's end of one.
#[inline(always)]
pub fn ended(ctx: &SockOpsContext) -> bool {
    let port = ctx.local_port() as u16;
    if !may_come_from(port) {
        return false;
    }
    // SAFETY: the context is this hook's own.
    let key = Ends::of(ctx).outgoing(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) });
    forget(key, port)
}

/// Removes an entry, and returns whether there was one.
#[inline(always)]
fn forget(key: OwnConnection, port: u16) -> bool {
    // The daemon may remove it at the same time: the side that succeeds decrements the counter.
    let removed = OWN_CONNECTIONS.remove(key).is_ok();
    if removed {
        count(port, u64::MAX);
    }
    removed
}

/// Whether a connection that waits in the queue of a backend's closing listener comes from the backend itself.
///
/// # Safety
/// `moving` is the migrating socket of this run.
#[inline(always)]
pub unsafe fn is_moving(moving: *mut bpf_sock, netns_cookie: u64, backend: u32) -> bool {
    // SAFETY: guaranteed by the caller; volatile and unconditional, as in `lookup`.
    let ends = unsafe {
        let remote_port = u16::from_be(ptr::read_volatile(&raw const (*moving).dst_port));
        if !may_come_from(remote_port) {
            return false;
        }
        Ends::new(
            ptr::read_volatile(&raw const (*moving).family),
            [ptr::read_volatile(&raw const (*moving).src_ip4), ptr::read_volatile(&raw const (*moving).dst_ip4)],
            [ptr::read_volatile(&raw const (*moving).src_ip6), ptr::read_volatile(&raw const (*moving).dst_ip6)],
            [ptr::read_volatile(&raw const (*moving).src_port) as u16, remote_port],
        )
    };
    // SAFETY: aligned words are read, which do not change while the connection lives.
    let own = unsafe { OWN_CONNECTIONS.get(ends.incoming(netns_cookie)) };
    own.is_some_and(|own| own.cookie != 0 && own.backend == backend)
}

/// A socket of the backend listens: records it as the newest one for its address.
#[inline(always)]
pub fn listens(socket: &SocketInfo, cookie: u64) {
    let Some(key) = socket.own_listener() else { return };
    let _ = OWN_LISTENERS.insert(key, cookie, 0);
    if let Some(key) = socket.any_listener() {
        let _ = OWN_LISTENERS.insert(key, cookie, 0);
    }
}

/// A listener closes: removes its record. The daemon finds an older listener for the address, if there is one.
#[inline(always)]
pub fn closed(socket: &SocketInfo, cookie: u64) {
    let Some(key) = socket.own_listener() else { return };
    // SAFETY: eight aligned bytes are read at once.
    if unsafe { OWN_LISTENERS.get(key) } == Some(&cookie) {
        let _ = OWN_LISTENERS.remove(key);
    }
}
