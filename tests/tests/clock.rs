//! The wall clock is set, by hand or by NTP. Durations within one boot do not depend on it.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    load::Load,
    require,
    rollouts::{all_by, answered_by_version, clients, hold, none_lost, web},
    tools, wait,
};
use serde_json::{Value, json};

const HOUR_S: i64 = 3600;
/// The length of a canary's steps.
const EVERY_MS: u64 = 3_000;

fn needs() -> Result<(), String> {
    tools::root_and(&["faketime", "ip"])
}

fn stage(settings: &str) -> Result<Stage> {
    let stage = Stage::with_wall_clock(settings)?;
    // Check first that the clock was shifted at all.
    stage.shift_wall_clock(10 * HOUR_S)?;
    ensure!((shift_of(&stage)? - 10 * HOUR_S).abs() < 60, "the daemon's wall clock has moved");
    stage.shift_wall_clock(0)?;
    Ok(stage)
}

/// The error of the daemon's wall clock, from the time stamp of an order that was just given.
fn shift_of(stage: &Stage) -> Result<i64> {
    let _probe = pod_steer_tests::exec::Exec::new("probe-1", "probe", "70:7070", "0.0.0.0:7070").start(stage)?;
    stage.daemon.wait_ready("probe", 1)?;
    stage.daemon.order_done("shift probe unversioned=1")?;
    let (_, history) = stage.daemon.api("/v1/history?service=probe", None)?;
    let last = history.as_array().and_then(|all| all.last()).context("no history")?.clone();
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    Ok((last["begun_ms"].as_i64().context("no time")? - now_ms) / 1000)
}

fn two_versions(settings: &str) -> Result<(Stage, Vec<pod_steer_tests::exec::Backend>)> {
    let stage = stage(settings)?;
    let backends = vec![web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("shift web v1=1")?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    Ok((stage, backends))
}

fn deploy(version: &str, more: Value) -> Value {
    let mut order = json!({ "order": "deploy", "version": version, "timeout_ms": 20_000, "drain_timeout_ms": 20_000 });
    order.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    order
}

#[test]
fn a_deploy_does_not_wait_for_the_wall_clock() -> Result<()> {
    require!(needs());
    let (stage, _backends) = two_versions("")?;
    for (shift_s, version) in [(-HOUR_S, "v2"), (HOUR_S, "v1"), (-30 * 365 * 24 * HOUR_S, "v2")] {
        stage.shift_wall_clock(shift_s)?;
        let id = stage.daemon.begin(&deploy(version, json!({})))?;
        stage.daemon.wait_ended(id, "done")?;
        all_by(stage.host.net(), 100, version)?;
    }
    // The history has the time by the wall clock as it was.
    stage.shift_wall_clock(-HOUR_S)?;
    let shift_s = shift_of(&stage)?;
    ensure!((shift_s + HOUR_S).abs() < 60, "{shift_s}");
    Ok(())
}

#[test]
fn deadlines_and_steps_do_not_fire_early() -> Result<()> {
    require!(needs());
    let (mut stage, _backends) = two_versions("")?;
    let load = clients().start(stage.host.net())?;
    // A held connection keeps the deploy draining; after that the old version is kept for an hour.
    let held = hold(stage.host.net())?;
    stage.daemon.wait_for("the connection", |status| (status.backend("web", "v1-1").live > 0).then_some(()))?;
    let order = deploy("v2", json!({ "drain_timeout_ms": 600_000, "keep_old_ms": 600_000 }));
    let id = stage.daemon.begin(&order)?;
    stage.daemon.wait_operation(id, "draining", |operation| operation.phase.name == "draining")?;
    for restarts in [false, true] {
        stage.shift_wall_clock(if restarts { -2 * HOUR_S } else { 2 * HOUR_S })?;
        if restarts {
            stage.daemon.kill()?;
            stage.daemon.restart()?;
        }
        thread::sleep(Duration::from_millis(700));
        let operation = stage.daemon.operation(id)?;
        ensure!(operation.phase.name == "draining", "after a step: {operation:?}");
        // The status shows the rest by the wall clock: about ten minutes.
        let said = stage.daemon.said_of("web")?["operation"].clone();
        let waits = said["waiting_for"].as_str().context("no words")?.to_owned();
        ensure!(waits.contains("9 min") || waits.contains("10 min"), "{said}");
    }
    drop(held);
    stage.daemon.wait_ended(id, "done")?;
    for shift_s in [HOUR_S, -HOUR_S, 24 * HOUR_S] {
        stage.shift_wall_clock(shift_s)?;
        stage.daemon.kill()?;
        stage.daemon.restart()?;
    }
    thread::sleep(Duration::from_millis(700));
    stage.daemon.wait_state("web", "v1-1", "standby")?;

    // A canary takes each step when its time has come, and ends when the last step has lasted as long.
    let canary = json!({
        "order": "canary", "version": "v1", "steps": [100, 10_000], "every_ms": EVERY_MS, "timeout_ms": 20_000
    });
    let begun = Instant::now();
    let id = stage.daemon.begin(&canary)?;
    stage.daemon.wait_operation(id, "the first step", |operation| operation.phase.name == "stepping")?;
    stage.shift_wall_clock(48 * HOUR_S)?;
    thread::sleep(Duration::from_millis(700));
    stage.shift_wall_clock(-48 * HOUR_S)?;
    let ended = stage.daemon.wait_ended(id, "done")?;
    // The daemon rounds to milliseconds.
    let least = Duration::from_millis(2 * (EVERY_MS - 1));
    ensure!(begun.elapsed() >= least, "two steps took {:?}: {ended:?}", begun.elapsed());
    all_by(stage.host.net(), 100, "v1")?;
    none_lost(&load.stop()?)
}

#[test]
fn a_slow_start_continues_when_the_clock_is_set_back() -> Result<()> {
    require!(needs());
    let stage = stage("[service.web]\nslow-start = '4s'\n")?;
    let _first = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    thread::sleep(Duration::from_secs(4));
    let _second = web(&stage, "v1-2").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    stage.shift_wall_clock(-HOUR_S)?;
    wait::until_ok("the whole share", || {
        let tally = Load::to("127.0.0.1:80".parse()?).count(1000).run(stage.host.net())?;
        none_lost(&tally)?;
        Ok((400..600).contains(&tally.answered_by("v1-2")).then_some(()))
    })
    .with_context(|| stage.daemon.log_tail())
}

#[test]
fn the_newest_version_is_the_one_that_came_last() -> Result<()> {
    require!(needs());
    let mut stage = stage("[service.web]\nrollout = 'latest'\n")?;
    let _first = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    all_by(stage.host.net(), 50, "v1")?;
    let until_all_by = |stage: &Stage, version: &str| {
        wait::until_ok(&format!("{version} to have everything"), || {
            let tally = clients().pause(Duration::ZERO).count(50).run(stage.host.net())?;
            none_lost(&tally)?;
            Ok((answered_by_version(&tally, version) == 50).then_some(()))
        })
        .with_context(|| stage.daemon.log_tail())
    };
    stage.shift_wall_clock(-HOUR_S)?;
    let _second = web(&stage, "v2-1").start(&stage)?;
    until_all_by(&stage, "v2")?;
    // A later decision of an operator is not undone, whatever the clock says.
    wait::until_ok("the deploy to end", || {
        Ok(stage.daemon.history("web")?.iter().all(|operation| operation.end.is_some()).then_some(()))
    })?;
    stage.shift_wall_clock(-2 * HOUR_S)?;
    stage.daemon.order_done("rollback web")?;
    for _ in 0..2 {
        thread::sleep(Duration::from_secs(1));
        all_by(stage.host.net(), 50, "v1")?;
        stage.daemon.kill()?;
        stage.daemon.restart()?;
    }
    all_by(stage.host.net(), 50, "v1").map(drop)
}

#[test]
fn the_first_claim_holds_when_the_clock_is_set_back() -> Result<()> {
    require!(needs());
    let stage = stage("")?;
    let exec = |name: &str, service: &str, port: u16| {
        pod_steer_tests::exec::Exec::new(name, service, &format!("80:{port}"), &format!("0.0.0.0:{port}"))
    };
    let first = exec("first-1", "first", 8081).start(&stage)?;
    stage.daemon.wait_ready("first", 1)?;
    stage.shift_wall_clock(-HOUR_S)?;
    // The second one is refused at once, although the wall clock shows an earlier time.
    let mut second = exec("second-1", "second", 8082).launch(&stage)?;
    let ended = second.process.wait(wait::STUCK)?;
    ensure!(!ended.success(), "{ended}");
    let tally = Load::to("127.0.0.1:80".parse()?).count(100).run(stage.host.net())?;
    ensure!(tally.answered_by(&first.name) == 100, "{tally}");
    Ok(())
}
