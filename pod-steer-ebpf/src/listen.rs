//! `sockops`: registers a managed socket at the instant when it starts to listen, and counts its connections.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_netns_cookie, bpf_get_socket_cookie,
        generated::{bpf_map_delete_elem, bpf_skc_to_tcp6_sock},
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use pod_steer_ebpf::{
    EVENT_CLOSED, EVENT_LISTENING, EVENT_NOT_REGISTERED, Event, FAMILY_V4, FAMILY_V6, Hidden, LOST_DESCRIPTIONS, NONE,
    PORT_LISTENS, PORT_SERVED, PROBE_SOURCE_V4, PROTO_TCP, ProbeKey, SocketInfo, V6_BOTH, V6_ONLY, V6_UNKNOWN,
};

use crate::{
    maps::{BACKEND_COUNTERS, LISTENERS, MOVED, PROBES, SOCKETS, count, current_backend, emit, lost, managed},
    own, quota, users,
};

const BPF_SOCK_OPS_TCP_CONNECT_CB: u32 = 3;
const BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB: u32 = 4;
const BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB: u32 = 5;
const BPF_SOCK_OPS_STATE_CB: u32 = 10;
const BPF_SOCK_OPS_TCP_LISTEN_CB: u32 = 11;
const BPF_SOCK_OPS_STATE_CB_FLAG: u32 = 1 << 2;
/// Marks a connection that was counted as opened, without any memory of our own. The kernel's own meaning of the flag
/// (`BPF_SOCK_OPS_RTO_CB_FLAG`) is to call this program when a retransmission timer fires, which is the rarest of all
/// events. Connections inherit the flags of their listener, which never has this one.
const COUNTED_FLAG: u32 = 1 << 0;

/// Offset of the flags in `struct sock_common` (`include/net/sock.h`): behind `skc_family` and `skc_state`, in every
/// kernel since 3.9. The daemon inspects the socket later and corrects a wrong value.
const SKC_FLAGS: usize = 19;
/// The bit of `skc_ipv6only` among these flags.
const SKC_IPV6ONLY: u8 = if cfg!(target_endian = "little") { 1 << 5 } else { 1 << 2 };

const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

#[sock_ops]
pub fn tcp_events(ctx: SockOpsContext) -> u32 {
    let op = ctx.op();
    if !matches!(
        op,
        BPF_SOCK_OPS_TCP_CONNECT_CB
            | BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
            | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
            | BPF_SOCK_OPS_STATE_CB
            | BPF_SOCK_OPS_TCP_LISTEN_CB
    ) {
        return 1;
    }
    // A connection has some three changes of its state before the one that counts.
    if op == BPF_SOCK_OPS_STATE_CB && ctx.arg(1) != TCP_CLOSE {
        return 1;
    }
    let Some(backend) = current_backend() else { return 1 };
    if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
        own::connects(&ctx, backend);
        return 1;
    }
    if op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
        own::established(&ctx);
        return 1;
    }
    if op == BPF_SOCK_OPS_STATE_CB && own::ended(&ctx) {
        return 1;
    }
    let port = ctx.local_port() as u16;
    // SAFETY: the context is this hook's own.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if op == BPF_SOCK_OPS_TCP_LISTEN_CB {
        listens(&ctx, backend, port, cookie);
        return 1;
    }
    if op == BPF_SOCK_OPS_STATE_CB {
        closed(&ctx, backend, port, cookie);
        return 1;
    }
    // A connection's local port is the one that its client came to, which may differ from the one that the backend
    // listens on.
    if !managed(backend, port, PROTO_TCP, PORT_LISTENS | PORT_SERVED) {
        return 1;
    }
    // Keep flags that other programs have set.
    let flags = ctx.cb_flags();
    if is_probe(&ctx) || own::was_accepted(&ctx, backend) {
        // Probes and the backend itself are not clients: neither the beginning nor the end of such a connection is
        // counted.
        set_flags(&ctx, flags & !BPF_SOCK_OPS_STATE_CB_FLAG);
    } else if flags & COUNTED_FLAG == 0 {
        // The first flag is normally inherited from the listener, but not from one that listened before it was managed.
        set_flags(&ctx, flags | BPF_SOCK_OPS_STATE_CB_FLAG | COUNTED_FLAG);
        count!(BACKEND_COUNTERS, backend, opened);
    }
    1
}

#[inline(always)]
fn set_flags(ctx: &SockOpsContext, flags: u32) {
    // The result names flags that the kernel does not know. It knows all of these.
    let _ = ctx.set_cb_flags(flags as i32);
}

/// Whether an accepted connection comes from a probe.
#[inline(always)]
fn is_probe(ctx: &SockOpsContext) -> bool {
    // SAFETY: the context is valid for the whole run; volatile and unconditional, as in `listening`.
    let (ip4, ip, port, to, to_port) = unsafe {
        (
            ptr::read_volatile(&raw const (*ctx.ops).remote_ip4),
            ptr::read_volatile(&raw const (*ctx.ops).remote_ip6),
            ptr::read_volatile(&raw const (*ctx.ops).remote_port),
            ptr::read_volatile(&raw const (*ctx.ops).local_ip6),
            ptr::read_volatile(&raw const (*ctx.ops).local_port),
        )
    };
    if ip4 == u32::from_ne_bytes(PROBE_SOURCE_V4) {
        return true;
    }
    if ip != [0, 0, 0, 1u32.to_be()] {
        return false;
    }
    // SAFETY: the context is this hook's own.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // The context has the port in network byte order in a 32-bit word: in its first or its last two bytes, depending on
    // the machine.
    let port = (u32::from_be(port) as u16).to_be();
    let key = ProbeKey::seen(netns_cookie, FAMILY_V6, port, &to, to_port as u16);
    // SAFETY: only the presence of an entry matters.
    unsafe { PROBES.get(key) }.is_some()
}

/// Registers a socket if it is managed.
#[inline(always)]
fn listens(ctx: &SockOpsContext, backend: u32, port: u16, cookie: u64) {
    if let Some(hidden) = users::of_listener(ctx) {
        // SAFETY: the socket's storage lives as long as the socket, which is locked here.
        let Hidden { asked, users, .. } = unsafe {
            (*hidden).port = port;
            *hidden
        };
        let socket = SocketInfo { backend, port: asked, hidden_port: port, users, ..SocketInfo::default() };
        register(ctx, socket, cookie);
    } else if managed(backend, port, PROTO_TCP, PORT_LISTENS) {
        register(ctx, SocketInfo { backend, port, ..SocketInfo::default() }, cookie);
    }
}

/// Index of the device that a listener is bound to, or zero.
#[inline(always)]
fn bound_device(ctx: &SockOpsContext) -> u32 {
    // SAFETY: the context is valid for the whole run; the union has this member alone.
    let sk = unsafe { ptr::read_volatile(&raw const (*ctx.ops).__bindgen_anon_2.sk) };
    if sk.is_null() {
        return 0;
    }
    // SAFETY: it is not null, and valid for the whole run.
    unsafe { ptr::read_volatile(&raw const (*sk).bound_dev_if) }
}

/// Whether an IPv6 listener also takes IPv4 clients, as one of the `V6_` constants.
#[inline(always)]
fn v6only(ctx: &SockOpsContext) -> u16 {
    // SAFETY: the context is valid for the whole run; the union has this member alone.
    let sk = unsafe { ptr::read_volatile(&raw const (*ctx.ops).__bindgen_anon_2.sk) };
    if sk.is_null() {
        return V6_UNKNOWN;
    }
    // SAFETY: it is not null. The helper compares the family.
    let sk = unsafe { bpf_skc_to_tcp6_sock(sk.cast()) };
    if sk.is_null() {
        return V6_UNKNOWN;
    }
    // SAFETY: the verifier knows the type of the socket, and that this byte lies within it.
    let flags = unsafe { ptr::read_volatile(sk.cast::<u8>().add(SKC_FLAGS)) };
    if flags & SKC_IPV6ONLY != 0 { V6_ONLY } else { V6_BOTH }
}

/// Makes a socket eligible for clients, and reports it to the daemon.
#[inline(always)]
fn register(ctx: &SockOpsContext, socket: SocketInfo, mut cookie: u64) {
    let family = ctx.family() as u8;
    let mut addr = [0u8; 16];
    // SAFETY: the context is valid for the whole run. Volatile and unconditional: otherwise the compiler merges the two
    // reads into one at a computed offset, which the verifier rejects.
    let (ip4, ip) = unsafe {
        (ptr::read_volatile(&raw const (*ctx.ops).local_ip4), ptr::read_volatile(&raw const (*ctx.ops).local_ip6))
    };
    if family == FAMILY_V4 {
        addr[..4].copy_from_slice(&ip4.to_ne_bytes());
    } else {
        addr[..4].copy_from_slice(&ip[0].to_ne_bytes());
        addr[4..8].copy_from_slice(&ip[1].to_ne_bytes());
        addr[8..12].copy_from_slice(&ip[2].to_ne_bytes());
        addr[12..].copy_from_slice(&ip[3].to_ne_bytes());
    }
    // SAFETY: the context is this hook's own.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let (ifindex, v6only) = (bound_device(ctx), v6only(ctx));
    let (table, service, proto) = (NONE, NONE, PROTO_TCP);
    let socket = SocketInfo { netns_cookie, addr, table, proto, family, service, ifindex, v6only, ..socket };

    if let Err(reason) = quota::take(socket.backend) {
        // Its end must not be counted. It may have been registered before, and have stopped listening since.
        set_flags(ctx, ctx.cb_flags() & !BPF_SOCK_OPS_STATE_CB_FLAG);
        quota::tell(reason, socket, cookie);
        return;
    }
    // SAFETY: the context is this hook's own, and the helper wants it by reference.
    let registered = LISTENERS.update(&mut cookie, unsafe { &mut *ctx.ops }, 0);
    if let Err(errno) = registered {
        quota::give_back(socket.backend);
        emit(&Event { kind: EVENT_NOT_REGISTERED, errno: -errno as u32, cookie, socket });
        return;
    }
    // The kernel reports the close of the socket. Connections that it accepts inherit the flag.
    set_flags(ctx, ctx.cb_flags() & !COUNTED_FLAG | BPF_SOCK_OPS_STATE_CB_FLAG);
    let mut errno = 0;
    if let Err(error) = SOCKETS.insert(cookie, socket, 0) {
        // The daemon writes the description later. Until then the socket gets clients without it.
        lost(LOST_DESCRIPTIONS);
        errno = -error as u32;
    }
    own::listens(&socket, cookie);
    emit(&Event { kind: EVENT_LISTENING, errno, cookie, socket });
}

/// A listening socket or a connection is closed.
#[inline(always)]
fn closed(ctx: &SockOpsContext, backend: u32, port: u16, cookie: u64) {
    if ctx.arg(0) == TCP_LISTEN {
        if managed(backend, port, PROTO_TCP, PORT_LISTENS | PORT_SERVED) || users::of_listener(ctx).is_some() {
            // close() has already removed the socket from the map; shutdown() leaves it there. sock_ops may delete from
            // a sockhash since Linux 4.18.
            let map = ptr::from_ref(&LISTENERS).cast_mut().cast();
            // SAFETY: the map and the key are valid.
            let _ = unsafe { bpf_map_delete_elem(map, (&raw const cookie).cast()) };
            let mut of = backend;
            // SAFETY: the daemon replaces the value as a whole and never frees it while the socket lives.
            if let Some(socket) = unsafe { SOCKETS.get(cookie) } {
                own::closed(socket, cookie);
                of = socket.backend;
            }
            // `NONE`: the daemon has removed the socket from the socket map, so it is no longer counted.
            if of != NONE {
                quota::give_back(of);
            }
            // The migrate program runs next and needs the entry in SOCKETS; the daemon removes it later.
            let socket = SocketInfo { backend, table: NONE, ..SocketInfo::default() };
            emit(&Event { kind: EVENT_CLOSED, errno: 0, cookie, socket });
        }
        return;
    }
    // The old state does not matter: a connection by TCP Fast Open is counted as opened before its handshake is
    // complete, and may end before that.
    let flags = ctx.cb_flags();
    if flags & COUNTED_FLAG == 0 {
        return;
    }
    set_flags(ctx, flags & !COUNTED_FLAG);
    count!(BACKEND_COUNTERS, backend, closed);
    if let Some(to) = MOVED.get_ptr(cookie) {
        // SAFETY: the verifier checked the pointer; the entry was written before this connection could end.
        let to = unsafe { (*to).to };
        count!(BACKEND_COUNTERS, backend, moved_out_closed);
        count!(BACKEND_COUNTERS, to, moved_in_closed);
        let _ = MOVED.remove(cookie);
    }
}
