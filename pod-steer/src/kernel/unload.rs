//! Removes all kernel state. Needs no daemon: bpffs and the sockets themselves name everything that has to be removed.

use std::{fs, io, path::Path};

use super::{
    attach::names,
    clsact::{self, Detached},
    destinations::FORWARD,
    devices, migration,
};

/// Numbers of the objects that [`unload`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unloaded {
    /// Ingress namespaces that were detached.
    pub namespaces: usize,
    /// Cgroups of backends that were detached.
    pub cgroups: usize,
    /// Programs of network devices that were detached.
    pub devices: usize,
    /// Maps that were unpinned.
    pub maps: usize,
}

/// Removes every pin below `dir`, and `dir` itself. Namespaces come first, so that steering ends at once everywhere;
/// established connections go on. The migrate program is detached from reuseport groups through their sockets; see
/// [`QueueMigration::detach`](super::QueueMigration::detach).
///
/// All that can be removed is. The error names everything else; the pins that a second call needs to remove it stay.
pub fn unload(dir: &Path) -> io::Result<Unloaded> {
    let (mut done, mut left) = (Unloaded::default(), Left::default());
    for name in names(&dir.join("netns")) {
        done.namespaces += usize::from(left.file(&dir.join("netns").join(name)));
    }
    for name in names(&dir.join("cgroups")) {
        let pins = dir.join("cgroups").join(name);
        let removed = names(&pins).into_iter().map(|link| left.file(&pins.join(link))).filter(|removed| !removed);
        if removed.count() == 0 {
            done.cgroups += usize::from(left.directory(&pins));
        }
    }
    let Detached { filters, failed } = clsact::detach_all(dir);
    done.devices += filters;
    left.0.extend(failed.into_iter().map(|(what, error)| format!("{what}: {error}")));
    // The marks that are left are those of devices which still have filters: without its mark, no filter is found again.
    for name in names(&dir.join(FORWARD)).into_iter().filter(|name| clsact::of_mark(name).is_none()) {
        let removed = usize::from(left.file(&dir.join(FORWARD).join(&name)));
        match devices::of_pin(&name) {
            Some(_) => done.devices += removed,
            None => done.maps += removed,
        }
    }
    for sub in ["ports", "maps"].into_iter().chain(migration::BESIDE) {
        for name in names(&dir.join(sub)) {
            done.maps += usize::from(left.file(&dir.join(sub).join(name)));
        }
    }
    if left.0.is_empty() {
        for sub in ["netns", "ports", "cgroups", FORWARD, "maps"].into_iter().chain(migration::BESIDE) {
            left.directory(&dir.join(sub));
        }
        left.directory(dir);
    }
    if left.0.is_empty() { Ok(done) } else { Err(io::Error::other(left.0.join("; "))) }
}

/// What could not be removed, each with the reason.
#[derive(Default)]
struct Left(Vec<String>);

impl Left {
    /// Removes a file. True if it was there and is gone.
    fn file(&mut self, path: &Path) -> bool {
        self.note(path, fs::remove_file(path))
    }

    /// The same for an empty directory.
    fn directory(&mut self, path: &Path) -> bool {
        self.note(path, fs::remove_dir(path))
    }

    fn note(&mut self, path: &Path, removed: io::Result<()>) -> bool {
        match removed {
            Ok(()) => true,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    self.0.push(format!("{}: {error}", path.display()));
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_removed_is_and_the_rest_is_named() {
        // Any file system will do: pins are files.
        let dir = std::env::temp_dir().join(format!("pod-steer-unload-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        // Two pins that are directories, which no file of that name can be.
        for sub in ["netns/1/x", "cgroups/7-1/migrate/x", "cgroups/8-2", "maps", "forward/3-in/x"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        for pin in ["netns/2", "cgroups/7-1/bind4", "cgroups/8-2/bind4", "maps/RULES", "forward/FLOWS", "forward/4-in"]
        {
            fs::write(dir.join(pin), "").unwrap();
        }
        let error = unload(&dir).unwrap_err().to_string();
        for named in ["netns/1: ", "cgroups/7-1/migrate: ", "forward/3-in: "] {
            assert!(error.contains(named), "{named}: {error}");
        }
        assert_eq!(error.split("; ").count(), 3, "{error}");
        let left: Vec<String> =
            ["netns", "cgroups", "maps", "forward"].iter().flat_map(|sub| names(&dir.join(sub))).collect();
        assert_eq!(left, ["1", "7-1", "3-in"]);
        assert_eq!(names(&dir.join("cgroups/7-1")), ["migrate"]);
        for pin in ["netns/1", "cgroups/7-1/migrate", "forward/3-in"] {
            fs::remove_dir_all(dir.join(pin)).unwrap();
        }
        let Unloaded { cgroups, namespaces, .. } = unload(&dir).unwrap();
        assert_eq!((namespaces, cgroups, dir.exists()), (0, 1, false));
    }
}
