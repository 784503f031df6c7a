//! `cgroup/bind4`, `bind6` and `sock_create`: let unmodified servers share a port. `users` handles servers that run as
//! different users.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_netns_cookie, bpf_setsockopt},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use pod_steer_ebpf::{
    EVENT_MPTCP_REFUSED, EVENT_NOT_SHARED, Event, FAMILY_V4, FAMILY_V6, PORT_LISTENS, PROTO_MPTCP, SocketInfo,
};

use crate::{
    maps::{current_backend, emit, managed},
    users,
};

const SOL_SOCKET: i32 = 1;
const SO_REUSEPORT: i32 = 15;

const ALLOW: i32 = 1;
/// The system call fails with `EPERM`.
const REFUSE: i32 = 0;

#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    share(&ctx, FAMILY_V4);
    ALLOW
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    share(&ctx, FAMILY_V6);
    ALLOW
}

/// Sets `SO_REUSEPORT` if this backend shares the port. This option in this hook needs Linux 6.1.
#[inline(always)]
fn share(ctx: &SockAddrContext, family: u8) {
    let Some(backend) = current_backend() else { return };
    // The kernel is about to refuse a second bind, and the state of the first one stays valid.
    if users::is_bound(ctx) {
        return;
    }
    // SAFETY: the context is valid for the whole run.
    let addr = unsafe { &*ctx.sock_addr };
    let port = u16::from_be(addr.user_port as u16);
    let proto = addr.protocol as u8;
    if !managed(backend, port, proto, PORT_LISTENS) {
        return users::forget(ctx);
    }
    if users::hide(ctx, port, proto) {
        return;
    }
    let mut on = 1i32;
    // SAFETY: the context is this hook's own; the option is four bytes.
    let failed = unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_REUSEPORT, (&raw mut on).cast(), 4) };
    if failed != 0 {
        let socket = SocketInfo { backend, port, proto, family, ..SocketInfo::default() };
        emit(&Event { kind: EVENT_NOT_SHARED, errno: -failed as u32, cookie: 0, socket });
    }
}

/// Refuses MPTCP sockets: an MPTCP listener cannot enter a socket map (`EOPNOTSUPP`). A program that asks for MPTCP
/// falls back to TCP on any error, because kernels may lack MPTCP. Go asks for it since 1.24.
#[cgroup_sock(sock_create)]
pub fn refuse_mptcp(ctx: SockContext) -> i32 {
    let Some(backend) = current_backend() else { return ALLOW };
    // SAFETY: the context is valid for the whole run.
    let (protocol, family) = unsafe { ((*ctx.sock).protocol, (*ctx.sock).family) };
    if protocol != PROTO_MPTCP {
        return ALLOW;
    }
    // SAFETY: the context is this hook's own.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let socket = SocketInfo { netns_cookie, backend, family: family as u8, ..SocketInfo::default() };
    emit(&Event { kind: EVENT_MPTCP_REFUSED, errno: 0, cookie: 0, socket });
    REFUSE
}
