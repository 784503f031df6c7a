//! The cgroups of commands that `pod-steer exec` starts. One is made below the cgroup of the process that asks, if that was delegated:
//! all limits and programs there still hold for the command. Else it is made below pod-steer's own.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tracing::{debug, info};

use super::control::Control;
use crate::{
    cgroups::{self, below},
    ids::BackendId,
    kernel::Unloaded,
    process_set::ProcessSet,
    procs::Process,
    world::{Backend, Kind},
};

/// The cgroup below which an `exec` gets one of its own. Daemons side by side, each with its own pins, share no names.
pub(super) fn base_cgroup(mount: &Path, bpffs: &Path) -> PathBuf {
    mount.join(cgroups::OWN).join(bpffs.file_name().unwrap_or_default())
}

/// A new cgroup for a command.
pub(super) struct ExecCgroup {
    /// The id of its backend, which no other backend has.
    pub id: BackendId,
    /// Its directory.
    pub path: PathBuf,
    /// The same below the mount, if it is not in pod-steer's own cgroup.
    pub below_caller: Option<PathBuf>,
}

impl Control {
    /// Makes a cgroup for what this process will execute.
    pub(super) fn make_exec_cgroup(&self, process: &Process) -> Result<ExecCgroup, String> {
        let pid = process.pid();
        let caller = process.cgroup().map_err(|e| format!("the cgroup of process {pid} cannot be read: {e}"))?;
        let mut parent = self.delegated_parent(Path::new(caller.trim_start_matches('/')));
        let (mount, base) = (self.cgroups.mount(), base_cgroup(self.cgroups.mount(), &self.pins.dir));
        let instance = self.pins.dir.file_name().unwrap_or_default();
        let ids = (0..).map(|n| BackendId::from(format!("exec-{pid}-{n}")));
        let mut ids = ids.filter(|id| !self.world.backends.contains_key(id));
        loop {
            let id = ids.next().ok_or("no id is free")?;
            let (path, below_caller, made) = match &parent {
                Some(parent) => {
                    let name = below::name(instance, &id);
                    let below = parent.join(&name);
                    (mount.join(&below), Some(below), below::make(mount, parent, &name))
                }
                None => {
                    let path = base.join(id.as_str());
                    let made = fs::create_dir_all(&base).and_then(|()| fs::create_dir(&path));
                    (path, None, made)
                }
            };
            match made {
                Ok(()) => return Ok(ExecCgroup { id, path, below_caller }),
                // Connections of a backend that has ended are counted there still.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if below_caller.is_some() && is_refused(&error) => {
                    info!(pid, cgroup = %caller, %error, "the caller's cgroup is another user's, so its limits do not hold for the backend");
                    parent = None;
                }
                Err(error) => return Err(format!("the cgroup {} cannot be made: {error}", path.display())),
            }
        }
    }

    /// Where the cgroup is made, as a path below the mount: in the caller's own, or beside that of the backend that the caller is part
    /// of, since a cgroup below it would belong to both. `None` if it was not delegated.
    fn delegated_parent(&self, caller: &Path) -> Option<PathBuf> {
        let mount = self.cgroups.mount();
        let is_backend = |cgroup: &&Path| {
            let path = mount.join(cgroup);
            self.places.is_ours(&path)
        };
        let parent = match caller.ancestors().filter(is_backend).last() {
            Some(backend) => backend.parent()?,
            None => caller,
        };
        below::is_delegated(mount, parent).then(|| parent.to_owned())
    }

    /// The cgroup of a command.
    fn exec_cgroup(&self, backend: &Backend) -> PathBuf {
        let mount = self.cgroups.mount();
        let own = || base_cgroup(mount, &self.pins.dir).join(backend.id.as_str());
        backend.exec_cgroup.as_ref().map_or_else(own, |path| mount.join(path))
    }

    /// The last process of an `exec` has ended, or its cgroup is gone.
    pub(super) fn cgroup_empty(&mut self, path: &Path) {
        if self.is_pause_cgroup(path) {
            return self.keep_pause();
        }
        self.hold_emptied(path);
        let index = self.places.backend_at(path);
        let backend = index.and_then(|index| self.world.by_index(index)).filter(|backend| backend.kind == Kind::Exec);
        self.places.ask_for_cleanup();
        match backend.map(|backend| backend.id.clone()) {
            Some(id) => self.exec_empty(&id, path),
            None => self.places.retire(path.to_owned()),
        }
    }

    /// The command has ended: its cgroup is removed once no connection is counted there.
    pub(super) fn exec_over(&mut self, id: &str) {
        let Some(backend) = self.world.backends.get(id).filter(|backend| backend.kind == Kind::Exec) else { return };
        let path = self.exec_cgroup(backend);
        self.places.retire(path);
    }

    /// Cgroups that a daemon before us left, because connections were counted there still.
    pub(super) fn adopt_over(&mut self) {
        let base = base_cgroup(self.cgroups.mount(), &self.pins.dir);
        let own = fs::read_dir(base).into_iter().flatten().flatten().map(|entry| entry.path());
        let others = below::all(self.cgroups.mount(), self.pins.dir.file_name().unwrap_or_default());
        let left = own.filter(|path| path.is_dir()).chain(others);
        let left: Vec<PathBuf> = left.filter(|path| !self.places.is_ours(path) && cgroups::is_empty(path)).collect();
        left.into_iter().for_each(|path| self.places.retire(path));
    }

    pub(super) fn adopt_exec(&mut self, backend: &Backend) {
        let path = self.exec_cgroup(backend);
        self.places.set(backend.index, path.clone(), None);
        self.cgroups.watch_empty(&path);
        if cgroups::is_empty(&path) {
            debug!(backend = %backend.name, "ended while no daemon ran");
            self.cgroup_empty(&path);
        }
    }
}

/// Whether a cgroup cannot be made for want of permission. The daemon has no more than root's own: it has dropped `CAP_DAC_OVERRIDE`.
fn is_refused(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// Takes the migrate program off every group of every backend, then removes the pins and our cgroups. Processes that
/// `exec` started go on, in the cgroup of the process that started them if theirs is below it, else in the root cgroup. Needs no
/// daemon: the names of the pins say which cgroups were attached, and those of cgroups which are ours.
pub fn undo(bpffs: &Path, cgroup_mount: &Path) -> io::Result<Unloaded> {
    for path in cgroups::with_ids(cgroup_mount, &crate::kernel::attached_cgroups(bpffs)).into_values() {
        for socket in ProcessSet::of_cgroup(&path).listeners(|_| true) {
            if socket.reuseport {
                // A group without a program answers ENOENT, which is what is wanted.
                let _ = crate::kernel::QueueMigration::detach(&socket.fd);
            }
        }
    }
    // The cgroups are removed even if some steering could not be.
    let done = crate::kernel::unload(bpffs);
    let ours = base_cgroup(cgroup_mount, bpffs);
    let entries = fs::read_dir(&ours).into_iter().flatten().flatten();
    // Beside the cgroups are the kernel's own files, which go with the directory.
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let is_hold = entry.file_name().to_str().is_some_and(|name| name.starts_with(super::holds::PREFIX));
        if is_hold || entry.file_name() == super::pause::CGROUP {
            super::pause::end_holder(&entry.path());
            continue;
        }
        below::empty_into(&entry.path(), cgroup_mount);
        below::remove(&entry.path());
    }
    for path in below::all(cgroup_mount, bpffs.file_name().unwrap_or_default()) {
        // Not further up: what holds for its parent goes on holding.
        below::empty_into(&path, path.parent().unwrap_or(cgroup_mount));
        below::remove(&path);
    }
    let _ = fs::remove_dir(&ours);
    let _ = fs::remove_dir(cgroup_mount.join(cgroups::OWN));
    done
}
