//! The rule of a packet, as `pod-steer-ebpf/src/rules.rs` finds it.

use pod_steer_ebpf::{ASK_ADDRESSES, ASK_DEVICES, ASK_RULES, NONE, Packet, Rule, RuleKey};

use super::{Tables, bytes};
use crate::address::ANY_ADDRESS;

/// The rule for the packet's destination, and what it is for; `None` if the packet is left to the kernel.
pub fn rule_for(tables: &impl Tables, packet: &Packet) -> Option<(RuleKey, Rule)> {
    let (port, family) = (packet.local_port as u16, packet.family as u8);
    let key = |addr, ifindex| RuleKey {
        netns_cookie: tables.netns(),
        addr,
        port,
        proto: packet.protocol as u8,
        family,
        ifindex,
    };
    let found = match tables.port(port, family) {
        0 => None,
        asks if asks >= ASK_RULES => {
            let has_devices = asks & ASK_DEVICES != 0 && packet.ifindex != 0;
            let addresses = if asks & ASK_ADDRESSES != 0 { Some(bytes(&packet.local)) } else { None };
            // In the order in which the kernel prefers listeners.
            let keys = addresses.into_iter().chain([ANY_ADDRESS]).flat_map(|addr| {
                let of_device = has_devices.then(|| key(addr, packet.ifindex));
                of_device.into_iter().chain([key(addr, 0)])
            });
            keys.into_iter().find_map(|key| Some((key, tables.rule(&key)?)))
        }
        table => tables.rule_of_table(u32::from(table) - 1).map(|rule| (key(ANY_ADDRESS, 0), rule)),
    };
    found.filter(|(_, rule)| rule.table != NONE)
}
