//! Removes all kernel state. Needs no daemon: bpffs and the sockets themselves name everything that has to be removed.

use std::{fs, io, path::Path};

use super::{attach::names, clsact, destinations::FORWARD, devices, migration};

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
pub fn unload(dir: &Path) -> io::Result<Unloaded> {
    let mut done = Unloaded::default();
    for name in names(&dir.join("netns")) {
        fs::remove_file(dir.join("netns").join(name))?;
        done.namespaces += 1;
    }
    for name in names(&dir.join("cgroups")) {
        let pins = dir.join("cgroups").join(name);
        for link in names(&pins) {
            fs::remove_file(pins.join(link))?;
        }
        fs::remove_dir(pins)?;
        done.cgroups += 1;
    }
    done.devices += clsact::detach_all(dir)?;
    for name in names(&dir.join(FORWARD)) {
        fs::remove_file(dir.join(FORWARD).join(&name))?;
        match devices::of_pin(&name) {
            Some(_) => done.devices += 1,
            None => done.maps += 1,
        }
    }
    for sub in ["ports", "maps"].into_iter().chain(migration::BESIDE) {
        for name in names(&dir.join(sub)) {
            fs::remove_file(dir.join(sub).join(name))?;
            done.maps += 1;
        }
    }
    for sub in ["netns", "ports", "cgroups", FORWARD, "maps"].into_iter().chain(migration::BESIDE) {
        remove_dir(&dir.join(sub))?;
    }
    remove_dir(dir)?;
    Ok(done)
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
