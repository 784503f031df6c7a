//! Connections of a registered process. It has no cgroup of its own, so no kernel program counts them.

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::{BPFFS, Stage},
    process::{Process, run},
    require,
    rollouts::{all_by, hold, web},
    tools, wait,
};

/// A server that runs already and is registered as version v1 of `web`.
fn register(stage: &Stage, name: &str, args: &[&str]) -> Result<Process> {
    let mut server = stage.host.command(tools::named_server()?)?;
    server.args(["--name", name, "--listen", "0.0.0.0:8080"]).args(args);
    let process = stage.host.start(name, &mut server)?;
    wait::until("the server to listen", || process.stdout().contains("listening ").then_some(()))?;
    let pid = process.pid().to_string();
    let mut register = stage.daemon.cli()?;
    register.args(["register", "--pid", &pid, "--name", name, "--service", "web", "--ports", "80:8080"]);
    run(register.args(["--version", "v1"]))?;
    Ok(process)
}

fn live(stage: &Stage, name: &str) -> Result<u64> {
    Ok(stage.daemon.status()?.backend("web", name).live)
}

#[test]
fn a_drain_counts_them() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _old = register(&stage, "v1-1", &[])?;
    stage.daemon.wait_ready("web", 1)?;
    ensure!(live(&stage, "v1-1")? == 0, "no client is connected");
    let held = [hold(stage.host.net())?, hold(stage.host.net())?];
    stage.daemon.wait_for("two connections", |status| (status.backend("web", "v1-1").live == 2).then_some(()))?;
    let _new = web(&stage, "v2-1").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;

    let deploy = stage.daemon.order("deploy web v2 --drain-timeout 2s")?.expect(3)?;
    let said = deploy.stdout.clone() + &deploy.stderr;
    ensure!(said.contains("2 old connections remained at the deadline"), "{said}");
    all_by(stage.host.net(), 100, "v2")?;
    ensure!(live(&stage, "v1-1")? == 2, "they are left alone");

    // The next deploy waits for them.
    stage.daemon.order_done("rollback web")?;
    let id = stage.daemon.begin(&serde_json::json!({
        "order": "deploy", "version": "v2", "timeout_ms": 20_000, "drain_timeout_ms": 600_000
    }))?;
    stage.daemon.wait_operation(id, "draining", |operation| operation.phase.name == "draining")?;
    stage
        .daemon
        .wait_for("the connections to be counted", |status| (status.backend("web", "v1-1").live == 2).then_some(()))?;
    ensure!(stage.daemon.operation(id)?.end.is_none(), "two are alive");
    drop(held);
    let ended = stage.daemon.wait_ended(id, "done")?;
    let drained = ended.steps_done.iter().find(|step| step.name == "drained").context("it has drained")?;
    ensure!(drained.detail == "2 connections", "{drained:?}");
    ensure!(live(&stage, "v1-1")? == 0, "none is left");
    Ok(())
}

#[test]
fn those_that_wait_count_too() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _deaf = register(&stage, "v1-1", &["--accept-delay-ms", "600000"])?;
    stage.daemon.wait_ready("web", 1)?;
    let held = [hold(stage.host.net())?, hold(stage.host.net())?, hold(stage.host.net())?];
    stage.daemon.wait_for("three connections", |status| (status.backend("web", "v1-1").live == 3).then_some(()))?;
    let mut stage = stage;
    // Metrics have their number, and without a daemon none: zero would be wrong.
    let metrics = |stage: &Stage| run(stage.daemon.cli()?.args(["metrics", "--bpffs", BPFFS]));
    let labels = r#"{service="web",version="v1",backend="v1-1"}"#;
    let series = |name: &str| format!("pod_steer_backend_{name}{labels} ");
    let page = metrics(&stage)?;
    ensure!(page.contains(&format!("{}3", series("connections"))), "{page}");
    stage.daemon.kill()?;
    for page in [page, metrics(&stage)?] {
        ensure!(page.contains(&series("steered_total")), "{page}");
        ensure!(!page.contains(&series("connections_opened_total")), "{page}");
        let has_number = page.contains(&series("connections"));
        ensure!(has_number == page.contains("pod_steer_up 1"), "{page}");
    }
    stage.daemon.restart()?;
    ensure!(live(&stage, "v1-1")? == 3, "a new daemon counts them as well");
    drop(held);
    Ok(())
}
