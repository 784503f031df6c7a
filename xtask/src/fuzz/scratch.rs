//! A directory for the targets' files: on a tmpfs if there is one, since the ledger syncs its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result};

use crate::paths;

/// Prefix of its name, before the process id.
const PREFIX: &str = "pod-steer-fuzz-";

/// Removed when it is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn make() -> Result<Self> {
        let tmpfs = Path::new("/dev/shm");
        let parent = if tmpfs.is_dir() { tmpfs.to_owned() } else { paths::target().join("fuzz") };
        remove_left_over(&parent);
        let path = parent.join(format!("{PREFIX}{}", process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> PathBuf {
        self.0.clone()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes directories that an interrupted xtask has left.
fn remove_left_over(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX);
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
