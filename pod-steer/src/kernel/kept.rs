//! A map that this daemon alone writes, and what it has in it.

use std::{collections::BTreeMap, path::Path};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};

use super::{KernelError, Result};

/// A map whose elements are those of the last plan.
pub(super) struct Kept<K: Pod, V: Pod> {
    map: HashMap<MapData, K, V>,
    known: BTreeMap<K, V>,
    name: &'static str,
}

impl<K: Pod + Ord, V: Pod + PartialEq> Kept<K, V> {
    /// Opens a pinned map.
    pub fn open(dir: &Path, name: &'static str) -> Result<Self> {
        let map = MapData::from_pin(dir.join(name)).and_then(Map::from_map_data).and_then(HashMap::try_from);
        let map: HashMap<MapData, K, V> = map.map_err(KernelError::map("open", name))?;
        let known = map.iter().flatten().collect();
        Ok(Self { map, known, name })
    }

    /// Makes these the elements of the map. A failure affects only that element.
    pub fn set(&mut self, wanted: BTreeMap<K, V>) -> Result<()> {
        let Self { map, known, name } = self;
        known.retain(|key, _| wanted.contains_key(key) || map.remove(key).is_err());
        let mut failed = Ok(());
        for (key, value) in wanted {
            if known.get(&key) != Some(&value) {
                match map.insert(key, value, 0).map_err(KernelError::map("write to", name)) {
                    Ok(()) => drop(known.insert(key, value)),
                    Err(error) => failed = Err(error),
                }
            }
        }
        failed
    }
}
