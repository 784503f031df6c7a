//! `sk_lookup`: chooses the socket of a new connection. Linux runs it for every packet that would reach a listening
//! socket.

use core::ptr;

use aya_ebpf::{
    bindings::sk_action::{SK_DROP, SK_PASS},
    btf_maps::lpm_trie::Key,
    macros::sk_lookup,
    programs::SkLookupContext,
};
use aya_log_ebpf::debug;
use pod_steer_ebpf::{
    ASK_ADDRESSES, ASK_DEVICES, ASK_RULES, DAEMON_COOKIE, FALLBACK_PASS, FAMILY_V4, NONE, PROBE_SOURCE_V4, PROTO_TCP,
    ProbeKey, Rule, RuleKey, SOURCE_SCOPE_BITS, SWITCH_HAS_SOURCES, Slot, SourceKey, port_place, table_index,
};

use crate::{
    maps::{
        BACKEND_COUNTERS, LISTENERS, PORTS, PROBES, RULES, SERVICE_COUNTERS, SOURCES, TABLE_RULES, TABLES, count,
        differ, is_listening, netns_cookie, switch,
    },
    own,
    table::{Chooser, Visit, first, hash, visit, withholds},
};

/// Overrides a socket that an earlier program has chosen.
pub const BPF_SK_LOOKUP_F_REPLACE: u64 = 1;
/// Suppresses the kernel's own choice within the reuseport group: the table has already chosen.
pub const BPF_SK_LOOKUP_F_NO_REUSEPORT: u64 = 2;

/// ::1, in network byte order.
pub const LOOPBACK_V6: [u32; 4] = [0, 0, 0, 1u32.to_be()];

const EEXIST: i32 = -17;
pub const ENOENT: i32 = -2;
const EPROTOTYPE: i32 = -91;
const ESOCKTNOSUPPORT: i32 = -94;
pub const EAFNOSUPPORT: i32 = -97;

/// The fields of a packet that a lookup uses.
pub struct Packet {
    pub family: u32,
    pub protocol: u32,
    /// In host byte order.
    pub local_port: u32,
    /// In network byte order.
    pub remote_port: u16,
    /// In network byte order; IPv4 in the first word, the others zero.
    pub local: [u32; 4],
    pub remote: [u32; 4],
}

impl Packet {
    #[inline(always)]
    fn of(ctx: &SkLookupContext) -> Self {
        let l = ctx.lookup;
        // SAFETY: the context is valid for the whole run. Volatile and unconditional: otherwise the compiler merges
        // reads of two branches into one at a computed offset, which the verifier rejects.
        let (mut packet, local_ip4, remote_ip4) = unsafe {
            let packet = Self {
                family: ptr::read_volatile(&raw const (*l).family),
                protocol: ptr::read_volatile(&raw const (*l).protocol),
                local_port: ptr::read_volatile(&raw const (*l).local_port),
                remote_port: ptr::read_volatile(&raw const (*l).remote_port),
                local: ptr::read_volatile(&raw const (*l).local_ip6),
                remote: ptr::read_volatile(&raw const (*l).remote_ip6),
            };
            (packet, ptr::read_volatile(&raw const (*l).local_ip4), ptr::read_volatile(&raw const (*l).remote_ip4))
        };
        if packet.family == u32::from(FAMILY_V4) {
            packet.local = [local_ip4, 0, 0, 0];
            packet.remote = [remote_ip4, 0, 0, 0];
        }
        packet
    }
}

#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    differ();
    let packet = Packet::of(&ctx);
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
    let Some(rule) = rule_for(&ctx, &packet) else { return SK_PASS };

    let hash = hash(&packet, rule);
    let switch = switch(rule.service);
    let mut assign = Assign { ctx: &ctx, service: rule.service };
    let index = table_index(rule.table, switch);
    if switch & SWITCH_HAS_SOURCES != 0
        && let Some(own) = table_of_network(&packet, index)
    {
        if let Some(table) = TABLES.get(table_index(own, switch))
            && let Visit::Taken = visit(table, hash, false, &mut assign)
        {
            count!(SERVICE_COUNTERS, rule.service, by_network);
            return SK_PASS;
        }
        count!(SERVICE_COUNTERS, rule.service, network_no_backend);
    }
    if let Some(table) = TABLES.get(index) {
        let tried = first(table, hash, rule.slots, &mut assign);
        if let Some(Visit::Taken) = tried {
            return SK_PASS;
        }
        if let Visit::Taken = visit(table, hash, tried.is_some(), &mut assign) {
            return SK_PASS;
        }
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
    if !is_listening(DAEMON_COOKIE) && !TABLES.get(index).is_some_and(withholds) {
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

/// The table for clients of this packet's network, if it has one. The longest prefix wins.
#[inline(always)]
fn table_of_network(packet: &Packet, index: u32) -> Option<u32> {
    let mut addr = [0; 16];
    for (bytes, word) in addr.chunks_exact_mut(4).zip(packet.remote) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    let key = SourceKey { scope: index.to_be_bytes(), addr };
    SOURCES.get(&Key::new(SOURCE_SCOPE_BITS + 128, key)).copied()
}

/// Whether another program of this namespace has already chosen a socket. Linux runs all of them in the order in which
/// they were attached, and passes each the latest choice.
#[inline(always)]
fn is_chosen(ctx: &SkLookupContext) -> bool {
    // SAFETY: the context is valid for the whole run; the pointer is only compared.
    !unsafe { ptr::read_volatile(&raw const (*ctx.lookup).__bindgen_anon_1.__bindgen_anon_1.sk) }.is_null()
}

/// The rule for the packet's destination; `None` if the packet is left to the kernel.
#[inline(always)]
fn rule_for(ctx: &SkLookupContext, packet: &Packet) -> Option<&'static Rule> {
    find(ctx, packet).and_then(steers)
}

/// Finds the rule by port alone, unless the port has rules for single addresses or devices. The rule may have no table.
#[inline(always)]
pub fn find(ctx: &SkLookupContext, packet: &Packet) -> Option<&'static Rule> {
    let (place, shift) = port_place(packet.local_port as u16, packet.family as u8);
    match (*PORTS.get(place)? >> shift) as u16 {
        0 => None,
        asks if asks >= ASK_RULES => rule_by_destination(ctx, packet, asks),
        table => TABLE_RULES.get(u32::from(table) - 1),
    }
}

/// The first existing rule for the packet's address, device and port, in the order in which the kernel prefers
/// listeners (`inet_lookup_listener`): an exact address before any address and, for each of these, an exact device
/// before any device.
#[inline(always)]
fn rule_by_destination(ctx: &SkLookupContext, packet: &Packet, asks: u16) -> Option<&'static Rule> {
    let mut key = RuleKey {
        netns_cookie: netns_cookie(),
        addr: [0; 16],
        port: packet.local_port as u16,
        proto: packet.protocol as u8,
        family: packet.family as u8,
        ifindex: 0,
    };
    // In the context since Linux 5.17. This is the device that the kernel compares with a listener's. If the packet
    // came in by a device that belongs to a VRF, it is the VRF.
    // SAFETY: the context is valid for the whole run.
    let ifindex = unsafe { ptr::read_volatile(&raw const (*ctx.lookup).ingress_ifindex) };
    let devices = asks & ASK_DEVICES != 0 && ifindex != 0;
    if asks & ASK_ADDRESSES != 0 {
        for (bytes, word) in key.addr.chunks_exact_mut(4).zip(packet.local) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        if devices {
            key.ifindex = ifindex;
            if let Some(rule) = rule(&key) {
                return Some(rule);
            }
            key.ifindex = 0;
        }
        if let Some(rule) = rule(&key) {
            return Some(rule);
        }
        key.addr = [0; 16];
    }
    if devices {
        key.ifindex = ifindex;
        if let Some(rule) = rule(&key) {
            return Some(rule);
        }
        key.ifindex = 0;
    }
    rule(&key)
}

#[inline(always)]
fn rule(key: &RuleKey) -> Option<&'static Rule> {
    // SAFETY: a rule is replaced as a whole. A reader sees the old or the new one, and both were valid.
    unsafe { RULES.get(key) }
}

/// Drops a rule without a table: its packets are left to the kernel.
#[inline(always)]
fn steers(rule: &'static Rule) -> Option<&'static Rule> {
    if rule.table == NONE { None } else { Some(rule) }
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
        match LISTENERS.redirect_sk_lookup(ctx, slot.cookie, BPF_SK_LOOKUP_F_NO_REUSEPORT) {
            Ok(()) => {
                if slot.backend == NONE {
                    count!(SERVICE_COUNTERS, service, paused);
                    return Visit::Taken;
                }
                count!(BACKEND_COUNTERS, slot.backend, steered);
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
