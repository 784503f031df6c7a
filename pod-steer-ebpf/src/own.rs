//! A backend's connections to its own ports. An engine's health check runs inside the container and connects to the
//! container's own port: it must reach this container's listener, although many share the port.
//!
//! `sockops` sees a connection after its source port was chosen and before the SYN leaves, and notes the listener that the
//! connection is for. The lookup program, which runs for that SYN, finds it by the addresses and ports. Such connections
//! are not counted, and not moved when the listener closes.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_ANY, BPF_NOEXIST, bpf_sock,
        sk_action::{SK_DROP, SK_PASS},
    },
    helpers::{bpf_get_netns_cookie, bpf_ktime_get_ns},
    programs::{SkLookupContext, SockOpsContext},
};
use pod_steer_ebpf::{
    FAMILY_V4, FAMILY_V6, ManagedPort, NONE, OwnConnection, OwnListener, OwnPort, OwnSocket, OwnTarget, PORT_LISTENS,
    PROTO_TCP, RULE_FOREIGN, Rule, SocketInfo, own_source,
};

use crate::{
    lookup::{BPF_SK_LOOKUP_F_NO_REUSEPORT, BPF_SK_LOOKUP_F_REPLACE, EAFNOSUPPORT, ENOENT, Packet, find},
    maps::{LISTENERS, MANAGED_PORTS, OWN_CONNECTIONS, OWN_LISTENERS, OWN_PORTS, OWN_SOURCES, add, netns_cookie},
};

const BPF_SOCK_OPS_STATE_CB_FLAG: i32 = 1 << 2;

/// Whether there may be an own connection from this port: an inlined look into an array, which every SYN pays.
#[inline(always)]
fn may_come_from(port: u16) -> bool {
    OWN_SOURCES.get(own_source(port)).is_some_and(|count| *count != 0)
}

/// Adds to the counter in front of the map; `u64::MAX` takes one away.
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

/// Neither `SK_PASS` nor `SK_DROP`.
const UNDECIDED: u32 = u32::MAX;

/// Not inlined: it is seldom reached, and the rest is to stay small.
#[inline(never)]
fn decide(ctx: &SkLookupContext, packet: &Packet) -> u32 {
    let key = OwnConnection {
        netns_cookie: netns_cookie(),
        source: bytes(&packet.remote),
        destination: bytes(&packet.local),
        source_port: u16::from_be(packet.remote_port),
        destination_port: packet.local_port as u16,
        family: packet.family as u8,
        pad: [0; 3],
    };
    // SAFETY: an entry is replaced as a whole, and only by a later connection from the same port.
    let Some(own) = (unsafe { OWN_CONNECTIONS.get(key) }) else { return UNDECIDED };
    let mut is_claimed = false;
    if let Some(rule) = find(ctx, packet) {
        // A listener that is not managed keeps its clients.
        let is_foreign = rule.flags & RULE_FOREIGN != 0;
        // Another service may have claimed this address of the port.
        let is_others = rule.table != NONE && rule.service != own.service;
        if is_foreign || is_others && (own.service != NONE || own.cookie == 0) {
            return UNDECIDED;
        }
        is_claimed = rule.table != NONE;
    }
    if own.cookie == 0 {
        // The backend does not listen there. Another backend must not answer; a listener that is not managed may.
        return if is_claimed || is_managed(ctx, &key) { SK_DROP } else { UNDECIDED };
    }
    match LISTENERS.redirect_sk_lookup(ctx, own.cookie, BPF_SK_LOOKUP_F_NO_REUSEPORT | BPF_SK_LOOKUP_F_REPLACE) {
        Ok(()) => SK_PASS,
        // The listener has closed since, or this is left of a connection whose end no program saw.
        Err(ENOENT) => UNDECIDED,
        Err(_) => SK_DROP,
    }
}

/// Whether the kernel's own lookup might give a connection to a managed listener. No program can ask it; so this tries whether
/// the newest managed listener for the destination takes the connection, which the caller then drops.
#[inline(always)]
fn is_managed(ctx: &SkLookupContext, to: &OwnConnection) -> bool {
    let newest = listener(to.netns_cookie, NONE, to.destination_port, to.family, to.destination);
    newest.is_some_and(|cookie| {
        let tried = LISTENERS.redirect_sk_lookup(ctx, cookie, BPF_SK_LOOKUP_F_NO_REUSEPORT | BPF_SK_LOOKUP_F_REPLACE);
        // It takes IPv6 clients only. One that has closed may have left another that is managed.
        tried != Err(EAFNOSUPPORT)
    })
}

/// Gives a client to the newest listener of the one backend that may serve it: one that has just been opened is in no
/// table yet.
#[inline(never)]
pub fn steer_to_newest(ctx: &SkLookupContext, packet: &Packet, rule: &Rule) -> bool {
    let (family, addr) = (packet.family as u8, bytes(&packet.local));
    let Some(cookie) = listener(netns_cookie(), rule.only, rule.target, family, addr) else { return false };
    LISTENERS.redirect_sk_lookup(ctx, cookie, BPF_SK_LOOKUP_F_NO_REUSEPORT).is_ok()
}

/// Both ends of a connection. IPv4 addresses are in the first four bytes, whatever the family of the socket.
struct Ends {
    family: u8,
    local: [u8; 16],
    remote: [u8; 16],
    local_port: u16,
    remote_port: u16,
}

impl Ends {
    #[inline(always)]
    fn new(family: u32, ip4: [u32; 2], ip6: [[u32; 4]; 2], ports: [u16; 2]) -> Self {
        let [local_port, remote_port] = ports;
        let [local, remote] = ip6;
        // An IPv6 socket may be connected by IPv4.
        let is_mapped = remote[0] == 0 && remote[1] == 0 && remote[2] == 0xFFFFu32.to_be();
        if family == u32::from(FAMILY_V4) || is_mapped {
            let [local, remote] = [bytes(&[ip4[0], 0, 0, 0]), bytes(&[ip4[1], 0, 0, 0])];
            return Self { family: FAMILY_V4, local, remote, local_port, remote_port };
        }
        Self { family: FAMILY_V6, local: bytes(&local), remote: bytes(&remote), local_port, remote_port }
    }

    #[inline(always)]
    fn of(ctx: &SockOpsContext) -> Self {
        let ops = ctx.ops;
        // SAFETY: the context is valid for the whole run; volatile and unconditional, as in `lookup`.
        unsafe {
            Self::new(
                ptr::read_volatile(&raw const (*ops).family),
                [ptr::read_volatile(&raw const (*ops).local_ip4), ptr::read_volatile(&raw const (*ops).remote_ip4)],
                [ptr::read_volatile(&raw const (*ops).local_ip6), ptr::read_volatile(&raw const (*ops).remote_ip6)],
                [ctx.local_port() as u16, remote_port(ctx)],
            )
        }
    }

    /// The connection whose client is at the local end.
    #[inline(always)]
    fn outgoing(&self, netns_cookie: u64) -> OwnConnection {
        OwnConnection {
            netns_cookie,
            source: self.local,
            destination: self.remote,
            source_port: self.local_port,
            destination_port: self.remote_port,
            family: self.family,
            pad: [0; 3],
        }
    }

    /// The connection whose client is at the remote end.
    #[inline(always)]
    fn incoming(&self, netns_cookie: u64) -> OwnConnection {
        OwnConnection {
            netns_cookie,
            source: self.remote,
            destination: self.local,
            source_port: self.remote_port,
            destination_port: self.local_port,
            family: self.family,
            pad: [0; 3],
        }
    }
}

/// The remote port in host byte order. The context has it in network byte order in a word.
#[inline(always)]
fn remote_port(ctx: &SockOpsContext) -> u16 {
    u32::from_be(ctx.remote_port()) as u16
}

#[inline(always)]
fn bytes(words: &[u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// A process of the backend connects (`BPF_SOCK_OPS_TCP_CONNECT_CB`): notes the listener if the destination is its own.
#[inline(always)]
pub fn connects(ctx: &SockOpsContext, backend: u32) {
    let port = remote_port(ctx);
    let managed = ManagedPort { backend, port, proto: PROTO_TCP, pad: 0 };
    // SAFETY: four aligned bytes are read at once.
    let Some(&purposes) = (unsafe { MANAGED_PORTS.get(managed) }) else { return };
    let ends = Ends::of(ctx);
    let Some(target) = target(backend, purposes, &ends) else { return };
    // SAFETY: the context is this hook's own.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let cookie = listener(netns_cookie, backend, target.port, ends.family, ends.remote).unwrap_or(0);
    // SAFETY: takes no arguments.
    let born_ns = unsafe { bpf_ktime_get_ns() };
    let (key, own) = (ends.outgoing(netns_cookie), OwnSocket { cookie, born_ns, backend, service: target.service });
    if OWN_CONNECTIONS.insert(key, own, BPF_NOEXIST.into()).is_ok() {
        count(ends.local_port, 1);
    } else if OWN_CONNECTIONS.insert(key, own, BPF_ANY.into()).is_err() {
        // The map is full: steered as any client's.
        return;
    }
    // Tells us when it closes, however it does.
    let _ = ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/// The port that the backend listens on for this destination, if the destination is its own: claimed by its service for
/// the address, or for all; or a port that its server listens on.
#[inline(always)]
fn target(backend: u32, purposes: u32, ends: &Ends) -> Option<OwnTarget> {
    let mut key = OwnPort { addr: ends.remote, backend, port: ends.remote_port, family: ends.family, pad: 0 };
    // SAFETY: eight aligned bytes are read at once.
    if let Some(target) = unsafe { OWN_PORTS.get(key) } {
        return Some(*target);
    }
    key.addr = [0; 16];
    // SAFETY: as above.
    if let Some(target) = unsafe { OWN_PORTS.get(key) } {
        return Some(*target);
    }
    (purposes & PORT_LISTENS != 0).then_some(OwnTarget { service: NONE, port: ends.remote_port, pad: 0 })
}

/// The listener that the kernel's own lookup would find if no other socket listened: of the address, else of all addresses.
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
    // It may take IPv4 clients too; if it does not, the kernel refuses to give it any.
    key.family = FAMILY_V6;
    // SAFETY: as above.
    unsafe { OWN_LISTENERS.get(key) }.copied()
}

/// A connection was accepted: whether it comes from the backend itself. One to a port on which the backend does not listen is
/// another service's client.
#[inline(always)]
pub fn was_accepted(ctx: &SockOpsContext) -> bool {
    if !may_come_from(remote_port(ctx)) {
        return false;
    }
    // SAFETY: the context is this hook's own.
    let key = Ends::of(ctx).incoming(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) });
    // SAFETY: eight aligned bytes are read at once.
    unsafe { OWN_CONNECTIONS.get(key) }.is_some_and(|own| own.cookie != 0)
}

/// A socket closes: whether it was the client's end of an own connection, which is forgotten.
#[inline(always)]
pub fn ended(ctx: &SockOpsContext) -> bool {
    let port = ctx.local_port() as u16;
    if !may_come_from(port) {
        return false;
    }
    // SAFETY: the context is this hook's own.
    let key = Ends::of(ctx).outgoing(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) });
    // The daemon may remove it at the same time: the side that succeeds decrements the counter.
    let removed = OWN_CONNECTIONS.remove(key).is_ok();
    if removed {
        count(port, u64::MAX);
    }
    removed
}

/// Whether a connection that waits in a closing listener's queue comes from the backend itself.
///
/// # Safety
/// `moving` is the migrating socket of this run.
#[inline(always)]
pub unsafe fn is_moving(moving: *mut bpf_sock, netns_cookie: u64) -> bool {
    // SAFETY: the caller's; volatile and unconditional, as in `lookup`.
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
    // SAFETY: eight aligned bytes are read at once.
    unsafe { OWN_CONNECTIONS.get(ends.incoming(netns_cookie)) }.is_some_and(|own| own.cookie != 0)
}

/// A socket of the backend listens: it is the newest one for its address.
#[inline(always)]
pub fn listens(socket: &SocketInfo, cookie: u64) {
    let Some(key) = socket.own_listener() else { return };
    let _ = OWN_LISTENERS.insert(key, cookie, 0);
    if let Some(key) = socket.any_listener() {
        let _ = OWN_LISTENERS.insert(key, cookie, 0);
    }
}

/// A listener closes. Another one for its address that is older is found by the daemon.
#[inline(always)]
pub fn closed(socket: &SocketInfo, cookie: u64) {
    let Some(key) = socket.own_listener() else { return };
    // SAFETY: eight aligned bytes are read at once.
    if unsafe { OWN_LISTENERS.get(key) } == Some(&cookie) {
        let _ = OWN_LISTENERS.remove(key);
    }
}
