//! Versions that run as different users. The kernel lets sockets share a port only if all are one user's. So the first
//! managed bind that succeeds decides which user owns the port, and a bind by any other user is rewritten to a port of
//! the kernel's choice: the lookup finds the socket by its cookie, whatever its port. `cgroup/getsockname4` and
//! `getsockname6` show the server the port that it asked for.
//!
//! Two binds may happen in the same moment. So a bind claims the port before it is tried, and `cgroup/post_bind4` and
//! `post_bind6`, which run only when it has succeeded, confirm the claim.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_NOEXIST, bpf_sock},
    cty::c_void,
    helpers::{bpf_get_current_uid_gid, bpf_get_netns_cookie, bpf_ktime_get_ns, generated::bpf_sk_storage_get},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext, SockOpsContext},
};
use pod_steer_ebpf::{BIND_MAX_NS, Hidden, PortKey, PortUser};

use crate::maps::{HIDDEN, PORT_USERS};

/// The verdict of the getsockname hooks, which may change the address that is shown, but cannot refuse the call.
const SHOW: i32 = 1;

#[cgroup_sock_addr(getsockname4)]
pub fn getsockname4(ctx: SockAddrContext) -> i32 {
    show(&ctx);
    SHOW
}

#[cgroup_sock_addr(getsockname6)]
pub fn getsockname6(ctx: SockAddrContext) -> i32 {
    show(&ctx);
    SHOW
}

/// The verdict of the post-bind hooks, which may refuse a bind that has succeeded.
const KEEP: i32 = 1;

#[cgroup_sock(post_bind4)]
pub fn post_bind4(ctx: SockContext) -> i32 {
    confirm(&ctx);
    KEEP
}

#[cgroup_sock(post_bind6)]
pub fn post_bind6(ctx: SockContext) -> i32 {
    confirm(&ctx);
    KEEP
}

/// A bind has succeeded: confirms that the port is its user's, if that user has claimed it.
#[inline(always)]
fn confirm(ctx: &SockContext) {
    // SAFETY: the context is valid for the whole run.
    let (port, proto) = unsafe { ((*ctx.sock).src_port as u16, (*ctx.sock).protocol as u8) };
    // SAFETY: the context is this hook's own.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let key = PortKey { netns_cookie, port, proto, pad: [0; 5] };
    let Some(user) = PORT_USERS.get_ptr_mut(key) else { return };
    // SAFETY: an entry lives until the end of this run at least; each field is written and read as a whole.
    unsafe {
        if (*user).uid == bpf_get_current_uid_gid() as u32 {
            (*user).bound = 1;
        }
    }
}

/// Shows the port that the server asked for: servers log where they listen, and some tell other programs.
#[inline(always)]
fn show(ctx: &SockAddrContext) {
    let Some(hidden) = of_addr(ctx) else { return };
    // SAFETY: the storage lives as long as the socket, which this call holds.
    let asked = unsafe { (*hidden).asked };
    // SAFETY: the context is valid for the whole run.
    let addr = unsafe { &mut *ctx.sock_addr };
    // A failed bind has left the socket without a port.
    if addr.user_port as u16 != 0 {
        addr.user_port = u32::from(asked.to_be());
    }
}

/// Whether an earlier bind of this socket has succeeded.
#[inline(always)]
pub fn is_bound(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is valid for the whole run, and so is its socket, which is never null here.
    unsafe { (*socket(ctx)).src_port != 0 }
}

/// Forgets an earlier bind of this socket that was moved and then failed: this one is ordinary.
#[inline(always)]
pub fn forget(ctx: &SockAddrContext) {
    // SAFETY: the socket is valid for the whole run.
    let _ = unsafe { HIDDEN.delete(socket(ctx)) };
}

/// Moves this bind if the port is another user's, and returns whether it did. The kernel then does not ask for the
/// privilege that the port requires. That gives nothing away: the labels decide which clients come to a server.
#[inline(always)]
pub fn hide(ctx: &SockAddrContext, port: u16, proto: u8) -> bool {
    // The kernel compares the users that made the sockets (`fsuid`); this is the user that binds (`ruid`). They differ
    // in programs that change their user in between or are set-uid: their binds may be moved without need, or fail as
    // they do without pod-steer.
    let uid = bpf_get_current_uid_gid() as u32;
    // SAFETY: the context is this hook's own.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let owner = owner(&PortKey { netns_cookie, port, proto, pad: [0; 5] }, uid);
    if owner == uid {
        forget(ctx);
        return false;
    }
    let mut moved = Hidden { asked: port, port: 0, users: [uid, owner] };
    // SAFETY: the socket is this hook's own.
    let stored = unsafe { HIDDEN.get_or_insert_ptr_mut(ctx, Some(&mut moved)) };
    if stored.is_null() {
        return false;
    }
    // SAFETY: it was just checked. A failed bind may have left another value here.
    unsafe { *stored = moved };
    // SAFETY: the context is valid for the whole run. The kernel chooses a port when none is given.
    unsafe { (*ctx.sock_addr).user_port = 0 };
    true
}

/// The user that owns this port: `uid` from now on, if there is none. The map lets one of two binds in the same moment
/// be the first. A failed bind of another user does not count.
#[inline(always)]
fn owner(key: &PortKey, uid: u32) -> u32 {
    // SAFETY: reads the clock.
    let now = unsafe { bpf_ktime_get_ns() };
    let claim = PortUser { uid, bound: 0, since_ns: now };
    // SAFETY: each field is read as a whole.
    if let Some(user) = unsafe { PORT_USERS.get(key) } {
        if user.uid == uid || user.bound != 0 || now.saturating_sub(user.since_ns) < BIND_MAX_NS {
            return user.uid;
        }
        let _ = PORT_USERS.insert(key, claim, BPF_ANY.into());
        return uid;
    }
    if PORT_USERS.insert(key, claim, BPF_NOEXIST.into()).is_ok() {
        return uid;
    }
    // SAFETY: as above.
    unsafe { PORT_USERS.get(key) }.map_or(uid, |user| user.uid)
}

#[inline(always)]
fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: the context is valid for the whole run; the union has this member alone.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}

#[inline(always)]
fn of_addr(ctx: &SockAddrContext) -> Option<*mut Hidden> {
    // SAFETY: the socket is valid for the whole run.
    let hidden = unsafe { HIDDEN.get_ptr_mut(ctx) };
    (!hidden.is_null()).then_some(hidden)
}

/// The record of a socket that listens or has listened; `None` if its bind was not moved.
#[inline(always)]
pub fn of_listener(ctx: &SockOpsContext) -> Option<*mut Hidden> {
    // SAFETY: the context is valid for the whole run; the union has this member alone.
    let sk = unsafe { ptr::read_volatile(&raw const (*ctx.ops).__bindgen_anon_2.sk) };
    if sk.is_null() {
        return None;
    }
    let map = ptr::from_ref(&HIDDEN).cast_mut().cast::<c_void>();
    // SAFETY: the map and the socket are valid; without the flag for it, nothing is created.
    let hidden = unsafe { bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), 0) }.cast::<Hidden>();
    (!hidden.is_null()).then_some(hidden)
}
