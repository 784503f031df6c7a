//! The cgroup v2 hierarchy: where it is mounted, when a container's directory appears in it, and when one is empty.
//!
//! An engine makes a container's directory some 50 ms before the container's process runs, and long after it has
//! announced the container: whoever watches can attach before the first bind.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::DirEntryExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use crate::kernel::sys;

/// Characters of a container's full id.
const CONTAINER_ID_LEN: usize = 64;

/// Finds where cgroup v2 is mounted. On machines with both versions it is not at `/sys/fs/cgroup`.
pub fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let (mut before, mut after) = (before.split(' ').skip(3), after.split(' '));
        let (root, at) = (before.next()?, before.next()?);
        // Spaces in a path are written as \040; cgroup mounts have none in practice.
        (after.next()? == "cgroup2" && root == "/").then(|| PathBuf::from(at))
    })
}

/// The container whose cgroup has this name: `ID`, `docker-ID.scope`, `libpod-ID.scope`, `cri-containerd-ID.scope`.
/// Podman's monitor has one with the same id, and is not the container.
pub fn container_of(name: &str) -> Option<&str> {
    if name.contains("conmon") {
        return None;
    }
    let base = name.strip_suffix(".scope").unwrap_or(name);
    let id = base.rsplit('-').next()?;
    (id.len() == CONTAINER_ID_LEN && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}

/// The directories in which an engine may make a container's cgroup, relative to the mount.
pub fn parents(cgroup_parent: &str) -> Vec<PathBuf> {
    let given = cgroup_parent.trim_matches('/');
    if given.is_empty() {
        // The defaults of Docker and Podman, with the cgroupfs and the systemd driver.
        return ["docker", "system.slice", "machine.slice", "libpod_parent"].map(PathBuf::from).to_vec();
    }
    let Some(slice) = given.strip_suffix(".slice").filter(|name| !name.contains('/')) else {
        return vec![PathBuf::from(given), PathBuf::from(given).join("libpod_parent")];
    };
    // systemd nests `a-b.slice` in `a.slice`.
    let mut path = PathBuf::new();
    for (at, _) in slice.match_indices('-') {
        path.push(format!("{}.slice", &slice[..at]));
    }
    path.push(format!("{slice}.slice"));
    vec![path]
}

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
    /// The cgroup of a container that nobody has announced appeared.
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

/// Watches for the cgroups of containers that were announced.
pub struct Cgroups {
    mount: PathBuf,
    inotify: AsyncFd<OwnedFd>,
    watches: HashMap<i32, Watch>,
    expected: HashSet<String>,
    parents: HashSet<PathBuf>,
}

impl Cgroups {
    /// Watches below the hierarchy that is mounted at `mount`.
    pub fn new(mount: PathBuf) -> io::Result<Self> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let inotify = sys::readable(inotify)?;
        Ok(Self { mount, inotify, watches: HashMap::new(), expected: HashSet::new(), parents: HashSet::new() })
    }

    /// Where the hierarchy is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// Watches where engines make their cgroups by default: Podman announces a container only after it has started.
    pub fn watch_defaults(&mut self) {
        for parent in parents("") {
            let parent = self.mount.join(parent);
            self.watch_down_to(&parent);
            self.parents.insert(parent);
        }
    }

    /// From now on reports this container's cgroup when it appears; returns it if it is there already.
    pub fn expect(&mut self, id: &str, cgroup_parent: &str) -> Option<PathBuf> {
        self.expected.insert(id.to_owned());
        let mut found = None;
        for parent in parents(cgroup_parent) {
            let parent = self.mount.join(parent);
            self.watch_down_to(&parent);
            found = found.or_else(|| child_of_container(&parent, id));
            self.parents.insert(parent);
        }
        found
    }

    /// Nobody waits for this container any more.
    pub fn forget(&mut self, id: &str) {
        self.expected.remove(id);
    }

    /// Reports when the last process has left this cgroup.
    pub fn watch_empty(&mut self, path: &Path) -> io::Result<()> {
        let flags = inotify::WatchFlags::MODIFY;
        let wd = inotify::add_watch(self.inotify.get_ref(), path.join("cgroup.events"), flags)?;
        self.watches.insert(wd, Watch::Events(path.to_owned()));
        Ok(())
    }

    /// Watches every directory on the way to `parent`, as far as it exists; the rest follows when it appears.
    fn watch_down_to(&mut self, parent: &Path) {
        let mut at = self.mount.clone();
        let below = parent.strip_prefix(&self.mount).unwrap_or(Path::new("")).to_owned();
        for part in std::iter::once(Path::new("")).chain(below.components().map(|c| Path::new(c.as_os_str()))) {
            at.push(part);
            let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::ONLYDIR;
            let Ok(wd) = inotify::add_watch(self.inotify.get_ref(), &at, flags) else { return };
            self.watches.insert(wd, Watch::Directory(at.clone()));
        }
    }

    /// Waits until something is seen.
    pub async fn seen(&mut self) -> io::Result<Vec<Seen>> {
        loop {
            let events = {
                let mut ready = self.inotify.readable().await?;
                let events = read(self.inotify.get_ref());
                ready.clear_ready();
                events?
            };
            let mut seen: Vec<Seen> = Vec::new();
            for (wd, name) in events {
                self.interpret(wd, &name, &mut seen);
            }
            if !seen.is_empty() {
                return Ok(seen);
            }
        }
    }

    /// The container whose cgroup this is, if it is one.
    fn appeared(&self, parent: &Path, name: &str) -> Option<Seen> {
        let id = container_of(name)?.to_owned();
        let path = parent.join(name);
        Some(if self.expected.contains(&id) { Seen::Container { id, path } } else { Seen::Unannounced { id } })
    }

    fn interpret(&mut self, wd: i32, name: &str, seen: &mut Vec<Seen>) {
        match self.watches.get(&wd) {
            Some(Watch::Events(path)) if is_empty(path) => seen.push(Seen::Empty(path.clone())),
            Some(Watch::Directory(dir)) => {
                if let Some(container) = self.appeared(dir, name) {
                    seen.push(container);
                    return;
                }
                let path = dir.join(name);
                // A directory on the way to an engine's parent: watch on, and look at what came in meanwhile.
                let below: Vec<PathBuf> = self.parents.iter().filter(|p| p.starts_with(&path)).cloned().collect();
                for parent in below {
                    self.watch_down_to(&parent);
                    let names = fs::read_dir(&parent).into_iter().flatten().flatten().map(|entry| entry.file_name());
                    for name in names.filter_map(|name| name.into_string().ok()) {
                        seen.extend(self.appeared(&parent, &name));
                    }
                }
            }
            Some(Watch::Events(_)) | None => {}
        }
    }
}

fn child_of_container(parent: &Path, id: &str) -> Option<PathBuf> {
    let paths = fs::read_dir(parent).ok()?.flatten().map(|entry| entry.path());
    let mut of_container =
        paths.filter(|path| path.file_name().and_then(|n| n.to_str()).and_then(container_of) == Some(id));
    of_container.next()
}

/// The directories of the cgroups with these ids.
pub fn with_ids(mount: &Path, ids: &BTreeSet<u64>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![mount.to_owned()];
    while let Some(dir) = dirs.pop() {
        if found.len() == ids.len() {
            break;
        }
        let below = fs::read_dir(&dir).into_iter().flatten().flatten();
        for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            if ids.contains(&entry.ino()) {
                found.push(entry.path());
            }
            dirs.push(entry.path());
        }
    }
    found
}

/// True if no process is in this cgroup or below it; a cgroup that is gone has none.
pub fn is_empty(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.events")).map_or(true, |text| text.lines().any(|line| line == "populated 0"))
}

fn read(fd: &OwnedFd) -> io::Result<Vec<(i32, String)>> {
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut reader = inotify::Reader::new(fd, &mut buffer);
    let mut events = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => {
                let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
                events.push((event.wd(), name.unwrap_or_default()));
            }
            Err(rustix::io::Errno::AGAIN) => return Ok(events),
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn finds_the_second_version_wherever_it_is() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      42 30 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_point("30 25 0:26 /part /mnt rw - cgroup2 none rw\n"), None);
        assert_eq!(mount_point("nonsense"), None);
    }

    #[test]
    fn knows_a_container_by_its_cgroup() {
        for name in [ID.to_owned(), format!("docker-{ID}.scope"), format!("libpod-{ID}.scope")] {
            assert_eq!(container_of(&name), Some(ID), "{name}");
        }
        for name in ["", "docker", "libpod-conmon-0123.scope", "system.slice"] {
            assert_eq!(container_of(name), None, "{name}");
        }
        assert_eq!(container_of(&format!("libpod-conmon-{ID}.scope")), None);
    }

    #[test]
    fn systemd_slices_nest() {
        assert_eq!(parents("a-b-c.slice"), [PathBuf::from("a.slice/a-b.slice/a-b-c.slice")]);
        assert_eq!(parents("/plain/path")[0], PathBuf::from("plain/path"));
        assert!(parents("").contains(&PathBuf::from("docker")));
    }
}
