//! The client: a few threads that open a connection for each request, bounded in count and time. It distinguishes requests that were
//! refused before a server could know of them from those that were cut off, and checks that the server saw the client's own address.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub const THREADS: usize = 4;
/// Two loads have fewer requests than the sandbox has ephemeral ports, so that no port is used twice.
const REQUESTS_MAX: u64 = 24_000;
const LOAD_MAX: Duration = Duration::from_secs(60);
/// Between two requests of a thread.
const PAUSE: Duration = Duration::from_millis(2);
/// Longest wait for a connection or an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The outcomes of the requests that began in one scene.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    pub requests: u64,
    /// No connection was established.
    pub refused: u64,
    /// A connection, but no complete answer.
    pub cut: u64,
    /// Answers that named another address than the client's.
    pub strangers: u64,
    /// By the name in the answer.
    pub answers: BTreeMap<String, u64>,
    /// When each name was first answered.
    pub first: BTreeMap<String, Instant>,
    /// The first few reasons.
    pub reasons: Vec<String>,
}

impl Scene {
    pub fn failures(&self) -> u64 {
        self.refused + self.cut
    }

    pub fn answers_of(&self, name: &str) -> u64 {
        self.answers.get(name).copied().unwrap_or(0)
    }
}

struct Shared {
    server: SocketAddr,
    scene: AtomicUsize,
    stop: AtomicBool,
    left: AtomicU64,
    scenes: Mutex<Vec<Scene>>,
}

pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(server: SocketAddr) -> Result<Self> {
        let shared = Arc::new(Shared {
            server,
            scene: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            left: AtomicU64::new(REQUESTS_MAX),
            scenes: Mutex::new(vec![Scene::default()]),
        });
        let client = |number| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("client-{number}")).spawn(move || shared.request_until_stopped())
        };
        let threads = (0..THREADS).map(client).collect::<io::Result<_>>().context("cannot start the client")?;
        Ok(Self { shared, threads })
    }

    /// Requests that begin from now on are counted in the next scene.
    pub fn next_scene(&self) {
        self.shared.scenes().push(Scene::default());
        self.shared.scene.fetch_add(1, Ordering::Relaxed);
    }

    /// The current scene, and its counts so far.
    pub fn now(&self) -> Scene {
        let scene = self.shared.scene.load(Ordering::Relaxed);
        self.shared.scenes()[scene].clone()
    }

    /// Lets the running requests end.
    pub fn stop(self) -> Vec<Scene> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // The counts are shared, so a panicked thread loses none of them.
            let _ = thread.join();
        }
        self.shared.scenes().clone()
    }
}

impl Shared {
    fn scenes(&self) -> MutexGuard<'_, Vec<Scene>> {
        self.scenes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request_until_stopped(&self) {
        let start = Instant::now();
        while !self.stop.load(Ordering::Relaxed) && start.elapsed() < LOAD_MAX {
            if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
                return;
            }
            let scene = self.scene.load(Ordering::Relaxed);
            let outcome = request(self.server);
            self.scenes()[scene].add(outcome);
            sleep(PAUSE);
        }
    }
}

enum Outcome {
    Answer { name: String, own_address: bool },
    Refused(io::Error),
    Cut(io::Error),
}

impl Scene {
    fn add(&mut self, outcome: Outcome) {
        self.requests += 1;
        let reason = match outcome {
            Outcome::Answer { name, own_address } => {
                self.first.entry(name.clone()).or_insert_with(Instant::now);
                *self.answers.entry(name).or_default() += 1;
                self.strangers += u64::from(!own_address);
                return;
            }
            Outcome::Refused(error) => {
                self.refused += 1;
                format!("no connection: {error}")
            }
            Outcome::Cut(error) => {
                self.cut += 1;
                format!("cut off: {error}")
            }
        };
        if self.reasons.len() < 3 {
            self.reasons.push(reason);
        }
    }
}

fn request(server: SocketAddr) -> Outcome {
    let stream = match TcpStream::connect_timeout(&server, PATIENCE) {
        Ok(stream) => stream,
        Err(error) => return Outcome::Refused(error),
    };
    match ask(stream) {
        Ok((name, own_address)) => Outcome::Answer { name, own_address },
        Err(error) => Outcome::Cut(error),
    }
}

/// The server that answered, and whether it saw our own address.
fn ask(mut stream: TcpStream) -> io::Result<(String, bool)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    (&stream).take(64 * 1024).read_to_string(&mut answer)?;
    let (name, seen) = parse(&answer).ok_or_else(|| io::Error::other("the answer is not whole"))?;
    Ok((name.to_owned(), seen == stream.local_addr()?.to_string()))
}

/// The body is `NAME ADDRESS` and a line feed.
fn parse(answer: &str) -> Option<(&str, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200 ").then(|| body.strip_suffix('\n')?.split_once(' '))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_understood() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\nv1 127.0.0.1:4000\n";
        assert_eq!(parse(whole), Some(("v1", "127.0.0.1:4000")));
        assert_eq!(parse(&whole[..whole.len() - 1]), None);
        assert_eq!(parse(&whole.replace("200 OK", "500 No")), None);
    }

    #[test]
    fn outcomes_are_told_apart() {
        let mut scene = Scene::default();
        scene.add(Outcome::Answer { name: "v1".to_owned(), own_address: true });
        scene.add(Outcome::Refused(io::Error::other("refused")));
        scene.add(Outcome::Cut(io::Error::other("reset")));
        assert_eq!((scene.requests, scene.failures(), scene.answers_of("v1"), scene.strangers), (3, 2, 1, 0));
        assert_eq!(scene.reasons.len(), 2);
    }
}
