//! An object of its own, which is loaded only while `pod-steer trace` runs: programs behind those that choose, which report each choice.
//! They change nothing, and count in maps of their own.
//!
//! `trace_lookup` is attached to the network namespace after `steer`: Linux runs both for a packet, and shows the second one the
//! socket that the first one has assigned. Which slot it came from is found by the same walk through the tables. `trace_wire`
//! and `trace_tunnel` see the rewritten SYN of a forwarded connection where it leaves for its container, behind `to_wire`.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "the only way to an atomic addition on this target")]
#![allow(missing_docs)]
#![allow(clippy::needless_borrows_for_generic_args, reason = "a report is too large to be copied to the stack")]
#![allow(dead_code, reason = "the modules are those of the programs that choose, which need more of them")]

mod choose;
mod forward {
    pub mod headers;
    mod routes;
}
mod maps;
mod packet;
mod rules;
mod table;

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, TC_ACT_UNSPEC, bpf_sock, sk_action::SK_PASS, tcp_sock},
    btf_maps::{PerCpuArray, RingBuf},
    helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_skc_to_tcp_sock},
    macros::{btf_map, classifier, sk_lookup},
    programs::{SkLookupContext, TcContext},
};
use pod_steer_ebpf::{
    DAEMON_COOKIE, FALLBACK_PASS, FAMILY_V4, FORWARD_MARK, NONE, OwnConnection, PROBE_SOURCE_V4, PROTO_TCP, ProbeKey,
    Rule, Slot, SocketInfo, TRACE_ASSIGN_EEXIST, TRACE_BY_NETWORK, TRACE_FORWARDED, TRACE_NETWORK_NO_BACKEND,
    TRACE_NOT_FORWARDED, TRACE_PASSED_NO_BACKEND, TRACE_PASSED_NO_DAEMON, TRACE_PAUSED, TRACE_REFUSED_NO_BACKEND,
    TRACE_STALE_SLOTS, TRACE_STEERED, TRACED_BYTES, Traced, Tuple, WAY_FORWARD, own_source, table_index,
};

use crate::{
    choose::choose,
    forward::headers::{ACK, ETH_P_IP, ETH_P_IPV6, Ip, SYN},
    maps::{
        OWN_CONNECTIONS, OWN_SOURCES, PENDING, PROBES, SOCKETS, TABLES, forwards, increment, is_listening,
        netns_cookie, switch,
    },
    packet::{LOOPBACK_V6, Packet},
    rules::rule_for,
    table::{Chooser, Visit, withholds},
};

/// Length of an Ethernet header.
const ETHERNET: usize = 14;
/// `VLAN_VID_MASK`
const VLAN_ID: u32 = 0x0fff;
/// A choice that is older was reported when it was made: its SYN is sent again after 200 ms at the earliest.
const RECENT_NS: u64 = 100_000_000;

/// Offset of the cookie in `struct sock_common`, with which each socket begins; from the kernel's BTF.
#[unsafe(no_mangle)]
static COOKIE_OFFSET: u32 = 0;
/// What is reported: the choices for one service, those of one backend, and those with one of these reasons. [`NONE`] stands for all.
#[unsafe(no_mangle)]
static WANTED_SERVICE: u32 = NONE;
#[unsafe(no_mangle)]
static WANTED_BACKEND: u32 = NONE;
#[unsafe(no_mangle)]
static WANTED_REASONS: u32 = NONE;

#[btf_map]
static TRACED: RingBuf<Traced, { TRACED_BYTES as usize }> = RingBuf::new();
/// Choices that were not reported, since the ring was full.
#[btf_map]
static TRACED_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// The report that is being made on each processor: the stack has no room for it. Packets are handled with softirqs disabled. An exact request of
/// `sock_diag` is not: a packet that comes in the midst of it overwrites its report.
#[btf_map]
static REPORT: PerCpuArray<Traced, 1> = PerCpuArray::new();

/// Reports the choice for a packet that begins a connection. It leaves the choice as it is: that of an earlier program counts if this one
/// passes without its own.
#[sk_lookup]
pub fn trace_lookup(ctx: SkLookupContext) -> u32 {
    let packet = packet::of(&ctx);
    // SAFETY: the context is valid for the whole run.
    let sk = unsafe { ptr::read_volatile(&raw const (*ctx.lookup).__bindgen_anon_1.__bindgen_anon_1.sk) };
    let cookie = if sk.is_null() { 0 } else { cookie_of(sk) };
    if packet.protocol == u32::from(PROTO_TCP) && is_own(&packet) == 0 {
        chosen_here(&packet, cookie, sk.is_null().into());
    }
    SK_PASS
}

/// Reports the choice for a forwarded packet that leaves by an Ethernet device.
#[classifier]
pub fn trace_wire(ctx: TcContext) -> i32 {
    chosen_elsewhere(ctx.as_ptr().cast(), ETHERNET);
    TC_ACT_UNSPEC
}

/// The same for a device without Ethernet headers.
#[classifier]
pub fn trace_tunnel(ctx: TcContext) -> i32 {
    chosen_elsewhere(ctx.as_ptr().cast(), 0);
    TC_ACT_UNSPEC
}

/// The socket with this cookie was chosen, or none.
#[inline(never)]
fn chosen_here(packet: &Packet, cookie: u64, is_none: u32) -> u32 {
    let Some(rule) = rule(packet).filter(|rule| is_wanted(rule.service)) else { return 0 };
    let Some(traced) = begin() else { return 0 };
    traced.tuple.source = packet.remote;
    traced.tuple.destination = packet.local;
    traced.tuple.source_port = packet.remote_port;
    traced.tuple.destination_port = (packet.local_port as u16).to_be();
    traced.tuple.family = packet.family as u8;
    (traced.cookie, traced.backend, traced.reasons) = (cookie, NONE, 0);
    let waits = find(packet, rule, traced);
    // SAFETY: the daemon replaces the value as a whole, and aligned words of it are read.
    let socket = if cookie == 0 { None } else { unsafe { SOCKETS.get(cookie) } };
    traced.reasons |= if is_none != 0 {
        without_socket(rule)
    } else if waits != 0 || socket.is_some_and(holds) {
        TRACE_PAUSED
    } else if let Some(socket) = socket {
        traced.backend = socket.backend;
        TRACE_STEERED
    } else {
        TRACE_ASSIGN_EEXIST
    };
    report(traced)
}

/// A SYN that was rewritten leaves.
#[inline(never)]
fn chosen_elsewhere(skb: *mut __sk_buff, l2: usize) -> u32 {
    // SAFETY: the context is valid for the whole run; volatile and unconditional, as in `packet`.
    let (mark, vlan, protocol, ifindex) = unsafe {
        (
            ptr::read_volatile(&raw const (*skb).mark),
            ptr::read_volatile(&raw const (*skb).vlan_tci) & VLAN_ID,
            ptr::read_volatile(&raw const (*skb).protocol),
            ptr::read_volatile(&raw const (*skb).ingress_ifindex),
        )
    };
    // The device of a VLAN has reported what leaves by the one below.
    if mark & FORWARD_MARK == 0 || vlan != 0 {
        return 0;
    }
    let Some(traced) = begin() else { return 0 };
    if !read_syn(&TcContext::new(skb), l2, protocol, &mut traced.tuple) || !read_flow(traced) {
        return 0;
    }
    walk(traced, ifindex);
    report(traced)
}

/// The report of this processor, without a place in a table.
#[inline(always)]
fn begin() -> Option<&'static mut Traced> {
    // SAFETY: the verifier checked the pointer, and nothing else uses the entry meanwhile.
    let traced = unsafe { &mut *REPORT.get_ptr_mut(0)? };
    (traced.table, traced.entry, traced.slots) = (NONE, 0, 0);
    Some(traced)
}

/// Reads addresses and ports of a packet. False if it does not begin a connection.
#[inline(never)]
fn read_syn(ctx: &TcContext, l2: usize, protocol: u32, tuple: &mut Tuple) -> bool {
    let ip = match protocol {
        ETH_P_IP => Ip::v4(ctx, l2),
        ETH_P_IPV6 => Ip::v6(ctx, l2),
        _ => None,
    };
    let Some(ip) = ip.filter(|ip| ip.protocol == PROTO_TCP && ip.fragment == 0) else { return false };
    let Ok(header) = ctx.load::<[u16; 7]>(ip.end) else { return false };
    *tuple = Tuple { source_port: header[0], destination_port: header[1], ..ip.tuple };
    u32::from(u16::from_be(header[6])) & (SYN | ACK) == SYN
}

/// Reads the choice that has made this packet: the entry of its replies leads back to what its client sent. False if it was not made just now.
#[inline(never)]
fn read_flow(traced: &mut Traced) -> bool {
    let key = traced.tuple.reversed();
    // SAFETY: the fields are copied. The entry may be evicted, and another take its place meanwhile: at worst that one is reported.
    let Some(flow) = (unsafe { PENDING.get(key) }) else { return false };
    // SAFETY: takes no arguments. Since Linux 5.11.
    let age_ns = unsafe { bpf_ktime_get_coarse_ns() }.wrapping_sub(flow.seen_ns);
    traced.tuple = flow.to.reversed();
    (traced.cookie, traced.backend, traced.service) = (flow.cookie, flow.backend, flow.service);
    traced.reasons = TRACE_FORWARDED;
    age_ns <= RECENT_NS && is_wanted(flow.service)
}

/// Finds the place of a forwarded connection's listener in the tables.
#[inline(never)]
fn walk(traced: &mut Traced, ifindex: u32) -> u32 {
    let packet = Packet::of_tuple(&traced.tuple, ifindex);
    rule(&packet).map_or(0, |rule| find(&packet, rule, traced))
}

/// A call of its own: its keys must not take stack while a table is walked through.
#[inline(never)]
fn rule(packet: &Packet) -> Option<&'static Rule> {
    rule_for(packet)
}

/// Whether choices for this service are reported.
#[inline(always)]
fn is_wanted(service: u32) -> bool {
    let wanted = constant(&raw const WANTED_SERVICE);
    wanted == NONE || wanted == service
}

/// Reads a constant that the loader has set.
#[inline(always)]
fn constant(of: *const u32) -> u32 {
    // SAFETY: an initialised static; volatile, because the loader changes it after compilation.
    unsafe { ptr::read_volatile(of) }
}

/// Not zero for a health check, and for a backend's connection to its own port. Their sockets are not chosen by tables, and nothing counts them.
#[inline(never)]
fn is_own(packet: &Packet) -> u32 {
    let is_v4 = packet.family == u32::from(FAMILY_V4);
    if is_v4 && packet.remote[0] == u32::from_ne_bytes(PROBE_SOURCE_V4) {
        return 1;
    }
    let [a, b, c, d] = packet.remote;
    if !is_v4 && (a ^ LOOPBACK_V6[0]) | (b ^ LOOPBACK_V6[1]) | (c ^ LOOPBACK_V6[2]) | (d ^ LOOPBACK_V6[3]) == 0 {
        let (family, to) = (packet.family as u8, packet.local_port as u16);
        let key = ProbeKey::seen(netns_cookie(), family, packet.remote_port, &packet.local, to);
        // SAFETY: only the presence of an entry matters.
        if unsafe { PROBES.get(key) }.is_some() {
            return 1;
        }
    }
    let port = u16::from_be(packet.remote_port);
    if OWN_SOURCES.get(own_source(port)).is_none_or(|count| *count == 0) {
        return 0;
    }
    let key = OwnConnection {
        netns_cookie: netns_cookie(),
        source: bytes(&packet.remote),
        destination: bytes(&packet.local),
        source_port: port,
        destination_port: packet.local_port as u16,
        family: packet.family as u8,
        pad: [0; 3],
    };
    // SAFETY: only the presence of an entry matters.
    unsafe { OWN_CONNECTIONS.get(key) }.is_some().into()
}

/// The cookie of a socket, or zero if it has none yet.
#[inline(always)]
fn cookie_of(sk: *mut bpf_sock) -> u64 {
    // SAFETY: `sk` is the socket of this run. The helper returns null for one that is no full TCP socket.
    let tcp: *mut tcp_sock = unsafe { bpf_skc_to_tcp_sock(sk.cast()) };
    if tcp.is_null() {
        return 0;
    }
    let offset = constant(&raw const COOKIE_OFFSET) as usize;
    // SAFETY: the helper returned it, and it begins with `struct sock_common`.
    unsafe { ptr::read_volatile(tcp.cast::<u8>().add(offset).cast::<u64>()) }
}

/// Whether a socket holds clients of a paused service.
#[inline(always)]
fn holds(socket: &SocketInfo) -> bool {
    socket.users[0] & socket.users[1] == SocketInfo::HOLDS[0]
}

/// Why a packet has no socket, as the end of `steer` decides it.
#[inline(never)]
fn without_socket(rule: &Rule) -> u32 {
    if rule.fallback == FALLBACK_PASS {
        return TRACE_PASSED_NO_BACKEND;
    }
    let table = TABLES.get(table_index(rule.table, switch(rule.service)));
    if !is_listening(DAEMON_COOKIE) && !table.is_some_and(withholds) {
        return TRACE_PASSED_NO_DAEMON;
    }
    TRACE_REFUSED_NO_BACKEND
}

/// Finds the entry of the socket in the tables, by the walk that led to it. Not zero if it is one of a pause.
#[inline(never)]
fn find(packet: &Packet, rule: &Rule, traced: &mut Traced) -> u32 {
    let switch = switch(rule.service);
    let own = table_index(rule.table, switch);
    traced.service = rule.service;
    let mut find = Find { cookie: traced.cookie, table: NONE, entry: 0, slots: 0, reasons: 0, own, waits: 0 };
    if let Visit::Taken = choose(packet, rule, switch, &mut find) {
        (traced.table, traced.entry, traced.slots) = (find.table, find.entry, find.slots);
        if find.table != own {
            find.reasons = find.reasons & !TRACE_NETWORK_NO_BACKEND | TRACE_BY_NETWORK;
        }
    }
    traced.reasons |= find.reasons;
    find.waits
}

/// Takes the slot of a socket that was chosen, and notes why those before it were declined.
struct Find {
    cookie: u64,
    /// What is walked.
    table: u32,
    entry: u32,
    slots: u32,
    reasons: u32,
    /// The rule's own table.
    own: u32,
    waits: u32,
}

impl Chooser for Find {
    #[inline(always)]
    fn walks(&mut self, table: u32) {
        self.table = table;
        if table != self.own {
            self.reasons |= TRACE_NETWORK_NO_BACKEND;
        }
    }

    #[inline(always)]
    fn tries(&mut self, entry: u32) {
        self.entry = entry;
    }

    #[inline(always)]
    fn offer(&mut self, slot: &Slot) -> Visit {
        if slot.cookie == self.cookie && slot.cookie != 0 {
            (self.slots, self.waits) = (slot.slots, slot.waits().into());
            return Visit::Taken;
        }
        if slot.way() == WAY_FORWARD && forwards() == 0 {
            self.reasons |= TRACE_NOT_FORWARDED;
        } else if !is_listening(slot.cookie) {
            self.reasons |= TRACE_STALE_SLOTS;
        }
        Visit::TryNext
    }
}

/// Reports a choice if it is wanted, or counts that there was no room for it.
#[inline(never)]
fn report(traced: &mut Traced) -> u32 {
    let backend = constant(&raw const WANTED_BACKEND);
    if backend != NONE && backend != traced.backend || traced.reasons & constant(&raw const WANTED_REASONS) == 0 {
        return 0;
    }
    // SAFETY: takes no arguments.
    traced.time_ns = unsafe { bpf_ktime_get_ns() };
    if TRACED.output(&*traced, 0).is_err()
        && let Some(lost) = TRACED_LOST.get_ptr_mut(0)
    {
        increment(lost);
    }
    0
}

/// The bytes of an address.
#[inline(always)]
fn bytes(words: &[u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Only GPL-compatible programs may read the kernel's structs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
