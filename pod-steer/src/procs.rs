//! Processes, held by pidfd: what is read of one is used only if it was alive afterwards, so never belongs to another
//! process that took its pid.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::{kernel::sys, netns::Netns};

/// A process that cannot be confused with another.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

/// A TCP socket of another process that listens; `fd` is a copy, which keeps it open after its owner's death, so hold
/// it as briefly as can be.
#[derive(Debug)]
pub struct FoundSocket {
    /// Our copy of the socket.
    pub fd: OwnedFd,
    /// Its cookie.
    pub cookie: u64,
    /// Cookie of the network namespace that it lives in; not always that of the process.
    pub netns_cookie: u64,
    /// Address and port that it is bound to.
    pub bound: SocketAddr,
    /// It takes IPv6 clients only.
    pub v6only: bool,
    /// Index of the device that it is bound to, or zero.
    pub ifindex: u32,
    /// `SO_REUSEPORT` is set: others of the same user may share its port.
    pub reuseport: bool,
    /// That user: who made it.
    pub uid: u32,
}

impl Process {
    /// Holds the process that has this pid now.
    pub fn open(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other(format!("{pid} is no process id")))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd })
    }

    /// Holds a process by a pidfd that was given for it.
    pub fn from_pidfd(pid: i32, pidfd: OwnedFd) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other(format!("{pid} is no process id")))?;
        Ok(Self { pid, pidfd })
    }

    /// Its pid, for messages.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Readable when the process has ended.
    pub fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }

    fn still(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
            0 => Ok(()),
            _ => Err(io::Error::other(format!("process {} has ended", self.pid()))),
        }
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.pid())
    }

    /// Opens its network namespace.
    pub fn netns(&self) -> io::Result<File> {
        let file = File::open(self.path("ns/net"))?;
        self.still()?;
        Ok(file)
    }

    /// Its cgroup v2 path, from the root of the hierarchy as this process sees it.
    pub fn cgroup(&self) -> io::Result<String> {
        let text = fs::read_to_string(self.path("cgroup"))?;
        self.still()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::"));
        path.map(str::to_owned).ok_or_else(|| io::Error::other("no cgroup v2 entry in /proc/PID/cgroup"))
    }

    /// The user who owns the process (its effective user id).
    pub fn uid(&self) -> io::Result<u32> {
        let uid = fs::metadata(Path::new(&self.path("")))?.uid();
        self.still()?;
        Ok(uid)
    }

    /// Its listening TCP sockets for which `wanted` holds.
    pub fn listeners(&self, mut wanted: impl FnMut(&FoundSocket) -> bool) -> io::Result<Vec<FoundSocket>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path("fd"))? {
            let entry = entry?;
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            if !target.as_os_str().as_encoded_bytes().starts_with(b"socket:[") {
                continue;
            }
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // The pidfd, not the path, says whose descriptor it is.
            let Ok(fd) = pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty()) else { continue };
            if let Ok(Some(socket)) = inspect(fd)
                && wanted(&socket)
            {
                found.push(socket);
            }
        }
        Ok(found)
    }
}

fn inspect(fd: OwnedFd) -> io::Result<Option<FoundSocket>> {
    let tcp = sockopt::socket_protocol(&fd)? == Some(rustix::net::ipproto::TCP);
    if !tcp || !sockopt::socket_acceptconn(&fd)? {
        return Ok(None);
    }
    let Ok(bound) = SocketAddr::try_from(rustix::net::getsockname(&fd)?) else { return Ok(None) };
    let v6only = bound.is_ipv6() && sockopt::ipv6_v6only(&fd)?;
    let cookie = sockopt::socket_cookie(&fd)?;
    let reuseport = sockopt::socket_reuseport(&fd)?;
    let ifindex = sys::bound_device(fd.as_fd())?;
    let netns_cookie = sys::netns_cookie(fd.as_fd())?;
    // The owner of a socket's inode is the user that the kernel compares.
    let uid = rustix::fs::fstat(&fd)?.st_uid;
    Ok(Some(FoundSocket { fd, cookie, netns_cookie, bound, v6only, ifindex, reuseport, uid }))
}

/// The processes in a cgroup and below it.
fn processes_in_cgroup(dir: &Path) -> Vec<Process> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        // A cgroup may vanish while it is walked: then there is nobody in it.
        let Ok(pids) = fs::read_to_string(dir.join("cgroup.procs")) else { continue };
        let pids = pids.lines().filter_map(|line| line.parse().ok());
        found.extend(pids.filter_map(|pid| Process::open(pid).ok()));
        let below = fs::read_dir(&dir).into_iter().flatten().flatten();
        dirs.extend(below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    found
}

/// The listening sockets of every process in a cgroup and below it, each once.
pub fn listeners_in_cgroup(dir: &Path, mut wanted: impl FnMut(&FoundSocket) -> bool) -> io::Result<Vec<FoundSocket>> {
    let mut found: Vec<FoundSocket> = Vec::new();
    for process in processes_in_cgroup(dir) {
        for socket in process.listeners(&mut wanted).unwrap_or_default() {
            if !found.iter().any(|other| other.cookie == socket.cookie) {
                found.push(socket);
            }
        }
    }
    Ok(found)
}

/// The `ns/net` file of this network namespace, by a process of a cgroup that lives in it.
pub fn netns_of_cgroup(dir: &Path, netns: Netns) -> io::Result<File> {
    let files = processes_in_cgroup(dir).into_iter().filter_map(|process| process.netns().ok());
    let mut same = files.filter(|file| file.metadata().is_ok_and(|m| (m.dev(), m.ino()) == (netns.dev, netns.inode)));
    same.next().ok_or_else(|| io::Error::other("no process of the backend is in its network namespace"))
}

/// The 16 bytes of the contract: network byte order, IPv4 in the first four.
pub fn address_bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The reverse of [`address_bytes`].
pub fn address_from_bytes(family: u8, bytes: [u8; 16]) -> IpAddr {
    if family == pod_steer_ebpf::FAMILY_V4 {
        IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
    } else {
        Ipv6Addr::from(bytes).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_contract() {
        for ip in ["127.0.0.1", "::1", "2001:db8::7"] {
            let ip: IpAddr = ip.parse().unwrap();
            let family = if ip.is_ipv4() { pod_steer_ebpf::FAMILY_V4 } else { pod_steer_ebpf::FAMILY_V6 };
            assert_eq!(address_from_bytes(family, address_bytes(ip)), ip);
        }
    }
}
