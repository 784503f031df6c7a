//! The rule for a packet, and the table for its client's network.

use aya_ebpf::btf_maps::lpm_trie::Key;
use pod_steer_ebpf::{
    ASK_ADDRESSES, ASK_DEVICES, ASK_RULES, NONE, Rule, RuleKey, SOURCE_SCOPE_BITS, SourceKey, port_place,
};

use crate::{
    maps::{PORTS, RULES, SOURCES, TABLE_RULES, dry_ifindex, netns_cookie},
    packet::Packet,
};

/// The rule for the packet's destination; `None` if the packet is left to the kernel.
#[inline(always)]
pub fn rule_for(packet: &Packet) -> Option<&'static Rule> {
    find(packet).and_then(steers)
}

/// Finds the rule by port alone, unless the port has rules for single addresses or devices. The rule may have no table.
#[inline(always)]
pub fn find(packet: &Packet) -> Option<&'static Rule> {
    let (place, shift) = port_place(packet.local_port as u16, packet.family as u8);
    match (*PORTS.get(place)? >> shift) as u16 {
        0 => None,
        asks if asks >= ASK_RULES => rule_by_destination(packet, asks),
        table => TABLE_RULES.get(u32::from(table) - 1),
    }
}

/// The same in a call of its own, for a caller whose stack has no room for its keys: Linux before 6.8 rounds each frame up to a multiple of
/// 32 bytes.
#[inline(never)]
pub fn find_apart(packet: &Packet) -> Option<&'static Rule> {
    find(packet)
}

/// The first existing rule for the packet's address, device and port, in the order in which the kernel prefers
/// listeners (`inet_lookup_listener`): an exact address before any address and, for each of these, an exact device
/// before any device.
#[inline(always)]
fn rule_by_destination(packet: &Packet, asks: u16) -> Option<&'static Rule> {
    let mut key = RuleKey {
        netns_cookie: netns_cookie(),
        addr: [0; 16],
        port: packet.local_port as u16,
        proto: packet.protocol as u8,
        family: packet.family as u8,
        ifindex: 0,
    };
    let ifindex = if packet.ifindex == 0 { dry_ifindex() as u32 } else { packet.ifindex };
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

/// The table for clients of this packet's network, if it has one. The longest prefix wins.
#[inline(always)]
pub fn table_of_network(packet: &Packet, index: u32) -> Option<u32> {
    let mut addr = [0; 16];
    for (bytes, word) in addr.chunks_exact_mut(4).zip(packet.remote) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    let key = SourceKey { scope: index.to_be_bytes(), addr };
    SOURCES.get(&Key::new(SOURCE_SCOPE_BITS + 128, key)).copied()
}
