//! The tables and the sockets that are pinned, read without a daemon. The kernel refuses every write by these descriptors.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, SockHash, lpm_trie::LpmTrie};
use pod_steer_ebpf::{NONE, Rule, RuleKey, Slot, SocketInfo, SourceKey, WAY_FORWARD, table_index};

use super::{Result, counters::read_only};
use crate::{
    ids::{BackendIndex, SocketCookie},
    slots::Member,
    world::PlannedTable,
};

/// The sockets that still listen, pod-steer's own among them, and the descriptions of those of backends.
///
/// # Errors
///
/// A map is missing.
pub fn described(dir: &Path) -> Result<(BTreeSet<SocketCookie>, BTreeMap<SocketCookie, SocketInfo>)> {
    // In this order: a socket is described before it enters the socket map.
    let listeners: SockHash<MapData, u64> = read_only(dir, "LISTENERS", Map::SockHash)?;
    let listening: BTreeSet<SocketCookie> = listeners.keys().flatten().map(SocketCookie).collect();
    let sockets: HashMap<MapData, u64, SocketInfo> = read_only(dir, "SOCKETS", Map::HashMap)?;
    let described = sockets.iter().flatten().map(|(cookie, info)| (SocketCookie(cookie), info));
    let described = described.filter(|(cookie, _)| listening.contains(cookie)).collect();
    Ok((listening, described))
}

/// The tables that lookups use, each with the ports to which its clients come. The weights of the members are not known.
///
/// # Errors
///
/// A map is missing.
pub fn pinned_tables(dir: &Path) -> Result<Vec<(Arc<PlannedTable>, BTreeSet<u16>)>> {
    let rules: HashMap<MapData, RuleKey, Rule> = read_only(dir, "RULES", Map::HashMap)?;
    let switches: Array<MapData, u32> = read_only(dir, "SWITCHES", Map::Array)?;
    let tables: ArrayOfMaps<MapData, MapData> = read_only(dir, "TABLES", Map::ArrayOfMaps)?;
    let sources: LpmTrie<MapData, SourceKey, u32> = read_only(dir, "SOURCES", Map::LpmTrie)?;
    let mut networks: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for (key, table) in sources.iter().flatten() {
        networks.entry(u32::from_be_bytes(key.data().scope)).or_default().insert(table);
    }
    let mut ports: BTreeMap<u32, BTreeSet<u16>> = BTreeMap::new();
    for (key, rule) in rules.iter().flatten().filter(|(_, rule)| rule.table != NONE) {
        let switch = switches.get(&rule.service, 0).unwrap_or_default();
        let own = table_index(rule.table, switch);
        let others = networks.get(&own).into_iter().flatten().map(|table| table_index(*table, switch));
        for index in others.chain([own]) {
            ports.entry(index).or_default().insert(key.port);
        }
    }
    Ok(ports.into_iter().filter_map(|(index, ports)| Some((Arc::new(table(&tables, index)?), ports))).collect())
}

/// The sockets of a table; `None` if there is none at this index.
fn table(tables: &ArrayOfMaps<MapData, MapData>, index: u32) -> Option<PlannedTable> {
    let slots = Array::<MapData, Slot>::try_from(Map::Array(tables.get(&index, 0).ok()?)).ok()?;
    let header = slots.get(&0, 0).ok()?;
    let (members, reserve) = header.counts();
    let mut at = 1u32.saturating_add(header.backend);
    // The listeners of a pause belong to no backend.
    let member = |slot: Slot| {
        (!slot.waits()).then(|| Member {
            cookie: SocketCookie(slot.cookie),
            backend: BackendIndex(slot.index()),
            weight: 0,
            is_forwarded: slot.way() == WAY_FORWARD,
        })
    };
    let mut part = |count: u32| {
        let range = at..at.saturating_add(count);
        at = range.end;
        // A table that was replaced meanwhile may be smaller than its header says: a read error ends it.
        range.map_while(|entry| slots.get(&entry, 0).ok()).filter_map(member).collect::<Vec<_>>()
    };
    Some(PlannedTable { members: part(members), reserve: part(reserve), withheld: part(header.slots) })
}
