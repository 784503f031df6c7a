//! Cgroups that pod-steer creates below cgroups of other programs: where that is allowed, how they are named, and how they are emptied.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, fgetxattr, fstat, mkdirat, openat},
    io::Errno,
};
use tracing::warn;

use super::directories;

/// Extended attributes of a delegated cgroup (<https://systemd.io/CGROUP_DELEGATION/>). Only root can set the first one; systemd also
/// sets the second one since version 252.
const DELEGATED: [&str; 2] = ["trusted.delegate", "user.delegate"];

/// Opens a cgroup by its path below the mount. `..`, symbolic links and other file systems are refused. Not by openat2(2), which does not exist
/// for a unit with `RestrictSUIDSGID=yes`, such as ours.
pub fn open(mount: &Path, cgroup: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = rustix::fs::open(mount, flags, Mode::empty())?;
    let device = fstat(&dir)?.st_dev;
    for part in cgroup.components() {
        let Component::Normal(name) = part else { return Err(Errno::XDEV.into()) };
        dir = openat(&dir, name, flags | OFlags::NOFOLLOW, Mode::empty())?;
        if fstat(&dir)?.st_dev != device {
            return Err(Errno::XDEV.into());
        }
    }
    Ok(dir)
}

/// Whether this cgroup, given by its path below the mount, or one above it was delegated.
pub fn is_delegated(mount: &Path, cgroup: &Path) -> bool {
    let marked = |cgroup: &Path| {
        let dir = open(mount, cgroup).ok();
        let is_set = |dir: &OwnedFd, name: &str| {
            let mut value = [0; 8];
            fgetxattr(dir, name, &mut value[..]).is_ok_and(|length| value[..length] == *b"1")
        };
        dir.is_some_and(|dir| DELEGATED.iter().any(|name| is_set(&dir, name)))
    };
    cgroup.ancestors().filter(|path| !path.as_os_str().is_empty()).any(marked)
}

/// Makes a cgroup in the one with this path below the mount.
pub fn make(mount: &Path, parent: &Path, name: &OsStr) -> io::Result<()> {
    Ok(mkdirat(open(mount, parent)?, name, Mode::from_raw_mode(0o755))?)
}

/// Names the cgroup of a backend beside those of other programs. `instance` tells daemons on one machine apart.
pub fn name(instance: &OsStr, id: &str) -> OsString {
    let mut name = OsString::from("pod-steer.");
    name.push(instance);
    name.push(".");
    name.push(id);
    name
}

/// Whether this is the name of such a cgroup, of any daemon and backend.
pub fn is_name(name: &str) -> bool {
    name.strip_prefix("pod-steer.").and_then(|rest| rest.rsplit_once('.')).is_some_and(|(_, id)| is_id(id))
}

/// The cgroups of this instance below cgroups of other programs. Only those that belong to root count, since a user may give any name to
/// its own.
pub fn all(mount: &Path, instance: &OsStr) -> Vec<PathBuf> {
    let prefix = name(instance, "");
    let ours = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let id = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        id.and_then(|id| std::str::from_utf8(id).ok()).is_some_and(is_id)
            && entry.metadata().is_ok_and(|meta| meta.uid() == 0)
    };
    directories(mount).filter(ours).map(|entry| entry.path()).collect()
}

/// `exec-PID-N`
fn is_id(id: &str) -> bool {
    let numbers = id.strip_prefix("exec-").and_then(|numbers| numbers.split_once('-'));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|(pid, n)| is_number(pid) && is_number(n))
}

/// Moves the processes of a cgroup, and of those below it, to another one.
pub fn empty_into(cgroup: &Path, target: &Path) {
    for entry in directories(cgroup).map(|entry| entry.path()).chain([cgroup.to_owned()]) {
        let pids = fs::read_to_string(entry.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines() {
            if let Err(error) = fs::write(target.join("cgroup.procs"), pid)
                && error.raw_os_error() != Some(libc::ESRCH)
            {
                warn!(pid, target = %target.display(), %error, "cannot move a process to another cgroup");
            }
        }
    }
}

/// Removes a cgroup, and those that its processes have made below it.
pub fn remove(cgroup: &Path) {
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten();
    for dir in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&dir.path());
    }
    if let Err(error) = fs::remove_dir(cgroup)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(path = %cgroup.display(), %error, "cannot remove a cgroup");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_daemons_and_backends_apart() {
        let named = name(OsStr::new("pod-steer"), "exec-12-0");
        assert_eq!(named, "pod-steer.pod-steer.exec-12-0");
        assert!(is_name("pod-steer.pod-steer.exec-12-0"));
        assert!(is_name("pod-steer.other.exec-1.exec-2-0"));
        for other in ["pod-steer", "pod-steer.a.exec-1", "pod-steer.a.exec--1", "pod-steer.exec-1-0", "a.b.exec-1-0"] {
            assert!(!is_name(other), "{other}");
        }
    }

    #[test]
    fn only_cgroups_of_the_instance_are_found() {
        let root = std::env::temp_dir().join(format!("pod-steer-below-{}", std::process::id()));
        let ours = root.join("user.slice/pod-steer.a.exec-1-0");
        for path in ["b.slice/pod-steer.b.exec-1-0", "c/pod-steer.a.exec-1", "c/pod-steer.a.exec-1.exec-1-0"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        fs::create_dir_all(&ours).unwrap();
        let made_by_root = fs::metadata(&ours).unwrap().uid() == 0;
        let found = all(&root, OsStr::new("a"));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, if made_by_root { vec![ours] } else { Vec::new() });
    }

    #[test]
    fn a_path_stays_below_the_mount() {
        let root = std::env::temp_dir().join(format!("pod-steer-beneath-{}", std::process::id()));
        fs::create_dir_all(root.join("mount/a/b")).unwrap();
        fs::create_dir_all(root.join("outside")).unwrap();
        std::os::unix::fs::symlink("../outside", root.join("mount/link")).unwrap();
        let opens = |path: &str| open(&root.join("mount"), Path::new(path)).is_ok();
        let opened = ["a", "a/b", "../outside", "a/../../outside", "/etc", "link", "gone"].map(opens);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(opened, [true, true, false, false, false, false, false]);
    }
}
