//! A table most of whose sockets have closed at once, before a daemon could replace it: how many of them one packet tries.

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{daemon::Stage, exec::Exec, load::Load, report, require, tools};

/// Tries of one connection: 8 slots, and 1,024 members at most; there is no reserve.
const TRIES_MAX: u64 = 8 + 1_024;
const CONNECTIONS: u64 = 50;

/// A backend with this many listeners on port 8080.
fn many(stage: &Stage, name: &str, sockets: usize, weight: &str) -> Result<pod_steer_tests::exec::Backend> {
    let listeners: Vec<&str> = (1..sockets).flat_map(|_| ["--listen", "0.0.0.0:8080"]).collect();
    let exec = Exec::new(name, "web", "80:8080", "0.0.0.0:8080").flags(&["--weight", weight]);
    let backend = exec.server(&listeners).start(stage)?;
    stage.daemon.wait_for(&format!("{sockets} sockets of {name}"), |status| {
        let backend = status.service("web")?.backends.iter().find(|backend| backend.name == name)?;
        (backend.sockets == sockets as u64 && backend.state == "ready").then_some(())
    })?;
    Ok(backend)
}

#[test]
fn a_packet_tries_a_bounded_number_of_dead_sockets_and_finds_the_living() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    // Of 4,150 members 150 still listen, and almost no slot leads to them.
    let mut doomed = [many(&stage, "doomed-1", 2_000, "65535")?, many(&stage, "doomed-2", 2_000, "65535")?];
    let mut kept = many(&stage, "kept", 150, "1")?;
    // It keeps the service and its counters, and serves no client.
    let _elsewhere = Exec::new("elsewhere", "web", "80:8080", "0.0.0.0:9090").start(&stage)?;
    stage.daemon.kill()?;
    for backend in &mut doomed {
        backend.process.kill()?;
    }
    let load = || Load::to("127.0.0.1:80".parse().expect("an address")).count(CONNECTIONS).run(stage.host.net());
    let tally = load()?;
    ensure!(tally.answered_by("kept") == CONNECTIONS, "a walk finds one in twenty-eight: {tally}");
    kept.process.kill()?;
    let tally = load()?;
    ensure!(tally.refused() as u64 == CONNECTIONS, "no listener is left: {tally}");
    stage.daemon.restart()?;
    let status = stage.daemon.status()?;
    let stale = status.service("web").context("its counters stay")?.counter("stale_slots");
    report::figure("stale slots of 100 connections to a table of 4,150 sockets of which 150 live, then none", stale);
    ensure!(stale > CONNECTIONS * 512 && stale <= 2 * CONNECTIONS * TRIES_MAX, "{stale} tries: {status}");
    Ok(())
}
