//! Searches for the processes that hold sockets.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use super::{BackendFacts, limits::Limits};
use crate::{
    api::sockets::SocketProcess,
    procs::{Process, pids, unless_gone},
};

/// Maximum number of processes of one socket that are named.
pub const PROCESSES_MAX: usize = 16;

/// Where holders are searched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Holders {
    /// Nowhere: the client may not see them.
    #[default]
    Nowhere,
    /// Among the processes of each backend; those of other listeners among all processes.
    OfBackends,
    /// Among all processes: it is not known which of them belong to a backend.
    Anywhere,
}

/// The processes of one backend, or of none, that hold a socket.
#[derive(Clone, Debug, Default)]
pub struct Holding {
    /// The place of the backend; `None` if it is not known.
    pub backend: Option<usize>,
    /// Their number.
    pub count: u32,
    /// Some of them, by their pids. A backend may give its sockets to any number of processes.
    pub processes: Vec<SocketProcess>,
}

/// The processes that hold sockets.
#[derive(Debug, Default)]
pub struct Held {
    by_inode: HashMap<u64, Vec<Holding>>,
    /// Why some processes were not looked at.
    pub missed: Option<String>,
    /// Number of processes outside of backends that may not be examined, such as those that a security module protects.
    refused: usize,
}

impl Held {
    /// Searches for the holders of backends' sockets and of other listeners, by their inodes.
    pub fn search(
        holders: Holders,
        backends: &[BackendFacts],
        (of_backends, of_others): (&HashSet<u64>, &HashSet<u64>),
        limits: &Limits<'_>,
    ) -> Self {
        let mut held = Self::default();
        let wanted: HashSet<u64> = of_backends.union(of_others).copied().collect();
        match holders {
            _ if wanted.is_empty() => {}
            Holders::Nowhere => {}
            Holders::Anywhere => held.among_all(&wanted, limits),
            Holders::OfBackends => {
                for (at, backend) in backends.iter().enumerate() {
                    if held.is_over(limits) {
                        break;
                    }
                    held.among_those_of(at, backend, &wanted, limits);
                }
                let left = of_others.iter().filter(|inode| !held.by_inode.contains_key(*inode));
                let left: HashSet<u64> = left.copied().collect();
                if !left.is_empty() && !held.is_over(limits) {
                    held.among_all(&left, limits);
                }
            }
        }
        for holding in held.by_inode.values_mut().flatten() {
            holding.processes.sort();
        }
        held
    }

    /// The holders of a backend's socket.
    pub fn of(&self, backend: usize, inode: u64) -> Holding {
        let all = self.of_any(inode);
        let own = all.iter().find(|holding| holding.backend == Some(backend));
        own.or_else(|| all.iter().find(|holding| holding.backend.is_none())).cloned().unwrap_or_default()
    }

    /// All holders of a socket.
    pub fn of_any(&self, inode: u64) -> &[Holding] {
        self.by_inode.get(&inode).map_or(&[], Vec::as_slice)
    }

    /// One socket, held so.
    #[cfg(test)]
    pub fn of_one(inode: u64, holding: Holding) -> Self {
        Self { by_inode: HashMap::from([(inode, vec![holding])]), ..Self::default() }
    }

    fn among_those_of(&mut self, at: usize, backend: &BackendFacts, wanted: &HashSet<u64>, limits: &Limits<'_>) {
        let ids = match backend.processes.ids(&|| limits.check()) {
            Ok(ids) => ids,
            Err(error) => return self.miss(&error),
        };
        for id in ids {
            if self.is_over(limits) {
                return;
            }
            self.look_at(Some(at), || Process::unless_ended(id), wanted, limits);
        }
    }

    fn among_all(&mut self, wanted: &HashSet<u64>, limits: &Limits<'_>) {
        let pids = match pids() {
            Ok(pids) => pids,
            Err(error) => return self.miss(&error),
        };
        for pid in pids {
            if self.is_over(limits) {
                return;
            }
            self.look_at(None, || unless_gone(Process::open(pid)), wanted, limits);
        }
        // They matter only if one of them may be the holder.
        if self.refused > 0 && wanted.iter().any(|inode| !self.by_inode.contains_key(inode)) {
            let refused = format!("{} processes may not be examined", self.refused);
            self.missed.get_or_insert(refused);
        }
    }

    /// Whether the look has to end. Then the result is incomplete.
    fn is_over(&mut self, limits: &Limits<'_>) -> bool {
        limits.check().inspect_err(|error| self.miss(error)).is_err()
    }

    fn miss(&mut self, error: &io::Error) {
        self.missed.get_or_insert_with(|| error.to_string());
    }

    /// Looks at the descriptors of a process, which is open only meanwhile.
    fn look_at(
        &mut self,
        backend: Option<usize>,
        open: impl FnOnce() -> io::Result<Option<Process>>,
        wanted: &HashSet<u64>,
        limits: &Limits<'_>,
    ) {
        let looked = || -> io::Result<_> {
            let Some(process) = open()? else { return Ok(None) };
            let inodes = match process.open_sockets(|inode| wanted.contains(&inode), &|| limits.check()) {
                Ok(inodes) => inodes,
                // The kernel refuses to read a link of a process that has ended (`proc_fd_access_allowed`).
                Err(_) if !process.is_alive()? => return Ok(None),
                Err(error) => return Err(error),
            };
            if inodes.is_empty() {
                return Ok(None);
            }
            let holder = SocketProcess { pid: process.pid(), name: process.name() };
            // If it has ended, another process may have had its pid meanwhile.
            Ok(process.is_alive()?.then_some((holder, inodes)))
        };
        match looked() {
            Ok(None) => {}
            Ok(Some((holder, inodes))) => inodes.into_iter().for_each(|inode| self.add(backend, inode, &holder)),
            Err(error) if backend.is_none() && error.kind() == io::ErrorKind::PermissionDenied => self.refused += 1,
            Err(error) => self.miss(&error),
        }
    }

    fn add(&mut self, backend: Option<usize>, inode: u64, holder: &SocketProcess) {
        let all = self.by_inode.entry(inode).or_default();
        let at = all.iter().position(|holding| holding.backend == backend).unwrap_or_else(|| {
            all.push(Holding { backend, ..Holding::default() });
            all.len() - 1
        });
        let Some(holding) = all.get_mut(at) else { return };
        holding.count = holding.count.saturating_add(1);
        if holding.processes.len() < PROCESSES_MAX {
            holding.processes.push(holder.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        process::{Child, Command, Stdio},
        time::Duration,
    };

    use super::*;
    use crate::{process_set::ProcessSet, procs::process_id};

    /// A process that has the listener as its standard input, until its end.
    fn holder(listener: &TcpListener) -> Child {
        let input = Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()));
        Command::new("sleep").arg("60").stdin(input).spawn().unwrap()
    }

    #[test]
    fn holders_are_found_among_a_backends_processes_and_among_all() {
        let (own, other) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let inode = |listener: &TcpListener| rustix::fs::fstat(listener).unwrap().st_ino;
        let mut children = [holder(&own), holder(&other)];
        let pids = [0, 1].map(|at: usize| children[at].id().cast_signed());
        let process = Some(process_id(pids[0]).unwrap());
        let backend = BackendFacts {
            processes: ProcessSet { process, ..ProcessSet::default() },
            ..crate::sockets::tests::backend("a")
        };
        let stays = || false;
        let search = |holders, others: &[&TcpListener], max| {
            let limits = Limits::new(max, &stays);
            let others: HashSet<u64> = others.iter().map(|listener| inode(listener)).collect();
            let wanted = (&HashSet::from([inode(&own)]), &others);
            Held::search(holders, std::slice::from_ref(&backend), wanted, &limits)
        };
        let pids_of = |holding: &[Holding]| -> Vec<i32> {
            holding.iter().flat_map(|own| own.processes.iter().map(|one| one.pid)).collect()
        };
        let long = Duration::from_secs(60);
        let held = search(Holders::OfBackends, &[], long);
        assert_eq!((pids_of(&[held.of(0, inode(&own))]), held.missed.as_deref()), (vec![pids[0]], None));
        for holders in [Holders::OfBackends, Holders::Anywhere] {
            let held = search(holders, &[&other], long);
            // A child of another test has copies of all descriptors before its exec.
            assert!(pids_of(&[held.of(0, inode(&own))]).contains(&pids[0]), "{holders:?}");
            assert!(pids_of(held.of_any(inode(&other))).contains(&pids[1]), "{holders:?}");
        }
        assert_eq!(search(Holders::Nowhere, &[&other], long).of(0, inode(&own)).count, 0);
        let late = search(Holders::Anywhere, &[&other], Duration::ZERO);
        assert_eq!(late.missed.as_deref(), Some("the time limit of 0 s was reached"));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let held = search(Holders::OfBackends, &[], long);
        assert_eq!((held.of(0, inode(&own)).count, held.missed), (0, None), "both have ended");
    }

    #[test]
    fn a_number_of_processes_is_named_and_all_are_counted() {
        let mut held = Held::default();
        for pid in 0..20 {
            held.add(Some(3), 7, &SocketProcess { pid, name: "x".into() });
        }
        held.add(None, 7, &SocketProcess { pid: 99, name: "y".into() });
        let own = held.of(3, 7);
        assert_eq!((own.count, own.processes.len()), (20, PROCESSES_MAX));
        assert_eq!((held.of(4, 7).count, held.of(3, 8).count), (1, 0), "it is not known whose the last one is");
    }
}
