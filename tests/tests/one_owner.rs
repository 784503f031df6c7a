//! The directory of pins has one owner: a second daemon is refused, and `unload` removes nothing from a running daemon.

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::{BPFFS, Stage},
    exec::{Backend, Exec},
    load::Load,
    process::output,
    require, tools, wait,
};

fn web(stage: &Stage) -> Result<Backend> {
    let backend = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").start(stage)?;
    stage.daemon.wait_ready("web", 1)?;
    Ok(backend)
}

fn serves(stage: &Stage) -> Result<()> {
    let tally = Load::to("127.0.0.1:80".parse()?).count(200).run(stage.host.net())?;
    ensure!(tally.answered_by("web-1") == 200, "{tally}\n{}", stage.daemon.log_tail());
    Ok(())
}

#[test]
fn a_second_daemon_with_the_same_pins_is_refused() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _web = web(&stage)?;
    let load = Load::to("127.0.0.1:80".parse()?).threads(2).start(stage.host.net())?;
    for bpffs in [BPFFS, "/sys/fs/bpf/../bpf/pod-steer"] {
        let mut second = stage.host.command(tools::pod_steer()?)?;
        let state = stage.host.dir().join("other-state");
        second
            .args(["run", "--engine", "none", "--runtime-dir", "/run/other", "--bpffs", bpffs, "--state-dir"])
            .arg(state);
        let refused = output(&mut second)?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success(), "a second daemon runs: {said}");
        ensure!(said.contains(&format!("(pid {})", stage.daemon.pid())) && said.contains("--bpffs"), "{said}");
    }
    let tally = load.stop()?;
    ensure!(tally.answered() > 0 && tally.lost(|_| true) == 0, "{tally}");
    stage.daemon.wait_ready("web", 1)?;
    serves(&stage)
}

#[test]
fn unload_takes_nothing_from_a_daemon_that_it_cannot_reach() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let _web = web(&stage)?;
    let socket = stage.daemon.runtime_dir().join("api.sock");
    let aside = stage.daemon.runtime_dir().join("api.aside");
    std::fs::rename(&socket, &aside)?;
    let mut unload = stage.daemon.cli()?;
    unload
        .args(["unload", "--bpffs", BPFFS, "--runtime-dir", "/run/pod-steer", "--state-dir"])
        .arg(stage.daemon.state_dir());
    let refused = output(&mut unload)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1), "{said}");
    ensure!(said.trim_end().lines().count() == 1, "one line: {said}");
    ensure!(said.contains(&format!("(pid {})", stage.daemon.pid())) && said.contains("nothing was removed"), "{said}");
    serves(&stage)?;
    std::fs::rename(&aside, &socket)?;
    stage.daemon.wait_ready("web", 1)?;

    // It removes everything of a daemon that has ended, whatever its files say.
    stage.daemon.kill()?;
    stage.daemon.unload()?;
    wait::until_ok("the directory to be gone", || {
        let there = output(stage.host.command("test")?.args(["-e", BPFFS]))?;
        Ok((!there.status.success()).then_some(()))
    })
}
