//! The processes of a backend, and through them its listeners and its network namespace.
#![forbid(unsafe_code)]

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{
    listening::{self, Listener},
    netns::Netns,
    procs::{
        Check, FoundSocket, Listening, Process, ProcessId, ids_in_cgroup, ids_of_tree, pids_in_cgroup,
        processes_in_cgroup,
    },
};

/// The processes of a backend, which come and go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessSet {
    /// Its cgroup.
    pub cgroup: Option<PathBuf>,
    /// The process that it is, with its descendants, if its cgroup has none or it has no cgroup.
    pub process: Option<ProcessId>,
    /// True if its descendants are not part of the backend.
    pub alone: bool,
    /// Descendants that are backends of their own: neither they nor their descendants are part of this one.
    pub without: Vec<ProcessId>,
}

impl ProcessSet {
    /// The processes of a cgroup.
    pub fn of_cgroup(path: &Path) -> Self {
        Self { cgroup: Some(path.to_owned()), ..Self::default() }
    }

    /// The processes that there are now.
    pub fn processes(&self) -> Vec<Process> {
        let inside = self.cgroup.as_deref().map(processes_in_cgroup).unwrap_or_default();
        match self.process {
            Some(process) if inside.is_empty() && self.alone => Process::of(process).into_iter().collect(),
            Some(process) if inside.is_empty() => {
                Process::of(process).map(|process| process.tree(&self.without)).unwrap_or_default()
            }
            _ => inside,
        }
    }

    /// The same, by their ids: it opens one process at a time. `check` is called for each step, and its error ends the walk.
    pub fn ids(&self, check: Check<'_>) -> io::Result<Vec<ProcessId>> {
        let inside = self.cgroup.as_deref().map(|dir| ids_in_cgroup(dir, check)).transpose()?.unwrap_or_default();
        match self.process {
            Some(process) if inside.is_empty() && self.alone => Ok(vec![process]),
            Some(process) if inside.is_empty() => ids_of_tree(process, &self.without, check),
            _ => Ok(inside),
        }
    }

    /// Their listening TCP and MPTCP sockets for which `wanted` holds, each once.
    pub fn listeners(&self, mut wanted: impl FnMut(&FoundSocket) -> bool) -> Vec<FoundSocket> {
        let (mut found, mut seen, mut listening) = (Vec::new(), HashSet::new(), Listening::default());
        for process in self.processes() {
            let new = |socket: &FoundSocket| seen.insert(socket.seat.inode) && wanted(socket);
            found.extend(process.listeners(&mut listening, new).unwrap_or_default());
        }
        found
    }

    /// Opens this network namespace by one of the processes. The namespace is compared, so no process has to be held meanwhile.
    fn open_netns(&self, netns: Netns) -> Option<File> {
        let inside = self.cgroup.as_deref().map(pids_in_cgroup).unwrap_or_default();
        let pids = inside.into_iter().chain(self.process.map(|process| process.pid));
        pids.filter_map(|pid| File::open(format!("/proc/{pid}/ns/net")).ok()).find(|file| is(file, netns))
    }
}

/// Opens a network namespace: our own, or through one of these processes, or through any other process in it. The namespace exists as long
/// as the descriptor is open.
pub fn open_netns(netns: Netns, sets: &[ProcessSet]) -> io::Result<File> {
    let own = File::open("/proc/self/ns/net").ok().filter(|file| is(file, netns));
    let found = own.or_else(|| sets.iter().find_map(|set| set.open_netns(netns))).or_else(|| by_any_process(netns));
    found.ok_or_else(|| io::Error::other(format!("no process is in the network namespace {netns}")))
}

/// The listeners of a network namespace, which is opened by one of these processes or any other.
pub fn listeners_of_netns(netns: Netns, sets: &[ProcessSet]) -> io::Result<Vec<Listener>> {
    listening::listeners(&open_netns(netns, sets)?, netns.cookie)
}

fn by_any_process(netns: Netns) -> Option<File> {
    let here =
        |path: &String| fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (netns.dev, netns.inode));
    let paths = all_processes().map(|pid| format!("/proc/{pid}/ns/net")).filter(here);
    paths.filter_map(|path| File::open(path).ok()).find(|file| is(file, netns))
}

fn is(file: &File, netns: Netns) -> bool {
    file.metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) == (netns.dev, netns.inode))
}

/// The pids of all processes but our own.
pub fn all_processes() -> impl Iterator<Item = i32> {
    let own = std::process::id().cast_signed();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(move |pid| *pid != own)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::netns;
    use crate::procs::process_id;

    #[test]
    fn a_process_stands_for_a_backend_without_a_cgroup() {
        let own = process_id(std::process::id().cast_signed()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = listener.local_addr().unwrap();
        let found = |set: &ProcessSet| set.listeners(|socket| socket.bound == bound).len();
        let set = ProcessSet { process: Some(own), ..ProcessSet::default() };
        assert_eq!(found(&set), 1);
        assert_eq!(
            found(&ProcessSet { cgroup: Some(PathBuf::from("/nowhere")), ..set.clone() }),
            1,
            "its cgroup is empty"
        );
        assert_eq!(found(&ProcessSet { alone: true, ..set.clone() }), 1);
        let later = ProcessId { start: own.start + 1, ..own };
        assert_eq!(
            found(&ProcessSet { process: Some(later), ..ProcessSet::default() }),
            0,
            "another one with that pid"
        );
        assert_eq!(found(&ProcessSet::default()), 0);
    }

    #[test]
    fn a_namespace_is_known_by_its_file() {
        let file = File::open("/proc/self/ns/net").unwrap();
        // Entering a namespace needs a privilege.
        let Ok(own) = netns::identify(&file) else { return };
        assert!(is(&open_netns(own, &[]).unwrap(), own));
        let none = Netns { inode: own.inode + (1 << 40), ..own };
        let error = open_netns(none, &[]).unwrap_err().to_string();
        assert!(error.starts_with("no process is in the network namespace"), "{error}");
    }
}
