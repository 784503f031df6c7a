//! One turn of a contestant, of any length. (wrk runs for whole seconds, in which the machine's speed changes.) As in wrk it is a closed
//! loop: each connection sends its next request after the answer.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use rustix::{
    event::epoll::{self, CreateFlags, Event, EventData, EventFlags},
    io::{Errno, read, write},
    net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt::set_tcp_nodelay},
    time::Timespec,
};

use super::{
    answer::Answer,
    wrk::{CONNECTIONS, THREADS},
};

/// The warm-up: a turn begins with cold caches and no connections, so requests count only after this time.
const WARM_UP: Duration = Duration::from_millis(40);
/// The pause after an error that would repeat at once, such as no free port.
const REST: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
const BUFFER_BYTES: usize = 256 << 10;

/// The requests of a turn.
#[derive(Clone, Copy)]
pub struct Turn<'a> {
    pub addr: SocketAddr,
    pub path: &'a str,
    /// A new connection for each request.
    pub close: bool,
    /// Its length after the warm-up.
    pub time: Duration,
}

/// The results of a turn.
#[derive(Debug, Default)]
pub struct Seen {
    /// Requests that were answered within the measured time.
    pub requests: u64,
    /// Requests with those of the warm-up.
    pub all_requests: u64,
    /// Bytes that arrived within the measured time.
    pub bytes: u64,
    /// Connections on which a request was answered.
    pub connections: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Of the requests within the measured time; with new connections, the time to open one is included.
    pub latencies_us: Vec<u32>,
}

impl Turn<'_> {
    /// Plays it in the namespace of the calling thread.
    pub fn play(&self) -> Result<Seen> {
        let from = Instant::now() + WARM_UP;
        let span = (from, from + self.time);
        let close = if self.close { "Connection: close\r\n" } else { "" };
        let request = format!("GET {} HTTP/1.1\r\nHost: bench\r\n{close}\r\n", self.path);
        let seen = thread::scope(|scope| {
            let start = |_| scope.spawn(|| Clients::new(self, request.as_bytes(), span)?.run());
            let clients: Vec<_> = (0..THREADS).map(start).collect();
            let ended = clients.into_iter().map(|one| one.join().map_err(|_| anyhow!("a client panicked"))?);
            ended.collect::<Result<Vec<Seen>>>()
        })?;
        Ok(seen.into_iter().fold(Seen::default(), Seen::merged))
    }
}

impl Seen {
    fn merged(mut self, other: Self) -> Self {
        self.requests += other.requests;
        self.all_requests += other.all_requests;
        self.bytes += other.bytes;
        self.connections += other.connections;
        self.errors += other.errors;
        self.latencies_us.extend(other.latencies_us);
        self
    }

    /// The quantile of the latencies.
    pub fn percentile_us(&mut self, part: f64) -> f64 {
        self.latencies_us.sort_unstable();
        let last = self.latencies_us.len().saturating_sub(1);
        self.latencies_us.get((last as f64 * part).round() as usize).copied().unwrap_or_default().into()
    }
}

/// The connections of one thread.
struct Clients<'a> {
    turn: &'a Turn<'a>,
    request: &'a [u8],
    from: Instant,
    until: Instant,
    epoll: OwnedFd,
    connections: Vec<Option<Connection>>,
    buffer: Vec<u8>,
    seen: Seen,
}

struct Connection {
    socket: OwnedFd,
    /// When its request began, or its connection if that is not established yet.
    began: Instant,
    asked: bool,
    answered: bool,
    answer: Answer,
}

impl<'a> Clients<'a> {
    fn new(turn: &'a Turn<'a>, request: &'a [u8], (from, until): (Instant, Instant)) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let connections = (0..CONNECTIONS / THREADS).map(|_| None).collect();
        let (buffer, seen) = (vec![0; BUFFER_BYTES], Seen::default());
        Ok(Self { turn, request, from, until, epoll, connections, buffer, seen })
    }

    fn run(mut self) -> Result<Seen> {
        let mut events: Vec<Event> = Vec::with_capacity(self.connections.len());
        while let Some(left) = self.until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            for slot in 0..self.connections.len() {
                if self.connections[slot].is_none() {
                    self.open(slot);
                }
            }
            let lacking = self.connections.iter().any(Option::is_none);
            let timeout = if lacking { REST } else { Timespec::try_from(left)? };
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let data = event.data;
                self.ready(data.u64() as usize);
            }
        }
        // Requests under way end with the sockets.
        Ok(self.seen)
    }

    /// A new connection in a slot; none after an error.
    fn open(&mut self, slot: usize) {
        let began = Instant::now();
        match self.connecting(slot) {
            Ok(socket) => {
                let answer = Answer::default();
                self.connections[slot] = Some(Connection { socket, began, asked: false, answered: false, answer });
            }
            Err(_) => self.seen.errors += 1,
        }
    }

    fn connecting(&self, slot: usize) -> Result<OwnedFd> {
        let family = if self.turn.addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        set_tcp_nodelay(&socket, true)?;
        match connect(&socket, &self.turn.addr) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        // Edge-triggered for reading and writing, so it is registered once.
        let either = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&self.epoll, &socket, EventData::new_u64(slot as u64), either)?;
        Ok(socket)
    }

    /// Continues with a connection as far as possible without blocking.
    fn ready(&mut self, slot: usize) {
        let Some(mut connection) = self.connections[slot].take() else { return };
        match self.go_on(&mut connection) {
            // A finished connection makes room for the next one.
            Ok(false) => {}
            Ok(true) => self.connections[slot] = Some(connection),
            Err(_) => self.seen.errors += 1,
        }
    }

    /// Whether the connection can be used again.
    fn go_on(&mut self, connection: &mut Connection) -> Result<bool> {
        loop {
            if !connection.asked {
                match write(&connection.socket, self.request) {
                    Ok(written) if written == self.request.len() => {
                        connection.asked = true;
                        return Ok(true);
                    }
                    Ok(_) => return Err(anyhow!("a request in parts")),
                    Err(Errno::AGAIN) => return Ok(true),
                    Err(error) => return Err(error.into()),
                }
            }
            let length = match read(&connection.socket, &mut self.buffer[..]) {
                Ok(0) => return Err(anyhow!("closed before the answer")),
                Ok(length) => length,
                Err(Errno::AGAIN) => return Ok(true),
                Err(error) => return Err(error.into()),
            };
            let complete = connection.answer.take(&self.buffer[..length])?;
            let now = Instant::now();
            let counts = self.from <= now && now < self.until;
            self.seen.bytes += if counts { length as u64 } else { 0 };
            if !complete {
                continue;
            }
            self.seen.all_requests += 1;
            self.seen.connections += u64::from(!connection.answered);
            if counts {
                self.seen.requests += 1;
                let latency = (now - connection.began).as_micros();
                self.seen.latencies_us.push(latency.try_into().unwrap_or(u32::MAX));
            }
            if self.turn.close || now >= self.until {
                return Ok(false);
            }
            connection.answer.clear();
            (connection.asked, connection.answered, connection.began) = (false, true, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    fn serve(stream: &mut TcpStream, close: bool) -> std::io::Result<()> {
        let mut request = [0; 1024];
        while stream.read(&mut request)? > 0 {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            if close {
                break;
            }
        }
        Ok(())
    }

    fn play(close: bool) -> Seen {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || serve(&mut stream, close));
            }
        });
        Turn { addr, path: "/", close, time: Duration::from_millis(60) }.play().unwrap()
    }

    #[test]
    fn every_connection_asks_again_when_it_was_answered() {
        let mut seen = play(false);
        assert!(seen.requests > 0 && seen.requests <= seen.all_requests, "{seen:?}");
        assert_eq!((seen.errors, seen.latencies_us.len() as u64), (0, seen.requests));
        assert!(seen.connections <= CONNECTIONS.into() && seen.percentile_us(0.5) <= seen.percentile_us(1.0));
    }

    #[test]
    fn a_request_may_have_a_connection_of_its_own() {
        let seen = play(true);
        assert!(seen.requests > 0 && seen.connections == seen.all_requests, "{seen:?}");
    }

    #[test]
    fn a_port_without_a_listener_is_an_error() {
        let addr = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap();
        let seen = Turn { addr, path: "/", close: true, time: Duration::from_millis(1) }.play().unwrap();
        assert!(seen.errors > 0 && seen.requests == 0, "{seen:?}");
    }
}
