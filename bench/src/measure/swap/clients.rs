//! The clients of one swap: one that sends requests without a pause, and some more in the background. Each runs on a thread in the
//! clients' namespace. None of them repeats a failed request; failures are counted.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use pod_steer_tests::{
    load::{End, Loss, ask, attempt},
    netns::NetNs,
    wait,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};

use super::gaps::Answer;

/// Further clients that open a connection for each request, and that keep theirs.
pub const SHORT: usize = 2;
/// See [`SHORT`].
pub const KEPT: usize = 2;
/// The pause of the further clients between two requests, and of any client after a failure: a loop of refusals would take processor time
/// from the server that starts.
pub const REST: Duration = Duration::from_millis(5);
/// After so many requests a client with a kept connection opens another one, so that old connections end.
pub const REQUESTS_KEPT: usize = 60;
/// How long a client waits to be connected, and for an answer. Above the kernel's first two retries of a SYN.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Clients that are not stopped end after this time.
const RUN_MAX: Duration = Duration::from_secs(60);

/// The counts of clients.
#[derive(Debug, Default)]
pub struct Seen {
    /// The answers of the client without pauses, in order.
    pub answers: Vec<Answer>,
    /// Requests of all clients.
    pub requests: u64,
    /// Requests without an answer, by kind of failure.
    pub failures: BTreeMap<&'static str, u64>,
}

impl Seen {
    /// Adds the counts of another client. Only one client keeps its answers.
    fn merge(&mut self, other: Self) {
        self.answers.extend(other.answers);
        self.requests += other.requests;
        for (what, times) in other.failures {
            *self.failures.entry(what).or_default() += times;
        }
    }

    fn answered(&mut self) {
        self.requests += 1;
    }

    fn lost(&mut self, loss: &Loss) {
        self.requests += 1;
        *self.failures.entry(in_words(loss)).or_default() += 1;
        thread::sleep(REST);
    }
}

fn in_words(loss: &Loss) -> &'static str {
    match loss {
        Loss::Refused => "refused",
        Loss::ResetBefore(_) => "closed before an answer",
        Loss::ResetAfter(_) => "closed in an answer, or after others",
        Loss::ConnectTimedOut | Loss::AnswerTimedOut(_) => "timed out",
        Loss::Garbled(..) => "answered with an error",
        Loss::Rejected | Loss::Failed(_) => "unreachable",
    }
}

/// Running clients. Dropping them stops them.
#[derive(Debug)]
pub struct Clients {
    threads: Vec<JoinHandle<Result<Seen>>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// The server that answered last.
    newest: Mutex<String>,
}

impl Shared {
    fn go_on(&self, began: Instant) -> bool {
        !self.stop.load(Ordering::Relaxed) && began.elapsed() < RUN_MAX
    }
}

impl Clients {
    /// Starts all of them in a namespace.
    pub fn start(ns: &NetNs, target: SocketAddr) -> Result<Self> {
        let mut clients = Self { threads: Vec::new(), shared: Arc::default() };
        clients.add(ns, move |shared| ask_always(target, shared))?;
        for _ in 0..SHORT {
            clients.add(ns, move |shared| ask_shortly(target, shared))?;
        }
        for _ in 0..KEPT {
            clients.add(ns, move |shared| ask_on_kept(target, shared))?;
        }
        Ok(clients)
    }

    fn add(&mut self, ns: &NetNs, client: impl FnOnce(&Shared) -> Seen + Send + 'static) -> Result<()> {
        let (ns, shared) = (ns.try_clone()?, Arc::clone(&self.shared));
        self.threads.push(thread::spawn(move || {
            ns.enter()?;
            Ok(client(&shared))
        }));
        Ok(())
    }

    /// Waits until this server answers the client without pauses.
    pub fn wait_for(&self, server: &str) -> Result<()> {
        wait::until(&format!("{server} to answer"), || (*newest(&self.shared) == server).then_some(()))
            .with_context(|| format!("the last answer was {:?}", *newest(&self.shared)))
    }

    /// Lets every client finish its request and adds up.
    pub fn stop(mut self) -> Result<Seen> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut seen = Seen::default();
        for thread in self.threads.drain(..) {
            seen.merge(thread.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok(seen)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn newest(shared: &Shared) -> std::sync::MutexGuard<'_, String> {
    shared.newest.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request after the other, each on a new connection, without pauses.
fn ask_always(target: SocketAddr, shared: &Shared) -> Seen {
    let mut seen = Seen::default();
    let start = Instant::now();
    while shared.go_on(start) {
        let began = Instant::now();
        match attempt(target, 1, TIMEOUT) {
            End::Answered(answer) => {
                seen.answered();
                if *newest(shared) != answer.name {
                    newest(shared).clone_from(&answer.name);
                }
                seen.answers.push(Answer { began, ended: Instant::now(), name: answer.name });
            }
            End::Lost(loss, _) => seen.lost(&loss),
        }
    }
    seen
}

/// The same with pauses.
fn ask_shortly(target: SocketAddr, shared: &Shared) -> Seen {
    let mut seen = Seen::default();
    let start = Instant::now();
    while shared.go_on(start) {
        match attempt(target, 1, TIMEOUT) {
            End::Answered(_) => seen.answered(),
            End::Lost(loss, _) => seen.lost(&loss),
        }
        thread::sleep(REST);
    }
    seen
}

/// Many requests on a connection, with pauses.
fn ask_on_kept(target: SocketAddr, shared: &Shared) -> Seen {
    let mut seen = Seen::default();
    let start = Instant::now();
    while shared.go_on(start) {
        if let Err(loss) = keep_one(target, &mut seen, || shared.go_on(start)) {
            seen.lost(&loss);
        }
    }
    seen
}

fn keep_one(target: SocketAddr, seen: &mut Seen, go_on: impl Fn() -> bool) -> Result<(), Loss> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => Loss::Refused,
        std::io::ErrorKind::TimedOut => Loss::ConnectTimedOut,
        _ => Loss::Failed(error.to_string()),
    };
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT).map_err(failed)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    for request in 0..REQUESTS_KEPT {
        let (_, last) = ask(&mut stream, target, request > 0)?;
        seen.answered();
        thread::sleep(REST);
        if last || !go_on() || is_closed(&stream) {
            break;
        }
    }
    Ok(())
}

/// Whether the server has closed an idle connection. Common clients check that before a request, and open another connection.
fn is_closed(stream: &TcpStream) -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&at_once)).is_ok_and(|ready| ready > 0)
}
