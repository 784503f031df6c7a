//! Each namespace's map of ports, and with it the writing of rules: the map of rules is what a later daemon reads, the maps
//! of ports and the rules by table are what a lookup follows.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use pod_steer_ebpf::{ASK_RULES, NONE, PORT_WORDS, RULE_HAS_ADDRESSES, Rule, RuleKey, port_place};

use super::{KernelError, Result};

const BPF_MAP_TYPE_ARRAY: u32 = 2;

/// The maps that lead from a packet to its rule.
pub(super) struct Rules {
    rules: HashMap<MapData, RuleKey, Rule>,
    by_table: Array<MapData, Rule>,
    /// Where the maps of ports are pinned, each under its namespace's cookie.
    dir: PathBuf,
    ports: BTreeMap<u64, Array<MapData, u64>>,
}

/// Where the map of ports of a namespace is pinned.
pub(super) fn pin(dir: &Path, cookie: u64) -> PathBuf {
    dir.join("ports").join(cookie.to_string())
}

impl Rules {
    /// `dir` has the directory of the maps of ports.
    pub fn new(rules: HashMap<MapData, RuleKey, Rule>, by_table: Array<MapData, Rule>, dir: &Path) -> Self {
        Self { rules, by_table, dir: dir.to_owned(), ports: BTreeMap::new() }
    }

    /// What is written.
    pub fn read(&self) -> impl Iterator<Item = (RuleKey, Rule)> {
        self.rules.iter().flatten()
    }

    /// Writes a rule; its table must be there. Lookups find it when all is written.
    pub fn write(&mut self, key: RuleKey, rule: Rule) -> Result<()> {
        self.rules.insert(key, rule, 0).map_err(KernelError::map("write a rule to", "RULES"))?;
        if key.addr != [0; 16] {
            return Ok(());
        }
        let leads_to = match rule.table {
            _ if rule.flags & RULE_HAS_ADDRESSES != 0 => ASK_RULES,
            NONE => 0,
            table => {
                let written = self.by_table.set(table, rule, 0);
                written.map_err(KernelError::map("write a rule to", "TABLE_RULES"))?;
                // The contract asserts that every table fits.
                table as u16 + 1
            }
        };
        self.lead(&key, leads_to)
    }

    /// Removes a rule: lookups find it no more when this begins.
    pub fn remove(&mut self, key: &RuleKey) -> Result<()> {
        if key.addr == [0; 16] {
            self.lead(key, 0)?;
        }
        let _ = self.rules.remove(key);
        Ok(())
    }

    fn lead(&mut self, key: &RuleKey, leads_to: u16) -> Result<()> {
        let failed = || KernelError::map("write a port to", "PORTS");
        let (place, shift) = port_place(key.port, key.family);
        let ports = self.ports_of(key.netns_cookie)?;
        // One word for two ports and both families: nobody else writes it, and it is replaced as a whole.
        let word = ports.get(&place, 0).map_err(failed())?;
        let word = word & !(u64::from(u16::MAX) << shift) | u64::from(leads_to) << shift;
        ports.set(place, word, 0).map_err(failed())
    }

    /// The map of ports of a namespace, made and pinned if it is not there yet.
    pub fn ports_of(&mut self, cookie: u64) -> Result<&mut Array<MapData, u64>> {
        let path = pin(&self.dir, cookie);
        let open = || -> std::result::Result<Array<MapData, u64>, MapError> {
            let data = if path.exists() { MapData::from_pin(&path)? } else { make(&path)? };
            Array::try_from(Map::Array(data))
        };
        match self.ports.entry(cookie) {
            std::collections::btree_map::Entry::Occupied(known) => Ok(known.into_mut()),
            std::collections::btree_map::Entry::Vacant(new) => {
                Ok(new.insert(open().map_err(KernelError::map("open", "PORTS"))?))
            }
        }
    }

    /// Forgets a namespace in which nothing is steered any more.
    pub fn forget(&mut self, cookie: u64) {
        self.ports.remove(&cookie);
        let _ = fs::remove_file(pin(&self.dir, cookie));
    }
}

fn make(path: &Path) -> std::result::Result<MapData, MapError> {
    let (key, value) = (size_of::<u32>() as u32, size_of::<u64>() as u32);
    let definition = aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY, key, value, PORT_WORDS, 0);
    let map = MapData::create(definition, "PORTS", None)?;
    map.pin(path).map_err(|error| MapError::PinError { name: Some("PORTS".to_owned()), error })?;
    Ok(map)
}
