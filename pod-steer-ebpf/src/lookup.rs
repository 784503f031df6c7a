//! `sk_lookup`: the choice. Runs for every packet that would reach a listening socket, once per new connection.

use core::ptr;

use aya_ebpf::{
    bindings::sk_action::{SK_DROP, SK_PASS},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use aya_log_ebpf::debug;
use pod_steer_ebpf::{FALLBACK_PASS, FAMILY_V4, NONE, RULE_HAS_ADDRESSES, Rule, RuleKey, Slot};

use crate::{
    maps::{BACKEND_COUNTERS, LISTENERS, RULES, SERVICE_COUNTERS, TABLES, count, netns_cookie},
    table::{Chooser, Visit, tuple_hash, visit},
};

/// The table has already chosen within the reuseport group: without this flag the kernel would choose again.
const BPF_SK_LOOKUP_F_NO_REUSEPORT: u64 = 2;

const EEXIST: i32 = -17;
const ENOENT: i32 = -2;
const EPROTOTYPE: i32 = -91;
const ESOCKTNOSUPPORT: i32 = -94;
const EAFNOSUPPORT: i32 = -97;

/// What a packet is looked up by.
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
        // SAFETY: the context is valid for the whole run. Volatile and unconditional: the compiler would else merge reads
        // of two branches into one at a computed offset, which the verifier refuses.
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
    let packet = Packet::of(&ctx);
    // Nobody claimed this port: not ours to count or to decide.
    let Some(rule) = rule_for(&packet) else { return SK_PASS };

    let hash = tuple_hash(&packet);
    if let Some(table) = TABLES.get(rule.table)
        && let Visit::Taken = visit(table, hash, &mut Assign { ctx: &ctx, service: rule.service })
    {
        return SK_PASS;
    }

    if rule.fallback == FALLBACK_PASS {
        count!(SERVICE_COUNTERS, rule.service, passed_no_backend);
        debug!(&ctx, "service {} port {}: no backend, passed", rule.service, packet.local_port);
        return SK_PASS;
    }
    // The service exists and nobody serves it: a reset at once is kinder than a time-out.
    count!(SERVICE_COUNTERS, rule.service, refused_no_backend);
    debug!(&ctx, "service {} port {}: no backend, refused", rule.service, packet.local_port);
    SK_DROP
}

/// The rule for the packet's destination: one look-up, two where the port has rules for single addresses.
#[inline(always)]
fn rule_for(packet: &Packet) -> Option<&'static Rule> {
    let mut key = RuleKey {
        netns_cookie: netns_cookie(),
        addr: [0; 16],
        port: packet.local_port as u16,
        proto: packet.protocol as u8,
        family: packet.family as u8,
        pad: 0,
    };
    // SAFETY: rules are replaced as a whole; a reader may see the old or the new one, both of which were valid.
    let any = unsafe { RULES.get(key) }?;
    if any.flags & RULE_HAS_ADDRESSES != 0 {
        for (bytes, word) in key.addr.chunks_exact_mut(4).zip(packet.local) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        // SAFETY: as above.
        if let Some(one) = unsafe { RULES.get(key) } {
            return Some(one);
        }
    }
    if any.table == NONE { None } else { Some(any) }
}

struct Assign<'a> {
    ctx: &'a SkLookupContext,
    service: u32,
}

impl Chooser for Assign<'_> {
    /// Hands the packet to the slot's socket, or counts why that could not be.
    #[inline(always)]
    fn offer(&mut self, slot: &Slot) -> Visit {
        let Self { ctx, service } = *self;
        match LISTENERS.redirect_sk_lookup(ctx, slot.cookie, BPF_SK_LOOKUP_F_NO_REUSEPORT) {
            Ok(()) => {
                count!(BACKEND_COUNTERS, slot.backend, steered);
                debug!(ctx, "service {}: backend {} socket {}", service, slot.backend, slot.cookie);
                return Visit::Taken;
            }
            Err(ENOENT) => count!(SERVICE_COUNTERS, service, stale_slots),
            Err(EAFNOSUPPORT) => count!(SERVICE_COUNTERS, service, assign_eafnosupport),
            Err(ESOCKTNOSUPPORT) => count!(SERVICE_COUNTERS, service, assign_esocktnosupport),
            Err(EPROTOTYPE) => count!(SERVICE_COUNTERS, service, assign_eprototype),
            Err(EEXIST) => count!(SERVICE_COUNTERS, service, assign_eexist),
            Err(_) => count!(SERVICE_COUNTERS, service, assign_other),
        }
        Visit::TryNext
    }
}
