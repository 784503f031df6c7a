//! The choice for a new connection, the same for every hook: a table for the client's network first, then the rule's.

use pod_steer_ebpf::{Rule, SWITCH_HAS_SOURCES, table_index};

use crate::{
    maps::{SERVICE_COUNTERS, TABLES, count},
    packet::Packet,
    rules::table_of_network,
    table::{Chooser, Visit, first, hash, visit},
};

/// Offers slots of the service's tables, on the side that its switch names, until `chooser` takes one.
#[inline(always)]
pub fn choose<C: Chooser>(packet: &Packet, rule: &Rule, switch: u32, chooser: &mut C) -> Visit {
    let (hash, index) = (hash(packet, rule), table_index(rule.table, switch));
    if switch & SWITCH_HAS_SOURCES != 0
        && let Some(own) = table_of_network(packet, index)
    {
        chooser.walks(table_index(own, switch));
        if let Some(table) = TABLES.get(table_index(own, switch))
            && let Visit::Taken = visit(table, hash, false, chooser)
        {
            count!(SERVICE_COUNTERS, rule.service, by_network);
            return Visit::Taken;
        }
        count!(SERVICE_COUNTERS, rule.service, network_no_backend);
    }
    chooser.walks(index);
    let Some(table) = TABLES.get(index) else { return Visit::TryNext };
    match first(table, hash, rule.slots, chooser) {
        Some(Visit::Taken) => Visit::Taken,
        tried => visit(table, hash, tried.is_some(), chooser),
    }
}
