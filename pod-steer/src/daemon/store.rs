//! What a daemon leaves for the next one, beside the pins: which backend has which index. One file a backend, written
//! before the kernel is told; the directory is on a tmpfs, so it ends with the kernel state that it describes.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use tracing::warn;

use crate::{
    clock::Stored,
    world::{Backend, BackendId},
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
}

impl Store {
    /// Opens the directory, or makes it.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let backends = dir.join("backends");
        fs::create_dir_all(&backends).map_err(failed("make the directory", &backends))?;
        Ok(Self { dir: dir.to_owned() })
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

    /// Remembers a backend.
    pub fn put(&self, backend: &Backend) -> Result<(), StoreError> {
        self.write(&self.backend_path(&backend.id), &Stored::new(backend.clone()))
    }

    /// Forgets a backend.
    pub fn remove(&self, id: &str) {
        let _ = fs::remove_file(self.backend_path(id));
    }

    /// Every backend that is remembered. A file that cannot be understood is kept aside and reported: its backend will
    /// be found again through its engine, and steering never stops for it.
    pub fn backends(&self) -> BTreeMap<BackendId, Backend> {
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
    pub fn put_services(&self, services: &BTreeMap<String, u32>) -> Result<(), StoreError> {
        self.write(&self.dir.join("services.json"), services)
    }

    /// Which service has which index of counters.
    pub fn services(&self) -> BTreeMap<String, u32> {
        let read = fs::read(self.dir.join("services.json")).ok();
        read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// A reader sees the old file or the new one, whole.
    fn write(&self, path: &Path, value: &impl serde::Serialize) -> Result<(), StoreError> {
        let part = path.with_extension("part");
        let bytes = serde_json::to_vec_pretty(value).map_err(|e| failed("describe", path)(e.into()))?;
        fs::write(&part, bytes).map_err(failed("write", &part))?;
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
