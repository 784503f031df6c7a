//! The calling process of an API connection, as a pidfd.

use std::{fs, io, os::fd::OwnedFd};

use rustix::net::UCred;

use crate::procs::{Process, ProcessId};

/// The calling process.
#[derive(Debug)]
pub struct Peer {
    /// Its pid, user and group when it connected.
    pub cred: UCred,
    /// The pidfd that the kernel gives for a connection (Linux 6.5). It identifies the process exactly.
    pub pidfd: Option<OwnedFd>,
    /// On older kernels, the process that had the pid when the connection was accepted.
    pub accepted: Option<ProcessId>,
}

impl Peer {
    /// Opens the process. Without a pidfd of the connection, its start time must be that of the process that had the pid when the connection
    /// was accepted, and it must run as the user who connected. One race remains: another process of the same user that took the pid
    /// between `connect` and `accept`.
    pub fn hold(self) -> io::Result<Process> {
        let pid = self.cred.pid.as_raw_nonzero().get();
        if let Some(pidfd) = self.pidfd {
            return Process::from_pidfd(pid, pidfd);
        }
        let ended = || io::Error::other(format!("process {pid} has ended"));
        let process = Process::of(self.accepted.ok_or_else(ended)?)?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let uid = effective_uid(&status).ok_or_else(|| io::Error::other(format!("/proc/{pid}/status has no user")))?;
        if uid != self.cred.uid.as_raw() {
            return Err(io::Error::other(format!("process {pid} runs as user {uid}, not as the user who connected")));
        }
        // The values read belong to this process only if it still has the pid.
        process.uid()?;
        Ok(process)
    }
}

/// The second number after `Uid:`. The owner of `/proc/PID` is root for some programs, also if another user runs them.
fn effective_uid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use rustix::{
        fs::Uid,
        process::{getegid, geteuid, getpid},
    };

    use super::*;
    use crate::procs::process_id;

    /// This process, as on a kernel that gives no pidfd.
    fn peer(uid: Uid, accepted: Option<ProcessId>) -> Peer {
        Peer { cred: UCred { pid: getpid(), uid, gid: getegid() }, pidfd: None, accepted }
    }

    #[test]
    fn without_a_pidfd_the_start_time_and_the_user_are_compared() {
        let own = process_id(getpid().as_raw_nonzero().get()).unwrap();
        assert_eq!(peer(geteuid(), Some(own)).hold().unwrap().pid(), own.pid);
        let later = ProcessId { start: own.start + 1, ..own };
        let reused = peer(geteuid(), Some(later)).hold().unwrap_err().to_string();
        assert!(reused.contains("has ended"), "{reused}");
        let other = Uid::from_raw(geteuid().as_raw() + 1);
        let moved = peer(other, Some(own)).hold().unwrap_err().to_string();
        assert!(moved.contains("not as the user who connected"), "{moved}");
        assert!(peer(geteuid(), None).hold().is_err(), "it had ended before it was accepted");
    }

    #[test]
    fn the_effective_user_is_read() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\t6\t5\t5\n"), Some(0));
        assert_eq!((effective_uid(""), effective_uid("Uid:\t1")), (None, None));
    }
}
