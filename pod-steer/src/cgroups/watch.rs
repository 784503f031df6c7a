//! Watches the hierarchy by inotify(7).
//!
//! An engine creates a container's cgroup some 50 ms before the container's process runs, so programs that are attached when the
//! directory appears are in time for the first bind. Engines nest these directories in many ways (pods, slices, the unit that runs
//! `podman`), so the whole hierarchy is watched, to a bounded depth and for a bounded number of directories.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use super::is_empty;
use crate::{
    condition::{Condition, Reason},
    engine::{cgroup_parents, container_of},
    sys,
};

/// Maximum depth below the mount at which containers are found. The deepest known are those of a rootless pod: six levels,
/// as in `user.slice/user-1000.slice/user@1000.service/user.slice/user-libpod_pod_ID.slice/libpod-ID.scope`.
const DEPTH_MAX: usize = 8;
/// Maximum number of watched directories, besides the engines' default parents. The kernel's limit is one for all processes of root
/// (`fs.inotify.max_user_watches`, at least 8,192), and other programs need watches too.
const DIRECTORIES_MAX: usize = 4096;

/// An event of the watch.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// The cgroup of an expected container appeared.
    Container {
        /// Its full id.
        id: String,
        /// Its directory.
        path: PathBuf,
    },
    /// The cgroup of an unknown container appeared.
    Unannounced {
        /// Its full id.
        id: String,
    },
    /// The last process of a watched cgroup is gone.
    Empty(PathBuf),
}

enum Watch {
    Directory(PathBuf),
    Events(PathBuf),
}

/// Watches for the cgroups of containers.
pub struct Cgroups {
    mount: PathBuf,
    /// `None` if no inotify instance could be created.
    inotify: Option<AsyncFd<OwnedFd>>,
    watches: HashMap<i32, Watch>,
    /// Those of cgroups that another program may remove.
    removable: BTreeSet<i32>,
    directories: usize,
    /// Expected containers, and the user besides root that may create their cgroups: the engine's owner.
    expected: HashMap<String, u32>,
    /// The cgroups of containers that exist, by id.
    found: HashMap<String, PathBuf>,
    /// Why some directories are not watched.
    unwatched: Option<Condition>,
    /// Cgroups that cannot be watched. The daemon checks each second whether they are empty.
    polled: BTreeSet<PathBuf>,
}

impl Cgroups {
    /// Watches below the hierarchy that is mounted at `mount`.
    pub fn new(mount: PathBuf) -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        // Without inotify, cgroups are polled as far as possible.
        let inotify = inotify::init(flags).map_err(io::Error::from).and_then(sys::readable).ok();
        let mut cgroups = Self {
            mount,
            inotify,
            watches: HashMap::new(),
            removable: BTreeSet::new(),
            directories: 0,
            expected: HashMap::new(),
            found: HashMap::new(),
            unwatched: None,
            polled: BTreeSet::new(),
        };
        cgroups.rescan();
        cgroups
    }

    fn add_watch(&self, path: &Path, flags: WatchFlags) -> rustix::io::Result<i32> {
        // As if a watch of an instance could not be made.
        let Some(inotify) = &self.inotify else { return Err(rustix::io::Errno::NOSPC) };
        inotify::add_watch(inotify.get_ref(), path, flags)
    }

    fn remove_watch(&self, wd: i32) {
        if let Some(inotify) = &self.inotify {
            let _ = inotify::remove_watch(inotify.get_ref(), wd);
        }
    }

    /// Polls the cgroups that cannot be watched, and tries again to watch them. Call it once a second.
    ///
    /// If another program removes a cgroup as soon as it is empty, inotify may report nothing (on 6.18, for a quarter of them): the kernel
    /// reports the change from a work queue, and not for a file that has been removed.
    pub fn poll(&mut self) -> Vec<Seen> {
        let mut seen = Vec::new();
        for wd in std::mem::take(&mut self.removable) {
            match self.watches.get(&wd) {
                Some(Watch::Events(path)) if path.exists() => drop(self.removable.insert(wd)),
                Some(Watch::Events(path)) => {
                    seen.push(Seen::Empty(path.clone()));
                    self.watches.remove(&wd);
                    self.remove_watch(wd);
                }
                Some(Watch::Directory(_)) | None => {}
            }
        }
        for path in std::mem::take(&mut self.polled) {
            if is_empty(&path) {
                seen.push(Seen::Empty(path));
            } else {
                self.watch_empty(&path);
            }
        }
        seen
    }

    /// Whether cgroups are polled that should be watched.
    pub fn polls(&self) -> bool {
        !self.polled.is_empty()
    }

    /// The mount point of the hierarchy.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// Expects this container: reports its cgroup when it appears, or returns it if it exists. `owner` is the user that owns the engine.
    pub fn expect(&mut self, id: &str, cgroup_parent: &str, owner: u32) -> Option<PathBuf> {
        self.expected.insert(id.to_owned(), owner);
        let known = self.found.get(id).filter(|path| path.exists()).cloned();
        let mut found = known;
        // Only needed where some directories are not watched.
        for parent in cgroup_parents(cgroup_parent) {
            let parent = self.mount.join(parent);
            if found.is_some() {
                break;
            }
            self.watch_directory(&parent, true);
            found = child_of_container(&parent, id);
        }
        found.filter(|path| is_made_by(path, owner))
    }

    /// Stops expecting this container.
    pub fn forget(&mut self, id: &str) {
        self.expected.remove(id);
    }

    /// Reports when the last process has left this cgroup; within a second if it cannot be watched.
    pub fn watch_empty(&mut self, path: &Path) {
        match self.add_watch(&path.join("cgroup.events"), WatchFlags::MODIFY) {
            Ok(wd) => {
                self.watches.insert(wd, Watch::Events(path.to_owned()));
                // Only the daemon removes those below its own cgroup.
                if !path.starts_with(self.mount.join(super::OWN)) {
                    self.removable.insert(wd);
                }
            }
            Err(_) => drop(self.polled.insert(path.to_owned())),
        }
    }

    /// Why some directories are not watched, and what to do; `None` if all are.
    pub fn unwatched(&self) -> Option<&Condition> {
        self.unwatched.as_ref()
    }

    /// Tries again to watch all directories, if some are not watched and the limit allows more. Returns the events that were missed.
    pub fn retry(&mut self) -> Vec<Seen> {
        if self.unwatched.is_none() || self.directories >= DIRECTORIES_MAX { Vec::new() } else { self.rescan() }
    }

    /// Walks and watches the whole hierarchy. Returns the containers that were unknown.
    fn rescan(&mut self) -> Vec<Seen> {
        self.unwatched = None;
        self.found.retain(|_, path| path.exists());
        for parent in cgroup_parents("") {
            self.watch_directory(&self.mount.join(parent), true);
        }
        let mut seen = Vec::new();
        self.watch_tree(&self.mount.clone(), &mut seen);
        seen
    }

    /// Watches a directory and those below it, and reports the containers in them. A directory is read after its watch is in place, so
    /// that nothing is missed.
    fn watch_tree(&mut self, top: &Path, seen: &mut Vec<Seen>) {
        let mut dirs = vec![top.to_owned()];
        while let Some(dir) = dirs.pop() {
            self.watch_directory(&dir, false);
            let below = fs::read_dir(&dir).into_iter().flatten().flatten();
            for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                let Ok(name) = entry.file_name().into_string() else { continue };
                seen.extend(self.appeared(&dir, &name));
                if self.descends(&dir, &name) {
                    dirs.push(dir.join(name));
                }
            }
        }
    }

    /// Whether there may be containers below this directory. A container's own cgroup has none. The cgroup of a pod looks like one (its
    /// name is only an id), and has containers directly in it.
    fn descends(&self, parent: &Path, name: &str) -> bool {
        let depth = parent.strip_prefix(&self.mount).map_or(0, |below| below.components().count()) + 1;
        let is_id = |name: &str| container_of(name) == Some(name);
        let in_pod = parent.file_name().and_then(|name| name.to_str()).is_some_and(is_id);
        // Commands of `exec` are not containers.
        let ours = (depth == 1 && name == super::OWN) || super::below::is_name(name);
        depth < DEPTH_MAX && !in_pod && !ours && (is_id(name) || container_of(name).is_none())
    }

    /// Watches one directory, if it exists. An engine's parent is watched even if there are too many others.
    fn watch_directory(&mut self, dir: &Path, is_parent: bool) {
        if self.directories >= DIRECTORIES_MAX && !is_parent {
            let message = format!(
                "there are more than {DIRECTORIES_MAX} cgroups, so some are not watched: a container that starts outside of its \
                 engine's default cgroup may bind before it is managed"
            );
            self.unwatched = Some(Condition::new(Reason::CgroupsNotWatched, message, "remove unused cgroups"));
            return;
        }
        let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
        match self.add_watch(dir, flags) {
            // inotify returns the same number for the same directory.
            Ok(wd) => match self.watches.insert(wd, Watch::Directory(dir.to_owned())) {
                Some(_) => {}
                None => self.directories += 1,
            },
            Err(rustix::io::Errno::NOSPC) => {
                let message = "cannot watch all cgroups, because root's inotify watches are used up: a container that starts may \
                               bind before it is managed";
                let watches = watches_wanted();
                let remedy = format!(
                    "raise the limit: sysctl -w fs.inotify.max_user_watches={watches} (and fs.inotify.max_user_instances)"
                );
                self.unwatched = Some(Condition::new(Reason::CgroupsNotWatched, message, remedy));
            }
            // The directory was removed, or does not exist yet.
            Err(_) => {}
        }
    }

    /// Waits for an event.
    pub async fn seen(&mut self) -> io::Result<Vec<Seen>> {
        loop {
            let events = {
                let Some(inotify) = &self.inotify else { return std::future::pending().await };
                let mut ready = inotify.readable().await?;
                let events = read(inotify.get_ref());
                ready.clear_ready();
                events?
            };
            let seen = self.interpret_all(events);
            if !seen.is_empty() {
                return Ok(seen);
            }
        }
    }

    /// The events that are there. Does not wait.
    pub fn seen_now(&mut self) -> io::Result<Vec<Seen>> {
        let events = self.inotify.as_ref().map(|inotify| read(inotify.get_ref())).transpose()?;
        Ok(self.interpret_all(events.unwrap_or_default()))
    }

    fn interpret_all(&mut self, events: Vec<InotifyEvent>) -> Vec<Seen> {
        let mut seen = Vec::new();
        for event in events {
            self.interpret(event, &mut seen);
        }
        seen
    }

    /// The event for a new directory, if it is the cgroup of a container that was unknown.
    fn appeared(&mut self, parent: &Path, name: &str) -> Option<Seen> {
        let id = container_of(name)?.to_owned();
        let path = parent.join(name);
        if self.found.insert(id.clone(), path.clone()).as_ref() == Some(&path) {
            return None;
        }
        match self.expected.get(&id) {
            Some(owner) if is_made_by(&path, *owner) => Some(Seen::Container { id, path }),
            Some(_) => None,
            None => Some(Seen::Unannounced { id }),
        }
    }

    fn interpret(&mut self, event: InotifyEvent, seen: &mut Vec<Seen>) {
        if event.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            seen.extend(self.rescan());
            let watched = self.watches.values().filter_map(|watch| match watch {
                Watch::Events(path) if is_empty(path) => Some(Seen::Empty(path.clone())),
                _ => None,
            });
            seen.extend(watched);
            return;
        }
        if event.flags.contains(ReadFlags::IGNORED) {
            if let Some(Watch::Directory(_)) = self.watches.remove(&event.wd) {
                self.directories -= 1;
            }
            return;
        }
        match self.watches.get(&event.wd) {
            Some(Watch::Events(path)) if is_empty(path) => {
                seen.push(Seen::Empty(path.clone()));
                // Report it once. The kernel keeps the watch of a file in a removed cgroup.
                self.watches.remove(&event.wd);
                self.remove_watch(event.wd);
            }
            Some(Watch::Directory(dir)) => {
                let dir = dir.clone();
                let path = dir.join(&event.name);
                if event.flags.contains(ReadFlags::DELETE) {
                    self.found.retain(|_, found| *found != path);
                    return;
                }
                seen.extend(self.appeared(&dir, &event.name));
                if self.descends(&dir, &event.name) {
                    self.watch_tree(&path, seen);
                }
            }
            Some(Watch::Events(_)) | None => {}
        }
    }
}

/// Whether an engine of this user made this cgroup. That takes write permission on the parent, so the parent's owner counts: the directory
/// itself may have been given to a container's user. So an engine of a user cannot claim containers of root.
pub fn is_made_by(path: &Path, owner: u32) -> bool {
    let parent = path.parent().and_then(|parent| fs::metadata(parent).ok());
    parent.is_some_and(|parent| parent.uid() == owner && parent.permissions().mode() & 0o022 == 0)
}

/// Four times the limit that is in force.
fn watches_wanted() -> u64 {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").unwrap_or_default();
    limit.trim().parse().map_or(65_536, |limit: u64| limit.saturating_mul(4).max(65_536))
}

fn child_of_container(parent: &Path, id: &str) -> Option<PathBuf> {
    let paths = fs::read_dir(parent).ok()?.flatten().map(|entry| entry.path());
    let mut of_container =
        paths.filter(|path| path.file_name().and_then(|n| n.to_str()).and_then(container_of) == Some(id));
    of_container.next()
}

struct InotifyEvent {
    wd: i32,
    flags: ReadFlags,
    name: String,
}

fn read(fd: &OwnedFd) -> io::Result<Vec<InotifyEvent>> {
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut reader = inotify::Reader::new(fd, &mut buffer);
    let mut events = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => {
                let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                events.push(InotifyEvent { wd: event.wd(), flags: event.events(), name });
            }
            Err(rustix::io::Errno::AGAIN) => return Ok(events),
            Err(e) => return Err(e.into()),
        }
    }
}
