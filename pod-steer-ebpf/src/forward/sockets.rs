//! Sockets of other namespaces, by which the programs know whether a listener or a connection is alive.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    helpers::generated::{bpf_map_lookup_elem, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_sock},
    programs::TcContext,
};
use pod_steer_ebpf::{FAMILY_V4, Tuple};

use crate::maps::LISTENERS;

/// The states of a socket (`include/net/tcp_states.h`), and a number that is none.
pub const NO_SOCKET: u32 = 0;
pub const TCP_SYN_SENT: u32 = 2;
pub const TCP_FIN_WAIT1: u32 = 4;
pub const TCP_FIN_WAIT2: u32 = 5;
pub const TCP_TIME_WAIT: u32 = 6;
pub const TCP_CLOSE_WAIT: u32 = 8;
pub const TCP_LAST_ACK: u32 = 9;
const TCP_LISTEN: u32 = 10;
pub const TCP_CLOSING: u32 = 11;
pub const TCP_NEW_SYN_RECV: u32 = 12;

/// In place of a namespace's number: that of the program's device (`BPF_F_CURRENT_NETNS`).
pub const CURRENT_NAMESPACE: i32 = -1;

/// A listening socket of any namespace.
pub struct Listener {
    /// In host byte order.
    pub port: u16,
    /// The address that it is bound to, in network byte order; zero for any.
    pub v4: u32,
    /// The same, of IPv6.
    pub v6: [u32; 4],
}

/// The listening socket with this cookie, if it still listens.
#[inline(always)]
pub fn listener(cookie: u64) -> Option<Listener> {
    let map = ptr::from_ref(&LISTENERS).cast_mut().cast();
    // SAFETY: the map and the key are valid. The socket is read while it is held, and released.
    unsafe {
        let socket = bpf_map_lookup_elem(map, (&raw const cookie).cast()).cast::<bpf_sock>();
        if socket.is_null() {
            return None;
        }
        let state = ptr::read_volatile(&raw const (*socket).state);
        let found = Listener {
            port: ptr::read_volatile(&raw const (*socket).src_port) as u16,
            v4: ptr::read_volatile(&raw const (*socket).src_ip4),
            v6: ptr::read_volatile(&raw const (*socket).src_ip6),
        };
        bpf_sk_release(socket.cast());
        if state == TCP_LISTEN { Some(found) } else { None }
    }
}

/// Whether a state is that of a connection which goes on, and is not this one either.
#[inline(always)]
pub fn is_alive(state: u32, but: u32) -> bool {
    !matches!(state, NO_SOCKET | TCP_TIME_WAIT | TCP_LISTEN) && state != but
}

/// Whether a state is that of a connection, which may have ended.
#[inline(always)]
pub fn is_connection(state: u32) -> bool {
    !matches!(state, NO_SOCKET | TCP_LISTEN)
}

/// The state of the socket that a namespace has for this connection, or [`NO_SOCKET`]. It may be a listener.
#[inline(never)]
pub fn state(ctx: &TcContext, tuple: &Tuple, nsid: i32) -> u32 {
    look_up(ctx, tuple, nsid, state_of)
}

/// In the result of [`state_for`]: the packet is none of this connection.
pub const MISFIT: u32 = 1 << 8;
/// How far the sequence number of a packet may be from the next one of its connection, in bytes: the largest receive buffer by default is as
/// long (`net.ipv4.tcp_rmem`), and no window is larger.
const REACH: u32 = 1 << 25;

/// Sequence and acknowledgement number of a client's packet, in host byte order.
pub struct Numbers {
    pub sequence: u32,
    pub acknowledgement: u32,
    /// Not zero if it acknowledges something.
    pub acknowledges: u32,
}

/// The same for a client's packet of which only the numbers tell whether it is of this connection. A half-open one tells none. A client
/// acknowledges nothing that the server has not sent, and each packet at least what those before it did. One that overtook this one makes it
/// a misfit, which costs no connection: the host's reset for it has a number that the client no longer expects. A packet that acknowledges
/// nothing is a reset, which counts with the next number alone (RFC 5961, 3.2).
#[inline(never)]
pub fn state_for(ctx: &TcContext, tuple: &Tuple, nsid: i32, numbers: &Numbers) -> u32 {
    look_up(ctx, tuple, nsid, |socket| {
        // SAFETY: the socket is held meanwhile. Without numbers the helper returns null.
        let (next, unacknowledged, sent) = unsafe {
            let tcp = bpf_tcp_sock(socket);
            if tcp.is_null() {
                return state_of(socket);
            }
            let next = ptr::read_volatile(&raw const (*tcp).rcv_nxt);
            (next, ptr::read_volatile(&raw const (*tcp).snd_una), ptr::read_volatile(&raw const (*tcp).snd_nxt))
        };
        let fits = if numbers.acknowledges == 0 {
            numbers.sequence == next
        } else {
            numbers.sequence.wrapping_sub(next).wrapping_add(REACH) < 2 * REACH
                && numbers.acknowledgement.wrapping_sub(unacknowledged) <= sent.wrapping_sub(unacknowledged)
        };
        state_of(socket) | if fits { 0 } else { MISFIT }
    })
}

#[inline(always)]
fn state_of(socket: *mut bpf_sock) -> u32 {
    // SAFETY: the socket is held meanwhile.
    unsafe { ptr::read_volatile(&raw const (*socket).state) }
}

/// Reads something of that socket, or [`NO_SOCKET`].
#[inline(always)]
fn look_up(ctx: &TcContext, tuple: &Tuple, nsid: i32, read: impl FnOnce(*mut bpf_sock) -> u32) -> u32 {
    // SAFETY: integers.
    let mut key = bpf_sock_tuple { __bindgen_anon_1: unsafe { core::mem::zeroed() } };
    let size = if tuple.family == FAMILY_V4 {
        key.__bindgen_anon_1.ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: tuple.source[0],
            daddr: tuple.destination[0],
            sport: tuple.source_port,
            dport: tuple.destination_port,
        };
        size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>()
    } else {
        key.__bindgen_anon_1.ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: tuple.source,
            daddr: tuple.destination,
            sport: tuple.source_port,
            dport: tuple.destination_port,
        };
        size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>()
    };
    // SAFETY: the context and the tuple are valid. The socket is read while it is held, and released.
    unsafe {
        let socket = bpf_skc_lookup_tcp(ctx.as_ptr().cast(), &raw mut key, size as u32, nsid as u64, 0);
        if socket.is_null() {
            return NO_SOCKET;
        }
        let found = read(socket);
        bpf_sk_release(socket.cast());
        found
    }
}
