//! Closes idle connections by their own servers: the receiving side of a copy of the socket is shut down, upon which the server sees the end
//! of its client's data and closes in its ordinary way. What the client has sent by then is read first.
//!
//! A connection is idle if nothing was said on it for a while, nothing is queued or unacknowledged, and its client does not wait for an answer.
//! The last is told by times (the server has sent something since the client did), or, if both are of one tick of the kernel, by
//! [`HeardIterator`].
//!
//! One that has been open for too long is closed as soon as it is idle for a moment.
#![forbid(unsafe_code)]

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use pod_steer_ebpf::PROBE_SOURCE_V4;
use rustix::net::Shutdown;

use self::ages::Ages;
use crate::{
    connections::{Question, by_netns},
    ids::SocketCookie,
    kernel::HeardIterator,
    listening::{self, Established, Said},
    netns,
    ports::Port,
    process_set::open_netns,
    procs::{Process, Seat},
    rollout::Closes,
    sys,
};

pub mod ages;

/// A client acknowledges an answer at most so long after it: `TCP_DELACK_MAX`, a time on the way, and a busy machine. What it acknowledges later is
/// a probe of the server whether it lives (`SO_KEEPALIVE`), which says nothing about answers.
const ACKNOWLEDGED_MS: u32 = 5_000;
/// If it is not known whether a client waits, its connection counts as idle after this time.
const UNKNOWN_IDLE_MS: u32 = 60_000;
/// An old connection is closed when it has been idle for so long: a client that asks again and again has its answer then, and hardly has its next
/// request on the way.
const MOMENT: Duration = Duration::from_millis(20);
/// Without a rate, old connections are closed in this part of their age,
const OLD_PART: u32 = 20;
/// and in so long at most.
const OLD_MAX: Duration = Duration::from_secs(60);

/// What is to be closed.
#[derive(Debug)]
pub struct Pass {
    /// The backends.
    pub backends: Vec<Question>,
    /// Which of their connections.
    pub which: Closes,
    /// How long they have been open.
    pub ages: Arc<Mutex<Ages>>,
    /// At most so many.
    pub pace: Pace,
    /// The time for it. They are spread over it.
    pub within: Duration,
}

/// How many connections are closed in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// So many.
    Number(u64),
    /// All that are idle, evenly until then.
    Until(Duration),
}

/// What a pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Connections that were closed.
    pub closed: u64,
    /// Those that are idle still.
    pub idle: u64,
    /// Those that are not.
    pub active: u64,
    /// The first failure.
    pub failure: Option<String>,
}

/// What is kept from one pass to the next.
#[derive(Debug, Default)]
pub struct Memory {
    /// Loaded when it is needed first.
    heard: Option<HeardIterator>,
    /// Whether the clients of connections were answered, and how many bytes they had sent then: until they send more, nothing changes but
    /// by an answer. A later probe of the server would hide it.
    answered: HashMap<SocketCookie, (u64, bool)>,
}

/// Closes idle connections, and adds each to `number` before its server can see that.
pub fn close(pass: Pass, memory: &mut Memory, number: &AtomicI64) -> Closed {
    let begun = Instant::now();
    let mut done = Closed::default();
    let mut idle = Vec::new();
    for questions in by_netns(pass.backends) {
        match look(&questions, &pass.which, &pass.ages, memory, &mut done) {
            Ok(found) => idle.extend(found),
            Err(error) => drop(done.failure.get_or_insert_with(|| error.to_string())),
        }
    }
    shuffle(&mut idle);
    let (old, idle): (Vec<Idle>, Vec<Idle>) = idle.into_iter().partition(|one| one.is_old);
    // These are idle for a moment only, so they are not spread over the time of the pass, and as many are tried as it takes.
    let mut left = match pass.pace {
        Pace::Number(number) => number,
        Pace::Until(left) => share(old.len() as u64, pass.within, left.min(pass.which.old.map_or(left, spread_over))),
    };
    for one in &old {
        match left {
            0 => done.idle += 1,
            _ => left -= u64::from(done.shut(one, number)),
        }
    }
    let wanted = match pass.pace {
        Pace::Number(_) => left,
        Pace::Until(left) => share(idle.len() as u64, pass.within, left),
    };
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(idle.len());
    done.idle += (idle.len() - wanted) as u64;
    let gap = pass.within.saturating_sub(begun.elapsed()) / (wanted.max(1) as u32);
    for one in &idle[..wanted] {
        done.shut(one, number);
        if begun.elapsed() < pass.within {
            thread::sleep(gap);
        }
    }
    if done.closed > 0 {
        // What was closed at once has the time of the pass all the same.
        thread::sleep(unsteady(pass.within).saturating_sub(begun.elapsed()));
    }
    done
}

impl Closed {
    /// Closes a connection, and adds it to `number` before its server can see that. False if it was not closed.
    fn shut(&mut self, one: &Idle, number: &AtomicI64) -> bool {
        number.fetch_add(1, Relaxed);
        let shut = one.shut_down();
        if !matches!(shut, Ok(true)) {
            number.fetch_sub(1, Relaxed);
        }
        match &shut {
            Ok(true) => self.closed += 1,
            Ok(false) => self.active += 1,
            Err(error) => drop(self.failure.get_or_insert_with(|| error.to_string())),
        }
        matches!(shut, Ok(true))
    }
}

/// The time over which connections are closed that have become old together, as at the begin of a drain: a small part of their age.
fn spread_over(max_age: Duration) -> Duration {
    (max_age / OLD_PART).min(OLD_MAX)
}

/// A time that is as long on average, and half as long at least: clients that ask in a steady rhythm are not met at the same point of it again
/// and again.
pub fn unsteady(time: Duration) -> Duration {
    let part = f64::from(RandomState::new().hash_one(()) as u32) / f64::from(u32::MAX);
    time.mul_f64(0.5 + part)
}

/// The part of these that is closed within a time, if all are to be closed evenly until then.
fn share(all: u64, within: Duration, left: Duration) -> u64 {
    let part = within.as_secs_f64() / left.max(within).as_secs_f64();
    (all as f64 * part).ceil() as u64
}

/// Clients that come back do so in no order.
fn shuffle(idle: &mut [Idle]) {
    let order = RandomState::new();
    idle.sort_by_cached_key(|one| order.hash_one(one.connection.cookie.0));
}

/// An idle connection, and where its socket was found.
struct Idle {
    connection: Established,
    process: Arc<Process>,
    seat: Seat,
    /// How long it has to be idle.
    after: Duration,
    /// It has been open for too long.
    is_old: bool,
}

impl Idle {
    /// Shuts down its receiving side. False if it is not idle any more, or is gone.
    fn shut_down(&self) -> io::Result<bool> {
        // The descriptor may have been closed meanwhile, and its number may be another file's.
        let Ok(copy) = self.process.copy(self.seat) else { return Ok(false) };
        if sys::socket_cookie(&copy).ok() != Some(self.connection.cookie) {
            return Ok(false);
        }
        let said = Said::read(&sys::tcp_info(&copy)?).unwrap_or_default();
        // What came since it was looked at may be a request that the server has read.
        if self.connection.said.is_none_or(|seen| seen.received != said.received) || !is_quiet(&said, self.after) {
            return Ok(false);
        }
        match rustix::net::shutdown(&copy, Shutdown::Read) {
            Ok(()) => Ok(true),
            // The client has closed it.
            Err(rustix::io::Errno::NOTCONN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The idle connections of backends of one namespace.
fn look(
    backends: &[Question],
    which: &Closes,
    ages: &Mutex<Ages>,
    memory: &mut Memory,
    done: &mut Closed,
) -> io::Result<Vec<Idle>> {
    let Some(netns) = backends.first().map(|question| question.netns) else { return Ok(Vec::new()) };
    let ports: BTreeSet<Port> = backends.iter().flat_map(|question| question.ports.iter().copied()).collect();
    let sets: Vec<_> = backends.iter().map(|question| question.processes.clone()).collect();
    let ns = open_netns(netns, &sets)?;
    let probes = IpAddr::from(Ipv4Addr::from(PROBE_SOURCE_V4));
    // First, since it takes long, and a connection that is old has to stay idle from here on until it is closed.
    let mut seats = Vec::new();
    for question in backends {
        for process in question.processes.processes().into_iter().map(Arc::new) {
            let of_process = process.seats().into_iter().flatten();
            seats.extend(of_process.map(|seat| (question, Arc::clone(&process), seat)));
        }
    }
    let mut by_inode: HashMap<u64, Established> = HashMap::new();
    listening::each_established(&ns, netns.cookie, &ports, |one| {
        // Those whose client, or whose own server, has ended it already are left alone.
        if one.inode != 0 && one.client.ip() != probes && !one.half_closed && !one.is_shut {
            by_inode.insert(one.inode, one);
        }
        Ok(())
    })?;
    // The iterator is of the namespace of the thread that reads it. It comes after the times: what is said in between makes a
    // connection active.
    let heard_by = netns::run_in(&ns, netns.cookie, || read(&mut memory.heard)).unwrap_or_else(|error| {
        done.failure.get_or_insert_with(|| format!("it is not known which clients wait for answers: {error}"));
        HashMap::new()
    });
    memory.note(by_inode.values(), &heard_by);
    let old = match which.old {
        Some(age) => {
            let cookies = by_inode.values().map(|one| one.cookie);
            ages.lock().unwrap_or_else(PoisonError::into_inner).older(cookies, age, Instant::now())
        }
        None => BTreeSet::new(),
    };
    let mut idle = Vec::new();
    for (question, process, seat) in seats {
        let is_its = |one: &Established| question.ports.contains(&Port::tcp(one.local.port()));
        let is_held = by_inode.get(&seat.inode).is_some_and(is_its);
        let Some(connection) = is_held.then(|| by_inode.remove(&seat.inode)).flatten() else { continue };
        let is_old = old.contains(&connection.cookie);
        let after = if is_old { Some(which.idle.map_or(MOMENT, |idle| idle.min(MOMENT))) } else { which.idle };
        match after {
            Some(after) if is_idle(&connection, after, memory.is_answered(&connection)) => {
                idle.push(Idle { connection, process, seat, after, is_old });
            }
            _ => done.active += 1,
        }
    }
    Ok(idle)
}

fn read(heard: &mut Option<HeardIterator>) -> io::Result<HashMap<SocketCookie, bool>> {
    let loaded = match heard.take() {
        Some(loaded) => loaded,
        None => HeardIterator::load()?,
    };
    heard.insert(loaded).read()
}

/// Nothing was said for so long, and everything was acknowledged.
fn is_quiet(said: &Said, after: Duration) -> bool {
    let after_ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
    said.unacked == 0 && said.idle_ms() >= after_ms
}

impl Memory {
    /// Takes what the iterator has told of connections: whether their client has acknowledged something after all that it has sent.
    fn note<'a>(&mut self, all: impl Iterator<Item = &'a Established>, heard: &HashMap<SocketCookie, bool>) {
        for Established { cookie, said, .. } in all {
            let Some(said) = said else { continue };
            // What is acknowledged late may be a probe.
            let is_timely = said.received_ms.saturating_sub(said.acked_ms) <= ACKNOWLEDGED_MS;
            match heard.get(cookie) {
                Some(true) if is_timely => drop(self.answered.insert(*cookie, (said.received, true))),
                Some(true) | None => {}
                Some(false) => drop(self.answered.insert(*cookie, (said.received, false))),
            }
        }
    }

    /// Whether a client has got an answer to all that it has sent; `None` if that is not known.
    fn is_answered(&self, connection: &Established) -> Option<bool> {
        let (received, answered) = self.answered.get(&connection.cookie)?;
        (*received == connection.said?.received).then_some(*answered)
    }
}

/// Whether a connection is idle. `answered` counts only if the times do not tell.
fn is_idle(connection: &Established, after: Duration, answered: Option<bool>) -> bool {
    let Some(said) = &connection.said else { return false };
    if connection.queued || !is_quiet(said, after) {
        return false;
    }
    if said.received == 0 {
        // It has asked for nothing.
        return true;
    }
    match said.sent_ms.cmp(&said.received_ms) {
        // The server has sent something since the client did.
        Ordering::Less => true,
        Ordering::Greater => false,
        Ordering::Equal => answered.unwrap_or(said.received_ms >= UNKNOWN_IDLE_MS),
    }
}

#[cfg(test)]
mod tests;
