//! Clients that use the same few ports for every destination again and again, so that a server still has each port in TIME_WAIT, from
//! this destination or from another one. They count retransmitted SYNs: a SYN that is not answered costs its client a second.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    ops::Range,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};

use crate::netns::NetNs;

/// How long a client waits to be connected, and to be answered.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Connections that take longer are reported as slow: a retransmitted SYN costs a second.
const SLOW: Duration = Duration::from_millis(900);
/// Where `struct tcp_info` (`include/uapi/linux/tcp.h`) has `tcpi_total_retrans`, and its size up to there.
const TOTAL_RETRANS: usize = 100;
const TCP_INFO_BYTES: usize = TOTAL_RETRANS + 4;

/// The clients: as many as ranges of ports, which must not overlap.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Their address.
    pub source: IpAddr,
    /// The ports of each client.
    pub ports: Vec<Range<u16>>,
    /// Where they connect to, in turn. The server must close first.
    pub targets: Vec<SocketAddr>,
    /// Connections of each client.
    pub count: u64,
}

/// The counts of such clients.
#[derive(Debug, Default)]
pub struct Counts {
    /// Answered connections by the server's name.
    pub by_name: BTreeMap<String, u64>,
    /// Connections whose server saw another port than the client's.
    pub other_port: u64,
    /// Connections whose SYN was retransmitted.
    pub retransmitted: u64,
    /// Connections that took more than 0.9 s until the server had closed.
    pub slow: u64,
    /// The longest time that a connection took.
    pub slowest: Duration,
}

/// Running clients.
#[derive(Debug)]
pub struct Running {
    clients: Vec<JoinHandle<Result<Counts>>>,
    answered: Arc<AtomicU64>,
}

impl Clients {
    /// Starts the clients in a namespace. A client that is not answered ends with an error.
    pub fn start(&self, ns: &NetNs) -> Result<Running> {
        let answered = Arc::new(AtomicU64::new(0));
        let clients = self.ports.iter().enumerate().map(|(number, ports)| {
            let (clients, ports, ns, answered) = (self.clone(), ports.clone(), ns.try_clone()?, Arc::clone(&answered));
            Ok(thread::spawn(move || {
                ns.enter()?;
                clients.run(number, ports, &answered)
            }))
        });
        Ok(Running { clients: clients.collect::<Result<_>>()?, answered })
    }

    fn run(&self, number: usize, ports: Range<u16>, answered: &AtomicU64) -> Result<Counts> {
        let mut counts = Counts::default();
        for (port, target) in places(ports, number, self.targets.len()).take(self.count as usize) {
            let (source, target) = (SocketAddr::new(self.source, port), self.targets[target]);
            counts.one(source, target).with_context(|| format!("from {source} to {target}"))?;
            answered.fetch_add(1, Ordering::Relaxed);
        }
        Ok(counts)
    }
}

/// Pairs of a port and the number of a target, without end. Each port meets another target at each of its turns, and neighbouring ports
/// meet different ones.
fn places(ports: Range<u16>, first: usize, targets: usize) -> impl Iterator<Item = (u16, usize)> {
    (0..).flat_map(move |turn: usize| {
        ports.clone().map(move |port| (port, (first + turn + usize::from(port)) % targets))
    })
}

impl Counts {
    fn one(&mut self, source: SocketAddr, target: SocketAddr) -> Result<()> {
        let begun = Instant::now();
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &source).context("binding the client's port")?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(TIMEOUT))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(TIMEOUT))?;
        connect(&socket, &target).context("connecting")?;
        self.retransmitted += u64::from(total_retrans(&socket)? > 0);
        let mut stream = TcpStream::from(socket);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").context("asking")?;
        let mut answer = String::new();
        // The end of the stream: the server has closed, and keeps the connection in TIME_WAIT.
        stream.read_to_string(&mut answer).context("reading the answer")?;
        let body = answer.lines().last().unwrap_or_default();
        let (name, peer) = body.split_once(' ').with_context(|| format!("the answer {answer:?}"))?;
        let peer: SocketAddr = peer.parse().with_context(|| format!("the answer {answer:?}"))?;
        ensure!(peer.ip() == source.ip(), "the server saw {peer}");
        *self.by_name.entry(name.to_owned()).or_default() += 1;
        self.other_port += u64::from(peer.port() != source.port());
        let took = begun.elapsed();
        self.slow += u64::from(took > SLOW);
        self.slowest = self.slowest.max(took);
        Ok(())
    }

    /// Answered connections.
    pub fn answered(&self) -> u64 {
        self.by_name.values().sum()
    }

    fn merge(&mut self, other: Self) {
        for (name, count) in other.by_name {
            *self.by_name.entry(name).or_default() += count;
        }
        self.other_port += other.other_port;
        self.retransmitted += other.retransmitted;
        self.slow += other.slow;
        self.slowest = self.slowest.max(other.slowest);
    }
}

impl Running {
    /// Connections answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Whether all clients have ended.
    pub fn are_over(&self) -> bool {
        self.clients.iter().all(JoinHandle::is_finished)
    }

    /// Waits until all clients have ended, and adds up.
    pub fn join(self) -> Result<Counts> {
        let mut total = Counts::default();
        for client in self.clients {
            total.merge(client.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok(total)
    }
}

impl Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { by_name, other_port, retransmitted, slow, slowest } = self;
        write!(f, "{} connections answered by {by_name:?}, {other_port} by another port, ", self.answered())?;
        write!(f, "{retransmitted} with a retransmitted SYN, {slow} above 0.9 s, slowest {slowest:.1?}")
    }
}

/// The number of retransmissions of a connection so far.
fn total_retrans(socket: &OwnedFd) -> Result<u32> {
    let mut info = [0u8; TCP_INFO_BYTES];
    let mut length = info.len() as libc::socklen_t;
    let value = info.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `length` bytes of plain integers, which is the size of the live array.
    let done =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, value, &raw mut length) };
    ensure!(done == 0 && length as usize == info.len(), "reading TCP_INFO: {}", std::io::Error::last_os_error());
    Ok(u32::from_ne_bytes([
        info[TOTAL_RETRANS],
        info[TOTAL_RETRANS + 1],
        info[TOTAL_RETRANS + 2],
        info[TOTAL_RETRANS + 3],
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_meets_each_target_in_turn() {
        let found: Vec<(u16, usize)> = places(10..12, 0, 3).take(6).collect();
        assert_eq!(found, [(10, 1), (11, 2), (10, 2), (11, 0), (10, 0), (11, 1)]);
    }
}
