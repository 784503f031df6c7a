//! Forwarding: connections to backends in network namespaces of their own. The programs of a device choose for each SYN by the same
//! tables as `lookup`, rewrite the destination, and leave the packet to the kernel's forwarding. The replies are rewritten back where
//! they leave the machine. `syn` chooses, `known` finds connections by their entries and `adopt` those without, `ports` and
//! `headers` read a packet and `rewrite` changes it.
//!
//! A packet that none of them knows passes unchanged.
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "keys and entries are too large to be copied to the stack"
)]

mod adopt;
mod fragments;
mod headers;
mod icmp;
mod known;
mod local;
mod pair;
mod ports;
mod replies;
mod rewrite;
mod routes;
mod sockets;
mod syn;
mod translated;

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::bpf_ktime_get_coarse_ns,
    macros::classifier,
    programs::TcContext,
};
use pod_steer_ebpf::{FLOW_LOCAL, FORWARD_MARK, NONE, Tuple, forwarded_place};

use self::{
    headers::Work,
    ports::{Look, look},
    routes::Hop,
};
use crate::{
    maps::{FORWARDED, PENDING, SERVICE_COUNTERS, count, differ},
    packet::Packet,
};

/// Length of an Ethernet header. Devices that have none begin with the IP header.
const ETHERNET: usize = 14;
/// `VLAN_VID_MASK`
const VLAN_ID: u32 = 0x0fff;
/// The packet is for this machine (`skb->pkt_type`).
const PACKET_HOST: u32 = 0;

/// Packets that come by an Ethernet device.
#[classifier]
pub fn from_wire(ctx: TcContext) -> i32 {
    go_on(ingress(ctx.as_ptr().cast(), ETHERNET, false))
}

/// Packets that come by a bridge. br_netfilter has given them an entry of conntrack by then, which is that of the packet before it was
/// rewritten: Docker's rules would translate what follows. Received once more, a packet gets its own.
#[classifier]
pub fn from_bridge(ctx: TcContext) -> i32 {
    let skb = Skb::of(&ctx);
    if skb.mark & FORWARD_MARK != 0 {
        if skb.pkt_type != PACKET_HOST {
            // Its frame was for another address of this machine than the bridge's.
            local::keep(&ctx);
        }
        return NEXT;
    }
    match ingress(ctx.as_ptr().cast(), ETHERNET, true) {
        LEFT => local::receive(skb.ifindex),
        verdict => verdict,
    }
}

/// Packets that come by a device without Ethernet headers.
#[classifier]
pub fn from_tunnel(ctx: TcContext) -> i32 {
    go_on(ingress(ctx.as_ptr().cast(), 0, false))
}

/// Packets that come out of a pair of devices whose other end a container with `via=peer` has.
#[classifier]
pub fn from_pair(ctx: TcContext) -> i32 {
    go_on(pair::ingress(ctx.as_ptr().cast(), ETHERNET))
}

/// Packets that leave by an Ethernet device.
#[classifier]
pub fn to_wire(ctx: TcContext) -> i32 {
    egress(ctx.as_ptr().cast(), ETHERNET)
}

/// Packets that leave by a device without Ethernet headers.
#[classifier]
pub fn to_tunnel(ctx: TcContext) -> i32 {
    egress(ctx.as_ptr().cast(), 0)
}

/// In place of a service: the packet is dropped, and its client sends the SYN again.
const REPEAT: u32 = NONE - 2;

/// Later programs and filters of the device run too.
const NEXT: i32 = TC_ACT_UNSPEC;

/// A packet was rewritten, and the kernel forwards it.
const LEFT: i32 = 0x7fff;

#[inline(always)]
fn go_on(verdict: i32) -> i32 {
    if verdict == LEFT { NEXT } else { verdict }
}

/// The IP header begins at `l2`. Returns the program's verdict, or [`LEFT`].
#[inline(never)]
fn ingress(skb: *mut __sk_buff, l2: usize, by_bridge: bool) -> i32 {
    differ();
    let ctx = &TcContext::new(skb);
    let skb = Skb::of(ctx);
    if skb.pkt_type != PACKET_HOST || skb.vlan_id != 0 {
        return NEXT;
    }
    let work = match look(ctx, l2, skb.protocol) {
        Look::Tcp(ports)
            if is_forwarded(ports.source, true)
                || is_forwarded(ports.destination, false)
                || ports.begins && is_forwarded(ports.destination, true) =>
        {
            Work::of_plain(ctx, l2, skb.protocol)
        }
        Look::Closer => Work::of(ctx, l2, skb.protocol),
        _ => None,
    };
    let Some(work) = work else { return NEXT };
    work.bridge = by_bridge.into();
    if work.icmp != 0 {
        let is_ours = is_forwarded(work.tuple.source_port, false) && icmp::find(work, true);
        return error(ctx, l2, work, is_ours, true, skb.mark);
    }
    if work.is_later() {
        return fragments::follow(ctx, l2, work, false, skb.mark);
    }
    fragments::begin(work, false);
    // A reply to a client of this machine, or of the backend's own link.
    if is_forwarded(work.tuple.source_port, true) {
        let service = known::from_server(work);
        if service == REPEAT {
            return TC_ACT_SHOT;
        }
        if service != NONE && work.peer != NONE {
            // Past the kernel's forwarding, and by where its routes say.
            local::route_reply(ctx, skb.ifindex, work);
            work.peer = NONE;
        }
        if service != NONE && work.device != 0 && local::fits(ctx, work.device) {
            return hand_over(ctx, l2, work, service, skb.mark);
        }
        if service != NONE {
            // It is rewritten where it leaves, and its mark lets it get there.
            if work.fragment == 0 {
                replies::store(work, service);
            } else {
                (work.to, work.device) = (work.tuple, 0);
                fragments::note(work, false);
            }
            ctx.set_mark(skb.mark | FORWARD_MARK);
            return NEXT;
        }
        work.tuple.reply = 0;
    }
    if !is_forwarded(work.tuple.destination_port, false) {
        if work.begins() && skb.mark & FORWARD_MARK == 0 && is_forwarded(work.tuple.destination_port, true) {
            known::forget_reply(ctx, &work.tuple);
        }
        return NEXT;
    }
    if skb.ifindex == local::LOOPBACK && local::is_own(&work.tuple) {
        return NEXT;
    }
    let service = if work.begins() {
        syn::choose_for(ctx, skb.ifindex, work)
    } else {
        known::from_client(ctx, skb.ifindex, work)
    };
    match service {
        NONE => return NEXT,
        REPEAT => return TC_ACT_SHOT,
        _ => {}
    }
    hand_over(ctx, l2, work, service, skb.mark)
}

/// Rewrites a packet, and leaves it to the kernel, or hands it over.
#[inline(always)]
fn hand_over(ctx: &TcContext, l2: usize, work: &Work, service: u32, mark: u32) -> i32 {
    if !rewrite::rewrite(ctx, l2, &work.tuple, &work.to, work.tcp) {
        return dropped(service);
    }
    fragments::note(work, false);
    leave(ctx, work.device, &work.hop, local::end(work.peer), mark)
}

/// Hands a packet over to the other end of this pair, or to a device; without either, the kernel forwards it.
#[inline(always)]
fn leave(ctx: &TcContext, device: u32, hop: &Hop, end: u32, mark: u32) -> i32 {
    if end != 0 {
        return local::into(end);
    }
    ctx.set_mark(mark | FORWARD_MARK);
    if device == 0 { LEFT } else { local::redirect(device, hop) }
}

/// The IP header begins at `l2`.
#[inline(never)]
fn egress(skb: *mut __sk_buff, l2: usize) -> i32 {
    differ();
    let ctx = &TcContext::new(skb);
    let skb = Skb::of(ctx);
    if skb.vlan_id != 0 {
        return NEXT;
    }
    let work = match look(ctx, l2, skb.protocol) {
        Look::Tcp(ports) if is_forwarded(ports.source, true) => {
            // The mark tells that the program which saw it come in knew it.
            if skb.mark & FORWARD_MARK != 0
                && let Some(reply) = replies::stored(ctx, l2, skb.protocol)
            {
                let done = rewrite::rewrite(ctx, l2, &reply.tuple, &reply.to, reply.tcp);
                return if done { NEXT } else { dropped(reply.service) };
            }
            Work::of_plain(ctx, l2, skb.protocol)
        }
        Look::Tcp(ports) if ports.begins && is_forwarded(ports.destination, true) => {
            Work::of_plain(ctx, l2, skb.protocol)
        }
        Look::Closer => Work::of(ctx, l2, skb.protocol),
        _ => None,
    };
    let Some(work) = work else { return NEXT };
    if work.icmp != 0 {
        let is_ours = is_forwarded(work.tuple.destination_port, true) && icmp::find(work, false);
        return error(ctx, l2, work, is_ours, false, skb.mark);
    }
    if work.is_later() {
        return fragments::follow(ctx, l2, work, true, skb.mark);
    }
    fragments::begin(work, true);
    if work.begins() && is_forwarded(work.tuple.destination_port, true) {
        if skb.mark & FORWARD_MARK != 0 {
            return if translated::restore(ctx, l2, skb.ifindex, work) { NEXT } else { TC_ACT_SHOT };
        }
        known::forget_reply(ctx, &work.tuple);
    }
    if !is_forwarded(work.tuple.source_port, true) {
        return NEXT;
    }
    let service = known::from_server(work);
    match service {
        NONE => return NEXT,
        REPEAT => return TC_ACT_SHOT,
        _ => {}
    }
    if !rewrite::rewrite(ctx, l2, &work.tuple, &work.to, work.tcp) {
        return dropped(service);
    }
    fragments::note(work, true);
    NEXT
}

/// An error of ICMP, which is translated if it is about a forwarded connection.
#[inline(always)]
fn error(ctx: &TcContext, l2: usize, work: &Work, is_ours: bool, comes_in: bool, mark: u32) -> i32 {
    if !is_ours {
        return NEXT;
    }
    if !icmp::translate(ctx, l2, work, comes_in) {
        return TC_ACT_SHOT;
    }
    if comes_in { leave(ctx, 0, &Hop::UNKNOWN, local::end(work.peer), mark) } else { NEXT }
}

/// A packet of which some may have been rewritten, and some has not.
#[inline(always)]
fn dropped(service: u32) -> i32 {
    count!(SERVICE_COUNTERS, service, not_rewritten);
    TC_ACT_SHOT
}

/// The fields of a packet's context.
struct Skb {
    pkt_type: u32,
    mark: u32,
    protocol: u32,
    /// Of the tag that the device has taken off; zero without one, or if the tag has a priority only.
    vlan_id: u32,
    ifindex: u32,
}

impl Skb {
    #[inline(always)]
    fn of(ctx: &TcContext) -> Self {
        let skb = ctx.as_ptr().cast::<__sk_buff>();
        // SAFETY: the context is valid for the whole run; volatile and unconditional, as in `packet`.
        unsafe {
            Self {
                pkt_type: ptr::read_volatile(&raw const (*skb).pkt_type),
                mark: ptr::read_volatile(&raw const (*skb).mark),
                protocol: ptr::read_volatile(&raw const (*skb).protocol),
                vlan_id: ptr::read_volatile(&raw const (*skb).vlan_tci) & VLAN_ID,
                ifindex: ptr::read_volatile(&raw const (*skb).ifindex),
            }
        }
    }
}

/// Whether clients come to this port (in network byte order) of forwarded backends, or forwarded packets go to it.
#[inline(always)]
fn is_forwarded(port: u16, is_target: bool) -> bool {
    let (word, bit) = forwarded_place(u16::from_be(port), is_target);
    FORWARDED.get(word).is_some_and(|word| *word >> bit & 1 != 0)
}

/// The kernel's coarse clock, in nanoseconds.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no requirements. Since Linux 5.11.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The socket of this namespace that a device's program has chosen for a packet, and its backend. Both programs have to make one
/// choice: each could see another side of a service's tables.
#[inline(always)]
pub fn chosen_here(packet: &Packet) -> Option<(u64, u32)> {
    if !is_forwarded((packet.local_port as u16).to_be(), false) {
        return None;
    }
    let tuple = Tuple {
        source: packet.remote,
        destination: packet.local,
        source_port: packet.remote_port,
        destination_port: (packet.local_port as u16).to_be(),
        family: packet.family as u8,
        reply: 0,
        pad: [0; 2],
    };
    // SAFETY: an entry of this kind is only replaced as a whole.
    let flow = unsafe { PENDING.get(tuple) }?;
    // Without a cookie, no socket was chosen: the connection was only not found elsewhere.
    (flow.flags & FLOW_LOCAL != 0 && flow.cookie != 0).then_some((flow.cookie, flow.backend))
}
