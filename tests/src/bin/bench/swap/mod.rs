//! The section `hot-swap`: what clients notice when a server is replaced by its next version, again and again, by
//! pod-steer and by what people use instead.
//!
//! [`contestant`] is what is compared, [`clients`] who asks meanwhile, [`gaps`] and [`record`] what becomes of their
//! answers. The machine is never shared: only the contestant whose turn it is has any load.

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
use pod_steer_tests::{measures::Section, tools};

use self::{clients::Clients, contestant::Contestant, record::Swap};

/// How long the load goes on before the first command and after the last.
const MARGIN: Duration = Duration::from_millis(200);
/// The stretch without a swap, before the first swap of a contestant has shown how long one takes.
const STRETCH_FIRST: Duration = Duration::from_secs(1);
/// A swap that takes longer has failed.
const SWAP_MAX: Duration = Duration::from_secs(20);

/// A contestant, and what its swaps have shown so far.
struct Lane {
    name: &'static str,
    title: &'static str,
    /// Swaps of the whole run.
    planned: usize,
    contestant: Box<dyn Contestant>,
    swaps: Vec<Swap>,
}

/// How a contestant starts its first version.
type Start = fn(&str) -> Result<Box<dyn Contestant>>;

/// Name, title, programs beyond Docker's own, start.
const CONTESTANTS: [(&str, &str, &[&str], Start); 4] = [
    ("pod-steer", "pod-steer deploy", &[], |version| Ok(Box::new(pod_steer::PodSteer::start(version)?))),
    ("haproxy", "HAProxy, TCP mode, reload that passes its sockets on", &["haproxy"], |version| {
        Ok(Box::new(proxy::Proxy::start(haproxy::HaProxy, version)?))
    }),
    ("nginx-http", "nginx, HTTP proxy, reload", &["nginx"], |version| {
        Ok(Box::new(proxy::Proxy::start(nginx::Nginx, version)?))
    }),
    ("docker-p", "docker stop, docker run -p", &["iptables", "docker-proxy"], |version| {
        Ok(Box::new(docker::DockerP::start(version)?))
    }),
];

/// Measures the section.
pub fn measure(quick: bool) -> Result<Vec<Section>> {
    let (rounds, planned_of_own, planned_of_others) = if quick { (5, 5, 5) } else { (30, 100, 30) };
    let (mut lanes, mut skipped) = (Vec::new(), Vec::new());
    for (name, title, programs, start) in CONTESTANTS {
        if let Err(reason) = tools::docker().and_then(|()| tools::root_and(programs)) {
            skipped.push((name.to_owned(), reason));
            continue;
        }
        let planned = if name == "pod-steer" { planned_of_own } else { planned_of_others };
        let contestant = start(&version(0)).with_context(|| format!("starting {name} and its first server"))?;
        lanes.push(Lane { name, title, planned, contestant, swaps: Vec::new() });
    }
    for round in 1..=rounds {
        for lane in &mut lanes {
            // Spread evenly: whoever has more swaps than others has some more in every round.
            while lane.swaps.len() * rounds < lane.planned * round {
                let number = lane.swaps.len() + 1;
                let swap = lane.swap(number).with_context(|| format!("swap {number} of {}", lane.name))?;
                lane.swaps.push(swap);
            }
        }
        eprintln!("hot-swap: round {round} of {rounds}");
    }
    Ok(vec![Section {
        name: "hot-swap".into(),
        title: "Hot swap".into(),
        about: about(),
        columns: record::columns(),
        rows: lanes.iter().map(|lane| record::row(lane.name, lane.title, &lane.swaps)).collect(),
        skipped,
    }])
}

impl Lane {
    /// One swap under load, after as long a stretch of the same load without one.
    fn swap(&mut self, number: usize) -> Result<Swap> {
        let (old, new) = (version(number - 1), version(number));
        let site = self.contestant.site();
        let clients = Clients::start(&site.client.ns, site.target())?;
        clients.wait_for(&old)?;
        let calm = Instant::now();
        thread::sleep(self.swaps.last().map_or(STRETCH_FIRST, |swap| swap.took) + 2 * MARGIN);
        let from = Instant::now();
        thread::sleep(MARGIN);
        let began = Instant::now();
        let replaced = self.contestant.replace(&new)?;
        let ended = Instant::now();
        clients.wait_for(&new)?;
        thread::sleep(MARGIN);
        let to = Instant::now();
        let seen = clients.stop()?;
        drop(replaced);
        let took = ended - began;
        ensure!(took < SWAP_MAX, "it took {took:?}");
        gaps::swapped(&seen.answers, ended, &new)?;
        let gap = gaps::longest(&seen.answers, from, to).context("nobody was answered")?;
        let gap_before = gaps::longest(&seen.answers, calm, from).context("nobody was answered before it")?;
        Ok(Swap { gap, gap_before, took, requests: seen.requests, failures: seen.failures })
    }
}

/// What the server answers that comes with a swap.
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
         Beside it is the longest pause of the same client in as long a time just before, without a swap. \
         pod-steer: `docker run` of the new version, `pod-steer deploy --stop-old`. HAProxy and nginx: `docker run` of \
         the new server beside the old one, the configuration rewritten to name it, a reload of the master process, \
         `docker stop` of the old server when the old workers have ended. docker -p: `docker stop` of the old container, \
         then `docker run -p` of the new one. After each swap the new version must answer, and nobody else. The \
         contestants take turns.",
        margin = MARGIN.as_millis(),
        short = clients::SHORT,
        kept = clients::KEPT,
        rest = clients::REST.as_millis(),
        requests = clients::REQUESTS_KEPT,
        timeout = clients::TIMEOUT.as_secs(),
    )
}
