//! The directory of bpffs belongs to one process at a time: to the daemon as long as it lives, or to `unload`. The lock
//! is a flock(2) on the directory itself, so it does not depend on where the runtime directory is.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock, major, minor};

/// The lock, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    dir: File,
}

/// Why the directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds the lock.
    #[error("{} uses `{}`", holder(*.pid), path.display())]
    Held {
        /// The directory.
        path: PathBuf,
        /// The process that holds it, if /proc/locks names it.
        pid: Option<u32>,
    },
    /// The directory cannot be opened or locked.
    #[error("cannot lock the directory `{}`", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("another pod-steer (pid {pid})"))
}

impl Lock {
    /// Locks a directory that exists.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: path.to_owned(), source };
        let dir = File::open(path).map_err(failed)?;
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { dir }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(LockError::Held { path: path.to_owned(), pid: held_by(&dir).map_err(failed)? })
            }
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Whether the locked directory is still the one at this path.
    pub fn is_of(&self, path: &Path) -> bool {
        let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
        self.dir.metadata().map(id).ok() == fs::metadata(path).map(id).ok()
    }
}

/// The process that holds the lock on a directory.
fn held_by(dir: &File) -> io::Result<Option<u32>> {
    let meta = dir.metadata()?;
    Ok(find_holder(&fs::read_to_string("/proc/locks")?, meta.dev(), meta.ino()))
}

/// Finds the holder in the text of /proc/locks (proc_locks(5)). The kernel writes pid 0 for a process in a pid
/// namespace that the reader does not see.
fn find_holder(locks: &str, dev: u64, inode: u64) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", major(dev), minor(dev));
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields.get(1..6)? {
            ["FLOCK", _, _, pid, of] if *of == file => pid.parse().ok().filter(|pid| *pid != 0),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_by_device_and_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 700 00:1a:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 4711 00:1a:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 800 00:1a:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 0 00:1a:78 0 EOF\n";
        assert_eq!(find_holder(locks, 0x1a, 77), Some(4711));
        assert_eq!(find_holder(locks, 0x1a, 78), None);
        assert_eq!(find_holder(locks, 0x1b, 77), None);
    }

    #[test]
    fn a_directory_is_locked_once() {
        let path = std::env::temp_dir().join(format!("pod-steer-lock-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let lock = Lock::take(&path).unwrap();
        assert!(lock.is_of(&path));
        let again = Lock::take(&path).unwrap_err();
        assert!(matches!(again, LockError::Held { pid: Some(pid), .. } if pid == std::process::id()), "{again}");
        drop(lock);
        let lock = Lock::take(&path).unwrap();
        fs::remove_dir(&path).unwrap();
        assert!(!lock.is_of(&path));
    }
}
