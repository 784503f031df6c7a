//! Walks through processes one at a time. A machine may have more processes than a process may have open files, so processes are listed by
//! their ids, and only one pidfd is open. Errors are returned, except those that mean that a process or a cgroup has ended.

use std::{collections::BTreeSet, fs, io, path::Path};

use rustix::io::Errno;

use super::{Process, ProcessId, process_id, socket_inode};

/// Called for each step of a walk. Its error ends the walk.
pub type Check<'a> = &'a dyn Fn() -> io::Result<()>;

/// The result of a call on something that may have ended; `None` if it has.
pub fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    // ENODEV: the cgroup was removed after its file had been opened.
    let gone = [Errno::NOENT, Errno::SRCH, Errno::NODEV].map(|errno| Some(errno.raw_os_error()));
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if gone.contains(&error.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The pids of all processes but our own.
pub fn pids() -> io::Result<Vec<i32>> {
    let own = std::process::id().cast_signed();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid: Option<i32> = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(pid.filter(|pid| *pid != own));
    }
    Ok(found)
}

/// The ids of the processes in a cgroup and below it.
pub fn ids_in_cgroup(dir: &Path, check: Check<'_>) -> io::Result<Vec<ProcessId>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        check()?;
        let pids = match unless_gone(fs::read_to_string(dir.join("cgroup.procs"))) {
            // A threaded cgroup lists no processes; the cgroup above it lists them.
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => String::new(),
            other => other?.unwrap_or_default(),
        };
        add_ids(pids.lines(), &mut found, check)?;
        for entry in unless_gone(fs::read_dir(&dir))?.into_iter().flatten() {
            let Some(entry) = unless_gone(entry)? else { continue };
            if unless_gone(entry.file_type())?.is_some_and(|kind| kind.is_dir()) {
                dirs.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// The ids of a process and its descendants. A process whose parent has ended is no longer a descendant.
pub fn ids_of_tree(root: ProcessId, without: &[ProcessId], check: Check<'_>) -> io::Result<Vec<ProcessId>> {
    let mut found = Vec::new();
    let mut left = vec![root];
    while let Some(id) = left.pop() {
        check()?;
        let Some(process) = Process::unless_ended(id)? else { continue };
        let mut children = Vec::new();
        for thread in unless_gone(fs::read_dir(process.path("task")))?.into_iter().flatten() {
            let Some(thread) = unless_gone(thread)? else { continue };
            let list = unless_gone(fs::read_to_string(thread.path().join("children")))?.unwrap_or_default();
            add_ids(list.split(' '), &mut children, check)?;
        }
        if process.is_alive()? {
            left.extend(children.into_iter().filter(|child| !without.contains(child)));
        }
        found.push(id);
    }
    Ok(found)
}

/// Adds the ids of those of these pids that still run.
fn add_ids<'a>(pids: impl Iterator<Item = &'a str>, ids: &mut Vec<ProcessId>, check: Check<'_>) -> io::Result<()> {
    for pid in pids.filter_map(|pid| pid.parse().ok()) {
        check()?;
        ids.extend(unless_gone(process_id(pid))?);
    }
    Ok(())
}

impl Process {
    /// Holds the process that has this id; `None` if it has ended.
    pub fn unless_ended(id: ProcessId) -> io::Result<Option<Self>> {
        let Some(process) = unless_gone(Self::open(id.pid))? else { return Ok(None) };
        // A process that is held keeps its pid, so this start time is its own.
        let is_same = unless_gone(process_id(id.pid))? == Some(id) && process.is_alive()?;
        Ok(is_same.then_some(process))
    }

    /// The inodes of its open sockets for which `is_wanted` holds. They are this process's only if it is alive afterwards.
    pub fn open_sockets(&self, is_wanted: impl Fn(u64) -> bool, check: Check<'_>) -> io::Result<BTreeSet<u64>> {
        let mut found = BTreeSet::new();
        for entry in unless_gone(fs::read_dir(self.path("fd")))?.into_iter().flatten() {
            check()?;
            let Some(entry) = unless_gone(entry)? else { continue };
            let inode = unless_gone(fs::read_link(entry.path()))?.and_then(|target| socket_inode(&target));
            found.extend(inode.filter(|inode| is_wanted(*inode)));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        net::TcpListener,
        process::{Command, Stdio},
    };

    use super::*;

    fn own() -> ProcessId {
        process_id(std::process::id().cast_signed()).unwrap()
    }

    #[test]
    fn a_process_is_found_among_descendants_until_it_ends() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let id = process_id(child.id().cast_signed()).unwrap();
        let ids = || ids_of_tree(own(), &[], &|| Ok(())).unwrap();
        assert!(ids().contains(&own()) && ids().contains(&id));
        assert!(!ids_of_tree(own(), &[id], &|| Ok(())).unwrap().contains(&id), "it is another backend's");
        assert!(Process::unless_ended(id).unwrap().is_some() && pids().unwrap().contains(&id.pid));
        let other = ProcessId { start: id.start + 1, ..id };
        assert!(Process::unless_ended(other).unwrap().is_none(), "a later process of the same pid is another");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!ids().contains(&id));
        assert!(Process::unless_ended(id).unwrap().is_none());
    }

    #[test]
    fn a_walk_stops_when_its_check_fails() {
        let listeners: Vec<TcpListener> = (0..20).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let inode = |listener: &TcpListener| rustix::fs::fstat(listener).unwrap().st_ino;
        let process = Process::open(own().pid).unwrap();
        let all = process.open_sockets(|_| true, &|| Ok(())).unwrap();
        assert!(listeners.iter().all(|listener| all.contains(&inode(listener))));
        let first = inode(&listeners[0]);
        assert_eq!(process.open_sockets(|inode| inode == first, &|| Ok(())).unwrap(), BTreeSet::from([first]));
        let steps = Cell::new(0);
        let third = || {
            steps.set(steps.get() + 1);
            if steps.get() > 2 { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
        };
        assert_eq!(process.open_sockets(|_| true, &third).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(steps.get(), 3);
        assert!(ids_of_tree(own(), &[], &|| Err(io::ErrorKind::TimedOut.into())).is_err());
        assert!(ids_in_cgroup(Path::new("/nowhere"), &|| Ok(())).unwrap().is_empty(), "it was removed");
    }
}
