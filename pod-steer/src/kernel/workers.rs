//! The threads that replace tables and wait until no lookup can be using the old ones. Tables that change together are
//! replaced together. A batch waits once from Linux 6.8 on, and once for each element before that, so the tables are
//! divided among the threads. One more thread empties tables that nothing refers to any more; nothing waits for it.

use std::{
    collections::BTreeSet,
    io, iter,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use aya::maps::{ArrayOfMaps, Map, MapData, MapError};
use pod_steer_ebpf::{SWITCH_SIDE, table_index};
use tokio::sync::oneshot;

use super::{KernelError, Result};
use crate::sys;

/// Number of changes at a time before one waits for another.
pub(super) const WORKERS: usize = 8;
/// Number of tables that are emptied together. Not more: a daemon that is killed ends only when its system call does,
/// and before Linux 6.8 that waits for each of them.
const CLEARED_MAX: usize = 32;

pub(super) type Outer = ArrayOfMaps<MapData, MapData>;
pub(super) type Outcome = std::result::Result<(), MapError>;
/// Tables, each with its index, to be put in use by one system call in this order.
pub(super) type Batch = Vec<(u32, Arc<MapData>)>;

/// The map of all tables.
pub(super) struct Tables {
    outer: Outer,
    /// The same map again: aya hides the descriptor of a map of maps.
    raw: MapData,
}

impl Tables {
    pub fn open(pin: &Path) -> Result<Self> {
        let open = || MapData::from_pin(pin).map_err(KernelError::map("open", "TABLES"));
        let outer = Map::ArrayOfMaps(open()?).try_into().map_err(KernelError::map("open", "TABLES"))?;
        Ok(Self { outer, raw: open()? })
    }

    /// The table at this index.
    pub fn get(&self, index: u32) -> std::result::Result<MapData, MapError> {
        self.outer.get(&index, 0)
    }

    /// The id of the table at this index. On Linux 6.1 this call waits for a grace period too.
    pub fn id_of(&self, index: u32) -> io::Result<u32> {
        sys::inner_map(self.raw.fd().as_fd(), index)
    }

    /// Puts tables in use, in the order of the batch.
    pub fn replace(&mut self, batch: &[(u32, Arc<MapData>)]) -> Outcome {
        let (indices, fds): (Vec<u32>, Vec<u32>) =
            batch.iter().map(|(index, inner)| (*index, inner.fd().as_fd().as_raw_fd().cast_unsigned())).unzip();
        match batch {
            // A batch that the kernel rejects (batches of maps of maps need Linux 5.19) does no harm: an element that
            // is replaced twice gets the same table.
            [_, _, ..] if sys::update_batch(self.raw.fd().as_fd(), &indices, &fds).is_ok() => Ok(()),
            _ => batch.iter().try_for_each(|(index, inner)| self.outer.set(*index, inner, 0)),
        }
    }
}

struct Job {
    batch: Batch,
    done: oneshot::Sender<Outcome>,
}

/// The threads. They end when this is dropped and their work is done.
pub(super) struct Workers {
    jobs: mpsc::Sender<Job>,
    /// Sends tables to be emptied.
    unused: mpsc::Sender<u32>,
    /// Receives tables that are emptied.
    cleared: mpsc::Receiver<u32>,
    /// Tables that are being emptied.
    clearing: BTreeSet<u32>,
}

impl Workers {
    /// `empty` replaces tables that nothing refers to.
    pub fn start(pin: &Path, empty: MapData) -> Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..WORKERS {
            let (mut tables, queue) = (Tables::open(pin)?, Arc::clone(&queue));
            thread::spawn(move || work(&mut tables, &queue));
        }
        let (unused, queue) = mpsc::channel();
        let (done, cleared) = mpsc::channel();
        let (mut tables, empty) = (Tables::open(pin)?, Arc::new(empty));
        thread::spawn(move || clean(&mut tables, &empty, &queue, &done));
        Ok(Self { jobs, unused, cleared, clearing: BTreeSet::new() })
    }

    /// Replaces tables. The receiver gets the outcome when no lookup can be using the old ones.
    pub fn replace(&self, batch: Batch) -> oneshot::Receiver<Outcome> {
        let (done, outcome) = oneshot::channel();
        let _ = self.jobs.send(Job { batch, done });
        outcome
    }

    /// Empties both sides of a table once. After that it may be used again.
    pub fn clear(&mut self, table: u32) {
        if self.clearing.insert(table) {
            let _ = self.unused.send(table);
        }
    }

    /// The tables that were emptied since the last call. Waits for the first one no longer than `wait`.
    pub fn cleared(&mut self, wait: Duration) -> BTreeSet<u32> {
        let wait = if self.clearing.is_empty() { Duration::ZERO } else { wait };
        let first = self.cleared.recv_timeout(wait).ok();
        let cleared: BTreeSet<u32> = first.into_iter().chain(self.cleared.try_iter()).collect();
        self.clearing.retain(|table| !cleared.contains(table));
        cleared
    }
}

fn work(tables: &mut Tables, queue: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        // The lock is held while waiting, so that one worker at a time takes the next job.
        let Ok(Ok(Job { batch, done })) = queue.lock().map(|queue| queue.recv()) else { return };
        let _ = done.send(tables.replace(&batch));
    }
}

/// Empties tables, as many together as are waiting.
fn clean(tables: &mut Tables, empty: &Arc<MapData>, queue: &mpsc::Receiver<u32>, done: &mpsc::Sender<u32>) {
    while let Ok(first) = queue.recv() {
        let all: Vec<u32> = iter::once(first).chain(queue.try_iter()).take(CLEARED_MAX).collect();
        let sides = |table: &u32| [0, SWITCH_SIDE].map(|side| (table_index(*table, side), Arc::clone(empty)));
        // If that fails, they keep their memory until they are used again.
        let _ = tables.replace(&all.iter().flat_map(sides).collect::<Batch>());
        if all.into_iter().any(|table| done.send(table).is_err()) {
            return;
        }
    }
}
