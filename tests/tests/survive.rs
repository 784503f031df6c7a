//! Decisions of operators survive the daemon and a reboot. A damaged store does not stop steering.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    check,
    daemon::{BPFFS, Stage},
    exec::Backend,
    process::run,
    report, require,
    rollouts::{answered_by_version, clients, connect, none_lost, web},
    tools, wait,
};
use serde_json::Value;

const NAMES: [&str; 3] = ["v1-1", "v2-1", "v3-1"];
const SHARES: [(&str, u64); 2] = [("v1-1", 3), ("v2-1", 1)];

fn start(stage: &Stage) -> Result<Vec<Backend>> {
    NAMES.iter().map(|name| web(stage, name).start(stage)).collect()
}

/// The decisions and the history, from the API.
fn told(stage: &Stage) -> Result<(Value, Value)> {
    Ok((stage.daemon.decision("web")?, stage.daemon.api("/v1/history?service=web", None)?.1))
}

fn shares(stage: &Stage, label: &str) -> Result<()> {
    let tally = connect(stage.host.net(), 2000)?;
    check::shares_follow(label, &tally, &SHARES)
}

/// Three versions: two share, the third is drained.
fn decided() -> Result<(Stage, Vec<Backend>)> {
    let stage = Stage::without_engine()?;
    let servers = start(&stage)?;
    stage.daemon.wait_ready("web", NAMES.len())?;
    stage.daemon.order_done("deploy web v1")?;
    stage.daemon.order_done("shift web v1=3 v2=1 v3=5 --from 10.99.0.0/16=v2")?;
    stage.daemon.order_done("drain web --version v3")?;
    shares(&stage, "as decided")?;
    Ok((stage, servers))
}

/// Removes what a reboot removes: pins, runtime files, cgroups.
fn forget(stage: &Stage) -> Result<()> {
    run(stage.host.command("rm")?.args(["-r", BPFFS]))?;
    fs::remove_dir_all(stage.daemon.runtime_dir())?;
    remove_cgroups(&stage.host.cgroup().join("pod-steer"))
}

fn remove_cgroups(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    Ok(fs::remove_dir(dir)?)
}

#[test]
fn the_daemon_and_the_machine() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let (mut stage, servers) = decided()?;
    let before = told(&stage)?;
    let load = clients().threads(2).start(stage.host.net())?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    ensure!(told(&stage)? == before, "{:?} after a restart of the daemon, and not {before:?}", told(&stage)?);
    shares(&stage, "after a restart of the daemon")?;
    let tally = load.stop()?;
    none_lost(&tally)?;
    ensure!(answered_by_version(&tally, "v3") == 0, "{tally}");

    stage.daemon.kill()?;
    drop(servers);
    forget(&stage)?;
    stage.daemon.restart()?;
    let history = stage.daemon.api("/v1/history?service=web", None)?.1;
    ensure!(history == before.1, "{history} after a restart of the machine, and not {}", before.1);
    let _servers = start(&stage)?;
    stage.daemon.wait_state("web", "v3-1", "drained")?;
    ensure!(told(&stage)? == before, "{:?} after a restart of the machine, and not {before:?}", told(&stage)?);
    shares(&stage, "after a restart of the machine")?;
    // Later decisions build on the earlier ones.
    stage.daemon.order_done("rollback web")?;
    let tally = connect(stage.host.net(), 200)?;
    ensure!(tally.answered_by("v1-1") == 200, "back to the deploy of before: {tally}");
    Ok(())
}

fn put_aside(stage: &Stage) -> Result<Vec<PathBuf>> {
    let files = fs::read_dir(stage.daemon.state_dir())?.map(|entry| Ok(entry?.path()));
    let files = files.collect::<Result<Vec<_>>>()?;
    Ok(files.into_iter().filter(|path| path.to_string_lossy().contains(".damaged-")).collect())
}

#[test]
fn a_damaged_store_is_kept_aside_and_steering_continues() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let (mut stage, _servers) = decided()?;
    let file = stage.daemon.state_dir().join("state.redb");
    let load = clients().threads(2).start(stage.host.net())?;
    for (number, damage) in ["garbage", "half", "empty"].into_iter().enumerate() {
        stage.daemon.kill()?;
        let mut bytes = fs::read(&file)?;
        match damage {
            "garbage" => bytes.iter_mut().for_each(|byte| *byte = !*byte),
            "half" => bytes.truncate(bytes.len() / 2),
            _ => bytes.clear(),
        }
        fs::write(&file, &bytes)?;
        let answered = load.answered();
        stage.daemon.restart()?;
        wait::until("clients to be answered", || (load.answered() > answered + 100).then_some(()))?;
        let aside = put_aside(&stage)?;
        ensure!(aside.len() == number + 1, "{damage}: {aside:?}");
        let said = stage.daemon.status()?.said_about("ledger").join("\n");
        ensure!(said.contains("state.redb") && said.contains("it is kept as"), "{damage}: {said}");
        ensure!(stage.daemon.decision("web")?["traffic"]["weights"].is_null(), "decisions begin anew");
        // The daemon stores decisions again.
        stage.daemon.order_done("shift web v1=3 v2=1")?;
        stage.daemon.kill()?;
        stage.daemon.restart()?;
        ensure!(stage.daemon.history("web")?.len() == 1, "{damage}: the new store remembers");
        shares(&stage, &format!("after a store that was damaged: {damage}"))?;
    }
    let tally = load.stop()?;
    report::figure("a store damaged three times, under load", &tally);
    none_lost(&tally)
}
