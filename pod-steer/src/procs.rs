//! Processes, identified by pidfd. Values read from /proc are used only if the process was still alive afterwards, so they never belong to
//! another process that took its pid.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    net::SocketAddr,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal},
};

use crate::{
    ids::{NetnsCookie, SocketCookie},
    listening,
    ports::Port,
    sys,
    text::visible,
};

mod walk;

pub use pod_steer_model::{
    address::{address_bytes, address_from_bytes},
    process::ProcessId,
};
pub use walk::{Check, ids_in_cgroup, ids_of_tree, pids, unless_gone};

/// The identity of a process: its pid and start time.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

/// A listening TCP socket of another process. `fd` is a copy that keeps the socket open after its owner's death, so close it soon.
#[derive(Debug)]
pub struct FoundSocket {
    /// Our copy of the socket.
    pub fd: OwnedFd,
    /// The descriptor that it is a copy of.
    pub seat: Seat,
    /// Its cookie.
    pub cookie: SocketCookie,
    /// Cookie of the network namespace that it lives in; not always that of the process.
    pub netns_cookie: NetnsCookie,
    /// Address and port that it is bound to.
    pub bound: SocketAddr,
    /// It accepts IPv6 clients only.
    pub v6only: bool,
    /// Index of the device that it is bound to, or zero.
    pub ifindex: u32,
    /// `SO_REUSEPORT` is set: others of the same user may share its port.
    pub reuseport: bool,
    /// The user that created it.
    pub uid: u32,
    /// It is an MPTCP socket. Socket maps do not accept those.
    pub mptcp: bool,
}

impl FoundSocket {
    /// The port that it is bound to.
    pub fn port(&self) -> Port {
        Port::tcp(self.bound.port())
    }
}

/// Maximum number of sockets of a process that are copied to see whether they listen. Up to this number, a copy of each costs less than
/// enumerating the listeners of the namespace.
const COPIES_MAX: usize = 64;

/// The listeners of network namespaces, which are enumerated once each.
#[derive(Debug, Default)]
pub struct Listening {
    /// Inodes of listeners, by the device and the inode of the namespace; nothing where they cannot be enumerated.
    by_netns: HashMap<(u64, u64), Option<HashSet<u64>>>,
}

impl Listening {
    fn inodes(&mut self, ns: &File) -> Option<&HashSet<u64>> {
        let meta = ns.metadata().ok()?;
        let enumerate = || listening::inodes(ns).ok();
        self.by_netns.entry((meta.dev(), meta.ino())).or_insert_with(enumerate).as_ref()
    }
}

/// The place where a socket was found: a process and a descriptor. To check it takes one system call; to find it takes one for each
/// descriptor of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The process.
    pub pid: i32,
    /// Its number there.
    pub number: i32,
    /// The socket's inode: no two sockets of a machine have the same.
    pub inode: u64,
}

impl Seat {
    /// Whether the descriptor is still that socket. False if another process has taken the pid.
    pub fn is_taken(&self) -> bool {
        let target = fs::read_link(format!("/proc/{}/fd/{}", self.pid, self.number));
        target.is_ok_and(|target| socket_inode(&target) == Some(self.inode))
    }
}

/// The inode in `socket:[INODE]`.
fn socket_inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The process that has this pid now.
pub fn process_id(pid: i32) -> io::Result<ProcessId> {
    // A process gives itself any name, and the kernel may cut it within a character.
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    let start = start_of(&String::from_utf8_lossy(&text))
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time")))?;
    Ok(ProcessId { pid, start })
}

/// The 22nd field of `/proc/PID/stat`. The second one, the name in parentheses, may hold anything.
fn start_of(stat: &str) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Converts a pid. Zero and negative numbers mean something else to system calls.
fn pid_of(pid: i32) -> io::Result<Pid> {
    let pid_or_none = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw);
    pid_or_none.ok_or_else(|| io::Error::other(format!("{pid} is not a process id")))
}

impl Process {
    /// Holds the process that has this id; an error if it has ended.
    pub fn of(id: ProcessId) -> io::Result<Self> {
        let process = Self::open(id.pid)?;
        if process_id(id.pid)? != id {
            return Err(io::Error::other(format!("process {} has ended", id.pid)));
        }
        process.still()?;
        Ok(process)
    }

    /// Holds the process that has this pid now.
    pub fn open(pid: i32) -> io::Result<Self> {
        let pid = pid_of(pid)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd })
    }

    /// Holds a process by a pidfd that was given for it.
    pub fn from_pidfd(pid: i32, pidfd: OwnedFd) -> io::Result<Self> {
        let pid = pid_of(pid)?;
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

    /// Sends it SIGTERM.
    pub fn terminate(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.pidfd, Signal::TERM)?)
    }

    /// Whether it has not ended. Then everything that was read before of its directory in /proc is this process's.
    pub fn is_alive(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        Ok(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0)
    }

    fn still(&self) -> io::Result<()> {
        match self.is_alive()? {
            true => Ok(()),
            false => Err(io::Error::other(format!("process {} has ended", self.pid()))),
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

    /// The name of its program, cut to 15 bytes, as it can be shown: a process gives itself any name.
    pub fn name(&self) -> String {
        let name = fs::read(self.path("comm")).unwrap_or_default();
        visible(String::from_utf8_lossy(&name).trim_end()).into_owned()
    }

    /// Its descriptors of sockets.
    pub fn seats(&self) -> io::Result<impl Iterator<Item = Seat> + use<>> {
        let pid = self.pid();
        let entries = fs::read_dir(self.path("fd"))?.flatten();
        Ok(entries.filter_map(move |entry| {
            let inode = socket_inode(&fs::read_link(entry.path()).ok()?)?;
            Some(Seat { pid, number: entry.file_name().to_str()?.parse().ok()?, inode })
        }))
    }

    /// A copy of a descriptor of this process.
    pub fn copy(&self, seat: Seat) -> io::Result<OwnedFd> {
        // It is copied through the pidfd, not the path, so it is of this process.
        Ok(pidfd_getfd(&self.pidfd, seat.number, PidfdGetfdFlags::empty())?)
    }

    /// The listening TCP or MPTCP socket behind a descriptor of this process, if it is one.
    pub fn listener(&self, seat: Seat) -> Option<FoundSocket> {
        inspect(self.copy(seat).ok()?, seat).ok().flatten()
    }

    /// Its listening TCP and MPTCP sockets for which `wanted` holds.
    pub fn listeners(
        &self,
        listening: &mut Listening,
        mut wanted: impl FnMut(&FoundSocket) -> bool,
    ) -> io::Result<Vec<FoundSocket>> {
        let found = self.candidates(listening)?.into_iter().filter_map(|seat| self.listener(seat));
        Ok(found.filter(|socket| wanted(socket)).collect())
    }

    /// Its descriptors that may be listeners. Only a copy shows for certain, but it keeps a connection open that its owner closes
    /// meanwhile. So with many descriptors, listeners are recognized by their inodes.
    fn candidates(&self, listening: &mut Listening) -> io::Result<Vec<Seat>> {
        let mut seats: Vec<Seat> = self.seats()?.collect();
        if seats.len() > COPIES_MAX
            && let Some(inodes) = listening.inodes(&self.netns()?)
        {
            seats.retain(|seat| inodes.contains(&seat.inode));
        }
        Ok(seats)
    }

    /// It and its descendants, but for some and their descendants. A process whose parent has ended is no longer a descendant.
    pub fn tree(self, without: &[ProcessId]) -> Vec<Self> {
        let mut tree = vec![self];
        let mut at = 0;
        while let Some(process) = tree.get(at) {
            let threads = fs::read_dir(process.path("task")).into_iter().flatten().flatten();
            let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
            let children: Vec<i32> =
                lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
            let is_part = |pid: &i32| without.is_empty() || process_id(*pid).is_ok_and(|id| !without.contains(&id));
            tree.extend(children.into_iter().filter(is_part).filter_map(|pid| Self::open(pid).ok()));
            at += 1;
        }
        tree
    }
}

fn inspect(fd: OwnedFd, seat: Seat) -> io::Result<Option<FoundSocket>> {
    let protocol = sockopt::socket_protocol(&fd)?;
    let mptcp = protocol == Some(rustix::net::ipproto::MPTCP);
    if !(mptcp || protocol == Some(rustix::net::ipproto::TCP)) || !sockopt::socket_acceptconn(&fd)? {
        return Ok(None);
    }
    let Ok(bound) = SocketAddr::try_from(rustix::net::getsockname(&fd)?) else { return Ok(None) };
    let v6only = bound.is_ipv6() && sockopt::ipv6_v6only(&fd)?;
    let cookie = sys::socket_cookie(&fd)?;
    let reuseport = sockopt::socket_reuseport(&fd)?;
    let ifindex = sys::bound_device(fd.as_fd())?;
    let netns_cookie = sys::netns_cookie(fd.as_fd())?;
    // The owner of a socket's inode is the user that the kernel compares.
    let uid = rustix::fs::fstat(&fd)?.st_uid;
    Ok(Some(FoundSocket { fd, seat, cookie, netns_cookie, bound, v6only, ifindex, reuseport, uid, mptcp }))
}

/// The processes in a cgroup and below it.
pub fn processes_in_cgroup(dir: &Path) -> Vec<Process> {
    pids_in_cgroup(dir).into_iter().filter_map(|pid| Process::open(pid).ok()).collect()
}

/// Their pids.
pub fn pids_in_cgroup(dir: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        // A cgroup may be removed during the walk; then no process is in it.
        let Ok(pids) = fs::read_to_string(dir.join("cgroup.procs")) else { continue };
        found.extend(pids.lines().filter_map(|line| line.parse::<i32>().ok()));
        let below = fs::read_dir(&dir).into_iter().flatten().flatten();
        dirs.extend(below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_is_positive() {
        for pid in [0, -1, i32::MIN] {
            let error = Process::open(pid).err().map(|error| error.to_string());
            assert_eq!(error, Some(format!("{pid} is not a process id")));
        }
    }

    #[test]
    fn reads_the_state_of_a_process() {
        let fields = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(start_of(&format!("7 (a b) R) {fields}")), Some(22));
        assert_eq!(start_of("7 (a) R 1"), None);
        assert_eq!(socket_inode(Path::new("socket:[4711]")), Some(4711));
        assert_eq!(socket_inode(Path::new("anon_inode:[eventpoll]")), None);
    }

    #[test]
    fn the_name_of_a_process_can_be_shown() {
        let own = Process::open(std::process::id().cast_signed()).unwrap();
        let before = fs::read("/proc/self/comm").unwrap();
        fs::write("/proc/self/comm", b"\x1b[31m\n\xffx").unwrap();
        let (shown, id) = (own.name(), process_id(own.pid()));
        fs::write("/proc/self/comm", before.trim_ascii_end()).unwrap();
        assert_eq!(id.unwrap().pid, own.pid());
        assert_eq!(shown, "\\u{1b}[31m\\n\u{fffd}x");
    }

    #[test]
    fn a_descriptor_is_known_by_its_number_and_its_socket() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = process_id(std::process::id().cast_signed()).unwrap();
        let process = Process::of(own).unwrap();
        let cookie = sys::socket_cookie(&listener).unwrap();
        let found = process.listeners(&mut Listening::default(), |socket| socket.cookie == cookie).unwrap();
        let seat = found[0].seat;
        drop(found);
        assert!(seat.is_taken() && !found_mptcp(&process, seat));
        drop(listener);
        assert!(!seat.is_taken());
        assert!(
            Process::of(ProcessId { start: own.start + 1, ..own }).is_err(),
            "a later process of the same pid is another"
        );
    }

    #[test]
    fn connections_are_not_copied_to_find_the_listeners_among_many() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = |_| std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let connections: Vec<std::net::TcpStream> = (0..=COPIES_MAX).map(connect).collect();
        let inode = |fd: &dyn std::os::fd::AsFd| rustix::fs::fstat(fd.as_fd()).unwrap().st_ino;
        let process = Process::open(std::process::id().cast_signed()).unwrap();
        // Entering a namespace needs a privilege.
        if listening::inodes(&process.netns().unwrap()).is_err() {
            return;
        }
        let candidates = process.candidates(&mut Listening::default()).unwrap();
        let candidates: HashSet<u64> = candidates.into_iter().map(|seat| seat.inode).collect();
        assert!(candidates.contains(&inode(&listener)));
        assert!(connections.iter().all(|connection| !candidates.contains(&inode(connection))));
    }

    fn found_mptcp(process: &Process, seat: Seat) -> bool {
        process.listener(seat).expect("it listens").mptcp
    }
}
