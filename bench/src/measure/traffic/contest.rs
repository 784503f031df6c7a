//! All contestants of a run, set up at once, and the order in which they take their turns.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    lab::Lab,
    servers::SMALL,
    shuffle::Shuffle,
    tally::Tally,
    ways::{Running, WAYS, Way},
};
use crate::{measure::one_line, options::Options};

/// How many connections are opened to see every server answer. With two equally likely servers, one is missing with a probability of
/// 1 in 10^19.
const TRIES: usize = 64;
const TIMEOUT: Duration = Duration::from_secs(5);

/// Contestants that are set up and answer. The fields are dropped in this order.
pub struct Contest {
    running: Vec<(&'static Way, Running)>,
    failed: Vec<(&'static Way, String)>,
    shuffle: Shuffle,
    /// Their host.
    pub lab: Lab,
}

impl Contest {
    /// Sets up the wanted ones that take part, with their bases.
    pub fn new(options: &Options, takes_part: impl Fn(&Way) -> bool) -> Result<Self> {
        let lab = Lab::new().context("setting up the host of the contestants")?;
        let (mut running, mut failed) = (Vec::new(), Vec::new());
        for way in wanted(options).into_iter().filter(|way| takes_part(way)) {
            eprintln!("setting up {}", way.name);
            match (way.start)(&lab).and_then(|ready| check(&lab, &ready).map(|()| ready)) {
                Ok(ready) => running.push((way, ready)),
                // An hour without them would be in vain.
                Err(error) if way.is_own() => return Err(error.context(format!("setting up {}", way.name))),
                Err(error) => {
                    let reason = one_line(&error);
                    eprintln!("{} does not take part: {reason}", way.name);
                    failed.push((way, reason));
                }
            }
        }
        Ok(Self { running, failed, shuffle: Shuffle::new(), lab })
    }

    /// The contestants, in the order of their turns in the next round.
    pub fn turns(&self) -> impl Iterator<Item = &(&'static Way, Running)> {
        self.shuffle.order(self.running.len()).into_iter().map(|index| &self.running[index])
    }

    /// Gives each contestant that is not out its turn, and records its numbers. A contestant that fails is out.
    pub fn round(
        &self,
        section: &str,
        tally: &mut Tally,
        mut turn: impl FnMut(&'static Way, &Running) -> Result<Vec<(&'static str, f64)>>,
    ) {
        for (way, running) in self.turns() {
            if tally.has_failed(way.name) {
                continue;
            }
            match turn(way, running) {
                Ok(numbers) => tally.add(way.name, numbers),
                Err(error) => {
                    let reason = one_line(&error);
                    eprintln!("{section}: {} is out: {reason}", way.name);
                    tally.fail(way.name, reason);
                }
            }
        }
    }

    /// The contestants, in the order for people.
    pub fn shown(&self) -> impl Iterator<Item = &'static Way> {
        WAYS.iter().filter(|way| self.running.iter().any(|(one, _)| one.name == way.name))
    }

    /// The contestants that could not be set up, and why.
    pub fn failed(&self) -> impl Iterator<Item = (&'static Way, String)> {
        self.failed.iter().map(|(way, reason)| (*way, reason.clone()))
    }
}

fn wanted(options: &Options) -> Vec<&'static Way> {
    let asked = |way: &Way| options.wants_contestant(way.name);
    let is_base = |way: &Way| WAYS.iter().any(|one| one.base == Some(way.name) && asked(one));
    WAYS.iter().filter(|way| asked(way) || is_base(way)).collect()
}

/// Checks that each of the servers answers and no other, so that the right contestant is measured.
fn check(lab: &Lab, running: &Running) -> Result<()> {
    let expected: BTreeSet<String> = running.servers.all().iter().map(|server| server.name.clone()).collect();
    let mut answered = BTreeSet::new();
    let addr = running.http;
    for _ in 0..TRIES {
        answered.insert(lab.ns(running.from).run(|| ask(addr))?);
        if answered == expected {
            return Ok(());
        }
    }
    bail!("{answered:?} have answered, and not {expected:?}");
}

fn ask(addr: SocketAddr) -> Result<String> {
    let asking = || format!("asking {addr}");
    let mut stream = TcpStream::connect_timeout(&addr, TIMEOUT).with_context(asking)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("GET {SMALL} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(asking)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(asking)?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{addr} answers {head:?}");
    Ok(body.trim_end().to_owned())
}
