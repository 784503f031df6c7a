//! Deploys and canaries that cannot succeed fail or roll back automatically, report why, and lose no connection.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::Backend,
    journal::Killed,
    load::{Running, Tally},
    orders::Ordered,
    report, require,
    rollouts::{CHECKED, all_by, answer, answered_by_version, clients, hold, none_lost, web, web_on},
    tools, wait,
};
use serde_json::Value;

/// How long a backend that is ready again and again is not ready.
const REST: Duration = Duration::from_millis(200);
/// After 500 ms a ready backend counts as stable, and a deploy rightly succeeds.
const READY_MS_MAX: u64 = 450;
/// Attempts to have backends that are ready for less, for a busy machine.
const ATTEMPTS_MAX: usize = 3;
/// Deploys that may be needed to see a few starts of a backend.
const DEPLOYS_MAX: usize = 5;

/// The old version, which has all traffic, under load.
fn old_under_load() -> Result<(Stage, Backend, Running)> {
    let stage = Stage::configured(CHECKED)?;
    let old = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.order_done("shift web v1=1")?;
    let load = clients().threads(4).start(stage.host.net())?;
    Ok((stage, old, load))
}

/// The one line that an operator reads on standard error.
fn reason(ordered: &Ordered) -> Result<&str> {
    let said = ordered.stderr.trim_end();
    ensure!(said.lines().count() == 1, "one line: {said}");
    Ok(said)
}

/// The weights of the decision.
fn traffic(stage: &Stage) -> Result<Value> {
    Ok(stage.daemon.decision("web")?["traffic"].clone())
}

/// Gives an order that must fail and change nothing, while only the old version serves.
fn fails(stage: &Stage, order: &str, why: &[&str]) -> Result<()> {
    let before = stage.daemon.decision("web")?;
    let ordered = stage.daemon.order(order)?.expect(1)?;
    let said = reason(&ordered)?;
    ensure!(why.iter().all(|why| said.contains(why)), "{order}: {said}");
    ensure!(said.contains("nothing has changed") && stage.daemon.decision("web")? == before, "{order}: {said}");
    report::figure(order, said);
    Ok(())
}

/// Ends the load. The old version must have served every connection.
fn all_by_old(stage: &Stage, load: Running) -> Result<()> {
    let tally = load.stop()?;
    none_lost(&tally)?;
    ensure!(tally.connections() > 0 && tally.answered_by("v1-1") == tally.connections(), "{tally}");
    let service = stage.daemon.wait_idle("web")?;
    for new in service.backends.iter().filter(|backend| backend.version == "v2") {
        ensure!((new.steered, new.opened) == (0, 0), "{new:?}");
    }
    Ok(())
}

#[test]
fn a_version_that_never_becomes_ready() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let (stage, _old, load) = old_under_load()?;
    answer(&stage, "v2-1", "503 Not Yet")?;
    let _failing = web(&stage, "v2-1").start(&stage)?;
    stage.daemon.wait_state("web", "v2-1", "unhealthy")?;
    fails(&stage, "deploy web v2 --timeout 1s", &["0 of 1 backends of v2 are ready", "v2-1 is unhealthy", "503"])?;
    fails(&stage, "canary web v2 --timeout 1s", &["0 of 1 backends of v2 are ready", "v2-1 is unhealthy", "503"])?;
    let _elsewhere = web_on(&stage, "v2-2", "0.0.0.0:9999").start(&stage)?;
    fails(&stage, "deploy web v2 --timeout 1s", &["0 of 2 backends of v2", "v2-1 is unhealthy", "v2-2"])?;
    stage.daemon.wait_state("web", "v2-2", "not-listening")?;
    // One ready backend of two is not enough.
    answer(&stage, "v2-1", "200 OK")?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    fails(&stage, "deploy web v2 --timeout 2s", &["1 of 2 backends of v2", "v2-2: it listens on 9999, not on 8080"])?;
    fails(&stage, "deploy web v2 --timeout 2s --backends 3", &["1 of 3 backends of v2"])?;
    all_by_old(&stage, load)?;
    stage.daemon.order_done("deploy web v2 --timeout 20s --backends 1")?;
    all_by(stage.host.net(), 200, "v2").map(drop)
}

#[test]
fn a_version_that_flaps() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    for _ in 0..ATTEMPTS_MAX {
        if flaps()? {
            return Ok(());
        }
    }
    bail!(
        "in {ATTEMPTS_MAX} attempts the deploy succeeded, and v2-1 may have been ready for more than {READY_MS_MAX} ms"
    )
}

/// False if v2-1 may have been ready for too long at a time.
fn flaps() -> Result<bool> {
    let (stage, _old, load) = old_under_load()?;
    let steady = web(&stage, "v2-1").start(&stage)?;
    // Otherwise it could be stable before it flaps.
    answer(&stage, "v2-1", "503 Not Yet")?;
    stage.daemon.wait_state("web", "v2-1", "unhealthy")?;
    if !fails_beside(&stage, "deploy web v2 --timeout 3s", flap)? {
        return Ok(false);
    }
    drop(steady);
    answer(&stage, "v2-1", "200 OK")?;
    // A backend starts, is ready for a moment, and ends, repeatedly. Another one keeps the version known.
    let _elsewhere = web_on(&stage, "v2-2", "0.0.0.0:9999").start(&stage)?;
    if !fails_beside(&stage, "deploy web v2 --backends 1 --timeout 4s", start_and_kill)? {
        return Ok(false);
    }
    all_by_old(&stage, load)?;
    Ok(true)
}

/// Gives a deploy that must fail although v2-1 is ready for a moment again and again: each time that `once` runs. False if it has
/// succeeded, and v2-1 may have been ready for too long.
fn fails_beside(stage: &Stage, order: &str, once: fn(&Stage) -> Result<()>) -> Result<bool> {
    let (failed, times, longest_ms) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU64::new(0));
    let repeat = || -> Result<()> {
        while !failed.load(Ordering::Relaxed) {
            let began = Instant::now();
            once(stage)?;
            longest_ms.fetch_max(u64::try_from(began.elapsed().as_millis())?, Ordering::Relaxed);
            times.fetch_add(1, Ordering::Relaxed);
            thread::sleep(REST);
        }
        Ok(())
    };
    let (repeated, result) = thread::scope(|scope| {
        let repeats = scope.spawn(repeat);
        // During one deploy it may be ready too few times on a slow machine.
        let mut deploys = (0..DEPLOYS_MAX).take_while(|_| times.load(Ordering::Relaxed) <= 2);
        let result = deploys.try_for_each(|_| fails(stage, order, &["0 of 1 backends of v2 are ready"]));
        failed.store(true, Ordering::Relaxed);
        (repeats.join().expect("the thread does not panic"), result)
    });
    repeated?;
    let end = stage.daemon.history("web")?.pop().and_then(|last| last.end).context("no history")?;
    if end.outcome == "done" && longest_ms.into_inner() > READY_MS_MAX {
        return Ok(false);
    }
    result?;
    let times = times.into_inner();
    ensure!(times > 2, "it was ready {times} times");
    Ok(true)
}

/// Waits until v2-1 is ready, or is not ready. Unlike the daemon's `wait_state` it sees that soon, since it starts no process.
fn wait_soon(stage: &Stage, ready: bool) -> Result<()> {
    wait::until_ok(&format!("v2-1 to be ready: {ready}"), || {
        let web = stage.daemon.said_of("web")?;
        let mut backends = web["backends"].as_array().into_iter().flatten();
        // A ready backend of a version without traffic is a standby.
        let is_ready = |one: &Value| one["state"] == "standby" || one["state"] == "ready";
        let now = backends.any(|one| one["name"] == "v2-1" && is_ready(one));
        Ok((now == ready).then_some(()))
    })
}

/// Lets the check pass until the daemon has seen it: far less than the time after which a backend counts as stable.
fn flap(stage: &Stage) -> Result<()> {
    answer(stage, "v2-1", "200 OK")?;
    wait_soon(stage, true)?;
    answer(stage, "v2-1", "503 Not Yet")?;
    wait_soon(stage, false)
}

/// Starts a backend that ends as soon as it is ready.
fn start_and_kill(stage: &Stage) -> Result<()> {
    let mut backend = web(stage, "v2-1").start(stage)?;
    wait_soon(stage, true)?;
    backend.process.kill()?;
    wait_soon(stage, false)
}

/// Only connections that killed servers had accepted were lost.
fn accounted_for(tally: &Tally, journals: &[std::path::PathBuf]) -> Result<()> {
    ensure!(tally.refused() == 0, "{tally}");
    Killed::read(journals)?.accounts_for(tally)
}

#[test]
fn a_version_that_dies_during_the_deploy() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let (stage, _old, load) = old_under_load()?;
    let journal = stage.host.dir().join("v2-1.journal");
    let mut new = web(&stage, "v2-1").journal(&journal).start(&stage)?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    let before = traffic(&stage)?;
    let held = hold(stage.host.net())?;
    let ordered = thread::scope(|scope| {
        let deploy = scope.spawn(|| stage.daemon.order("deploy web v2 --drain-timeout 60s"));
        stage.daemon.wait_for("the new version to serve", |status| {
            let new = status.service("web")?.backends.iter().find(|backend| backend.version == "v2")?;
            (new.opened > 50).then_some(())
        })?;
        new.process.kill()?;
        deploy.join().expect("the thread does not panic")
    })?;
    let ordered = ordered.expect(1)?;
    let said = reason(&ordered)?;
    ensure!(said.contains("no backend of v2 is ready any more") && said.contains("as it was before"), "{said}");
    ensure!(traffic(&stage)? == before, "{}", traffic(&stage)?);
    drop(held);
    all_by(stage.host.net(), 200, "v1")?;
    let tally = load.stop()?;
    report::figure("new version killed during its deploy", &tally);
    ensure!(answered_by_version(&tally, "v2") > 0, "{tally}");
    accounted_for(&tally, &[journal])?;
    let last = stage.daemon.history("web")?.pop().and_then(|last| last.end).context("no history")?;
    ensure!(last.outcome == "went-back", "{last:?}");
    Ok(())
}

/// Begins a canary of a version at half of the traffic, runs `spoil`, and expects a rollback for this reason.
fn canary_goes_back(stage: &Stage, spoil: impl FnOnce() -> Result<()> + Send, why: &str) -> Result<()> {
    let before = traffic(stage)?;
    let ordered = thread::scope(|scope| {
        let canary = scope.spawn(|| stage.daemon.order("canary web v2 --steps 50%,100% --every 60s"));
        stage.daemon.wait_for("the canary to serve", |status| {
            let new = status.service("web")?.backends.iter().find(|backend| backend.version == "v2")?;
            (new.state == "ready" && new.opened > 0).then_some(())
        })?;
        spoil()?;
        canary.join().expect("the thread does not panic")
    })?;
    let ordered = ordered.expect(1)?;
    let said = reason(&ordered)?;
    ensure!(said.contains(why) && said.contains("as it was before"), "{said}");
    ensure!(traffic(stage)? == before, "{}", traffic(stage)?);
    report::figure("a canary goes back", said);
    all_by(stage.host.net(), 200, "v1").map(drop)
}

#[test]
fn a_canary_that_turns_unhealthy_or_exits() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let (stage, _old, load) = old_under_load()?;
    let (first, second) = (stage.host.dir().join("first.journal"), stage.host.dir().join("second.journal"));
    let new = web(&stage, "v2-1").journal(&first).start(&stage)?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    canary_goes_back(&stage, || answer(&stage, "v2-1", "500 Broken"), "v2-1 is unhealthy")?;
    // Healthy again, it is tried again, and ends on SIGTERM.
    answer(&stage, "v2-1", "200 OK")?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    canary_goes_back(&stage, || new.process.signal(rustix::process::Signal::TERM), "v2-1")?;
    // Another one is killed.
    let mut new = web(&stage, "v2-1").journal(&second).start(&stage)?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    canary_goes_back(&stage, || new.process.kill(), "v2-1")?;
    let tally = load.stop()?;
    report::figure("three canaries that went back", &tally);
    ensure!(answered_by_version(&tally, "v2") > 0, "{tally}");
    accounted_for(&tally, &[second])
}

#[test]
fn a_canary_whose_queue_overflows() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    // Without health checks, which would notice first.
    let stage = Stage::without_engine()?;
    let _old = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.order_done("shift web v1=1")?;
    let mut new = web(&stage, "v2-1").server(&["--backlog", "1", "--accept-delay-ms", "600000"]).start(&stage)?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    // Some of them wait in that queue until the server ends.
    let load = clients().threads(16).timeout(Duration::from_secs(60)).start(stage.host.net())?;
    canary_goes_back(&stage, || Ok(()), "the accept queue of v2-1 overflowed")?;
    // Connections in its accept queue are not lost: they move when it ends.
    new.process.kill()?;
    let tally = load.stop()?;
    report::figure("a canary that accepts no connection", &tally);
    none_lost(&tally)?;
    ensure!(tally.answered_by("v1-1") == tally.connections(), "{tally}");
    Ok(())
}
