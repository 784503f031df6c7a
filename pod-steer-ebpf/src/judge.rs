//! An object of its own, which is loaded for each version that is compared with another, and only while it is: it counts how the version
//! treats its clients. The programs are attached to the cgroups of the version's backends, after `tcp_events`, which tells clients from
//! others (`cgroup_skb` and `bpf_sk_storage_get` in it, Linux 5.2).
//!
//! What is known of a connection lies in its socket's storage. A connection that the sample leaves out has none, and costs the rest one
//! look-up for each packet.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "the only way to an atomic addition on this target")]
#![allow(missing_docs)]

#[path = "judge/segment.rs"]
mod segment;

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr,
};

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, tcp_sock},
    btf_maps::{Array, PerCpuArray, SkStorage},
    cty::c_void,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_skc_to_tcp_sock, generated::bpf_sk_storage_get},
    macros::{btf_map, cgroup_skb, sock_ops},
    programs::{SkBuffContext, SockOpsContext},
};
use pod_steer_ebpf::{FIRST_BYTE_BUCKETS, GENERATIONS, Observed, first_byte_bucket};
use segment::{PROVISIONAL, Payload, SWITCHES, is_ahead, is_repeated, payload, status_class};

const BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB: u32 = 5;
const BPF_SOCK_OPS_STATE_CB: u32 = 10;
/// `tcp_events` sets it on connections of clients, and on no others.
const COUNTED_FLAG: u32 = 1 << 0;

const TCP_ESTABLISHED: u32 = 1;
const TCP_FIN_WAIT1: u32 = 4;
const TCP_FIN_WAIT2: u32 = 5;
const TCP_CLOSE: u32 = 7;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;

/// Neither side has said anything.
const SILENT: u32 = 0;
/// The client has said something, and the server nothing since.
const ASKED: u32 = 1;
/// The server has said something, and the client nothing since.
const ANSWERED: u32 = 2;

/// The last answer was one by HTTP/1, which answers each request. A client may end other protocols with data of its own, as it does TLS.
const IS_HTTP: u32 = 1 << 0;
/// An answer by HTTP/1 was counted in `spoken`, one of 5xx in `failing`.
const HAS_SPOKEN: u32 = 1 << 1;
const HAS_FAILED: u32 = 1 << 2;

/// A server that closes a connection on which nothing was sent may have waited for too long, unless it does so within this time.
const AT_ONCE_NS: u64 = 1_000_000_000;

/// The verdict for packets, which a `cgroup_skb` program might drop.
const PASS: i32 = 1;

/// Offset of `sk_err` in the kernel's `struct sock`, from its BTF.
#[unsafe(no_mangle)]
static SK_ERR: u32 = 0;
/// Not zero if the first line of each answer is read.
#[unsafe(no_mangle)]
static READS_HTTP: u32 = 0;

/// A connection of the sample.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Connection {
    /// Since when the present phase lasts: the handshake, or the last data of a request.
    since_ns: u64,
    phase: u32,
    flags: u32,
    /// Answers so far.
    answers: u32,
    /// That of the request which waits for an answer; 0 if none does.
    generation: u32,
}

#[btf_map]
static CONNECTIONS: SkStorage<Connection> = SkStorage::new();

/// The sums.
#[btf_map]
static OBSERVED: PerCpuArray<Observed, 1> = PerCpuArray::new();

/// Of so many connections one is in the sample, as a power of two less one. Written by the daemon.
#[btf_map]
static SAMPLE: Array<u32, 1> = Array::new();

/// The present generation of requests, which is not 0. Written by the daemon.
#[btf_map]
static GENERATION: Array<u32, 1> = Array::new();

/// Adds to a sum. By one instruction: a program that runs for a system call may be interrupted by one that runs for a packet.
#[inline(always)]
fn add(sum: *mut u64, more: u64) {
    // SAFETY: an aligned number in a map's value, which the verifier has checked; other programs only add to it.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(sum, more) };
}

/// Adds to a sum of [`Observed`].
macro_rules! add {
    ($sums:expr, $field:ident, $more:expr) => {
        // SAFETY: the verifier checked the pointer; only the address of the field is taken.
        add(unsafe { &raw mut (*$sums).$field }, $more)
    };
}

/// Adds to, or takes from, the connections that wait since a generation.
#[inline(always)]
fn add_waiting(sums: *mut Observed, generation: u32, more: u64) {
    // SAFETY: the verifier checked the pointer, and the index is below the length.
    add(unsafe { (&raw mut (*sums).waiting).cast::<u64>().add(generation as usize & (GENERATIONS - 1)) }, more);
}

/// Takes one away, in wrapping arithmetic.
const LESS: u64 = u64::MAX;

#[sock_ops]
pub fn judge_connections(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB if ctx.cb_flags() & COUNTED_FLAG != 0 => opened(&ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == TCP_CLOSE => ended(&ctx),
        _ => {}
    }
    1
}

#[inline(always)]
fn opened(ctx: &SockOpsContext) {
    let mask = SAMPLE.get(0).copied().unwrap_or(0);
    // SAFETY: takes no arguments.
    if mask != 0 && unsafe { bpf_get_prandom_u32() } & mask != 0 {
        return;
    }
    let Some(sk) = socket(ctx) else { return };
    // SAFETY: takes no arguments.
    let since_ns = unsafe { bpf_ktime_get_ns() };
    let mut new = Connection { since_ns, phase: SILENT, flags: 0, answers: 0, generation: 0 };
    // SAFETY: the context's socket is not null and valid for the whole run; the value is copied.
    let made = unsafe { storage(sk, &raw mut new, BPF_SK_STORAGE_GET_F_CREATE.into()) };
    if !made.is_null()
        && let Some(sums) = OBSERVED.get_ptr_mut(0)
    {
        add!(sums, opened, 1);
    }
}

/// A connection has ended. Its former state says which side ended it: the server closed first in the states of an active close, and a
/// server that resets goes from an open state to the end without an error.
#[inline(always)]
fn ended(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    // SAFETY: as in `opened`.
    let connection = unsafe { storage(sk, ptr::null_mut(), 0) };
    if connection.is_null() {
        return;
    }
    let Some(sums) = OBSERVED.get_ptr_mut(0) else { return };
    // SAFETY: the context is valid for the whole run.
    let (sent, received, again) = unsafe {
        (
            ptr::read_volatile(&raw const (*ctx.ops).data_segs_out),
            ptr::read_volatile(&raw const (*ctx.ops).bytes_received),
            ptr::read_volatile(&raw const (*ctx.ops).total_retrans),
        )
    };
    add!(sums, ended, 1);
    if again != 0 {
        add!(sums, retransmitted, u64::from(again));
    }
    let from = ctx.arg(0);
    // SAFETY: the storage lives as long as the socket.
    let Connection { since_ns, phase, flags, generation, .. } = unsafe { ptr::read_volatile(connection) };
    let is_asked = phase == ASKED;
    if generation != 0 {
        add_waiting(sums, generation, LESS);
    }
    // Without a byte, or after a request of a protocol that answers each.
    let is_unanswered = sent == 0 || is_asked && flags & IS_HTTP != 0;
    // The kernel counts the client's FIN as a byte.
    let data = received - u64::from(received != 0 && matches!(from, TCP_CLOSE_WAIT | TCP_LAST_ACK));
    // A client that has closed does not mind a reset, unless it waits.
    let aborts = matches!(from, TCP_ESTABLISHED | TCP_FIN_WAIT1) || from == TCP_CLOSE_WAIT && is_unanswered;
    if aborts && !has_failed(sk) {
        add!(sums, reset, 1);
    } else if matches!(from, TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_CLOSING) {
        // SAFETY: takes no arguments.
        let is_late = || unsafe { bpf_ktime_get_ns() }.saturating_sub(since_ns) >= AT_ONCE_NS;
        let is_unused = phase == SILENT && received <= 1;
        if is_unanswered && !(is_unused && is_late()) {
            add!(sums, empty, 1);
        }
    } else if data != 0 && is_unanswered {
        add!(sums, left, 1);
    }
}

/// Whether the kernel has noted an error on a socket: a reset of the other side, or a time-out.
#[inline(always)]
fn has_failed(sk: *mut bpf_sock) -> bool {
    // SAFETY: the socket is valid. The helper returns null for one that is no full TCP socket.
    let tcp: *mut tcp_sock = unsafe { bpf_skc_to_tcp_sock(sk.cast()) };
    if tcp.is_null() {
        return true;
    }
    // SAFETY: the helper returned it; a `tcp_sock` begins with its `sock`, in which the constant is the offset of an `int`, or the kernel
    // refuses the program.
    unsafe {
        ptr::read_volatile(tcp.cast::<u8>().add(ptr::read_volatile(&raw const SK_ERR) as usize).cast::<i32>()) != 0
    }
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    // SAFETY: the context is valid for the whole run; the union has this member alone.
    let sk = unsafe { ptr::read_volatile(&raw const (*ctx.ops).__bindgen_anon_2.sk) };
    if sk.is_null() { None } else { Some(sk) }
}

/// # Safety
/// The socket is valid, and `new` is null or valid.
#[inline(always)]
unsafe fn storage(sk: *mut bpf_sock, new: *mut Connection, flags: u64) -> *mut Connection {
    let map = ptr::from_ref(&CONNECTIONS).cast_mut().cast::<c_void>();
    // SAFETY: guaranteed by the caller.
    unsafe { bpf_sk_storage_get(map, sk.cast(), new.cast(), flags) }.cast()
}

#[cgroup_skb(ingress)]
pub fn judge_requests(ctx: SkBuffContext) -> i32 {
    let Some((sk, connection)) = connection_of(&ctx) else { return PASS };
    // What a client sends after the server has closed is no request: the end of TLS, of a WebSocket.
    // SAFETY: the socket is valid for the whole run.
    if unsafe { ptr::read_volatile(&raw const (*sk).state) } != TCP_ESTABLISHED {
        return PASS;
    }
    let Some(Payload { at, sequence }) = payload(&ctx) else { return PASS };
    // A segment that has arrived before, or the probe of an idle client.
    if !is_ahead(sk, sequence.wrapping_add(ctx.len() - at)) {
        return PASS;
    }
    let Some(sums) = OBSERVED.get_ptr_mut(0) else { return PASS };
    let mut generation = GENERATION.get(0).copied().unwrap_or(0);
    // SAFETY: the storage lives as long as the socket; each field is read and written as a whole.
    let (phase, before) = unsafe {
        // The last data of a request counts: before it is there, the server cannot answer.
        ptr::write_volatile(&raw mut (*connection).since_ns, bpf_ktime_get_ns());
        // Later data may be a client's last word, which other protocols do not answer.
        let is_first = ptr::read_volatile(&raw const (*connection).answers) == 0;
        if !is_first && ptr::read_volatile(&raw const (*connection).flags) & IS_HTTP == 0 {
            generation = 0;
        }
        let before = ptr::read_volatile(&raw const (*connection).generation);
        ptr::write_volatile(&raw mut (*connection).generation, generation);
        let phase = ptr::read_volatile(&raw const (*connection).phase);
        ptr::write_volatile(&raw mut (*connection).phase, ASKED);
        (phase, before)
    };
    if phase != ASKED {
        add!(sums, asked, 1);
    }
    if before != generation {
        if before != 0 {
            add_waiting(sums, before, LESS);
        }
        if generation != 0 {
            add_waiting(sums, generation, 1);
        }
    }
    PASS
}

#[cgroup_skb(egress)]
pub fn judge_answers(ctx: SkBuffContext) -> i32 {
    let Some((sk, connection)) = connection_of(&ctx) else { return PASS };
    // SAFETY: the storage lives as long as the socket; each field is read as a whole.
    let (phase, since_ns) = unsafe {
        (ptr::read_volatile(&raw const (*connection).phase), ptr::read_volatile(&raw const (*connection).since_ns))
    };
    if phase == ANSWERED {
        return PASS;
    }
    let Some(Payload { at, sequence }) = payload(&ctx) else { return PASS };
    if is_repeated(sk, sequence) {
        return PASS;
    }
    let Some(sums) = OBSERVED.get_ptr_mut(0) else { return PASS };
    // SAFETY: an initialised static; volatile, because the loader changes it after compilation.
    if unsafe { ptr::read_volatile(&raw const READS_HTTP) } != 0 {
        let class = status_class(&ctx, at);
        // An answer that is not the last one of its request.
        if class == Some(PROVISIONAL) {
            return PASS;
        }
        // SAFETY: as above.
        let before = unsafe { ptr::read_volatile(&raw const (*connection).flags) };
        let flags = count_status(sums, class, before);
        // SAFETY: as above.
        unsafe { ptr::write_volatile(&raw mut (*connection).flags, flags) };
    }
    // SAFETY: as above. (The helper takes no arguments.)
    let (took_ns, answers, generation) = unsafe {
        ptr::write_volatile(&raw mut (*connection).phase, ANSWERED);
        let answers = ptr::read_volatile(&raw const (*connection).answers).wrapping_add(1);
        ptr::write_volatile(&raw mut (*connection).answers, answers);
        let generation = ptr::read_volatile(&raw const (*connection).generation);
        ptr::write_volatile(&raw mut (*connection).generation, 0);
        (bpf_ktime_get_ns().saturating_sub(since_ns), answers, generation)
    };
    if generation != 0 {
        add_waiting(sums, generation, LESS);
    }
    if phase == SILENT {
        add!(sums, asked, 1);
    }
    add!(sums, answered, 1);
    // All but powers of two.
    if answers & answers.wrapping_sub(1) != 0 {
        return PASS;
    }
    let bucket = first_byte_bucket(took_ns);
    // SAFETY: a local variable; volatile: the compiler knows the bound and leaves out the comparison, which the verifier asks for.
    let bucket = unsafe { ptr::read_volatile(&raw const bucket) };
    if bucket < FIRST_BYTE_BUCKETS {
        // SAFETY: the verifier checked the pointer, and the index just now.
        add(unsafe { (&raw mut (*sums).first_byte).cast::<u64>().add(bucket) }, 1);
    }
    PASS
}

/// Counts an answer by its status, and returns the connection's flags.
#[inline(always)]
fn count_status(sums: *mut Observed, class: Option<u8>, flags: u32) -> u32 {
    let (class, is_http) = match class {
        Some(class @ 2..=5) => (class, IS_HTTP),
        Some(SWITCHES) => (2, 0),
        _ => {
            add!(sums, unread, 1);
            return flags & !IS_HTTP;
        }
    };
    // SAFETY: the verifier checked the pointer; the index is below four.
    add(unsafe { (&raw mut (*sums).classes).cast::<u64>().add((class - 2) as usize) }, 1);
    if flags & HAS_SPOKEN == 0 {
        add!(sums, spoken, 1);
    }
    if class == 5 && flags & HAS_FAILED == 0 {
        add!(sums, failing, 1);
    }
    let failed = if class == 5 { HAS_FAILED } else { 0 };
    flags & !IS_HTTP | HAS_SPOKEN | is_http | failed
}

/// The socket of a packet, and what is known of it if it is in the sample.
#[inline(always)]
fn connection_of(ctx: &SkBuffContext) -> Option<(*mut bpf_sock, *mut Connection)> {
    // SAFETY: the context is valid for the whole run; the union has this member alone.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: it is not null, and valid for the whole run.
    let connection = unsafe { storage(sk, ptr::null_mut(), 0) };
    if connection.is_null() { None } else { Some((sk, connection)) }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// `bpf_skc_to_tcp_sock` is only for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
