//! `sk_lookup`: chooses the socket of a new connection. Linux runs it for every packet that would reach a listening
//! socket.

use core::ptr;

use aya_ebpf::{
    bindings::sk_action::{SK_DROP, SK_PASS},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use aya_log_ebpf::debug;
use pod_steer_ebpf::{
    DAEMON_COOKIE, FALLBACK_PASS, FAMILY_V4, NONE, PROBE_SOURCE_V4, PROTO_TCP, ProbeKey, SLOT_WAY_SHIFT, Slot,
    WAY_FORWARD, WAY_HOLD, table_index,
};

use crate::{
    choose::choose,
    forward,
    maps::{
        BACKEND_COUNTERS, LISTENERS, PROBES, SERVICE_COUNTERS, TABLES, count, differ, forwards, is_listening,
        netns_cookie, switch,
    },
    own,
    packet::{self, LOOPBACK_V6, Packet},
    rules::rule_for,
    table::{Chooser, Visit, withholds},
};

/// Overrides a socket that an earlier program has chosen.
pub const BPF_SK_LOOKUP_F_REPLACE: u64 = 1;
/// Suppresses the kernel's own choice within the reuseport group: the table has already chosen.
pub const BPF_SK_LOOKUP_F_NO_REUSEPORT: u64 = 2;

const EEXIST: i32 = -17;
pub const ENOENT: i32 = -2;
const EPROTOTYPE: i32 = -91;
const ESOCKTNOSUPPORT: i32 = -94;
pub const EAFNOSUPPORT: i32 = -97;

#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    differ();
    let packet = packet::of(&ctx);
    // Linux runs this program for UDP sockets too, but every rule and every probe is for TCP.
    if packet.protocol != u32::from(PROTO_TCP) {
        return SK_PASS;
    }
    if let Some(verdict) = probe(&ctx, &packet) {
        return verdict;
    }
    if let Some(verdict) = own::steer(&ctx, &packet) {
        return verdict;
    }
    // No service has claimed this port: the packet is neither counted nor decided here.
    let Some(rule) = rule_for(&packet) else { return SK_PASS };

    if forwards() != 0
        && let Some((cookie, backend)) = forward::chosen_here(&packet)
        && LISTENERS.redirect_sk_lookup(&ctx, cookie, BPF_SK_LOOKUP_F_NO_REUSEPORT).is_ok()
    {
        taken(rule.service, backend);
        return SK_PASS;
    }
    let switch = switch(rule.service);
    let mut assign = Assign { ctx: &ctx, service: rule.service };
    if let Visit::Taken = choose(&packet, rule, switch, &mut assign) {
        return SK_PASS;
    }

    if rule.only != NONE && own::steer_to_newest(&ctx, &packet, rule) {
        count!(BACKEND_COUNTERS, rule.only, steered);
        debug!(&ctx, "service {}: backend {} opened on demand", rule.service, rule.only);
        return SK_PASS;
    }
    if is_chosen(&ctx) {
        // The client gets the socket that another program has chosen, whatever we return: it is not refused.
        count!(SERVICE_COUNTERS, rule.service, assign_eexist);
        return SK_PASS;
    }
    if rule.fallback == FALLBACK_PASS {
        count!(SERVICE_COUNTERS, rule.service, passed_no_backend);
        debug!(&ctx, "service {} port {}: no backend, passed", rule.service, packet.local_port);
        return SK_PASS;
    }
    // No daemon is left to release the claim, and an unmanaged server may use the port by now. But while a withheld
    // socket listens, the kernel's own lookup would find that one.
    if !is_listening(DAEMON_COOKIE) && !TABLES.get(table_index(rule.table, switch)).is_some_and(withholds) {
        count!(SERVICE_COUNTERS, rule.service, passed_no_daemon);
        debug!(&ctx, "service {} port {}: no backend and no daemon, passed", rule.service, packet.local_port);
        return SK_PASS;
    }
    // The service exists but has no backend. An immediate reset is better than a time-out.
    count!(SERVICE_COUNTERS, rule.service, refused_no_backend);
    debug!(&ctx, "service {} port {}: no backend, refused", rule.service, packet.local_port);
    SK_DROP
}

/// Gives a health check to the backend that it is for and to no other, whatever port it goes to. Only packets from the
/// addresses of probes pay for the map lookup.
#[inline(always)]
fn probe(ctx: &SkLookupContext, packet: &Packet) -> Option<u32> {
    let is_v4 = packet.family == u32::from(FAMILY_V4);
    if is_v4 && packet.remote[0] != u32::from_ne_bytes(PROBE_SOURCE_V4) {
        return None;
    }
    if !is_v4 && packet.remote != LOOPBACK_V6 {
        return None;
    }
    let key = ProbeKey::seen(
        netns_cookie(),
        packet.family as u8,
        packet.remote_port,
        &packet.local,
        packet.local_port as u16,
    );
    // SAFETY: eight aligned bytes are read at once.
    let cookie = unsafe { PROBES.get(key) }?;
    // An entry that a dead daemon left behind is not a probe: a client may use the port by now.
    if !is_listening(DAEMON_COOKIE) {
        return None;
    }
    match LISTENERS.redirect_sk_lookup(ctx, *cookie, BPF_SK_LOOKUP_F_NO_REUSEPORT | BPF_SK_LOOKUP_F_REPLACE) {
        Ok(()) => Some(SK_PASS),
        // The probe must fail: no other backend may answer it.
        Err(_) => Some(SK_DROP),
    }
}

/// Whether another program of this namespace has already chosen a socket. Linux runs all of them in the order in which
/// they were attached, and passes each the latest choice.
#[inline(always)]
fn is_chosen(ctx: &SkLookupContext) -> bool {
    // SAFETY: the context is valid for the whole run; the pointer is only compared.
    !unsafe { ptr::read_volatile(&raw const (*ctx.lookup).__bindgen_anon_1.__bindgen_anon_1.sk) }.is_null()
}

/// Counts a choice: of a backend, or of a listener of a pause. `backend` is that of the slot.
#[inline(always)]
fn taken(service: u32, backend: u32) {
    if backend >> SLOT_WAY_SHIFT >= WAY_HOLD {
        count!(SERVICE_COUNTERS, service, paused);
    } else {
        count!(BACKEND_COUNTERS, backend, steered);
    }
}

struct Assign<'a> {
    ctx: &'a SkLookupContext,
    service: u32,
}

impl Chooser for Assign<'_> {
    /// Assigns the slot's socket to the packet, or counts why that failed.
    #[inline(always)]
    fn offer(&mut self, slot: &Slot) -> Visit {
        let Self { ctx, service } = *self;
        if slot.way() == WAY_FORWARD {
            count!(SERVICE_COUNTERS, service, not_forwarded);
            return Visit::TryNext;
        }
        match LISTENERS.redirect_sk_lookup(ctx, slot.cookie, BPF_SK_LOOKUP_F_NO_REUSEPORT) {
            Ok(()) => {
                taken(service, slot.backend);
                debug!(ctx, "service {}: backend {} socket {}", service, slot.backend, slot.cookie);
                return Visit::Taken;
            }
            Err(ENOENT) => count!(SERVICE_COUNTERS, service, stale_slots),
            Err(EAFNOSUPPORT) => count!(SERVICE_COUNTERS, service, assign_eafnosupport),
            Err(ESOCKTNOSUPPORT) => count!(SERVICE_COUNTERS, service, assign_esocktnosupport),
            Err(EPROTOTYPE) => count!(SERVICE_COUNTERS, service, assign_eprototype),
            Err(EEXIST) => {
                // Another program of this namespace chose before us, and the client gets its socket whatever we return.
                count!(SERVICE_COUNTERS, service, assign_eexist);
                return Visit::Taken;
            }
            Err(_) => count!(SERVICE_COUNTERS, service, assign_other),
        }
        Visit::TryNext
    }
}
