//! Keeps two runs of `up` from working on the same project at once.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// The names of a Compose file.
const NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];

/// Locks the directory of the first Compose file: the file may be replaced at any time. Compose finds its default files itself; all runs of
/// `up` in one directory lock the same one, and this is all that the choice is for.
pub(super) fn lock(given: &[PathBuf]) -> Result<File> {
    match given.first() {
        Some(file) => lock_file(file),
        None => {
            let separator = std::env::var("COMPOSE_PATH_SEPARATOR").ok().filter(|separator| !separator.is_empty());
            let files = std::env::var("COMPOSE_FILE").unwrap_or_default();
            let dir = std::env::current_dir().context("cannot find the working directory")?;
            lock_file(&default_file(&dir, &files, separator.as_deref().unwrap_or(":")))
        }
    }
}

/// The first of `COMPOSE_FILE`, or the file of the directory or the nearest one above it, or else the directory.
fn default_file(dir: &Path, files: &str, separator: &str) -> PathBuf {
    let first = files.split(separator).find(|file| !file.is_empty()).map(|file| dir.join(file));
    let of = |dir: &Path| NAMES.iter().map(|name| dir.join(name)).find(|file| file.is_file());
    first.filter(|file| file.is_file()).or_else(|| dir.ancestors().find_map(of)).unwrap_or_else(|| dir.to_owned())
}

fn lock_file(file: &Path) -> Result<File> {
    let found = file.canonicalize().with_context(|| format!("cannot read {}", file.display()))?;
    let dir = if found.is_dir() { &found } else { found.parent().unwrap_or(&found) };
    let opened = File::open(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(opened),
        Err(Errno::WOULDBLOCK) => Err(anyhow!("another `pod-steer up` works in {}; wait for its end", dir.display())),
        // Some file systems know no locks.
        Err(_) => Ok(opened),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_file_is_locked_from_below_its_directory() {
        let dir = std::env::temp_dir().join(format!("pod-steer-lock-{}", std::process::id()));
        let below = dir.join("a/b");
        std::fs::create_dir_all(&below).unwrap();
        assert_eq!(default_file(&dir, "missing.yaml", ":"), dir, "none: the directory");
        let (file, other) = (dir.join("docker-compose.yml"), dir.join("other.yaml"));
        std::fs::write(&file, "").unwrap();
        std::fs::write(&other, "").unwrap();
        assert_eq!(default_file(&dir, "", ":"), file);
        assert_eq!(default_file(&below, "", ":"), file);
        assert_eq!(default_file(&dir, "other.yaml;docker-compose.yml", ";"), other);
        let held = lock_file(&file).unwrap();
        assert!(lock_file(&file).unwrap_err().to_string().contains("another `pod-steer up`"));
        // As git and rsync do.
        std::fs::rename(&other, &file).unwrap();
        assert!(lock_file(&file).unwrap_err().to_string().contains("another `pod-steer up`"));
        drop(held);
        assert!(lock_file(&file).is_ok() && lock_file(&dir).is_ok());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
