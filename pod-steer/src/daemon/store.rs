//! What a daemon leaves for the next one, beside the pins: which backend has which index. One file a backend, written
//! before the kernel is told; the directory is on a tmpfs, so it ends with the kernel state that it describes. The same is in the
//! kernel's notes, so a directory that is full or lost costs nothing.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use pod_steer_ebpf::{NOTE_BACKEND, NOTE_BACKEND_TOTALS, NOTE_HOLD, NOTE_SERVICE, NOTE_SERVICE_TOTALS};
use rustix::fs::{FlockOperation, flock};
use tracing::warn;

use crate::{
    clock::Stored,
    ids::{BackendId, BackendIndex, ServiceIndex},
    kernel::Notes,
    ports::PortMap,
    world::Backend,
};

/// What can go wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("{what} `{}`", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

/// The runtime directory.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    copies: RefCell<Copies>,
}

/// The same in the kernel.
#[derive(Debug, Default)]
struct Copies {
    notes: Option<Notes>,
    /// The index of each backend that has a note.
    backends: BTreeMap<BackendId, BackendIndex>,
    /// The services that have a note.
    services: BTreeMap<String, ServiceIndex>,
    /// Why the files are not complete, or the notes are not.
    failure: Option<String>,
}

impl Store {
    /// Opens the directory, or makes it.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let backends = dir.join("backends");
        fs::create_dir_all(&backends).map_err(failed("make the directory", &backends))?;
        Ok(Self { dir: dir.to_owned(), copies: RefCell::default() })
    }

    /// The lock that one daemon holds as long as it lives; `None` if another has it.
    pub fn lock(&self) -> Result<Option<File>, StoreError> {
        let path = self.dir.join("lock");
        let file = File::create(&path).map_err(failed("make the file", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(failed("lock the file", &path)(e.into())),
        }
    }

    fn backend_path(&self, id: &str) -> PathBuf {
        // Ids are hex digits or made by us; anything else cannot leave the directory.
        let safe: String = id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        self.dir.join("backends").join(format!("{safe}.json"))
    }

    /// From now on keeps a copy of everything in the kernel's notes.
    pub fn keep_notes(&self, notes: Notes) {
        self.copies.borrow_mut().notes = Some(notes);
    }

    /// Why a part of what was remembered is in one of the two places only.
    pub fn failure(&self) -> Option<String> {
        let lost = || Some("it was removed".to_owned()).filter(|_| !self.dir.join("backends").exists());
        self.copies.borrow().failure.clone().or_else(lost)
    }

    /// Writes everything once more.
    pub fn put_all<'a>(&self, backends: impl Iterator<Item = &'a Backend>, services: &BTreeMap<String, ServiceIndex>) {
        let mut copies = self.copies.borrow_mut();
        copies.failure = None;
        copies.services.clear();
        drop(copies);
        let put = backends.map(|backend| self.put(backend)).collect::<Vec<_>>();
        if let Some(error) = put.into_iter().chain([self.put_services(services)]).find_map(Result::err) {
            self.copies.borrow_mut().failure = Some(crate::chain(&error));
        }
    }

    /// Remembers a backend. It is enough if one of file and note is written.
    pub fn put(&self, backend: &Backend) -> Result<(), StoreError> {
        let path = self.backend_path(&backend.id);
        let stored = Stored::new(backend.clone());
        let mut copies = self.copies.borrow_mut();
        let text = serde_json::to_vec(&stored).map_err(|e| failed("describe", &path)(e.into()))?;
        let noted = copies.write(NOTE_BACKEND, backend.index.0, &text);
        if noted {
            copies.backends.insert(backend.id.clone(), backend.index);
        }
        copies.settle(self.write(&path, &stored), noted)
    }

    /// Forgets a backend.
    pub fn remove(&self, id: &str) {
        let _ = fs::remove_file(self.backend_path(id));
        let mut copies = self.copies.borrow_mut();
        if let (Some(index), Copies { notes: Some(notes), .. }) = (copies.backends.remove(id), &mut *copies) {
            notes.remove(NOTE_BACKEND, index.0);
            notes.remove(NOTE_BACKEND_TOTALS, index.0);
        }
    }

    /// Every backend that is remembered: by its note, or else by its file.
    pub fn backends(&self) -> BTreeMap<BackendId, Backend> {
        let mut copies = self.copies.borrow_mut();
        let notes = copies.notes.as_ref().map(|notes| notes.read(NOTE_BACKEND)).unwrap_or_default();
        let noted = notes.into_iter().filter_map(|(index, text)| {
            let read = serde_json::from_slice::<Stored<Backend>>(&text).map(Stored::into_value);
            read.inspect_err(|error| warn!(%error, index, "cannot read a backend's note")).ok()
        });
        let noted: BTreeMap<BackendId, Backend> = noted.map(|backend| (backend.id.clone(), backend)).collect();
        copies.backends = noted.iter().map(|(id, backend)| (id.clone(), backend.index)).collect();
        let taken: BTreeSet<BackendIndex> = copies.backends.values().copied().collect();
        let mut backends = self.filed();
        // A file that could not be removed may name an index that is another backend's by now.
        backends.retain(|_, backend| !taken.contains(&backend.index));
        backends.extend(noted);
        backends
    }

    /// The backends that have a file. One that cannot be understood is kept aside and reported: its backend will be found again
    /// by its note or through its engine, and steering never stops for it.
    fn filed(&self) -> BTreeMap<BackendId, Backend> {
        let entries = fs::read_dir(self.dir.join("backends")).into_iter().flatten().flatten();
        let files = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
        let mut backends = BTreeMap::new();
        for path in files {
            let read = fs::read(&path).map_err(|e| e.to_string());
            match read.and_then(|bytes| serde_json::from_slice::<Stored<Backend>>(&bytes).map_err(|e| e.to_string())) {
                Ok(stored) => {
                    let backend = stored.into_value();
                    backends.insert(backend.id.clone(), backend);
                }
                Err(error) => {
                    let aside = path.with_extension("damaged");
                    warn!(file = %path.display(), kept = %aside.display(), %error, "cannot read a backend's file");
                    let _ = fs::rename(&path, aside);
                }
            }
        }
        backends
    }

    /// Remembers which service has which index of counters.
    pub fn put_services(&self, services: &BTreeMap<String, ServiceIndex>) -> Result<(), StoreError> {
        let mut copies = self.copies.borrow_mut();
        let before = copies.services.clone();
        let mut noted = copies.notes.is_some();
        for (name, index) in services.iter().filter(|(name, index)| before.get(*name) != Some(index)) {
            noted &= copies.write(NOTE_SERVICE, index.0, name.as_bytes());
        }
        let kept: BTreeSet<ServiceIndex> = services.values().copied().collect();
        if let Some(notes) = &mut copies.notes {
            for index in before.values().filter(|index| !kept.contains(index)) {
                notes.remove(NOTE_SERVICE, index.0);
                notes.remove(NOTE_SERVICE_TOTALS, index.0);
            }
        }
        copies.services = if noted { services.clone() } else { BTreeMap::new() };
        copies.settle(self.write(&self.dir.join("services.json"), services), noted)
    }

    /// Which service has which index of counters.
    pub fn services(&self) -> BTreeMap<String, ServiceIndex> {
        let read = fs::read(self.dir.join("services.json")).ok();
        let filed: BTreeMap<String, ServiceIndex> =
            read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let mut copies = self.copies.borrow_mut();
        let notes = copies.notes.as_ref().map(|notes| notes.read(NOTE_SERVICE)).unwrap_or_default();
        let taken: BTreeSet<ServiceIndex> = notes.keys().copied().map(ServiceIndex).collect();
        copies.services = notes
            .into_iter()
            .filter_map(|(index, name)| Some((String::from_utf8(name).ok()?, ServiceIndex(index))))
            .collect();
        let mut services = filed;
        services.retain(|_, index| !taken.contains(index));
        services.extend(copies.services.clone());
        services
    }

    /// Keeps what was counted for the daemon, a service or a backend, in a note alone. False if that is not possible.
    pub fn put_totals(&self, kind: u32, index: u32, text: &[u8]) -> bool {
        let notes = &mut self.copies.borrow_mut().notes;
        notes.as_mut().is_some_and(|notes| notes.write(kind, index, text).is_ok())
    }

    /// What was counted, by index.
    pub fn totals(&self, kind: u32) -> BTreeMap<u32, Vec<u8>> {
        self.copies.borrow().notes.as_ref().map(|notes| notes.read(kind)).unwrap_or_default()
    }

    /// Remembers the ports of a hold.
    pub fn put_hold(&self, index: BackendIndex, ports: &[PortMap]) {
        if let Ok(text) = serde_json::to_vec(ports) {
            self.copies.borrow_mut().write(NOTE_HOLD, index.0, &text);
        }
    }

    /// The ports of a hold; none if they are not known.
    pub fn hold(&self, index: BackendIndex) -> Vec<PortMap> {
        let text = self.totals(NOTE_HOLD).remove(&index.0);
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Forgets the ports of a hold.
    pub fn remove_hold(&self, index: BackendIndex) {
        if let Some(notes) = &mut self.copies.borrow_mut().notes {
            notes.remove(NOTE_HOLD, index.0);
        }
    }

    /// A reader sees the old file or the new one, whole.
    fn write(&self, path: &Path, value: &impl serde::Serialize) -> Result<(), StoreError> {
        let part = path.with_extension("part");
        let bytes = serde_json::to_vec_pretty(value).map_err(|e| failed("describe", path)(e.into()))?;
        let written = fs::write(&part, &bytes).or_else(|error| match (error.kind(), part.parent()) {
            // The directory was removed.
            (io::ErrorKind::NotFound, Some(dir)) => fs::create_dir_all(dir).and_then(|()| fs::write(&part, &bytes)),
            _ => Err(error),
        });
        written.inspect_err(|_| drop(fs::remove_file(&part))).map_err(failed("write", &part))?;
        fs::rename(&part, path).map_err(failed("replace", path))
    }

    /// Removes every file, and the directory if nothing else is in it.
    pub fn remove_all(&self) {
        let _ = fs::remove_dir_all(self.dir.join("backends"));
        for file in ["services.json", "services.part", "lock"] {
            let _ = fs::remove_file(self.dir.join(file));
        }
        let _ = fs::remove_dir(&self.dir);
    }
}

impl Copies {
    /// Writes a note; false if that is not possible.
    fn write(&mut self, kind: u32, index: u32, text: &[u8]) -> bool {
        let Some(notes) = &mut self.notes else { return false };
        match notes.write(kind, index, text) {
            Ok(()) => true,
            Err(error) => {
                self.failure = Some(crate::chain(&error));
                false
            }
        }
    }

    /// A file that is not written does no harm if there is a note.
    fn settle(&mut self, filed: Result<(), StoreError>, noted: bool) -> Result<(), StoreError> {
        match filed {
            Err(error) if noted => {
                self.failure = Some(crate::chain(&error));
                Ok(())
            }
            filed => filed,
        }
    }
}
