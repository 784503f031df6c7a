//! The process that holds the clients of a paused service, and what passes between the daemon and it. It runs in the servers' network
//! namespace and in a cgroup of its own, so that the kernel programs count the connections that it accepts.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, bind, listen, socket_with,
        sockopt::{set_ipv6_v6only, set_socket_reuseport},
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::pause::give_up;
use crate::{process_set::ProcessSet, sys};

/// Backlog if the namespace's limit cannot be read: the kernel's own default for that limit.
const BACKLOG_DEFAULT: u32 = 4096;
/// How long the process may take to open its listeners. It needs milliseconds, but a busy machine may not run it for seconds. The loop does
/// not wait for it, and the service goes on as before meanwhile.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// Longest answer of the process, in bytes, and what each listener adds to it.
const ANSWER_MAX: usize = 64 * 1024;
const FAILURE_MAX: usize = 256;

/// A listener that is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wanted {
    pub ip: IpAddr,
    pub port: u16,
    pub v6only: bool,
}

/// What became of the listeners that were to be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Opened {
    /// The backlog of each.
    pub backlog: u32,
    /// In the order of the question: why each was not opened, if it was not.
    pub failures: Vec<Option<String>>,
}

/// Starts the process in the network namespace of the calling thread. It waits for [`open`].
pub(super) fn start() -> io::Result<Child> {
    start_with(&["hold-clients"])
}

fn start_with(args: &[&str]) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .args(args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// Moves the process to its cgroup and has it open these listeners.
pub(super) fn open(child: &mut Child, cgroup: &Path, wanted: &[Wanted]) -> io::Result<Opened> {
    let opened: Opened = ask(child, cgroup, wanted, wanted.len())?;
    if opened.failures.len() == wanted.len() { Ok(opened) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Starts a process that keeps the listeners of those in a cgroup, beside them.
pub(super) fn keep(cgroup: &Path) -> io::Result<Child> {
    let mut child = start_with(&["hold-clients", "--join"])?;
    match ask::<usize>(&mut child, cgroup, cgroup, 0) {
        Ok(1..) => Ok(child),
        told => {
            let _ = child.kill();
            let _ = child.wait();
            told.and(Err(io::Error::other("no other process has a listener")))
        }
    }
}

/// Moves the process to its cgroup, asks it, and waits for its answer, which tells of so many listeners.
fn ask<T: DeserializeOwned>(
    child: &mut Child,
    cgroup: &Path,
    question: impl Serialize,
    listeners: usize,
) -> io::Result<T> {
    // It is our child: its pid cannot be another's.
    fs::write(cgroup.join("cgroup.procs"), child.id().to_string())?;
    let mut input = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    input.write_all(&serde_json::to_vec(&question)?)?;
    drop(input);
    let mut answer = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let (begun, mut text) = (Instant::now(), Vec::new());
    while !text.ends_with(b"\n") {
        let left = OPEN_MAX.saturating_sub(begun.elapsed());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&answer, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut part = [0; 4096];
        let count = answer.read(&mut part)?;
        if count == 0 || text.len() > ANSWER_MAX + listeners * FAILURE_MAX {
            return Err(io::Error::other("it has ended"));
        }
        text.extend_from_slice(&part[..count]);
    }
    Ok(serde_json::from_slice(&text)?)
}

/// How a process comes to the listeners that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It opens those that its standard input names.
    Open,
    /// It has them from its parent.
    Keep,
    /// It takes copies of those that the other processes of its cgroup have. Its standard input names the cgroup.
    Join,
}

/// `pod-steer hold-clients`: opens the listeners that its standard input names, tells on its standard output how that went, and keeps
/// them open until it is ended. It never accepts. Its child (`--keep`) keeps them too: the end of one of the two loses no client. The
/// daemon then starts another (`--join`).
pub fn hold_clients(source: Source) -> ! {
    let _ = rustix::process::setsid();
    if source != Source::Keep {
        // What the daemon inherited from its own parent, perhaps.
        let _ = sys::close_from(3);
        let held = if source == Source::Open { hold_wanted() } else { join() };
        // Nothing is held without an answer, so the daemon ends such a process.
        if held.is_err() {
            std::process::exit(1);
        }
    }
    give_up();
    loop {
        thread::park();
    }
}

/// Does what the standard input says. The listeners stay open: their descriptors are never closed.
fn hold_wanted() -> io::Result<()> {
    let wanted: Vec<Wanted> = question()?;
    let backlog = backlog();
    let opened: Vec<io::Result<OwnedFd>> = wanted.iter().map(|wanted| listener(wanted, backlog)).collect();
    let failures = opened.iter().map(|opened| opened.as_ref().err().map(ToString::to_string)).collect();
    // The child inherits the listeners. They are held without it too.
    let _ = Command::new("/proc/self/exe")
        .args(["hold-clients", "--keep"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    opened.into_iter().for_each(std::mem::forget);
    answer(&Opened { backlog, failures })
}

/// Takes copies of the listeners of the other processes in the cgroup, and says how many.
fn join() -> io::Result<()> {
    let cgroup: PathBuf = question()?;
    let found = ProcessSet::of_cgroup(&cgroup).listeners(|_| true);
    let count = found.len();
    found.into_iter().for_each(|socket| std::mem::forget(socket.fd));
    answer(&count)
}

fn question<T: DeserializeOwned>() -> io::Result<T> {
    let mut question = Vec::new();
    io::stdin().read_to_end(&mut question)?;
    Ok(serde_json::from_slice(&question)?)
}

fn answer(answer: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    io::stdout().write_all(&text)?;
    io::stdout().flush()
}

/// The largest backlog of this network namespace.
fn backlog() -> u32 {
    let limit = fs::read_to_string("/proc/sys/net/core/somaxconn").ok();
    limit.and_then(|text| text.trim().parse().ok()).unwrap_or(BACKLOG_DEFAULT)
}

/// A listener that shares its port. A child inherits it.
fn listener(wanted: &Wanted, backlog: u32) -> io::Result<OwnedFd> {
    let family = if wanted.ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::empty(), None)?;
    set_socket_reuseport(&socket, true)?;
    if family == AddressFamily::INET6 {
        set_ipv6_v6only(&socket, wanted.v6only)?;
    }
    bind(&socket, &SocketAddr::new(wanted.ip, wanted.port))?;
    listen(&socket, i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn listeners_of_one_form_share_a_port_and_complete_handshakes() {
        let wanted = |port| Wanted { ip: [127, 0, 0, 1].into(), port, v6only: false };
        let first = listener(&wanted(0), 8).unwrap();
        let port = SocketAddr::try_from(rustix::net::getsockname(&first).unwrap()).unwrap().port();
        let second = listener(&wanted(port), 8).unwrap();
        drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
        drop((first, second));
        // A server that does not share its port.
        let alone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let error = listener(&wanted(alone.local_addr().unwrap().port()), 8).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn the_backlog_is_that_of_the_namespace() {
        let limit: u32 = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
        assert_eq!(backlog(), limit);
    }
}
