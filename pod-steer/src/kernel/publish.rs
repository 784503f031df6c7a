//! Publishes slot tables. A table is built beside the one in use and replaces it by one pointer, so a lookup sees the
//! old table or the new one and never a mixture.
//!
//! Replacing an element of a map of maps takes effect at once, but the system call returns only when every program that
//! could have seen the old element has finished (`synchronize_rcu`, 8 ms as a rule). `workers` wait for that. The
//! daemon goes on when the new table is in effect; a caller that needs the stronger promise awaits [`Settled`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    os::fd::AsFd as _,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use aya::maps::{MapData, MapError};
use pod_steer_ebpf::{NONE, SWITCH_SIDE, Slot, TABLES_MAX, WAY_FORWARD, WAY_SOCKET, slot_backend, table_index};
use tokio::sync::oneshot;

use super::{
    KernelError, Result,
    limits::limit,
    tally::Tally,
    workers::{Batch, Outcome, Outer, Tables, WORKERS, Workers},
};
use crate::{ids::ServiceIndex, slots, sys, world::PlannedTable};

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_F_INNER_MAP: u32 = 1 << 12;

/// Entries of an empty table.
const EMPTY: u32 = 2;
/// Maximum number of different tables that are built before they are put in use together: each is an open file until
/// then.
const PREPARED_MAX: usize = 256;
/// Longest wait for a table to take effect. It ends only on a machine that runs nothing for so long.
const IN_EFFECT_MAX: Duration = Duration::from_secs(5);

/// Resolves when no program can still be using the replaced table.
#[derive(Debug)]
pub struct Settled(Option<oneshot::Receiver<Outcome>>);

impl Settled {
    /// Waits for the end of the kernel's grace period.
    pub async fn wait(self) {
        if let Some(done) = self.0 {
            // The outcome was checked when the table took effect; nothing can fail after that.
            let _ = done.await;
        }
    }
}

pub(super) struct Publisher {
    tables: Tables,
    workers: Workers,
    /// By table: its service.
    used: BTreeMap<u32, ServiceIndex>,
    tally: Tally,
    /// Where the search for a free index begins. A freed index is reused as late as possible, because a lookup that has
    /// just read it may still run.
    next: u32,
    /// Built, but not in use yet.
    prepared: Batch,
    /// The tables of this turn, by their address: rules with equal tables share one in the kernel too.
    made: HashMap<*const PlannedTable, Made>,
    /// For the tables that were put in use since the last [`Publisher::flush`].
    settled: Vec<Settled>,
    /// How many tables were put in use since they were counted last.
    published: u64,
    /// The tables among them that the kernel did not accept, and why.
    failed: Option<Failed>,
}

/// A planned table, and its map.
struct Made {
    /// Keeps the address valid.
    _planned: Arc<PlannedTable>,
    /// Empty once there is a map.
    entries: Vec<Slot>,
    map: Option<Arc<MapData>>,
    /// Ids of maps that were found to have the same contents.
    same: HashSet<u32>,
}

/// Tables that could not be put in use.
pub(super) struct Failed {
    /// Their indices.
    pub indices: BTreeSet<u32>,
    /// The first error.
    pub error: KernelError,
}

impl Publisher {
    /// `used` are the tables that published rules refer to, each with its service.
    pub fn new(pin: &Path, used: impl Iterator<Item = (u32, ServiceIndex)>) -> Result<Self> {
        let empty = table(&entries(&PlannedTable::default()))?;
        let used: BTreeMap<u32, ServiceIndex> = used.filter(|(table, _)| *table != NONE).collect();
        let mut tally = Tally::new("SLOT_TABLES", TABLES_MAX, "slot tables");
        used.values().for_each(|service| tally.add(*service, 1));
        Ok(Self {
            tables: Tables::open(pin)?,
            workers: Workers::start(pin, empty)?,
            used,
            tally,
            next: 0,
            prepared: Vec::new(),
            made: HashMap::new(),
            settled: Vec::new(),
            published: 0,
            failed: None,
        })
    }

    /// Reserves an unused index for a service. The service's quota does not apply if the table `replaces` another.
    pub fn reserve(&mut self, service: ServiceIndex, replaces: bool) -> Result<u32> {
        // A table that is being emptied is waited for only if no other is free.
        let max = limit("SLOT_TABLES", TABLES_MAX);
        let wait = if self.used.len() < max as usize { Duration::ZERO } else { IN_EFFECT_MAX };
        for table in self.workers.cleared(wait) {
            if let Some(owner) = self.used.remove(&table) {
                self.tally.take_away(owner, 1);
            }
        }
        if !replaces {
            self.tally.admit(service)?;
        }
        let free = (self.next..max).chain(0..self.next).find(|table| !self.used.contains_key(table));
        let table = free.ok_or(KernelError::Full { what: "the slot tables", limit: max })?;
        self.used.insert(table, service);
        self.tally.add(service, 1);
        self.next = (table + 1) % max;
        Ok(table)
    }

    /// Assigns a table to another service.
    pub fn hand_over(&mut self, table: u32, service: ServiceIndex) {
        if let Some(owner) = self.used.get_mut(&table) {
            self.tally.take_away(std::mem::replace(owner, service), 1);
            self.tally.add(service, 1);
        }
    }

    /// Builds `planned` for one side of a table (`index` is a [`pod_steer_ebpf::table_index`]). It is in use after the
    /// next [`flush`](Self::flush) at the latest. With `compare`, an equal table that is already there is left alone:
    /// so a restarted daemon takes over without a write.
    pub fn prepare(&mut self, index: u32, planned: &Arc<PlannedTable>, compare: bool) -> Result<()> {
        if self.made.len() >= PREPARED_MAX {
            self.put_in_use();
        }
        let made = self.made.entry(Arc::as_ptr(planned)).or_insert_with(|| Made::of(planned));
        if !(compare && made.is_at(&self.tables, index)) {
            self.prepared.push((index, made.map()?));
        }
        Ok(())
    }

    /// Empties both sides of a table that nothing refers to any more. The index is freed only after that: emptying must
    /// not overwrite a table that is published there next.
    pub fn clear(&mut self, table: u32) {
        self.prepared.retain(|(index, _)| !(0..=SWITCH_SIDE).any(|side| *index == table_index(table, side)));
        self.workers.clear(table);
    }

    /// Drops the tables that were built.
    pub fn discard(&mut self) {
        self.prepared.clear();
        self.made.clear();
    }

    /// How many tables were put in use since the last call.
    pub fn take_published(&mut self) -> u64 {
        std::mem::take(&mut self.published)
    }

    /// Puts the built tables in use. When this returns, each is in effect or among those that failed.
    pub fn flush(&mut self) -> (Vec<Settled>, Option<Failed>) {
        self.put_in_use();
        (std::mem::take(&mut self.settled), self.failed.take())
    }

    fn put_in_use(&mut self) {
        let mut prepared = std::mem::take(&mut self.prepared);
        self.made.clear();
        let (each, begun) = (prepared.len().div_ceil(WORKERS).max(1), Instant::now());
        let mut waits = Vec::new();
        while !prepared.is_empty() {
            let batch: Batch = prepared.drain(..each.min(prepared.len())).collect();
            let indices: BTreeSet<u32> = batch.iter().map(|(index, _)| *index).collect();
            let last = batch.last().and_then(|(index, inner)| Some((*index, map_id(inner).ok()?)));
            waits.push((indices, last, self.workers.replace(batch)));
        }
        // All are waited for, even if one fails: a late replacement would overwrite a table that was published after
        // it.
        for (indices, last, outcome) in waits {
            match self.wait_in_effect(last, outcome, begun) {
                Ok(settled) => {
                    self.published += indices.len() as u64;
                    self.settled.push(settled);
                }
                Err(error) => match &mut self.failed {
                    Some(failed) => failed.indices.extend(indices),
                    failed => *failed = Some(Failed { indices, error }),
                },
            }
        }
    }

    /// Waits until the last table of a batch is in use: the others come before it.
    fn wait_in_effect(
        &self,
        last: Option<(u32, u32)>,
        mut outcome: oneshot::Receiver<Outcome>,
        begun: Instant,
    ) -> Result<Settled> {
        let failed = || KernelError::map("publish a table in", "TABLES");
        // >>> New connections move here, when backends come and go: a worker's system call replaces the pointer, and
        // this loop sees that it is done.
        loop {
            match outcome.try_recv() {
                Ok(result) => return result.map(|()| Settled(None)).map_err(failed()),
                Err(oneshot::error::TryRecvError::Closed) => return Err(failed()(MapError::KeyNotFound)),
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
            let is_last = |(index, id)| self.tables.id_of(index).is_ok_and(|now| now == id);
            if last.is_some_and(is_last) {
                return Ok(Settled(Some(outcome)));
            }
            if begun.elapsed() > IN_EFFECT_MAX {
                return Err(failed()(MapError::KeyNotFound));
            }
            thread::yield_now();
        }
    }
}

impl Made {
    fn of(planned: &Arc<PlannedTable>) -> Self {
        Self { _planned: Arc::clone(planned), entries: entries(planned), map: None, same: HashSet::new() }
    }

    /// A map that is not in use yet, or that only tables of this turn use.
    fn map(&mut self) -> Result<Arc<MapData>> {
        if let Some(map) = &self.map {
            return Ok(Arc::clone(map));
        }
        let map = Arc::new(table(&std::mem::take(&mut self.entries))?);
        Ok(Arc::clone(self.map.insert(map)))
    }

    /// Whether the table at an index has the same contents.
    fn is_at(&mut self, tables: &Tables, index: u32) -> bool {
        if tables.id_of(index).is_ok_and(|id| self.same.contains(&id)) {
            return true;
        }
        if self.map.is_some() {
            return false;
        }
        let Ok(current) = tables.get(index) else { return false };
        let is_same = current.info().is_ok_and(|info| info.max_entries() as usize == self.entries.len())
            && sys::same_slots(current.fd().as_fd(), &self.entries).unwrap_or(false);
        if is_same {
            self.same.extend(map_id(&current));
        }
        is_same
    }
}

/// Replaces a table once, in maps that no program uses: a kernel may accept every program and refuse this.
pub(super) fn try_once(outer: &mut Outer) -> Result<()> {
    let inner = unfilled(EMPTY)?;
    outer.set(0, &inner, 0).map_err(KernelError::map("publish a table in", "TABLES"))
}

/// Creates a table of these entries, which is not in use yet.
fn table(entries: &[Slot]) -> Result<MapData> {
    let inner = unfilled(entries.len() as u32)?;
    sys::write_slots(inner.fd().as_fd(), entries).map_err(KernelError::io("fill a slot table in", "TABLES"))?;
    Ok(inner)
}

/// Creates a table with so many entries, all zero.
pub(super) fn unfilled(entries: u32) -> Result<MapData> {
    let made = MapData::create(definition(entries), "slots", None);
    made.map_err(KernelError::map("create a table for", "TABLES"))
}

/// An array that can be filled through memory and be replaced by one of another size (`BPF_F_INNER_MAP`, Linux 5.10).
fn definition(entries: u32) -> aya_obj::Map {
    let (key, value) = (size_of::<u32>() as u32, size_of::<Slot>() as u32);
    aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY, key, value, entries, BPF_F_MMAPABLE | BPF_F_INNER_MAP)
}

fn map_id(inner: &MapData) -> std::result::Result<u32, MapError> {
    inner.info().map(|info| info.id())
}

/// The entries of a table, as the contract lays them out: header, slots, members, reserve, withheld.
fn entries(planned: &PlannedTable) -> Vec<Slot> {
    let table = slots::build(&planned.members);
    let count = table.slots.len() as u32;
    let entry = |slots: u32, member: &slots::Member| {
        let way = if member.is_forwarded { WAY_FORWARD } else { WAY_SOCKET };
        // The listener of a pause has no backend, and no way.
        let backend = if member.backend.0 == NONE { NONE } else { slot_backend(member.backend.0, way) };
        Slot::new(member.cookie.0, backend, slots)
    };
    let mut entries = Vec::with_capacity(
        2 + table.slots.len() + table.members.len() + planned.reserve.len() + planned.withheld.len(),
    );
    entries.push(Slot::header(
        count,
        table.members.len() as u32,
        planned.reserve.len() as u32,
        planned.withheld.len() as u32,
    ));
    entries.extend(table.slots.iter().filter_map(|index| table.members.get(*index as usize)).map(|m| entry(count, m)));
    entries.extend(table.members.iter().chain(&planned.reserve).chain(&planned.withheld).map(|m| entry(0, m)));
    // An array needs at least one element. An empty table has one more behind its header.
    entries.resize(entries.len().max(EMPTY as usize), Slot::default());
    entries
}
