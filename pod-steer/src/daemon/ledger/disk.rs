//! The ledger's file. Nothing of it reaches the daemon but values and one-line faults: redb reports most damage as an
//! error and some by a panic, and both end here.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::SystemTime,
};

use redb::{Builder, Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;

use super::{Change, Contents, PlannedStop};
use crate::{clock::Stored, rollout::Operation};

/// Grows when the meaning of what is stored changes in a way that an older or newer daemon would misread.
pub(super) const LAYOUT: u64 = 1;
/// What is stored is small; the default would be a gigabyte.
const CACHE_BYTES: usize = 1 << 20;

pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const DECISIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("decisions");
const OPERATIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("operations");
const STOPS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("stops");

/// What keeps a file from being used; reads on after the file's name.
#[derive(Debug)]
pub(super) enum Fault {
    /// There is none.
    Absent,
    /// It is not what was written.
    Damaged(String),
    /// Another pod-steer's.
    Layout(u64),
    /// Another redb's.
    Format(u8),
    /// It cannot be read or written now.
    Unusable(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("is not there"),
            Self::Damaged(why) => write!(f, "is damaged: {why}"),
            Self::Layout(layout) => write!(f, "has layout {layout}, and this pod-steer reads layout {LAYOUT}"),
            Self::Format(format) => write!(f, "is in file format {format}, which this pod-steer does not read"),
            Self::Unusable(why) => f.write_str(why),
        }
    }
}

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
                Self::Unusable("another process has it open".to_owned())
            }
            redb::Error::UpgradeRequired(format) => Self::Format(format),
            redb::Error::Io(error) => match error.kind() {
                io::ErrorKind::NotFound => Self::Absent,
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::Damaged(error.to_string()),
                _ => Self::Unusable(error.to_string()),
            },
            error @ (redb::Error::PreviousIo | redb::Error::LockPoisoned(_)) => Self::Unusable(error.to_string()),
            error => Self::Damaged(error.to_string().replace('\n', " ")),
        }
    }
}

fn unusable(what: &str) -> impl FnOnce(io::Error) -> Fault {
    move |error| Fault::Unusable(format!("cannot {what}: {error}"))
}

/// A panic within redb is damage that it had not foreseen.
fn guarded<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Fault::Damaged(text.unwrap_or("it cannot be read").replace('\n', " ")))
    })
}

/// Makes the directory, for root's eyes alone.
pub(super) fn make_dir(dir: &Path) -> Result<(), Fault> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(unusable("make its directory"))
}

/// Renames the file to a free name beside it.
pub(super) fn put_aside(path: &Path, suffix: &str) -> Result<PathBuf, Fault> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let name = |second: u64| PathBuf::from(format!("{}.{suffix}-{second}", path.display()));
    let aside = (now..).map(name).find(|aside| fs::symlink_metadata(aside).is_err()).unwrap_or_else(|| name(now));
    fs::rename(path, &aside).map_err(unusable("put it aside"))?;
    sync_dir(path)?;
    Ok(aside)
}

/// A name in a directory is durable when the directory is.
fn sync_dir(path: &Path) -> Result<(), Fault> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(unusable("make its name durable"))
}

/// An open store.
pub(super) struct Disk {
    db: Database,
}

impl Disk {
    /// Opens the file and reads all of it, every page against its checksum.
    pub(super) fn open(path: &Path) -> Result<(Self, Contents), Fault> {
        // redb takes an empty file for a new one; ours are never empty.
        if fs::metadata(path).map_err(redb::Error::from)?.len() == 0 {
            return Err(Fault::Damaged("it is empty".to_owned()));
        }
        guarded(|| {
            let db = builder().set_check_integrity_on_open(true).open(path)?;
            let read = db.begin_read()?;
            let layout = match read.open_table(META) {
                Ok(meta) => meta.get("layout")?.map(|layout| layout.value()),
                Err(redb::TableError::TableDoesNotExist(_)) => None,
                Err(error) => return Err(error.into()),
            };
            match layout {
                Some(LAYOUT) => {}
                Some(other) => return Err(Fault::Layout(other)),
                None => return Err(Fault::Damaged("it does not say which layout it has".to_owned())),
            }
            let mut contents = Contents::default();
            for row in read.open_table(DECISIONS)?.iter()? {
                let (service, decision) = row?;
                let decision = parse::<Stored<_>>(decision.value())?.into_value();
                contents.decisions.insert(service.value().to_owned(), decision);
            }
            for row in read.open_table(OPERATIONS)?.iter()? {
                let (id, operation) = row?;
                let (id, operation) = (id.value(), parse::<Stored<Operation>>(operation.value())?.into_value());
                if operation.id != id || !(1..u64::MAX).contains(&id) {
                    return Err(Fault::Damaged(format!(
                        "the record of operation {id} is of operation {}",
                        operation.id
                    )));
                }
                contents.operations.insert(id, operation);
            }
            for row in read.open_table(STOPS)?.iter()? {
                contents.stops.push(parse::<Stored<_>>(row?.1.value())?.into_value());
            }
            Ok((Self { db }, contents))
        })
    }

    /// Makes a fresh file. It gets its name when it is complete: a power cut leaves none or a good one.
    pub(super) fn make(path: &Path) -> Result<Self, Fault> {
        let part = PathBuf::from(format!("{}.part", path.display()));
        let _ = fs::remove_file(&part);
        let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&part);
        made.map_err(unusable("make it"))?;
        guarded(|| {
            let disk = Self { db: builder().create(&part)? };
            disk.write_all(&Contents::default())?;
            fs::rename(&part, path).map_err(unusable("give it its name"))?;
            sync_dir(path)?;
            Ok(disk)
        })
    }

    /// One durable transaction: the file is synced before this returns.
    pub(super) fn write(&self, change: &Change<'_>, forgotten: &[u64]) -> Result<(), Fault> {
        guarded(|| {
            let write = self.db.begin_write()?;
            {
                let mut decisions = write.open_table(DECISIONS)?;
                for (service, decision) in change.decisions {
                    match decision {
                        Some(decision) => {
                            let stored = json(&Stored::new((*decision).clone()))?;
                            drop(decisions.insert(service, stored.as_slice())?);
                        }
                        None => drop(decisions.remove(service)?),
                    }
                }
                let mut operations = write.open_table(OPERATIONS)?;
                for operation in change.operations {
                    operations.insert(operation.id, json(&Stored::new((*operation).clone()))?.as_slice())?;
                }
                for id in forgotten {
                    operations.remove(id)?;
                }
            }
            if let Some(stops) = change.stops {
                put_stops(&write, stops)?;
            }
            Ok(write.commit()?)
        })
    }

    /// The same for everything; what was there before is gone.
    pub(super) fn write_all(&self, contents: &Contents) -> Result<(), Fault> {
        guarded(|| {
            let write = self.db.begin_write()?;
            {
                write.open_table(META)?.insert("layout", LAYOUT)?;
                let mut decisions = write.open_table(DECISIONS)?;
                decisions.retain(|_, _| false)?;
                for (service, decision) in &contents.decisions {
                    decisions.insert(service.as_str(), json(&Stored::new(decision.clone()))?.as_slice())?;
                }
                let mut operations = write.open_table(OPERATIONS)?;
                operations.retain(|_, _| false)?;
                for (id, operation) in &contents.operations {
                    operations.insert(id, json(&Stored::new((*operation).clone()))?.as_slice())?;
                }
            }
            put_stops(&write, &contents.stops)?;
            Ok(write.commit()?)
        })
    }

    /// Lets go of a file that has failed, whatever redb has to say about it.
    pub(super) fn close(self) {
        let _ = guarded(|| {
            drop(self.db);
            Ok(())
        });
    }
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn put_stops(write: &WriteTransaction, stops: &[PlannedStop]) -> Result<(), Fault> {
    let mut table = write.open_table(STOPS)?;
    table.retain(|_, _| false)?;
    for (number, stop) in (0..).zip(stops) {
        table.insert(number, json(&Stored::new(stop.clone()))?.as_slice())?;
    }
    Ok(())
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(value).map_err(|error| Fault::Unusable(error.to_string()))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|error| Fault::Damaged(format!("a record is not understood: {error}")))
}
