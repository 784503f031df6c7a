//! Fixtures of upgrade tests: releases that take over from each other under load.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::{
    bpf, check,
    daemon::{BPFFS, Stage},
    exec::{Backend, Exec},
    load::{Load, Running},
    process::run,
    report, tools, wait,
};

/// A later release with other programs.
pub const PROGRAM: &str = "test-program";
/// A later release in which the values of some maps are longer.
pub const LAYOUT: &str = "test-layout";
/// The release after that, with longer slots and room for more services.
pub const LAYOUT_MORE: &str = "test-layout-more";

/// Three backends of `web`, of which one runs as another user.
pub fn three(stage: &Stage) -> Result<Vec<Backend>> {
    let backends = [web("web-1"), web("web-2"), web("web-3").user(1000)];
    let backends = backends.into_iter().map(|exec| exec.start(stage)).collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 3)?;
    Ok(backends)
}

/// A backend of `web`.
pub fn web(name: &str) -> Exec<'static> {
    Exec::new(name, "web", "80:8080", "0.0.0.0:8080")
}

/// Clients of `web`, until they are stopped.
pub fn load(stage: &Stage) -> Result<Running> {
    let load = Load::to("127.0.0.1:80".parse()?).threads(2).start(stage.host.net())?;
    goes_on(&load)?;
    Ok(load)
}

/// A daemon with [`three`] backends, and clients of theirs.
pub fn under_load() -> Result<(Stage, Vec<Backend>, Running)> {
    let stage = Stage::without_engine()?;
    let backends = three(&stage)?;
    let load = load(&stage)?;
    Ok((stage, backends, load))
}

/// Ends the clients: all connections were answered, and the kernel has counted each of them.
pub fn ends_well(what: &str, stage: &Stage, load: Running) -> Result<()> {
    let tally = load.stop()?;
    report::figure(what, &tally);
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)
}

/// Waits until clients that connect from now on are answered.
pub fn goes_on(load: &Running) -> Result<()> {
    let answered = load.answered();
    wait::until("clients to be answered", || (load.answered() > answered + 200).then_some(()))
}

/// Ids of the pinned links, and the id of each one's program.
pub fn links(stage: &Stage) -> Result<BTreeMap<u32, u32>> {
    Ok(bpf::links(&stage.host)?.into_iter().map(|link| (link.id, link.program)).collect())
}

/// Chooses the release of the next start: one by the name of its feature, or the one that is tested.
pub fn choose(stage: &mut Stage, feature: Option<&str>) -> Result<()> {
    stage.daemon.conditions.program = feature.map(tools::later_release).transpose()?;
    Ok(())
}

/// Kills the daemon and starts one of this release.
pub fn take_over(stage: &mut Stage, feature: Option<&str>) -> Result<()> {
    stage.daemon.kill()?;
    choose(stage, feature)?;
    stage.daemon.restart()
}

/// Starts the daemon, which has to fail with this exit code.
pub fn fails(stage: &mut Stage, code: i32) -> Result<()> {
    ensure!(stage.daemon.restart().is_err(), "it does not start\n{}", stage.daemon.log_tail());
    let ended = stage.daemon.exit_code()?;
    ensure!(ended == Some(code), "it ended with {ended:?}\n{}", stage.daemon.log_tail());
    Ok(())
}

/// The directory of pins has no directory of an unfinished upgrade.
pub fn no_residue(stage: &Stage) -> Result<()> {
    let listed = run(stage.host.command("ls")?.arg(BPFFS))?;
    let mut names: Vec<&str> = listed.split_whitespace().collect();
    names.sort_unstable();
    ensure!(names == ["cgroups", "forward", "maps", "netns", "ports"], "{names:?}\n{}", stage.daemon.log_tail());
    Ok(())
}
