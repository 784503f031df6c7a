//! Clients of some networks have tables of their own: the map from (side of a rule's table, network) to table.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{
    MapData,
    lpm_trie::{Key, LpmTrie},
};
use ipnet::IpNet;
use pod_steer_ebpf::{SOURCE_SCOPE_BITS, SOURCES_MAX, SourceKey};

use super::{KernelError, Result};
use crate::procs::address_bytes;

/// The map, and what is in it.
pub(super) struct Sources {
    map: LpmTrie<MapData, SourceKey, u32>,
    /// By scope: each entry's length and address, and the table.
    written: BTreeMap<u32, BTreeMap<(u32, [u8; 16]), u32>>,
}

impl Sources {
    /// Takes over what is there.
    pub fn new(map: LpmTrie<MapData, SourceKey, u32>) -> Self {
        let mut written: BTreeMap<u32, BTreeMap<_, u32>> = BTreeMap::new();
        for (key, table) in map.iter().flatten() {
            let data = key.data();
            written.entry(u32::from_be_bytes(data.scope)).or_default().insert((key.prefix_len(), data.addr), table);
        }
        Self { map, written }
    }

    /// Tables that entries lead to.
    pub fn tables(&self) -> BTreeSet<u32> {
        self.written.values().flat_map(|entries| entries.values().copied()).collect()
    }

    /// Leads clients of these networks to `table`, in lookups that use this scope.
    pub fn add(&mut self, scope: u32, networks: &BTreeSet<IpNet>, table: u32) -> Result<()> {
        for network in networks {
            let length = SOURCE_SCOPE_BITS + u32::from(network.prefix_len());
            let addr = address_bytes(network.network());
            let key = Key::new(length, SourceKey { scope: scope.to_be_bytes(), addr });
            let added = self.map.insert(&key, table, 0);
            added.map_err(KernelError::add("write a network to", "SOURCES", SOURCES_MAX))?;
            self.written.entry(scope).or_default().insert((length, addr), table);
        }
        Ok(())
    }

    /// Forgets a scope, and returns the tables that its entries led to.
    pub fn remove(&mut self, scope: u32) -> BTreeSet<u32> {
        let entries = self.written.remove(&scope).unwrap_or_default();
        for (length, addr) in entries.keys() {
            let _ = self.map.remove(&Key::new(*length, SourceKey { scope: scope.to_be_bytes(), addr: *addr }));
        }
        entries.into_values().collect()
    }
}
