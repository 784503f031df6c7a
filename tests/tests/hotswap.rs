//! Deploys back and forth under full load, by the tests' clients and by wrk, h2load and curl: no client is refused, reset or kept
//! waiting.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    clients::{self, Program},
    container::Container,
    daemon::Stage,
    load::{self, Load},
    report, require, scale, server, stats, tools,
};

/// The servers close a connection after so many requests, and the tests' clients before that: old connections end, and no server
/// closes one unannounced.
const REQUESTS_OF_CONNECTION: &str = "60";
/// The test fails if the machine is too slow to finish in this time.
const RUN_MAX: Duration = Duration::from_secs(280);

/// Deploys and requests.
fn size() -> (usize, u64) {
    (scale::of(80, 200), scale::of(400_000, 1_000_000))
}

fn start(stage: &Stage, version: &str) -> Result<Container> {
    let args = ["--listen", "0.0.0.0:8080", "--requests-max", REQUESTS_OF_CONNECTION];
    let spec = server::named_with(version, &args).service("web", "8080:8080").version(version);
    stage.engine().start_container(&spec)
}

/// All clients, which run at the same time.
struct Clients {
    short: load::Running,
    kept: load::Running,
    programs: Vec<clients::Running>,
}

impl Clients {
    fn start(stage: &Stage, target: SocketAddr) -> Result<Self> {
        let ns = stage.host.net();
        Ok(Self {
            short: Load::to(target).threads(1).start(ns)?,
            kept: Load::to(target).threads(2).requests(50).start(ns)?,
            programs: Program::ALL.into_iter().map(|program| program.start(ns, target)).collect::<Result<_>>()?,
        })
    }

    fn answered(&self) -> u64 {
        let programs = self.programs.iter().map(clients::Running::answered);
        self.short.requests() + self.kept.requests() + programs.sum::<u64>()
    }

    /// Requests in all, every one answered.
    fn stop(self) -> Result<u64> {
        let mut complaints = Vec::new();
        let mut answered = 0;
        for running in self.programs {
            let program = running.program;
            let counts = running.stop()?;
            report::figure(&format!("deploys under full load, {program:?}"), &counts);
            answered += counts.answered;
            complaints.extend(counts.complaints);
        }
        for (label, load) in [("short connections", self.short), ("kept-alive connections", self.kept)] {
            let tally = load.stop()?;
            report::figure(
                &format!("deploys under full load, {label}"),
                format!("{} requests, {tally}", tally.requests()),
            );
            answered += tally.requests();
            complaints.extend(tally.losses.iter().map(|loss| format!("{loss:?}")));
        }
        ensure!(complaints.is_empty(), "{} of {answered} requests were lost: {complaints:#?}", complaints.len());
        Ok(answered)
    }
}

#[test]
fn deploys_under_full_load_lose_nothing() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&Program::PROGRAMS));
    let stage = Stage::with_docker()?;
    let _versions = [start(&stage, "v1")?, start(&stage, "v2")?];
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("shift web v1=1")?;
    let began = Instant::now();
    let (least_deploys, least_requests) = size();
    let clients = Clients::start(&stage, "127.0.0.1:8080".parse()?)?;
    let mut took = Vec::new();
    while took.len() < least_deploys || clients.answered() < least_requests {
        ensure!(began.elapsed() < RUN_MAX, "{} deploys, {} requests", took.len(), clients.answered());
        let version = if took.len() % 2 == 0 { "v2" } else { "v1" };
        took.push(stage.daemon.order_done(&format!("deploy web {version}"))?.took());
    }
    let deploys = took.len();
    let requests = clients.stop()?;
    let seconds = began.elapsed().as_secs_f64();
    report::figure(
        "deploys under full load",
        format!("{deploys} deploys, {requests} requests in {seconds:.1} s, 0 lost"),
    );
    report::figure("deploy under full load, from command to its return", stats::median_and_maximum(&mut took));
    let history = stage.daemon.history("web")?;
    for step in ["switched", "drained"] {
        let mut took: Vec<_> = history.iter().filter_map(|operation| operation.took(step)).collect();
        report::figure(&format!("deploy under full load, {step}"), stats::median_and_maximum(&mut took));
    }
    ensure!(requests > least_requests, "only {requests} requests");

    let service = stage.daemon.wait_idle("web")?;
    let bad: Vec<_> = service.counters.iter().filter(|(_, count)| **count > 0).collect();
    ensure!(bad.is_empty(), "nothing was lost and yet: {bad:?}");
    let moved = service.backends.iter().map(|backend| backend.moved_in + backend.moved_out).sum::<u64>();
    ensure!(moved == 0, "no listener closed, and yet {moved} connections moved");
    Ok(())
}
