//! The policies decide automatically when a new version or backend appears. Slow start.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    check,
    container::Container,
    daemon::Stage,
    load::Load,
    report, require,
    rollouts::{all_by, answered_by_version, clients, connect, none_lost, web},
    server, tools, wait,
};

const SLOW_START_MS: u64 = 8_000;

fn container(stage: &Stage, version: &str, policy: &str) -> Result<Container> {
    let spec = server::named(&format!("{version}-1"), "0.0.0.0:8080").service("web", "80:8080").version(version);
    stage.engine().start_container(&spec.label("pod-steer.rollout", policy))
}

/// Waits until one version answers all new connections.
fn until_all_by(stage: &Stage, version: &str) -> Result<()> {
    wait::until_ok(&format!("{version} to have everything"), || {
        let tally = connect(stage.host.net(), 50)?;
        Ok((answered_by_version(&tally, version) == 50).then_some(()))
    })
    .with_context(|| stage.daemon.log_tail())
}

#[test]
fn latest_takes_over_by_itself() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let net = stage.host.net();
    let _first = container(&stage, "v1", "latest")?;
    stage.daemon.wait_ready("web", 1)?;
    until_all_by(&stage, "v1")?;
    let load = clients().threads(2).start(net)?;
    let _second = container(&stage, "v2", "latest")?;
    until_all_by(&stage, "v2")?;
    // The old version drains: its connections end, and the deploy with them.
    let deployed = wait::until_ok("the deploy to end", || {
        let last = stage.daemon.history("web")?.pop().context("no history")?;
        Ok(last.end.as_ref().is_some_and(|end| end.outcome == "done").then_some(last))
    })?;
    ensure!(deployed.order == "deploy", "{deployed:?}");
    ensure!(stage.daemon.status()?.backend("web", "v1-1").live == 0, "the old version has drained");
    let (_, history) = stage.daemon.api("/v1/history?service=web", None)?;
    let last = history.as_array().and_then(|all| all.last()).context("no history")?;
    ensure!(last["who"] == "policy latest", "{last}");

    // An operator's rollback takes precedence, also across a restart of the daemon.
    let mut stage = stage;
    stage.daemon.order_done("rollback web")?;
    until_all_by(&stage, "v1")?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    for _ in 0..15 {
        all_by(stage.host.net(), 100, "v1")?;
        std::thread::sleep(Duration::from_millis(100));
    }
    // The next version is deployed again.
    let _third = container(&stage, "v3", "latest")?;
    until_all_by(&stage, "v3")?;
    let tally = load.stop()?;
    report::figure("three versions, each the latest once, and a rollback", &tally);
    none_lost(&tally)?;
    ensure!(["v1", "v2", "v3"].iter().all(|version| answered_by_version(&tally, version) > 0), "{tally}");
    Ok(())
}

/// Two labels start a service; its next version may be the first container that says what is to happen.
#[test]
fn the_next_version_may_bring_the_policy() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let spec = server::named("v1-1", "0.0.0.0:8080").service("web", "80:8080");
    let _first = stage.engine().start_container(&spec)?;
    stage.daemon.wait_ready("web", 1)?;
    let load = clients().threads(2).start(stage.host.net())?;
    let _second = container(&stage, "v2", "latest")?;
    until_all_by(&stage, "v2")?;
    none_lost(&load.stop()?)
}

#[test]
fn manual_waits_for_a_command() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::configured("[service.web]\nrollout = 'manual'\n")?;
    let net = stage.host.net();
    let _first = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let load = clients().threads(2).start(net)?;
    let _second = web(&stage, "v2-1").start(&stage)?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    for _ in 0..10 {
        all_by(net, 100, "v1")?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let waiting = stage.daemon.status()?.backend("web", "v2-1").clone();
    ensure!((waiting.steered, waiting.opened) == (0, 0), "{waiting:?}");
    stage.daemon.order_done("deploy web v2")?;
    all_by(net, 200, "v2")?;
    none_lost(&load.stop()?)
}

#[test]
fn balance_lets_all_share() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::configured("[service.web]\nrollout = 'balance'\n")?;
    let _first = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let load = clients().threads(2).start(stage.host.net())?;
    let _others = [web(&stage, "v1-2").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 3)?;
    let tally = connect(stage.host.net(), 3000)?;
    check::shares_follow("all versions share", &tally, &[("v1-1", 1), ("v1-2", 1), ("v2-1", 1)])?;
    none_lost(&load.stop()?)
}

#[test]
fn a_new_backend_starts_slowly() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::configured(&format!("[service.web]\nslow-start = '{SLOW_START_MS}ms'\n"))?;
    let _first = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    // Alone it serves all, and its slow start ends.
    all_by(stage.host.net(), 100, "v1")?;
    std::thread::sleep(Duration::from_millis(SLOW_START_MS));
    let started = std::time::Instant::now();
    let _second = web(&stage, "v1-2").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    let began = std::time::Instant::now();
    let mut shares = Vec::new();
    let net = stage.host.net();
    while began.elapsed() < Duration::from_millis(SLOW_START_MS) {
        let at = began.elapsed();
        let tally = Load::to("127.0.0.1:80".parse()?).count(400).run(net)?;
        none_lost(&tally)?;
        let share = tally.answered_by("v1-2") as f64 / 400.0;
        // Its weight cannot be greater than after the whole time since before its start. Chance is far below a tenth.
        let weight = (started.elapsed().as_secs_f64() * 1e3 / SLOW_START_MS as f64).min(1.0);
        ensure!(share <= weight / (1.0 + weight) + 0.1, "{share} of the connections with a weight of {weight}");
        shares.push((at, share));
        std::thread::sleep(Duration::from_millis(200));
    }
    let average = |part: &[(Duration, f64)]| part.iter().map(|(_, share)| share).sum::<f64>() / part.len() as f64;
    let (early, late) = shares.split_at(shares.len() / 2);
    let [first, early, late] = [shares[0].1, average(early), average(late)];
    report::figure("share of a new backend", format!("{first:.2} at first, {early:.2} early, {late:.2} late"));
    ensure!(early < late && late < 0.5, "it grows: {shares:?}");
    let tally = connect(net, 3000)?;
    check::shares_follow("after its slow start", &tally, &[("v1-1", 1), ("v1-2", 1)])
}
