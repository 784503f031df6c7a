//! Clients that account for every connection they open.
//!
//! A load runs on threads inside a network namespace, is bounded in number or in time, and ends in a [`Tally`] in which each connection
//! appears exactly once: answered by a name, or lost with a reason.

mod connection;
mod tally;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
pub use connection::{Answer, End, Loss, ask, attempt, attempt_by, attempt_from};
pub use tally::{Logged, Tally};

use crate::netns::NetNs;

/// A load without a number of connections ends after this time if it is not stopped.
const RUN_MAX: Duration = Duration::from_secs(600);

/// The behaviour of clients. Made by [`Load::to`].
#[derive(Clone, Debug)]
pub struct Load {
    target: SocketAddr,
    threads: u64,
    /// Connections of all threads together; `None` until stopped.
    count: Option<u64>,
    requests: u32,
    timeout: Duration,
    pause: Duration,
    source: Option<IpAddr>,
    logged: bool,
}

impl Load {
    /// Short connections, one after the other, until stopped.
    pub fn to(target: SocketAddr) -> Self {
        let (timeout, pause) = (Duration::from_secs(20), Duration::ZERO);
        Self { target, threads: 1, count: None, requests: 1, timeout, pause, source: None, logged: false }
    }

    /// Clients at the same time.
    pub fn threads(self, threads: u64) -> Self {
        Self { threads, ..self }
    }

    /// Ends after so many connections.
    pub fn count(self, count: u64) -> Self {
        Self { count: Some(count), ..self }
    }

    /// Requests on each connection, which is kept alive between them.
    pub fn requests(self, requests: u32) -> Self {
        Self { requests, ..self }
    }

    /// How long a client waits to be connected, and to be answered. Above the kernel's first four retries of a SYN by
    /// default, so that a lost packet is no loss.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The pause of each client between two connections.
    pub fn pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// From this address of the namespace.
    pub fn from(self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self }
    }

    /// Records when each connection began, and which server answered.
    pub fn logged(self) -> Self {
        Self { logged: true, ..self }
    }

    /// Runs in a namespace until the number of connections is reached.
    pub fn run(self, ns: &NetNs) -> Result<Tally> {
        assert!(self.count.is_some(), "a load without a count has to be started and stopped");
        self.start(ns)?.join()
    }

    /// Starts in a namespace.
    pub fn start(self, ns: &NetNs) -> Result<Running> {
        let shared = Arc::new(Shared::default());
        let began = Instant::now();
        let clients = (0..self.threads).map(|_| {
            let (load, shared, ns) = (self.clone(), Arc::clone(&shared), ns.try_clone()?);
            Ok(thread::spawn(move || load.client(&ns, &shared, began)))
        });
        Ok(Running { clients: clients.collect::<Result<_>>()?, shared })
    }

    fn client(&self, ns: &NetNs, shared: &Shared, began: Instant) -> Result<Tally> {
        ns.enter()?;
        let mut tally = Tally::default();
        while !shared.stop.load(Ordering::Relaxed) && began.elapsed() < RUN_MAX {
            let number = shared.opened.fetch_add(1, Ordering::Relaxed);
            if self.count.is_some_and(|count| number >= count) {
                break;
            }
            let began_one = Instant::now();
            let end = attempt_from(self.source, self.target, self.requests, self.timeout);
            if let End::Answered(answer) = &end {
                shared.answered.fetch_add(1, Ordering::Relaxed);
                shared.requests.fetch_add(u64::from(answer.requests), Ordering::Relaxed);
                if self.logged {
                    let ended = Instant::now();
                    tally.log.push(Logged { began: began_one, ended, name: answer.name.clone() });
                }
            }
            tally.add(end, began.elapsed());
            thread::sleep(self.pause);
        }
        Ok(tally)
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    opened: AtomicU64,
    answered: AtomicU64,
    requests: AtomicU64,
}

/// A running load. Dropping it stops it.
#[derive(Debug)]
pub struct Running {
    clients: Vec<JoinHandle<Result<Tally>>>,
    shared: Arc<Shared>,
}

impl Running {
    /// Connections answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Requests answered so far, on connections that have ended.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Lets every client finish its connection and adds up.
    pub fn stop(self) -> Result<Tally> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    fn join(mut self) -> Result<Tally> {
        let mut total = Tally::default();
        for client in self.clients.drain(..) {
            total.merge(client.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok(total)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}
