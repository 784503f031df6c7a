//! Network namespaces: their identity, cookie, and how to enter or find one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::fd::AsFd,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    io::Errno,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{ids::NetnsCookie, sys};

pub use pod_steer_model::namespace::Netns;

/// Identifies the namespace behind an open `ns/net` file.
pub fn identify(ns: &File) -> io::Result<Netns> {
    let meta = ns.metadata()?;
    let cookie = enter(ns, sys::own_netns_cookie)?;
    Ok(Netns { dev: meta.dev(), inode: meta.ino(), cookie })
}

/// Runs `inside` in a network namespace, if that is still the one with this cookie: on a thread of its own, unless this thread is there.
pub fn run_in<T: Send>(ns: &File, cookie: NetnsCookie, inside: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    if sys::own_netns_cookie()? == cookie {
        return inside();
    }
    enter(ns, || {
        if sys::own_netns_cookie()? != cookie {
            return Err(io::Error::other("it has moved to another network namespace"));
        }
        inside()
    })
}

/// Runs `inside` in a network namespace, on a new thread that ends afterwards: the namespace is a property of a thread. Fails if the limit
/// on threads is reached.
pub fn enter<T: Send>(ns: &File, inside: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let entered = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
            move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::Network))?;
            inside()
        })?;
        entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread that entered the namespace panicked")))
    })
}

/// Result of [`search`].
#[derive(Debug, Default)]
pub struct Search {
    /// The namespaces that were found, by cookie.
    pub found: BTreeMap<NetnsCookie, File>,
    /// True if some namespaces could not be examined, so a namespace that was not found may still exist.
    pub incomplete: bool,
}

/// Searches for namespaces by their cookies: our own, those of all processes, and those that are mounted, as `ip netns` and
/// Docker do. No server can enter any other namespace.
pub fn search(cookies: &BTreeSet<NetnsCookie>) -> Search {
    let mut search = Search::default();
    let processes = match fs::read_dir("/proc") {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => {
            search.incomplete = true;
            Vec::new()
        }
    };
    let is_process = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit());
    let processes = processes.into_iter().filter(is_process).map(|path| path.join("ns/net"));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts: Vec<PathBuf> = mounts.lines().filter_map(mounted).collect();
    let mut seen = BTreeSet::new();
    for path in std::iter::once(PathBuf::from("/proc/self/ns/net")).chain(processes).chain(mounts) {
        if search.found.len() == cookies.len() {
            break;
        }
        match examine(&path, &mut seen) {
            Ok(Some((cookie, file))) if cookies.contains(&cookie) => drop(search.found.insert(cookie, file)),
            Ok(_) => {}
            // The process has ended, or the mount is hidden by another one.
            Err(error)
                if [Errno::NOENT, Errno::SRCH, Errno::INVAL]
                    .map(|errno| Some(errno.raw_os_error()))
                    .contains(&error.raw_os_error()) => {}
            Err(_) => search.incomplete = true,
        }
    }
    search
}

/// The cookie of a namespace that has not been seen before.
fn examine(path: &Path, seen: &mut BTreeSet<(u64, u64)>) -> io::Result<Option<(NetnsCookie, File)>> {
    let meta = fs::metadata(path)?;
    if seen.contains(&(meta.dev(), meta.ino())) {
        return Ok(None);
    }
    let file = File::open(path)?;
    let netns = identify(&file)?;
    seen.insert((netns.dev, netns.inode));
    Ok(Some((netns.cookie, file)))
}

/// The mount point in a line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)), if a network namespace is mounted there.
fn mounted(line: &str) -> Option<PathBuf> {
    let mut fields = line.split(' ').skip(3);
    fields.next().filter(|root| root.starts_with("net:["))?;
    fields.next().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_mounted_namespaces() {
        let line = "341 24 0:4 net:[4026532290] /run/netns/blue rw shared:189 - nsfs nsfs rw";
        assert_eq!(mounted(line), Some(PathBuf::from("/run/netns/blue")));
        assert_eq!(mounted("26 24 0:4 mnt:[4026532290] /run/ns rw - nsfs nsfs rw"), None);
        assert_eq!(mounted(""), None);
    }

    #[test]
    fn finds_its_own_namespace_and_none_that_does_not_exist() {
        // Entering a namespace needs a privilege.
        let Ok(own) = identify(&File::open("/proc/self/ns/net").unwrap()) else { return };
        let search = search(&BTreeSet::from([own.cookie, NetnsCookie(u64::MAX)]));
        assert_eq!(search.found.into_keys().collect::<Vec<_>>(), [own.cookie]);
    }
}
