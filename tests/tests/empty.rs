//! A service that has lost all its backends: which version serves first again, and when its decision ends.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    check,
    daemon::Stage,
    exec::Backend,
    load::Load,
    require,
    rollouts::{all_by, connect, web},
    server, tools,
};
use serde_json::Value;

const MANUAL: &str = "[service.web]\nrollout = 'manual'\n";

fn gone(stage: &Stage, backends: impl IntoIterator<Item = Backend>) -> Result<()> {
    drop(backends.into_iter().collect::<Vec<_>>());
    stage.daemon.wait_for("the service to have no backend", |status| status.service("web").is_none().then_some(()))
}

/// The last order of the service: its origin and its kind.
fn last_order(stage: &Stage) -> Result<(String, Value)> {
    let (_, history) = stage.daemon.api("/v1/history?service=web", None)?;
    let last = history.as_array().and_then(|all| all.last()).context("no history")?.clone();
    Ok((last["who"].as_str().unwrap_or_default().to_owned(), last))
}

fn refused(stage: &Stage) -> Result<()> {
    let tally = Load::to("127.0.0.1:80".parse()?).count(20).run(stage.host.net())?;
    ensure!(tally.refused() == 20, "no backend may serve: {tally}");
    Ok(())
}

#[test]
fn the_first_version_to_come_back_is_deployed() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::configured(MANUAL)?;
    let first = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let second = web(&stage, "v2-1").start(&stage)?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    stage.daemon.order_done("deploy web v2")?;
    gone(&stage, [first, second])?;

    // The decision names v2. Version v1 is ready first, so it serves, and that decision is recorded.
    let first = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_state("web", "v1-1", "ready")?;
    all_by(stage.host.net(), 100, "v1")?;
    let (who, last) = last_order(&stage)?;
    ensure!(who == "policy first version" && last["weights"]["v1"] == 1, "{last}");
    // From then on every other version waits, also the one that served before.
    let second = web(&stage, "v2-1").start(&stage)?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    all_by(stage.host.net(), 200, "v1")?;
    // A rollback restores the operator's last order.
    stage.daemon.order_done("rollback web")?;
    all_by(stage.host.net(), 100, "v2")?;

    // The same across a restart of the daemon.
    gone(&stage, [first, second])?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    let _third = web(&stage, "v3-1").start(&stage)?;
    stage.daemon.wait_state("web", "v3-1", "ready")?;
    all_by(stage.host.net(), 100, "v3")?;
    let _first = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_state("web", "v1-1", "standby")?;
    all_by(stage.host.net(), 100, "v3").map(drop)
}

#[test]
fn a_waiting_version_keeps_waiting() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::configured(MANUAL)?;
    let first = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let _second = web(&stage, "v2-1").start(&stage)?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    drop(first);
    stage.daemon.wait_for("v1 to be gone", |status| (status.service("web")?.backends.len() == 1).then_some(()))?;
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(500));
        refused(&stage)?;
        stage.daemon.wait_state("web", "v2-1", "standby")?;
        let conditions = stage.daemon.said_of("web")?["conditions"].clone();
        ensure!(conditions[0]["reason"] == "version-waits", "{conditions}");
        ensure!(conditions[0]["remedy"].to_string().contains("deploy one of them"), "{conditions}");
        stage.daemon.kill()?;
        stage.daemon.restart()?;
    }
    // The version that served before returns.
    let _first = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_state("web", "v1-1", "ready")?;
    all_by(stage.host.net(), 100, "v1").map(drop)
}

#[test]
fn shares_and_drains_end_with_the_last_backend() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let start = |stage: &Stage| -> Result<Vec<Backend>> {
        let backends = vec![web(stage, "v1-1").start(stage)?, web(stage, "v2-1").start(stage)?];
        stage.daemon.wait_for("both to listen", |status| {
            let backends = &status.service("web")?.backends;
            (backends.iter().filter(|backend| backend.sockets > 0).count() == 2).then_some(())
        })?;
        Ok(backends)
    };
    let backends = start(&stage)?;
    stage.daemon.order_done("shift web v1=1 v2=99 --from 10.0.0.0/8=v1")?;
    stage.daemon.order_done("drain web --version v1")?;
    let decided = stage.daemon.decision("web")?;
    // Restarting all backends keeps the decision.
    gone(&stage, backends)?;
    let backends = start(&stage)?;
    ensure!(stage.daemon.decision("web")? == decided, "{}", stage.daemon.decision("web")?);
    all_by(stage.host.net(), 100, "v2")?;
    stage.daemon.order_done("pause web")?;

    // Backends that use the same name later form a new service, also if the daemon restarts meanwhile.
    gone(&stage, backends)?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    pod_steer_tests::wait::until_ok("the end to be recorded", || {
        Ok((last_order(&stage)?.1["order"] == "forget").then_some(()))
    })?;
    let _backends = start(&stage)?;
    let decision = stage.daemon.decision("web")?;
    ensure!(decision["traffic"]["weights"].is_null() && decision["drained"] == Value::Array(vec![]), "{decision}");
    ensure!(decision["traffic"]["from"].as_object().is_some_and(serde_json::Map::is_empty), "{decision}");
    ensure!(decision["paused"] == true, "a pause also applies to later backends: {decision}");
    stage.daemon.order_done("unpause web")?;
    stage.daemon.wait_ready("web", 2)?;
    let tally = connect(stage.host.net(), 2000)?;
    check::shares_follow("a new service of an old name", &tally, &[("v1-1", 1), ("v2-1", 1)])?;
    let rollback = stage.daemon.order("rollback web")?;
    ensure!(rollback.code == Some(2), "there is nothing to go back to: {rollback:?}");
    let forget = stage.daemon.api("/v1/services/web/orders", Some(&serde_json::json!({ "order": "forget" })))?;
    ensure!(forget.0 == 422 || forget.0 == 400, "{forget:?}");
    Ok(())
}

#[test]
fn a_restarted_container_keeps_its_decision() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let spec = |version: &str| {
        let spec = server::named(&format!("{version}-1"), "0.0.0.0:8080").service("web", "80:8080").version(version);
        spec.label("pod-steer.rollout", "manual")
    };
    let first = stage.engine().start_container(&spec("v1"))?;
    stage.daemon.wait_state("web", "v1-1", "ready")?;
    let second = stage.engine().start_container(&spec("v2"))?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    let orders = stage.daemon.history("web")?.len();
    // The only version with a share is stopped for longer than a service may be without backends. The container still exists.
    first.stop()?;
    stage.daemon.wait_state("web", "v1-1", "exited")?;
    refused(&stage)?;
    second.stop()?;
    stage.daemon.wait_state("web", "v2-1", "exited")?;
    thread::sleep(Duration::from_secs(16));
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    second.start()?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    refused(&stage)?;
    first.start()?;
    stage.daemon.wait_state("web", "v1-1", "ready")?;
    all_by(stage.host.net(), 100, "v1")?;
    ensure!(stage.daemon.history("web")?.len() == orders, "nothing was decided meanwhile");

    // Removed and created again, as by `docker compose down` and `up`: the first version that is ready serves.
    drop((first, second));
    stage.daemon.wait_for("the containers to be gone", |status| status.service("web").is_none().then_some(()))?;
    let _second = stage.engine().start_container(&spec("v2"))?;
    stage.daemon.wait_state("web", "v2-1", "ready")?;
    let _first = stage.engine().start_container(&spec("v1"))?;
    stage.daemon.wait_state("web", "v1-1", "standby")?;
    all_by(stage.host.net(), 100, "v2").map(drop)
}
