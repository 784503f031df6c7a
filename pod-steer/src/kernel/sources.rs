//! Tables for clients of single networks: the map from (side of a rule's table, network) to table.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{
    MapData,
    lpm_trie::{Key, LpmTrie},
};
use ipnet::IpNet;
use pod_steer_ebpf::{SOURCE_SCOPE_BITS, SOURCES_MAX, SWITCH_SIDE, SourceKey};

use super::{KernelError, NO_SERVICE, Result, tally::Tally};
use crate::{ids::ServiceIndex, procs::address_bytes};

/// The map, and its contents.
pub(super) struct Sources {
    map: LpmTrie<MapData, SourceKey, u32>,
    /// By scope: each entry's length and address, and the table.
    written: BTreeMap<u32, BTreeMap<(u32, [u8; 16]), u32>>,
    /// By scope: the service.
    owners: BTreeMap<u32, ServiceIndex>,
    tally: Tally,
    /// By service and side: how many entries.
    by_side: BTreeMap<(ServiceIndex, u32), u32>,
}

impl Sources {
    /// Takes over the contents of the map. `owners` has the service of each rule's table.
    pub fn new(map: LpmTrie<MapData, SourceKey, u32>, owners: &BTreeMap<u32, ServiceIndex>) -> Self {
        let mut written: BTreeMap<u32, BTreeMap<_, u32>> = BTreeMap::new();
        for (key, table) in map.iter().flatten() {
            let data = key.data();
            written.entry(u32::from_be_bytes(data.scope)).or_default().insert((key.prefix_len(), data.addr), table);
        }
        let tally = Tally::new("SOURCES", SOURCES_MAX, "networks of clients");
        let mut made = Self { map, written, owners: BTreeMap::new(), tally, by_side: BTreeMap::new() };
        let counts: Vec<(u32, u32)> =
            made.written.iter().map(|(scope, entries)| (*scope, u32::try_from(entries.len()).unwrap_or(0))).collect();
        for (scope, number) in counts {
            let owner = owners.get(&table_of(scope)).copied().unwrap_or(NO_SERVICE);
            made.count(scope, owner, number);
        }
        made
    }

    /// The tables that entries refer to, and the service of each.
    pub fn tables(&self) -> BTreeMap<u32, ServiceIndex> {
        let owner = |scope| self.owners.get(&scope).copied().unwrap_or(NO_SERVICE);
        let tables =
            self.written.iter().flat_map(|(scope, entries)| entries.values().map(|table| (*table, owner(*scope))));
        tables.collect()
    }

    /// The number of tables that the networks of a service refer to on one side.
    pub fn tables_of(&self, service: ServiceIndex, side: u32) -> usize {
        let of_service = |(scope, _): &(&u32, _)| {
            *scope & SWITCH_SIDE == side && self.owners.get(scope).is_some_and(|owner| *owner == service)
        };
        let scopes = self.written.iter().filter(of_service);
        scopes.flat_map(|(_, entries)| entries.values()).collect::<BTreeSet<_>>().len()
    }

    fn count(&mut self, scope: u32, owner: ServiceIndex, number: u32) {
        self.owners.insert(scope, owner);
        self.tally.add(owner, number);
        *self.by_side.entry((owner, scope & SWITCH_SIDE)).or_default() += number;
    }

    /// Checks whether a service may have one more entry. It may always have as many on one side as on the other, which
    /// a switch is about to empty.
    fn admit(&self, scope: u32, owner: ServiceIndex) -> Result<()> {
        let on = |side| self.by_side.get(&(owner, side)).copied().unwrap_or(0);
        let side = scope & SWITCH_SIDE;
        if on(side) < on(side ^ SWITCH_SIDE) { Ok(()) } else { self.tally.admit(owner) }
    }

    /// Gives clients of these networks to `table`, in lookups of a service that use this scope.
    pub fn add(&mut self, scope: u32, service: ServiceIndex, networks: &BTreeSet<IpNet>, table: u32) -> Result<()> {
        for network in networks {
            self.admit(scope, service)?;
            let length = SOURCE_SCOPE_BITS + u32::from(network.prefix_len());
            let addr = address_bytes(network.network());
            let key = Key::new(length, SourceKey { scope: scope.to_be_bytes(), addr });
            let added = self.map.insert(&key, table, 0);
            added.map_err(KernelError::add("write a network to", "SOURCES", SOURCES_MAX))?;
            if self.written.entry(scope).or_default().insert((length, addr), table).is_none() {
                self.count(scope, service, 1);
            }
        }
        Ok(())
    }

    /// Removes a scope's entries, and returns the tables that they referred to.
    pub fn remove(&mut self, scope: u32) -> BTreeSet<u32> {
        let entries = self.written.remove(&scope).unwrap_or_default();
        self.forget(scope, &entries);
        self.owners.remove(&scope);
        entries.into_values().collect()
    }

    /// Removes the entries of a scope that refer to these tables.
    pub fn withdraw(&mut self, scope: u32, tables: &BTreeSet<u32>) {
        let Some(entries) = self.written.remove(&scope) else { return };
        let (gone, stay) = entries.into_iter().partition(|(_, table)| tables.contains(table));
        self.forget(scope, &gone);
        self.written.insert(scope, stay);
    }

    fn forget(&mut self, scope: u32, entries: &BTreeMap<(u32, [u8; 16]), u32>) {
        if let Some(owner) = self.owners.get(&scope) {
            let number = u32::try_from(entries.len()).unwrap_or(0);
            self.tally.take_away(*owner, number);
            if let Some(on) = self.by_side.get_mut(&(*owner, scope & SWITCH_SIDE)) {
                *on = on.saturating_sub(number);
            }
        }
        for (length, addr) in entries.keys() {
            let _ = self.map.remove(&Key::new(*length, SourceKey { scope: scope.to_be_bytes(), addr: *addr }));
        }
    }
}

/// The table that a scope is one side of.
fn table_of(scope: u32) -> u32 {
    scope >> 1
}
