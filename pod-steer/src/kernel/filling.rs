//! Fills the maps of a new layout from those of the layout before.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::maps::{HashMap as BpfHash, LpmTrie, Map, MapData};
use pod_steer_ebpf::{Meta, NONE, Rule, RuleKey, SWITCH_SIDE, SourceKey, table_index};
use tracing::warn;

use super::{
    KernelError, Result,
    elements::{Bytes, Elements, added, subtracted},
    layouts::{self, Filled, filled},
    publish,
    workers::Tables,
};

/// Number of new tables that are created before they are put in the new map together: each is an open file until then.
const TABLES_AT_ONCE: usize = 256;

/// The counters that a migrate program writes.
const MIGRATE_COUNTS: &str = "BACKEND_COUNTERS";

/// A map in the old and the new layout.
struct Pair {
    name: &'static str,
    old: Elements,
    new: Elements,
    /// The elements that were copied from the old map; for counters, what was added to the totals.
    copied: Option<HashMap<Bytes, Bytes>>,
    /// For counters: the totals before, if there are any, and after.
    totals: Option<(Option<Elements>, Elements)>,
}

impl Pair {
    fn failed(&self) -> impl FnOnce(io::Error) -> KernelError {
        KernelError::io("fill the new layout of the map", self.name)
    }
}

/// The maps that have changed.
pub(super) struct Filling {
    /// Where the new maps are pinned until they are filled.
    new: PathBuf,
    found: Meta,
    /// The version to migrate to.
    to: u32,
    pairs: Vec<Pair>,
}

impl Filling {
    /// `old` and `new` are directories of pins, `found` describes the state in `old`, and `to` is the version of `new`.
    pub fn new(old: &Path, new: &Path, found: &Meta, to: u32, changed: &BTreeSet<&'static str>) -> Result<Self> {
        let open = |dir: &Path, name: &str| {
            let pin = dir.join(name);
            Elements::open(&pin).map_err(KernelError::io("open the map", pin))
        };
        let both = changed.iter().filter(|name| old.join(name).exists());
        let pairs = both.map(|name| {
            let totals = match filled(name) {
                // Releases before the first one with totals have none.
                Filled::Totals(totals) => Some((Elements::open(&old.join(totals)).ok(), open(new, totals)?)),
                _ => None,
            };
            Ok(Pair { name, old: open(old, name)?, new: open(new, name)?, copied: None, totals })
        });
        Ok(Self { new: new.to_owned(), found: *found, to, pairs: pairs.collect::<Result<_>>()? })
    }

    /// Fills the new maps, which no program uses yet.
    pub fn fill(&mut self) -> Result<()> {
        let found = self.found;
        for pair in self.pairs.iter_mut().filter(|pair| filled(pair.name) == Filled::Copied) {
            pair.copied = Some(copy(pair, found.abi, self.to).map_err(pair.failed())?);
        }
        for pair in &self.pairs {
            match filled(pair.name) {
                Filled::Meta => {
                    let meta = [self.to.to_ne_bytes(), found.backends_max.to_ne_bytes()].concat();
                    let meta = [meta, found.seed.to_ne_bytes().to_vec()].concat();
                    pair.new.set(&0u32.to_ne_bytes(), &meta).map_err(pair.failed())?;
                }
                Filled::Tables => self.fill_tables(pair)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Carries over what the former programs have written since the maps were filled. None of them runs any more.
    pub fn carry_over(&mut self) -> Result<()> {
        for pair in &mut self.pairs {
            match filled(pair.name) {
                Filled::Copied => carry(pair, self.found.abi, self.to).map_err(pair.failed())?,
                _ => pair.copied = Some(add_up(pair).map_err(pair.failed())?),
            }
        }
        Ok(())
    }

    /// The counters to which the migrate programs still add.
    pub fn late(self) -> LateCounters {
        LateCounters(self.pairs.into_iter().filter(|pair| pair.name == MIGRATE_COUNTS).collect())
    }

    /// Adds what the new programs have counted to the totals that stay, because the former programs run again.
    pub fn give_back(&self) {
        for pair in &self.pairs {
            let Some((Some(totals), _)) = &pair.totals else { continue };
            let given = pair.new.keys().try_for_each(|key| {
                let key = key?;
                let sum = pair.new.sum(&key)?;
                if sum.iter().all(|byte| *byte == 0) {
                    return Ok(());
                }
                let before = totals.get(&key)?.unwrap_or_else(|| vec![0; totals.info.value_size()]);
                totals.set(&key, &added(&before, &sum))
            });
            if let Err(error) = given {
                warn!(%error, map = pair.name, "counts of the failed upgrade are lost");
            }
        }
    }

    /// Every table that a rule or a network refers to, on both sides. All others are empty.
    fn tables(&self) -> Result<BTreeSet<u32>> {
        let open = |name: &str| MapData::from_pin(self.new.join(name));
        let rules = open("RULES").and_then(|map| BpfHash::<_, RuleKey, Rule>::try_from(Map::HashMap(map)));
        let rules = rules.map_err(KernelError::map("open", "RULES"))?;
        let sources = open("SOURCES").and_then(|map| LpmTrie::<_, SourceKey, u32>::try_from(Map::LpmTrie(map)));
        let sources = sources.map_err(KernelError::map("open", "SOURCES"))?;
        let used =
            rules.iter().flatten().map(|(_, rule)| rule.table).chain(sources.iter().flatten().map(|(_, own)| own));
        let sides = |table| (0..=SWITCH_SIDE).map(move |side| table_index(table, side));
        Ok(used.filter(|table| *table != NONE).flat_map(sides).collect())
    }

    /// Fills the map of tables. Rules with equal tables share one, and still do afterwards.
    fn fill_tables(&self, pair: &Pair) -> Result<()> {
        let mut new = Tables::open(&self.new.join(pair.name))?;
        let mut made: HashMap<Bytes, Arc<MapData>> = HashMap::new();
        let mut batch = Vec::new();
        for index in self.tables()? {
            // The value is the id of the table.
            let Some(id) = pair.old.get(&index.to_ne_bytes()).map_err(pair.failed())? else { continue };
            let table = match made.get(&id) {
                Some(table) => Arc::clone(table),
                None => {
                    let table = Arc::new(self.table(&id).map_err(pair.failed())?);
                    made.insert(id, Arc::clone(&table));
                    table
                }
            };
            batch.push((index, table));
            if made.len() >= TABLES_AT_ONCE {
                new.replace(&std::mem::take(&mut batch)).map_err(KernelError::map("fill", "TABLES"))?;
                made.clear();
            }
        }
        new.replace(&batch).map_err(KernelError::map("fill", "TABLES"))
    }

    /// Converts a table to the new layout.
    fn table(&self, id: &[u8]) -> io::Result<MapData> {
        let id = id.try_into().map(u32::from_ne_bytes).map_err(io::Error::other)?;
        let old = Elements::of(super::bpf::map(id)?)?;
        let table = publish::unfilled(old.info.sizes[2]).map_err(io::Error::other)?;
        let new = Elements::of(table.fd().as_fd().try_clone_to_owned()?)?;
        for key in old.keys() {
            let key = key?;
            let Some(slot) = old.get(&key)? else { continue };
            if let Some((key, slot)) = layouts::convert("TABLES", (self.found.abi, self.to), key, slot) {
                new.set(&key, &slot)?;
            }
        }
        Ok(table)
    }
}

/// Copies a map, and returns its elements.
fn copy(pair: &Pair, from: u32, to: u32) -> io::Result<HashMap<Bytes, Bytes>> {
    let mut copied = HashMap::new();
    for key in pair.old.keys() {
        let key = key?;
        let Some(value) = pair.old.get(&key)? else { continue };
        if let Some((key, value)) = layouts::convert(pair.name, (from, to), key.clone(), value.clone()) {
            pair.new.set(&key, &value)?;
        }
        copied.insert(key, value);
    }
    Ok(copied)
}

/// Carries over what has changed since the copy. If another process made the copy, only elements that the new map lacks
/// are carried over.
fn carry(pair: &Pair, from: u32, to: u32) -> io::Result<()> {
    let mut gone = pair.copied.clone().unwrap_or_default();
    for key in pair.old.keys() {
        let key = key?;
        let Some(value) = pair.old.get(&key)? else { continue };
        let before = gone.remove(&key);
        if before.as_ref() == Some(&value) {
            continue;
        }
        let Some((key, value)) = layouts::convert(pair.name, (from, to), key, value) else { continue };
        if before.is_some() { pair.new.set(&key, &value)? } else { pair.new.add(&key, &value)? }
    }
    for (key, value) in gone {
        // A new program may have written the key again.
        if let Some((key, value)) = layouts::convert(pair.name, (from, to), key, value)
            && pair.new.get(&key)?.is_some_and(|now| now == value)
        {
            pair.new.remove(&key)?;
        }
    }
    Ok(())
}

/// Writes the totals of a map of counters: the former totals plus its counters. Returns the counters. It is safe to do
/// this twice.
fn add_up(counters: &Pair) -> io::Result<HashMap<Bytes, Bytes>> {
    let mut counted = HashMap::new();
    let Some((before, now)) = &counters.totals else { return Ok(counted) };
    for key in counters.old.keys() {
        let key = key?;
        let sum = counters.old.sum(&key)?;
        let before = before.as_ref().map(|before| before.get(&key)).transpose()?.flatten().unwrap_or_default();
        let total = added(&added(&vec![0; now.info.value_size()], &before), &sum);
        if total.iter().any(|byte| *byte != 0) {
            now.set(&key, &total)?;
        }
        counted.insert(key, sum);
    }
    Ok(counted)
}

/// Counters of the former layout to which programs may still add. These are the migrate programs, until a resync has
/// attached this build's to every socket; all other programs are replaced before the carry-over.
#[derive(Default)]
pub(super) struct LateCounters(Vec<Pair>);

impl LateCounters {
    /// Adds what was counted since the last call to the totals.
    pub fn add(&mut self) {
        for pair in &mut self.0 {
            if let Err(error) = add_late(pair) {
                warn!(%error, map = pair.name, "counts of the upgrade are lost");
            }
        }
    }
}

fn add_late(pair: &mut Pair) -> io::Result<()> {
    let Some((_, totals)) = &pair.totals else { return Ok(()) };
    for (key, counted) in pair.copied.iter_mut().flatten() {
        let sum = pair.old.sum(key)?;
        if sum == *counted {
            continue;
        }
        let before = totals.get(key)?.unwrap_or_else(|| vec![0; totals.info.value_size()]);
        totals.set(key, &added(&before, &subtracted(&sum, counted)))?;
        *counted = sum;
    }
    Ok(())
}
