//! Several operators at a time: one order runs on a service, the others are refused with its origin, and no two orders mix. Drain and
//! resume.

use std::{collections::BTreeSet, thread};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    check,
    daemon::Stage,
    exec::Backend,
    orders::Ordered,
    report, require,
    rollouts::{CHECKED, TARGET, all_by, answer, answered_by_version, clients, connect, hold, none_lost, web},
    tools,
};
use serde_json::{Value, json};

/// Operators who order something at the same time.
const OPERATORS: u64 = 10;

fn start(stage: &Stage, names: &[&str]) -> Result<Vec<Backend>> {
    let backends = names.iter().map(|name| web(stage, name).start(stage)).collect();
    stage.daemon.wait_ready("web", names.len())?;
    backends
}

/// Runs an order of each operator at once.
fn at_once(stage: &Stage, order: impl Fn(u64) -> String + Sync) -> Result<Vec<Ordered>> {
    thread::scope(|scope| {
        let order = &order;
        let operators = (1..=OPERATORS).map(|number| scope.spawn(move || stage.daemon.order(&order(number))));
        let operators: Vec<_> = operators.collect();
        operators.into_iter().map(|operator| operator.join().expect("the thread does not panic")).collect()
    })
}

#[test]
fn the_second_order_is_refused_with_the_origin_of_the_first() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::configured(CHECKED)?;
    let _old = start(&stage, &["v1-1"])?;
    stage.daemon.order_done("shift web v1=1")?;
    answer(&stage, "v2-1", "503 Not Yet")?;
    let _new = web(&stage, "v2-1").start(&stage)?;
    stage.daemon.wait_state("web", "v2-1", "unhealthy")?;
    let before = stage.daemon.decision("web")?;
    let first = thread::scope(|scope| {
        let first = scope.spawn(|| stage.daemon.order("deploy web v2 --timeout 25s"));
        stage.daemon.wait_for("the deploy to wait", |status| {
            status.service("web")?.operation.as_ref().filter(|held| held.phase.name == "waiting").map(drop)
        })?;
        let orders = ["shift web v1=1 v2=1", "deploy web v1", "canary web v2", "drain web --version v1", "pause web"];
        for order in orders {
            let second = stage.daemon.order(order)?.expect(1)?;
            for word in [
                "web is held by root (uid 0, pid ",
                "the deploy of v2 has been running since",
                "pod-steer rollback web",
            ] {
                ensure!(second.stderr.contains(word), "{order}: {}", second.stderr);
            }
            ensure!(second.stderr.trim_end().lines().count() == 1, "{order}: {}", second.stderr);
        }
        let (status, said) = stage.daemon.api("/v1/services/web/orders", Some(&json!({ "order": "pause" })))?;
        ensure!(status == 409 && said["error"].as_str().is_some_and(|e| e.contains("held by")), "{status} {said}");
        ensure!(stage.daemon.decision("web")? == before, "nothing has changed");
        stage.daemon.order_done("rollback web")?;
        first.join().expect("the thread does not panic")
    })?;
    ensure!(
        first.expect(1)?.stderr.contains("ended by a rollback of root (uid 0, pid "),
        "the first one names the rollback"
    );
    Ok(())
}

#[test]
fn ten_at_once() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _servers = start(&stage, &["v1-1", "v2-1"])?;
    let load = clients().threads(2).start(stage.host.net())?;
    for ordered in at_once(&stage, |number| format!("shift web v1={number} v2={}", 11 - number))? {
        ordered.expect(0)?;
    }
    let (_, history) = stage.daemon.api("/v1/history?service=web", None)?;
    let history = history.as_array().context("no history")?;
    ensure!(history.len() as u64 == OPERATORS, "{history:?}");
    // Each order has changed the complete decision of the order before it.
    let mut decided = Value::Null;
    let mut seen = BTreeSet::new();
    for operation in history {
        ensure!(operation["before"]["weights"] == decided, "{operation} after {decided}");
        decided = operation["weights"].clone();
        ensure!(seen.insert(decided.to_string()) && operation["end"]["outcome"] == "done", "{operation}");
    }
    ensure!(stage.daemon.decision("web")?["traffic"]["weights"] == decided, "the last one is in force");
    let weight = |version: &str| decided[version].as_u64().context("no weight");
    let shares = [("v1-1", weight("v1")?), ("v2-1", weight("v2")?)];
    let seen = connect(stage.host.net(), 2000)?;
    check::shares_follow("after ten shifts at once", &seen, &shares)?;

    // Of orders that take time, one begins.
    let canaries = at_once(&stage, |_| "canary web v2 --steps 30%,100% --every 60s --detach".to_owned())?;
    let begun = canaries.iter().filter(|canary| canary.code == Some(0)).count();
    let told = canaries.iter().filter(|canary| canary.code == Some(1) && canary.stderr.contains("held by")).count();
    ensure!((begun, told) == (1, OPERATORS as usize - 1), "{canaries:?}");
    ensure!(stage.daemon.history("web")?.len() as u64 == OPERATORS + 1, "nothing is kept of what was refused");
    stage.daemon.order_done("rollback web")?;
    ensure!(stage.daemon.decision("web")?["traffic"]["weights"] == decided, "as it was before");
    let tally = load.stop()?;
    report::figure("twenty operators", &tally);
    none_lost(&tally)
}

#[test]
fn drain_and_resume() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let net = stage.host.net();
    let _servers = start(&stage, &["v1-1", "v1-2", "v2-1"])?;
    let load = clients().threads(2).start(net)?;
    let gets = |name: &str| -> Result<u64> { Ok(connect(net, 300)?.answered_by(name)) };

    stage.daemon.order_done("drain web --backend v1-1")?;
    stage.daemon.wait_state("web", "v1-1", "drained")?;
    ensure!(gets("v1-1")? == 0, "a drained backend");
    stage.daemon.order_done("drain web --version v2")?;
    let tally = connect(net, 300)?;
    ensure!(tally.answered_by("v1-2") == 300, "a drained version: {tally}");
    stage.daemon.order_done("resume web --backend v1-1")?;
    ensure!(gets("v1-1")? > 0, "a backend that was drained");
    let again = stage.daemon.order("resume web --backend v1-1")?.expect(0)?;
    ensure!(again.stdout.contains("backend v1-1 of web is not drained"), "{}", again.stdout);
    stage.daemon.order_done("resume web --version v2")?;
    ensure!(gets("v2-1")? > 0, "a version that was drained");
    none_lost(&load.stop()?)?;

    // The whole service: new clients are refused, established connections stay.
    let held = hold(net)?;
    stage.daemon.order_done("drain web")?;
    let tally = clients().count(20).run(net)?;
    ensure!(tally.refused() == 20, "{tally}");
    stage.daemon.wait_for(&format!("one connection to {TARGET} to go on"), |status| {
        let live: u64 = status.service("web")?.backends.iter().map(|backend| backend.live).sum();
        (live == 1).then_some(())
    })?;
    stage.daemon.order_done("resume web")?;
    drop(held);
    let tally = connect(net, 300)?;
    ensure!(answered_by_version(&tally, "v1") > 0 && answered_by_version(&tally, "v2") > 0, "{tally}");

    // A deploy of a version ends its drain.
    stage.daemon.order_done("drain web --version v2")?;
    stage.daemon.order_done("deploy web v2")?;
    all_by(net, 200, "v2").map(drop)
}
