//! Watches the hierarchy by inotify(7).
//!
//! An engine makes a container's directory some 50 ms before the container's process runs: attaching when it appears is in
//! time for the first bind. Engines nest these directories in many ways (pods, slices, the unit that runs `podman`), so the
//! whole hierarchy is watched, down to a bounded depth and up to a bounded number of directories.

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

use super::{container_of, is_empty, parents};
use crate::sys;

/// Directories below the mount in which containers are looked for. The deepest known are a rootless pod's: six levels,
/// as in `user.slice/user-1000.slice/user@1000.service/user.slice/user-libpod_pod_ID.slice/libpod-ID.scope`.
const DEPTH_MAX: usize = 8;
/// Most watched directories, besides the engines' default parents. The kernel's limit is for all processes of root together
/// (`fs.inotify.max_user_watches`, at least 8,192), and others need watches too.
const DIRECTORIES_MAX: usize = 4096;
/// Characters of a container's full id.
const ID_LEN: usize = super::CONTAINER_ID_LEN;

/// What the watch has seen.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// The cgroup of an expected container appeared.
    Container {
        /// Its full id.
        id: String,
        /// Its directory.
        path: PathBuf,
    },
    /// The cgroup of a container that was not announced appeared.
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
    /// Nothing if no instance of inotify is left for us.
    inotify: Option<AsyncFd<OwnedFd>>,
    watches: HashMap<i32, Watch>,
    directories: usize,
    /// Containers that were announced, and the user besides root that may make their cgroups: the engine's owner.
    expected: HashMap<String, u32>,
    /// The cgroups of containers that exist, by id.
    found: HashMap<String, PathBuf>,
    /// Why some directories are not watched.
    unwatched: Option<String>,
    /// Cgroups that cannot be watched: each second the daemon checks whether they are empty.
    polled: BTreeSet<PathBuf>,
}

impl Cgroups {
    /// Watches below the hierarchy that is mounted at `mount`.
    pub fn new(mount: PathBuf) -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        // Without an instance everything is polled, as far as it can be.
        let inotify = inotify::init(flags).map_err(io::Error::from).and_then(sys::readable).ok();
        let mut cgroups = Self {
            mount,
            inotify,
            watches: HashMap::new(),
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

    /// Looks at the cgroups that cannot be watched, and tries again to watch them. To be called once a second.
    ///
    /// Where another program than the daemon removes a cgroup as soon as it is empty, inotify reports nothing (seen on 6.18 for a
    /// quarter of them): the kernel reports it later, by a work queue, and not of a file that is gone.
    pub fn poll(&mut self) -> Vec<Seen> {
        // Only the daemon removes those below its own.
        let own = self.mount.join(super::OWN);
        let is_gone = |path: &Path| !path.starts_with(&own) && !path.exists();
        let gone = self.watches.extract_if(|_, watch| matches!(watch, Watch::Events(path) if is_gone(path)));
        let gone: Vec<(i32, Watch)> = gone.collect();
        let mut seen = Vec::new();
        for (wd, watch) in gone {
            self.remove_watch(wd);
            let Watch::Events(path) = watch else { continue };
            seen.push(Seen::Empty(path));
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

    /// Where the hierarchy is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// From now on reports this container's cgroup when it appears; returns it if it is there already. `owner` is the user
    /// that owns the engine.
    pub fn expect(&mut self, id: &str, cgroup_parent: &str, owner: u32) -> Option<PathBuf> {
        self.expected.insert(id.to_owned(), owner);
        let known = self.found.get(id).filter(|path| path.exists()).cloned();
        let mut found = known;
        // More than the watches have found only where not everything is watched.
        for parent in parents(cgroup_parent) {
            let parent = self.mount.join(parent);
            if found.is_some() {
                break;
            }
            self.watch_directory(&parent, true);
            found = child_of_container(&parent, id);
        }
        found.filter(|path| is_made_by(path, owner))
    }

    /// Does not report this container any more.
    pub fn forget(&mut self, id: &str) {
        self.expected.remove(id);
    }

    /// Reports when the last process has left this cgroup; within a second if it cannot be watched.
    pub fn watch_empty(&mut self, path: &Path) {
        match self.add_watch(&path.join("cgroup.events"), WatchFlags::MODIFY) {
            Ok(wd) => drop(self.watches.insert(wd, Watch::Events(path.to_owned()))),
            Err(_) => drop(self.polled.insert(path.to_owned())),
        }
    }

    /// Why some directories are not watched, and what to do; `None` if all are.
    pub fn unwatched(&self) -> Option<&str> {
        self.unwatched.as_deref()
    }

    /// Tries again to watch everything, if something is not watched and more may be watched. Returns what was missed.
    pub fn retry(&mut self) -> Vec<Seen> {
        if self.unwatched.is_none() || self.directories >= DIRECTORIES_MAX { Vec::new() } else { self.rescan() }
    }

    /// Looks through the whole hierarchy and watches it. Returns the containers that were not known.
    fn rescan(&mut self) -> Vec<Seen> {
        self.unwatched = None;
        self.found.retain(|_, path| path.exists());
        for parent in parents("") {
            self.watch_directory(&self.mount.join(parent), true);
        }
        let mut seen = Vec::new();
        self.watch_tree(&self.mount.clone(), &mut seen);
        seen
    }

    /// Watches a directory and those below it, and reports the containers in them. A directory is read after its watch
    /// stands, so that nothing in it is missed.
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

    /// Whether containers are looked for below this directory. A container's own cgroup has none; but a pod's looks like one
    /// (its name is an id alone), and has containers directly in it.
    fn descends(&self, parent: &Path, name: &str) -> bool {
        let depth = parent.strip_prefix(&self.mount).map_or(0, |below| below.components().count()) + 1;
        let is_id = |name: &str| name.len() == ID_LEN && container_of(name).is_some();
        let in_pod = parent.file_name().and_then(|name| name.to_str()).is_some_and(is_id);
        // Commands of `exec` are not containers.
        let ours = (depth == 1 && name == super::OWN) || super::below::is_name(name);
        depth < DEPTH_MAX && !in_pod && !ours && (is_id(name) || container_of(name).is_none())
    }

    /// Watches one directory, if it exists. An engine's parent is watched even if there are too many others.
    fn watch_directory(&mut self, dir: &Path, is_parent: bool) {
        if self.directories >= DIRECTORIES_MAX && !is_parent {
            self.unwatched = Some(format!(
                "there are more than {DIRECTORIES_MAX} cgroups, and not all are watched: a container that starts elsewhere than \
                 in its engine's default cgroup may bind before it is managed; remove cgroups that are not used"
            ));
            return;
        }
        let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
        match self.add_watch(dir, flags) {
            // The same directory has the same number again.
            Ok(wd) => match self.watches.insert(wd, Watch::Directory(dir.to_owned())) {
                Some(_) => {}
                None => self.directories += 1,
            },
            Err(rustix::io::Errno::NOSPC) => {
                self.unwatched = Some(format!(
                    "cgroups cannot be watched, because root's inotify watches are used up: a container that starts may bind \
                     before it is managed; raise the limit: sysctl -w fs.inotify.max_user_watches={} \
                     (and fs.inotify.max_user_instances)",
                    watches_wanted()
                ));
            }
            // It is gone, or not made yet.
            Err(_) => {}
        }
    }

    /// Waits until something is seen.
    pub async fn seen(&mut self) -> io::Result<Vec<Seen>> {
        loop {
            let events = {
                let Some(inotify) = &self.inotify else { return std::future::pending().await };
                let mut ready = inotify.readable().await?;
                let events = read(inotify.get_ref());
                ready.clear_ready();
                events?
            };
            let mut seen: Vec<Seen> = Vec::new();
            for event in events {
                self.interpret(event, &mut seen);
            }
            if !seen.is_empty() {
                return Ok(seen);
            }
        }
    }

    /// The container whose cgroup this is, if it is one and was not known.
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
                // It is reported once; the kernel keeps the watch of a file in a cgroup that is gone.
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

/// Whether an engine of this user has made this cgroup: it takes write permission on the parent, which only its owner has. The
/// directory itself may have been given to a container's user. Of root's containers, a user's engine is not believed a word.
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
