//! The section `hot-swap`: the effect on clients when a server is repeatedly replaced by its next version, by pod-steer and by the
//! alternatives.
//!
//! [`contestant`] is one alternative, [`clients`] are its clients, [`gaps`] and [`record`] evaluate their answers. Only the contestant
//! whose turn it is has any load.

mod clients;
mod contestant;
mod docker;
mod gaps;
mod haproxy;
mod nginx;
mod pod_steer;
mod proxy;
mod record;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::tools;

use crate::report::Section;

use self::{
    clients::{Clients, Seen},
    contestant::Contestant,
    record::Swap,
};
use crate::{measure::one_line, options::Options};

/// How long the load runs before the first command and after the last.
const MARGIN: Duration = Duration::from_millis(100);
/// The interval without a swap, before the first swap of a contestant has shown how long one takes.
const STRETCH_FIRST: Duration = Duration::from_secs(1);
/// No round begins after this time, however slow the machine. The report has the swaps until then.
const ROUNDS_MAX: Duration = Duration::from_secs(330);
/// A swap that takes longer counts as failed.
const SWAP_MAX: Duration = Duration::from_secs(20);

/// One way to swap.
struct Way {
    name: &'static str,
    title: &'static str,
    /// Its requirements beyond those of the tests' engine.
    programs: &'static [&'static str],
    /// Starts it, with its first version.
    start: fn(&str) -> Result<Box<dyn Contestant>>,
}

const WAYS: [Way; 4] = [
    Way {
        name: "pod-steer",
        title: "pod-steer deploy",
        programs: &[],
        start: |version| Ok(Box::new(pod_steer::PodSteer::start(version)?)),
    },
    Way {
        name: "haproxy",
        title: "HAProxy, TCP mode, reload with sockets passed on",
        programs: &["haproxy"],
        start: |version| Ok(Box::new(proxy::Proxy::start(haproxy::HaProxy, version)?)),
    },
    Way {
        name: "nginx-http",
        title: "nginx, HTTP proxy, reload",
        programs: &["nginx"],
        start: |version| Ok(Box::new(proxy::Proxy::start(nginx::Nginx, version)?)),
    },
    Way {
        name: "docker-p",
        title: "docker stop, docker run -p",
        programs: &["iptables", "docker-proxy"],
        start: |version| Ok(Box::new(docker::DockerP::start(version)?)),
    },
];

/// What is measured here.
pub const SECTIONS: &[&str] = &["hot-swap"];

/// The contestants.
pub const CONTESTANTS: &[&str] = &[WAYS[0].name, WAYS[1].name, WAYS[2].name, WAYS[3].name];

/// A way under measurement.
struct Lane {
    way: &'static Way,
    /// Swaps of the whole run.
    planned: usize,
    contestant: Box<dyn Contestant>,
    swaps: Vec<Swap>,
}

/// Measures the section.
pub fn measure(options: &Options) -> Result<Vec<Section>> {
    let (rounds, planned_of_own, planned_of_others) = if options.quick { (5, 5, 5) } else { (30, 100, 30) };
    let (mut lanes, mut skipped) = (Vec::new(), Vec::new());
    for way in WAYS.iter().filter(|way| options.wants_contestant(way.name)) {
        if let Err(reason) = tools::docker().and_then(|()| tools::root_and(way.programs)) {
            skipped.push((way.name.to_owned(), reason));
            continue;
        }
        let planned = if way.name == "pod-steer" { planned_of_own } else { planned_of_others };
        match (way.start)(&version(0)) {
            Ok(contestant) => lanes.push(Lane { way, planned, contestant, swaps: Vec::new() }),
            Err(error) => skipped.push(out(way, &error)),
        }
    }
    let began = Instant::now();
    for round in 1..=rounds {
        if began.elapsed() > ROUNDS_MAX {
            eprintln!("hot-swap: the time is over after {} of {rounds} rounds", round - 1);
            break;
        }
        // A contestant that fails is out, and its host ends.
        lanes.retain_mut(|lane| {
            let result = lane.round(round, rounds);
            skipped.extend(result.as_ref().err().map(|error| out(lane.way, error)));
            result.is_ok()
        });
        eprintln!("hot-swap: round {round} of {rounds}");
    }
    Ok(vec![Section {
        name: SECTIONS[0].into(),
        title: "Hot swap".into(),
        about: about(),
        columns: record::columns(),
        rows: lanes.iter().map(|lane| record::row(lane.way.name, lane.way.title, &lane.swaps)).collect(),
        skipped,
    }])
}

/// A contestant that is out, and why.
fn out(way: &Way, error: &anyhow::Error) -> (String, String) {
    let reason = one_line(error);
    eprintln!("hot-swap: {} is out: {reason}", way.name);
    (way.name.to_owned(), reason)
}

impl Lane {
    /// Its swaps of one round. A contestant with more swaps than others has more in every round.
    fn round(&mut self, round: usize, rounds: usize) -> Result<()> {
        // Not before each swap, or half of the time would pass without one.
        let mut look = round % 2 == 1;
        while self.swaps.len() * rounds < self.planned * round {
            let number = self.swaps.len() + 1;
            let calm = look.then(|| self.swaps.last().map_or(STRETCH_FIRST, |swap| swap.stretch));
            let swap = self.swap(number, calm).with_context(|| format!("swap {number}"))?;
            self.swaps.push(swap);
            look = false;
        }
        Ok(())
    }

    /// One swap under load, after an interval of the same load without one.
    fn swap(&mut self, number: usize, calm: Option<Duration>) -> Result<Swap> {
        let (old, new) = (version(number - 1), version(number));
        let site = self.contestant.site();
        let clients = Clients::start(&site.client.ns, site.target())?;
        clients.wait_for(&old)?;
        let start = Instant::now();
        thread::sleep(calm.unwrap_or_default());
        let from = Instant::now();
        thread::sleep(MARGIN);
        let began = Instant::now();
        let replaced = self.contestant.replace(&new)?;
        let ended = Instant::now();
        clients.wait_for(&new)?;
        thread::sleep(MARGIN);
        let to = Instant::now();
        let Seen { answers, requests, failures } = clients.stop()?;
        drop(replaced);
        let took = ended - began;
        ensure!(took < SWAP_MAX, "it took {took:?}");
        gaps::swapped(&answers, ended, &new)?;
        let gap = gaps::longest(&answers, from, to).context("no request was answered")?;
        let gap_at_switch = gaps::longest_at_switch(&answers).context("only one version answered")?;
        let gap_before = calm.and_then(|_| gaps::longest(&answers, start, from));
        Ok(Swap { gap, gap_at_switch, gap_before, took, stretch: to - from, requests, failures })
    }
}

/// The answer of the server of a swap.
fn version(number: usize) -> String {
    format!("v{number}")
}

fn about() -> String {
    format!(
        "A server in a container is replaced by its next version under load, and the longest pause is taken that a client \
         sees from {margin} ms before the first command to {margin} ms after the last. That client asks all the time, \
         each request on a new connection, without a rest; {short} more do so with rests of {rest} ms, and {kept} send \
         {requests} requests on a connection with such rests. Failed are the requests of all of them, also before and \
         after, that were refused, reset, answered with an error or not within {timeout} s; who fails rests {rest} ms and \
         tries again, so that a long pause has many failures; an idle connection that its server has closed is none. \
         Beside it is the longest pause between answers of the old version and the new, which leaves out those that the \
         start and the stop of a container cause by their use of the processor, and that of the same client in as long a \
         time just before, without a swap (in every second round). \
         pod-steer: `docker run` of the new version, `pod-steer deploy --stop-old`. HAProxy and nginx: `docker run` of \
         the new server beside the old one, the configuration rewritten to name it, a reload of the master process, \
         `docker stop` of the old server when the old workers have ended. docker -p: `docker stop` of the old container, \
         then `docker run -p` of the new one; its longest pause contains one retry of a SYN, which comes after 1 s. \
         What the client that asks all the time is answered to a request that it begins after the last command has ended, \
         for {margin} ms at least, must come from the new version. The contestants take turns.",
        margin = MARGIN.as_millis(),
        short = clients::SHORT,
        kept = clients::KEPT,
        rest = clients::REST.as_millis(),
        requests = clients::REQUESTS_KEPT,
        timeout = clients::TIMEOUT.as_secs(),
    )
}
