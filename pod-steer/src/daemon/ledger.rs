//! What operators have decided and ordered, in an embedded transactional store that survives daemon and machine. The
//! daemon reads what is in memory; each change is one durable transaction. Whatever happens to the file, steering goes
//! on: then the ledger works in memory and says so.

mod disk;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::info;

use crate::{
    clock::Timed,
    condition::{Condition, Reason},
    ids::BackendId,
    rollout::{Decision, Operation},
};
use disk::{Disk, Fault};

/// Most operations that are remembered; of more, the oldest that have ended are forgotten.
const OPERATIONS_MAX: usize = 1000;
/// The store's file in the state directory.
const FILE: &str = "state.redb";

/// Old containers that are kept until they are stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStop {
    /// Their service.
    pub service: String,
    /// Their version.
    pub version: String,
    /// Ids of the backends.
    pub backends: BTreeSet<BackendId>,
    /// When they are stopped, in milliseconds since the machine booted.
    pub at_ms: i64,
}

impl Timed for PlannedStop {
    fn times(&mut self) -> impl Iterator<Item = &mut i64> {
        std::iter::once(&mut self.at_ms)
    }
}

/// What one transaction changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change<'a> {
    /// Decisions by service; nothing takes a service's decision away.
    pub decisions: &'a [(&'a str, Option<&'a Decision>)],
    /// Operations, new or further than before.
    pub operations: &'a [&'a Operation],
    /// All planned stops, if they change.
    pub stops: Option<&'a [PlannedStop]>,
}

/// A change could not be made durable.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LedgerError(pub Condition);

/// All that is remembered.
#[derive(Debug, Default)]
struct Contents {
    decisions: BTreeMap<String, Decision>,
    operations: BTreeMap<u64, Operation>,
    stops: Vec<PlannedStop>,
}

/// Where changes go.
enum Place {
    /// Into the file.
    File(Disk),
    /// A write has failed: the next one opens the file anew and writes everything.
    Failed,
    /// Nowhere: what the file says was never read, so it is not written over.
    Memory,
}

/// See the module.
pub struct Ledger {
    path: PathBuf,
    contents: Contents,
    place: Place,
    condition: Option<Condition>,
    /// Numbers of operations that are in memory and not in the file.
    unstored: BTreeSet<u64>,
}

impl Ledger {
    /// Opens the store in this directory, or makes both. If that fails, the ledger has a [`condition`](Self::condition).
    pub fn open(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let opened = disk::make_dir(dir).and_then(|()| open_or_make(&path));
        let (place, contents, condition) = match opened {
            Ok((disk, contents, condition)) => (Place::File(disk), contents, condition),
            Err(fault) => {
                let path = path.display();
                let message =
                    format!("`{path}` cannot be used: {fault}; decisions and history are lost when this daemon ends");
                let remedy = "mend that, and restart the daemon";
                let condition = Condition::new(Reason::LedgerUnusable, message, remedy);
                (Place::Memory, Contents::default(), Some(condition))
            }
        };
        Self { path, contents, place, condition, unstored: BTreeSet::new() }
    }

    /// What is wrong with the store.
    pub fn condition(&self) -> Option<&Condition> {
        self.condition.as_ref()
    }

    /// Why the next daemon would not know of a change, if that is so.
    pub fn not_stored(&self) -> Option<&Condition> {
        self.condition.as_ref().filter(|_| !matches!(self.place, Place::File(_)))
    }

    /// The decisions by service.
    pub fn decisions(&self) -> BTreeMap<String, Decision> {
        self.contents.decisions.clone()
    }

    /// An operation by its number.
    pub fn operation(&self, id: u64) -> Option<&Operation> {
        self.contents.operations.get(&id)
    }

    /// Operations that had not ended, oldest first.
    pub fn running(&self) -> Vec<Operation> {
        self.contents.operations.values().filter(|operation| operation.end.is_none()).cloned().collect()
    }

    /// What was ordered, of one service or all, oldest first.
    pub fn history(&self, service: Option<&str>) -> Vec<Operation> {
        let all = self.contents.operations.values();
        all.filter(|operation| service.is_none_or(|service| operation.service == service)).cloned().collect()
    }

    /// The number for the next operation that is committed.
    pub fn next_operation(&self) -> u64 {
        self.contents.operations.last_key_value().map_or(1, |(id, _)| id + 1)
    }

    /// The planned stops.
    pub fn stops(&self) -> Vec<PlannedStop> {
        self.contents.stops.clone()
    }

    /// Makes a change in one durable transaction. An error does not undo it: it is in memory from then on, and written
    /// with the next change that can be, so that who rolls back with a full disk can.
    pub fn commit(&mut self, change: Change<'_>) -> Result<(), LedgerError> {
        let forgotten = self.contents.apply(&change);
        self.unstored.extend(change.operations.iter().map(|operation| operation.id));
        let written = match &self.place {
            Place::Memory => return Ok(()),
            Place::File(disk) => disk.write(&change, &forgotten),
            Place::Failed => self.write_all(),
        };
        written.map(|()| self.unstored.clear()).map_err(|fault| self.failed(&fault))
    }

    /// Tries again to write what could not be written.
    pub fn retry(&mut self) {
        if matches!(self.place, Place::Failed) {
            match self.write_all() {
                Ok(()) => self.unstored.clear(),
                Err(fault) => drop(self.failed(&fault)),
            }
        }
    }

    /// An operation as it is told, with the reason if it is not in the file.
    pub fn told(&self, operation: Operation) -> Operation {
        let unstored = self.condition.as_ref().filter(|_| self.unstored.contains(&operation.id));
        let not_stored = unstored.map(ToString::to_string);
        Operation { not_stored, ..operation }
    }

    /// Writes all that is in memory over whatever the file has.
    fn write_all(&mut self) -> Result<(), Fault> {
        let (disk, _, condition) = open_or_make(&self.path)?;
        disk.write_all(&self.contents)?;
        info!(file = %self.path.display(), "decisions and history are written again");
        self.place = Place::File(disk);
        self.condition = condition;
        Ok(())
    }

    fn failed(&mut self, fault: &Fault) -> LedgerError {
        // The store refuses everything after a failed write, until it is opened again.
        if let Place::File(disk) = std::mem::replace(&mut self.place, Place::Failed) {
            disk.close();
        }
        let message = format!(
            "`{}` cannot be written: {fault}; the daemon tries again every 30 s, and until then a restart of the daemon or the \
             machine loses what was ordered",
            self.path.display()
        );
        let condition = Condition::new(Reason::LedgerNotWritten, message, "make it writable or free space there");
        self.condition = Some(condition.clone());
        LedgerError(condition)
    }

    /// Removes the store and all that was kept aside, and the directory if nothing else is in it.
    pub fn remove_all(dir: &Path) {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(FILE)) {
            let _ = fs::remove_file(entry.path());
        }
        let _ = fs::remove_dir(dir);
    }
}

impl Contents {
    /// Returns the numbers of the operations that are forgotten for it.
    fn apply(&mut self, change: &Change<'_>) -> Vec<u64> {
        for (service, decision) in change.decisions {
            match decision {
                Some(decision) => drop(self.decisions.insert((*service).to_owned(), (*decision).clone())),
                None => drop(self.decisions.remove(*service)),
            }
        }
        for operation in change.operations {
            self.operations.insert(operation.id, (*operation).clone());
        }
        if let Some(stops) = change.stops {
            self.stops = stops.to_vec();
        }
        let excess = self.operations.len().saturating_sub(OPERATIONS_MAX);
        let ended = self.operations.values().filter(|operation| operation.end.is_some());
        let forgotten: Vec<u64> = ended.map(|operation| operation.id).take(excess).collect();
        self.operations.retain(|id, _| !forgotten.contains(id));
        forgotten
    }
}

/// Opens the file, makes it if there is none, and puts one aside that is of no use; then with a condition.
fn open_or_make(path: &Path) -> Result<(Disk, Contents, Option<Condition>), Fault> {
    let (fault, suffix) = match Disk::open(path) {
        Ok((disk, contents)) => return Ok((disk, contents, None)),
        Err(Fault::Absent) => return Ok((Disk::make(path)?, Contents::default(), None)),
        Err(fault @ Fault::Unusable(_)) => return Err(fault),
        Err(fault @ Fault::Damaged(_)) => (fault, "damaged".to_owned()),
        Err(fault @ Fault::Layout(layout)) => (fault, format!("layout-{layout}")),
        Err(fault @ Fault::Format(format)) => (fault, format!("format-{format}")),
    };
    let aside = disk::put_aside(path, &suffix)?;
    let disk = Disk::make(path)?;
    let message = format!(
        "`{}` {fault}; it is kept as `{}`, and decisions and history begin anew",
        path.display(),
        aside.display()
    );
    Ok((disk, Contents::default(), Some(Condition::without_remedy(Reason::LedgerReplaced, message))))
}
