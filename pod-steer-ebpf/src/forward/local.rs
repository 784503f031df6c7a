//! Clients whose packets the kernel's forwarding does not carry: those on this machine, those on the backend's own link,
//! and all of a backend that asks for it. Their packets are handed over to the device that leads to the backend, or into
//! its namespace, and the replies to the device that they came by: neither passes a FORWARD chain. Where the server could
//! not answer the client's own address, it sees the address of this machine on its link instead.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_INGRESS, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_SHOT},
    helpers::generated,
    programs::TcContext,
};
use pod_steer_ebpf::{
    Destination, FAMILY_V4, FLOW_PEER, FLOW_SOURCE, Flow, Link, NONE, Network, OwnConnection, PROBE_SOURCE_V4,
    ProbeKey, Tuple, finish, mix,
};

use super::{
    PACKET_HOST,
    headers::{FORMER_REPLY, Work},
    routes::{Hop, Route, route},
    sockets::{TCP_TIME_WAIT, is_connection, state},
};
use crate::{
    maps::{DESTINATIONS, FLOWS, LINKS, OWN_CONNECTIONS, PEERS, PENDING, PROBES, local_port_max, netns_cookie, seed},
    own,
    packet::{LOOPBACK_V6, Packet},
};

/// Of `bpf_check_mtu`: each packet that a large one will be cut into counts (`BPF_MTU_CHK_SEGS` in `include/uapi/linux/bpf.h`).
const MTU_OF_SEGMENTS: u64 = 1;
/// Index of the loopback device: it is the first of every namespace.
pub const LOOPBACK: u32 = 1;
/// A reply entry that is younger may be of a connection that is being opened.
const YOUNG_NS: u64 = 3_000_000_000;
/// Ports that are tried for a client whose source is rewritten. They follow from its address and port, so that a connection whose entries
/// are lost can be found again.
pub const SOURCE_PORTS: u32 = 16;

/// Whether a packet from the loopback device is one of a health check, or of a backend's connection to itself: `steer` decides on those.
#[inline(never)]
pub fn is_own(tuple: &Tuple) -> bool {
    let packet = Packet::of_tuple(tuple, LOOPBACK);
    if tuple.family == FAMILY_V4 {
        if tuple.source[0] == u32::from_ne_bytes(PROBE_SOURCE_V4) {
            return true;
        }
    } else if is_v6_loopback(&tuple.source) {
        let key =
            ProbeKey::seen(netns_cookie(), tuple.family, packet.remote_port, &packet.local, packet.local_port as u16);
        // SAFETY: only the presence of an entry matters.
        if unsafe { PROBES.get(key) }.is_some() {
            return true;
        }
    }
    if !own::may_come_from(u16::from_be(packet.remote_port)) {
        return false;
    }
    let key: OwnConnection = own::connection(&packet);
    // SAFETY: only the presence of an entry matters.
    unsafe { OWN_CONNECTIONS.get(key) }.is_some()
}

#[inline(always)]
fn is_v6_loopback(address: &[u32; 4]) -> bool {
    let [a, b, c, d] = LOOPBACK_V6;
    (address[0] ^ a) | (address[1] ^ b) | (address[2] ^ c) | (address[3] ^ d) == 0
}

/// Completes a choice of this backend for a client that came by this device. False if the backend cannot answer it.
#[inline(always)]
pub fn hand_over(flow: &mut Flow, backend: u32, destination: &Destination, ifindex: u32) -> bool {
    let is_on_link = ifindex == destination.device;
    if ifindex != LOOPBACK && !is_on_link {
        if end(backend) != 0 {
            flow.flags = FLOW_PEER;
        }
        return true;
    }
    flow.device = destination.device;
    let is_v4 = flow.to.family == FAMILY_V4;
    let is_loopback =
        if is_v4 { u32::from_be(flow.to.source[0]) >> 24 == 127 } else { is_v6_loopback(&flow.to.source) };
    if !is_on_link && !is_loopback {
        return true;
    }
    let gateway = if is_v4 { [destination.gateway_v4, 0, 0, 0] } else { destination.gateway_v6 };
    let [a, b, c, d] = gateway;
    if a | b | c | d == 0 {
        return false;
    }
    flow.to.source = gateway;
    flow.flags = FLOW_SOURCE;
    true
}

/// Gives a choice another source if the backend would answer the client's own past this machine. The stack has no room for this while tables
/// are walked through. The daemon writes a link only of a backend that has such an address.
#[inline(never)]
pub fn stand_in(flow: &mut Flow, backend: u32, ifindex: u32) -> u32 {
    if flow.flags & FLOW_SOURCE == 0
        && answers_elsewhere(backend, ifindex, &flow.to)
        // SAFETY: a destination is replaced as a whole.
        && let Some(destination) = unsafe { DESTINATIONS.get(backend) }
    {
        let is_v4 = flow.to.family == FAMILY_V4;
        flow.to.source = if is_v4 { [destination.gateway_v4, 0, 0, 0] } else { destination.gateway_v6 };
        flow.flags = FLOW_SOURCE;
        flow.device = destination.device;
    }
    0
}

/// Whether a backend would answer the source of this packet, which came by this device, past this machine.
#[inline(always)]
pub fn answers_elsewhere(backend: u32, ifindex: u32, tuple: &Tuple) -> bool {
    // SAFETY: an entry is replaced as a whole.
    let Some(network) = (unsafe { LINKS.get(Link { backend, device: ifindex, family: tuple.family.into() }) }) else {
        return false;
    };
    let Network { address, mask } = network;
    (0..4).fold(0, |all, word| all | (tuple.source[word] ^ address[word]) & mask[word]) == 0
}

/// The port that such a client gets at the try with this number, in network byte order.
#[inline(always)]
pub fn source_port(tuple: &Tuple, number: u32) -> u16 {
    let mut h = mix(seed(), u64::from(tuple.source_port) << 32 | u64::from(tuple.destination_port) << 16);
    h = mix(h, u64::from(tuple.source[0]) << 32 | u64::from(tuple.destination[0]));
    h = mix(h, u64::from(tuple.source[3]) << 32 | u64::from(tuple.destination[3]));
    let own = u16::from_be(tuple.source_port);
    pod_steer_ebpf::source_port(finish(h.wrapping_add(number.into())), number, own, local_port_max() as u16).to_be()
}

/// Whether a connection has a source port that the server's side does not know yet; chooses another one if it must. A client may use one
/// port for two connections, to two ports or addresses of this machine, that lead to one port of a container. And the container rejects a
/// SYN whose port it has in TIME_WAIT from another of these: timestamps begin anew with each pair of addresses and ports.
#[inline(never)]
pub fn has_port(ctx: &TcContext, now: u64, work: &mut Work) -> bool {
    if work.flow.flags & FLOW_SOURCE == 0 && !is_taken(ctx, now, work) {
        return true;
    }
    for number in 0..SOURCE_PORTS {
        work.flow.to.source_port = source_port(&work.tuple, number);
        if !is_taken(ctx, now, work) {
            work.flow.flags |= FLOW_SOURCE;
            return true;
        }
    }
    // A client that opens connections all the time has used every port within the minute that the server keeps one. What only waits for late
    // packets takes a SYN; if its timestamp is older, after the client has reset it, so a second later.
    work.flow.to.source_port = work.tuple.source_port;
    is_waiting(ctx, now, work)
}

/// Whether the server's side of a connection is one that has ended, of which the server keeps the port for a while.
#[inline(never)]
fn is_waiting(ctx: &TcContext, now: u64, work: &mut Work) -> bool {
    let (_, is_young) = former(now, work);
    !is_young && state(ctx, &work.flow.to, work.flow.nsid) == TCP_TIME_WAIT
}

/// Whether the server's side of a connection is that of another one, or may be.
#[inline(never)]
fn is_taken(ctx: &TcContext, now: u64, work: &mut Work) -> bool {
    let (ours, is_young) = former(now, work);
    !ours && (is_young || is_connection(state(ctx, &work.flow.to, work.flow.nsid)))
}

/// Whether the server's side of a connection has an entry that leads back to the same connection, and whether it has a young one.
#[inline(always)]
fn former(now: u64, work: &mut Work) -> (bool, bool) {
    work.to = work.flow.to.reversed();
    // SAFETY: the fields are copied; another processor may change the time alone.
    let kept = unsafe { FLOWS.get(&work.to) };
    work.former = work.former & !FORMER_REPLY | if kept.is_some() { FORMER_REPLY } else { 0 };
    // SAFETY: the same.
    match kept.or_else(|| unsafe { PENDING.get(&work.to) }) {
        Some(other) => (same(&other.to, &work.tuple), now.wrapping_sub(other.seen_ns) < YOUNG_NS),
        None => (false, false),
    }
}

/// Whether the server's side of a connection has an entry that leads back to another one.
#[inline(never)]
pub fn is_of_another(to: &Tuple, tuple: &Tuple) -> bool {
    let back = to.reversed();
    // SAFETY: the field is copied, and never changes.
    unsafe { FLOWS.get(&back).or_else(|| PENDING.get(&back)) }.is_some_and(|flow| !same(&flow.to, tuple))
}

/// Whether an entry leads back to this connection.
#[inline(always)]
pub fn same(back: &Tuple, tuple: &Tuple) -> bool {
    let differs = |a: &[u32; 4], b: &[u32; 4]| (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) != 0;
    !differs(&back.source, &tuple.destination)
        && !differs(&back.destination, &tuple.source)
        && back.source_port == tuple.destination_port
        && back.destination_port == tuple.source_port
}

/// The end of a backend's pair in this namespace, if its packets are handed over to the other end; else zero.
#[inline(always)]
pub fn end(backend: u32) -> u32 {
    if backend == NONE {
        return 0;
    }
    // SAFETY: the value is copied.
    unsafe { PEERS.get(backend) }.copied().unwrap_or(0)
}

/// Sets the device by which the reply of a server behind this device leaves, and its next hop: by the routes for the address that its client
/// knows. No device if there is no route.
#[inline(never)]
pub fn route_reply(ctx: &TcContext, ifindex: u32, work: &mut Work) {
    let Route { verdict, device, hop } = route(ctx, ifindex, &work.to);
    let routed = [BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_NO_NEIGH].map(i64::from);
    work.device = if verdict == routed[0] || verdict == routed[1] { device } else { 0 };
    work.hop = hop;
}

/// Hands a rewritten packet over to the other end of a pair.
#[inline(always)]
pub fn into(end: u32) -> i32 {
    // SAFETY: the helper has no requirements. Since Linux 5.10.
    verdict(unsafe { generated::bpf_redirect_peer(end, 0) })
}

/// A packet is for this machine, whatever the address of its frame.
#[inline(always)]
pub fn keep(ctx: &TcContext) {
    // SAFETY: the context is this program's own.
    unsafe { generated::bpf_skb_change_type(ctx.as_ptr().cast(), PACKET_HOST) };
}

/// Receives a packet once more, by this device.
#[inline(always)]
pub fn receive(device: u32) -> i32 {
    // SAFETY: the helper has no requirements.
    verdict(unsafe { generated::bpf_redirect(device, BPF_F_INGRESS.into()) })
}

#[inline(always)]
fn verdict(code: i64) -> i32 {
    if code < 0 { TC_ACT_SHOT } else { code as i32 }
}

/// Whether a packet can leave by a device as it is. Otherwise it is left to the kernel's forwarding, which cuts it or tells its sender.
#[inline(always)]
pub fn fits(ctx: &TcContext, device: u32) -> bool {
    let mut mtu = 0u32;
    // SAFETY: the context and the pointer are valid. Since Linux 5.12.
    device == LOOPBACK
        || unsafe { generated::bpf_check_mtu(ctx.as_ptr().cast(), device, &raw mut mtu, 0, MTU_OF_SEGMENTS) } == 0
}

/// Hands a rewritten packet over to a device, for this next hop.
#[inline(always)]
pub fn redirect(device: u32, hop: &Hop) -> i32 {
    // SAFETY: without parameters the helper looks up the next hop. Since Linux 5.10.
    verdict(unsafe {
        if hop.family == 0 {
            generated::bpf_redirect_neigh(device, ptr::null_mut(), 0, 0)
        } else {
            let params = ptr::from_ref(hop).cast_mut().cast();
            generated::bpf_redirect_neigh(device, params, size_of::<Hop>() as i32, 0)
        }
    })
}
