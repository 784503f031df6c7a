//! The cgroup of an `exec` is below the caller's if that was delegated, so that the restrictions of the caller's cgroup still apply.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use pod_steer_tests::{
    daemon::Stage,
    exec::{Backend, Exec},
    host::Host,
    load::Load,
    process::output,
    require, tools,
    unit::Unit,
    wait,
};
use rustix::process::Signal;

/// Starts a server from a process of this unit.
fn start(stage: &Stage, unit: &Unit, name: &str) -> Result<Backend> {
    Exec::new(name, "web", "80:8080", "0.0.0.0:8080").by(unit).start(stage)
}

/// Whether a backend that a process of this unit starts can create a datagram socket.
fn makes_datagram_sockets(stage: &Stage, unit: &Unit) -> Result<bool> {
    let python = tools::find("python3").context("python3 is not installed")?;
    let mut command = stage.daemon.cli()?;
    unit.enter(&mut command)?;
    command.args(["exec", "--service", "other", "--ports", "81:8081", "--"]).arg(python);
    let done = output(command.args(["-c", "import socket; socket.socket(type=socket.SOCK_DGRAM)"]))?;
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() || error.contains("PermissionError"), "{error}");
    Ok(done.status.success())
}

fn assert_served(stage: &Stage, name: &str) -> Result<()> {
    let tally = Load::to("127.0.0.1:80".parse()?).count(50).run(stage.host.net())?;
    assert_eq!(tally.answered_by(name), 50, "{tally}");
    Ok(())
}

/// Cgroups of backends below this one.
fn exec_cgroups(below: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(below).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).collect()
}

#[test]
fn restrictions_of_a_delegated_cgroup_still_apply() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let mut stage = Stage::without_engine()?;
    let unit = Unit::new(&stage.host, "unit")?.delegated()?;
    let mut server = start(&stage, &unit, "web-1")?;
    stage.daemon.wait_ready("web", 1)?;
    assert_eq!(server.cgroup()?.parent(), Some(unit.app().as_path()), "its parent is the caller's cgroup");
    assert!(!makes_datagram_sockets(&stage, &unit)?);
    assert_served(&stage, "web-1")?;

    // The next daemon finds its cgroup.
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    assert_served(&stage, "web-1")?;
    let second = start(&stage, &unit, "web-2")?;
    stage.daemon.wait_ready("web", 2)?;
    server.process.kill()?;
    stage.daemon.wait_ready("web", 1)?;
    assert_served(&stage, "web-2")?;
    wait::until("its cgroup to be removed", || (exec_cgroups(&unit.app()) == [second.cgroup().ok()?]).then_some(()))
}

#[test]
fn without_delegation_or_permission_it_is_pod_steers_own() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    let own = stage.host.cgroup().join("pod-steer");
    let closed = Unit::new(&stage.host, "closed")?;
    let first = start(&stage, &closed, "web-1")?;
    assert!(first.cgroup()?.starts_with(&own), "{:?}", first.cgroup()?);
    assert!(makes_datagram_sockets(&stage, &closed)?, "its limits are left");
    let users = Unit::new(&stage.host, "users")?.delegated()?;
    std::os::unix::fs::chown(users.app(), Some(4242), None)?;
    let second = start(&stage, &users, "web-2")?;
    assert!(second.cgroup()?.starts_with(&own), "{:?}", second.cgroup()?);
    let help = output(stage.daemon.cli()?.args(["exec", "--help"]))?;
    let help = String::from_utf8_lossy(&help.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("the limits of the caller's cgroup do not hold"), "{help}");
    stage.daemon.wait_ready("web", 2).map(drop)
}

#[test]
fn an_exec_within_an_exec_is_beside_it() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let unit = Unit::new(&stage.host, "unit")?.delegated()?;
    let mut command = stage.daemon.cli()?;
    unit.enter(&mut command)?;
    let (cli, server) = (tools::pod_steer()?, tools::named_server()?);
    let script = format!(
        "{} exec --service inner --ports 81:8081 -- {} --name inner --listen 0.0.0.0:8081 & \
         exec {} --name outer --listen 0.0.0.0:8080",
        cli.display(),
        server.display(),
        server.display()
    );
    command.args(["exec", "--service", "outer", "--ports", "80:8080", "--", "sh", "-c", &script]);
    let _outer = stage.host.start("outer", &mut command)?;
    stage.daemon.wait_ready("outer", 1)?;
    stage.daemon.wait_ready("inner", 1)?;
    assert_eq!(exec_cgroups(&unit.app()).len(), 2);
    assert_served(&stage, "outer")?;
    let tally = Load::to("127.0.0.1:81".parse()?).count(50).run(stage.host.net())?;
    assert_eq!(tally.answered_by("inner"), 50, "{tally}");
    Ok(())
}

/// A service manager removes the cgroup of a unit as soon as its last process has ended.
#[test]
fn a_unit_that_goes_takes_its_backend_along() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    for run in 0..8 {
        let unit = Unit::new(&stage.host, &format!("unit-{run}"))?.delegated()?;
        let server = start(&stage, &unit, "web-1")?;
        stage.daemon.wait_ready("web", 1)?;
        let without_daemon = run == 0;
        if without_daemon {
            stage.daemon.kill()?;
        }
        server.process.signal(Signal::KILL)?;
        unit.remove()?;
        if without_daemon {
            stage.daemon.restart()?;
        }
        stage.daemon.wait_for("the backend to be gone", |status| {
            status.service("web").is_none_or(|service| service.backends.is_empty()).then_some(())
        })?;
    }
    let other = Unit::new(&stage.host, "other")?.delegated()?;
    let _server = start(&stage, &other, "web-2")?;
    stage.daemon.wait_ready("web", 1)?;
    assert_served(&stage, "web-2")
}

#[test]
fn unload_leaves_the_command_in_the_callers_cgroup() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    for killed in [false, true] {
        let mut stage = Stage::without_engine()?;
        let unit = Unit::new(&stage.host, "unit")?.delegated()?;
        let server = start(&stage, &unit, "web-1")?;
        stage.daemon.wait_ready("web", 1)?;
        let of_others = Host::cgroup(&stage.host).join("pod-steer.other.exec-1-0");
        fs::create_dir(&of_others)?;
        if killed {
            stage.daemon.kill()?;
        }
        stage.daemon.unload()?;
        assert_eq!(server.cgroup()?, unit.app(), "the daemon was killed: {killed}");
        assert_eq!(exec_cgroups(&unit.app()), Vec::<PathBuf>::new());
        assert!(of_others.exists(), "another daemon's");
        let tally = Load::to("127.0.0.1:8080".parse()?).count(50).run(stage.host.net())?;
        assert_eq!(tally.answered_by("web-1"), 50, "{tally}");
    }
    Ok(())
}
