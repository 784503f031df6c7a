//! Publishing slot tables. A table is built beside the one in use and replaces it by one pointer, so a lookup sees the
//! old table or the new one and never a mixture.
//!
//! Replacing an element of a map of maps takes effect at once, but the system call returns only when every program that
//! could have seen the old element has finished (`synchronize_rcu`, 8 ms as a rule). That wait happens on worker
//! threads: the daemon goes on when the new table is in effect, and whoever needs the stronger promise awaits
//! [`Settled`].

use std::{
    collections::BTreeSet,
    os::fd::AsFd as _,
    path::Path,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{ArrayOfMaps, Map, MapData, MapError};
use pod_steer_ebpf::{NONE, SWITCH_SIDE, Slot, TABLES_MAX, table_index};
use tokio::sync::oneshot;

use super::{KernelError, Result, sys};
use crate::{slots, world::PlannedTable};

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_F_INNER_MAP: u32 = 1 << 12;

/// Threads that wait for grace periods; so many tables change at a time before a change waits for another.
const WORKERS: usize = 8;
/// Longest wait for a table to be in effect; only a machine that runs nothing for so long ever gets there.
const IN_EFFECT_MAX: Duration = Duration::from_secs(5);

pub(super) type Outer = ArrayOfMaps<MapData, MapData>;
type Outcome = std::result::Result<(), MapError>;

/// Resolves when no program can still be using the table that was replaced.
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

struct Job {
    index: u32,
    inner: MapData,
    done: oneshot::Sender<Outcome>,
}

pub(super) struct Publisher {
    outer: Outer,
    jobs: mpsc::Sender<Job>,
    used: BTreeSet<u32>,
}

impl Publisher {
    /// `used` are the tables that published rules lead to.
    pub fn new(pin: &Path, used: impl Iterator<Item = u32>) -> Result<Self> {
        let open = || -> Result<Outer> {
            let data = MapData::from_pin(pin).map_err(KernelError::map("open", "TABLES"))?;
            Outer::try_from(Map::ArrayOfMaps(data)).map_err(KernelError::map("open", "TABLES"))
        };
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..WORKERS {
            let (mut outer, queue) = (open()?, Arc::clone(&queue));
            thread::spawn(move || work(&mut outer, &queue));
        }
        Ok(Self { outer: open()?, jobs, used: used.filter(|table| *table != NONE).collect() })
    }

    /// An index that no rule uses.
    pub fn reserve(&mut self) -> Result<u32> {
        let free = (0..TABLES_MAX).find(|table| !self.used.contains(table));
        let table = free.ok_or(KernelError::Full { what: "slot table", limit: TABLES_MAX })?;
        self.used.insert(table);
        Ok(table)
    }

    /// Makes one side of a table (`index` is a [`pod_steer_ebpf::table_index`]) hold `planned`, in effect when this returns. With `compare`, a table that stands there
    /// already is left alone: that is how a restarted daemon takes over without a write.
    pub fn publish(&mut self, index: u32, planned: &PlannedTable, compare: bool) -> Result<Option<Settled>> {
        let entries = entries(planned);
        if compare
            && let Ok(current) = self.outer.get(&index, 0)
            && current.info().is_ok_and(|info| info.max_entries() as usize == entries.len())
            && sys::same_slots(current.fd().as_fd(), &entries).unwrap_or(false)
        {
            return Ok(None);
        }
        let inner = MapData::create(definition(entries.len() as u32), "slots", None)
            .map_err(KernelError::map("make a table for", "TABLES"))?;
        sys::write_slots(inner.fd().as_fd(), &entries).map_err(KernelError::io("fill a slot table in", "TABLES"))?;
        self.replace(index, inner).map(Some)
    }

    /// Empties one side of a table.
    pub fn empty(&mut self, index: u32) -> Result<Option<Settled>> {
        self.publish(index, &PlannedTable::default(), false)
    }

    /// Empties a table that nothing leads to any more, and gives its index back.
    pub fn clear(&mut self, table: u32) -> Result<Vec<Settled>> {
        let mut settled = Vec::new();
        for side in 0..=SWITCH_SIDE {
            settled.extend(self.empty(table_index(table, side))?);
        }
        self.used.remove(&table);
        Ok(settled)
    }

    fn replace(&mut self, index: u32, inner: MapData) -> Result<Settled> {
        let failed = || KernelError::map("publish a table in", "TABLES");
        let id = map_id(&inner).map_err(failed())?;
        let (done, mut outcome) = oneshot::channel();
        // The workers live as long as the sender does.
        let _ = self.jobs.send(Job { index, inner, done });
        // >>> New connections move here, when backends come and go: a worker's system call replaces the pointer, and we see it done.
        let begun = Instant::now();
        loop {
            match outcome.try_recv() {
                Ok(result) => return result.map(|()| Settled(None)).map_err(failed()),
                Err(oneshot::error::TryRecvError::Closed) => return Err(failed()(MapError::KeyNotFound)),
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
            if self.outer.get(&index, 0).and_then(|inner| map_id(&inner)).is_ok_and(|current| current == id) {
                return Ok(Settled(Some(outcome)));
            }
            if begun.elapsed() > IN_EFFECT_MAX {
                return Err(failed()(MapError::KeyNotFound));
            }
            thread::yield_now();
        }
    }
}

/// Replaces a table once, in maps that nobody uses: a kernel may take every program and refuse this.
pub(super) fn try_once(outer: &mut Outer) -> Result<()> {
    let inner =
        MapData::create(definition(2), "slots", None).map_err(KernelError::map("make a table for", "TABLES"))?;
    outer.set(0, &inner, 0).map_err(KernelError::map("publish a table in", "TABLES"))
}

fn work(outer: &mut Outer, queue: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        // The lock is held while waiting, so that one worker at a time takes the next job.
        let Ok(Ok(job)) = queue.lock().map(|queue| queue.recv()) else { return };
        let outcome = outer.set(job.index, &job.inner, 0);
        let _ = job.done.send(outcome);
    }
}

/// An array that can be filled through memory and be replaced by one of another size (`BPF_F_INNER_MAP`, Linux 5.10).
fn definition(entries: u32) -> aya_obj::Map {
    let (key, value) = (size_of::<u32>() as u32, size_of::<Slot>() as u32);
    aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY, key, value, entries, BPF_F_MMAPABLE | BPF_F_INNER_MAP)
}

fn map_id(inner: &MapData) -> std::result::Result<u32, MapError> {
    inner.info().map(|info| info.id())
}

/// The entries of a table, as the contract lays them out: header, slots, members, reserve.
fn entries(planned: &PlannedTable) -> Vec<Slot> {
    let table = slots::build(&planned.members);
    let count = table.slots.len() as u32;
    let entry = |slots: u32, member: &slots::Member| Slot { cookie: member.cookie, backend: member.backend, slots };
    let mut entries = Vec::with_capacity(2 + table.slots.len() + table.members.len() + planned.reserve.len());
    entries.push(Slot::header(count, table.members.len() as u32, planned.reserve.len() as u32));
    entries.extend(table.slots.iter().filter_map(|index| table.members.get(*index as usize)).map(|m| entry(count, m)));
    entries.extend(table.members.iter().chain(&planned.reserve).map(|m| entry(0, m)));
    // The kernel wants at least one element; two keep the header of an empty table company.
    entries.resize(entries.len().max(2), Slot::default());
    entries
}
