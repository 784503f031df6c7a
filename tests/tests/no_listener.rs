//! Listeners that end without close(), and listeners that cannot enter a socket map.

use anyhow::{Context as _, Result};
use pod_steer_tests::{
    daemon::Stage,
    exec::Exec,
    handover::{self, Listener},
    load::Load,
    process::{output, run},
    require,
    status::Status,
    tools, wait,
};
use rustix::process::Signal;

/// Waits until the backend `shut` has no sockets.
fn has_no_sockets(stage: &Stage) -> Result<()> {
    stage.daemon.wait_for("no sockets", |status| {
        let backend = status.backend("web", "shut");
        (backend.sockets == 0 && backend.state != "ready").then_some(())
    })
}

/// Waits for that with this daemon, and with the next one, which reads all sockets.
fn stays_without_sockets(mut stage: Stage) -> Result<()> {
    has_no_sockets(&stage)?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    has_no_sockets(&stage)
}

#[test]
fn a_listener_that_is_shut_down_stays_away() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let mut stage = Stage::without_engine()?;
    let path = stage.host.dir().join("giver");
    let shut = handover::exec(&stage, "shut", "v2", Listener::Opens, &path)?;
    stage.daemon.wait_ready("web", 1)?;
    shut.signal(Signal::HUP)?;
    wait::until("the end of the listener", || shut.stdout().contains("shut").then_some(()))?;
    has_no_sockets(&stage)?;
    let _old = Exec::new("old", "web", "80:8080", "0.0.0.0:8080").flags(&["--version", "v1"]).start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    // A daemon reads all sockets when it starts, and every 30 seconds.
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    has_no_sockets(&stage)?;
    let failed = stage.daemon.order("deploy web v2 --timeout 1s")?;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    let tally = Load::to("127.0.0.1:80".parse()?).count(100).run(stage.host.net())?;
    assert_eq!(tally.answered_by("old"), 100, "{tally}");
    Ok(())
}

#[test]
fn a_listener_of_a_registered_process_that_is_shut_down_is_noticed() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    let path = stage.host.dir().join("giver");
    let shut = handover::start(&stage, "shut", Listener::Opens, &path)?;
    let mut register = stage.daemon.cli()?;
    register.args(["register", "--service", "web", "--ports", "80:8080", "--name", "shut"]);
    let outcome = output(register.args(["--pid", &shut.pid().to_string()]))?;
    assert!(outcome.status.success(), "{outcome:?}");
    stage.daemon.wait_ready("web", 1)?;
    // The programs are not attached to the cgroup in which it was made, so only a search can notice this.
    shut.signal(Signal::HUP)?;
    stays_without_sockets(stage)
}

#[test]
fn a_listener_of_a_container_that_is_shut_down_is_noticed() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["python3", "ldd"]));
    let stage = Stage::with_docker()?;
    let container = handover::container("shut").service("web", "80:8080");
    let shut = stage.engine().start_container(&container)?;
    stage.daemon.wait_ready("web", 1)?;
    shut.kill("HUP")?;
    wait::until_ok("the end of the listener", || Ok(shut.logs()?.contains("shut").then_some(())))?;
    stays_without_sockets(stage)
}

const REMEDY: &str = "GODEBUG=multipathtcp=0";

/// Listens by MPTCP on descriptor 3, then executes the named program.
const MPTCP: &str = r#"
import os, socket, sys
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
listener.bind(("0.0.0.0", 8080))
listener.listen(128)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn a_listener_by_mptcp_is_named_with_the_remedy() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    require!(tools::mptcp());
    let stage = Stage::without_engine()?;
    let mut command = stage.host.command(tools::named_server()?)?;
    command.args(["--name", "other", "--listen", "0.0.0.0:8090", "--mptcp"]);
    let other = stage.host.start("other", &mut command)?;
    wait::until("the server", || other.stdout().contains("mptcp").then_some(()))?;
    let mut register = stage.daemon.cli()?;
    register.args(["register", "--service", "other", "--ports", "90:8090", "--pid", &other.pid().to_string()]);
    let outcome = output(&mut register)?;
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert_eq!(outcome.status.code(), Some(2), "{outcome:?}");
    assert!(said.contains("listens on port 8090 by MPTCP") && said.contains(REMEDY), "{said}");

    // An inherited listener.
    let mut command = stage.host.command(tools::find("python3").context("python3 is not installed")?)?;
    command.env("POD_STEER_SOCKET", stage.daemon.socket()).args(["-c", MPTCP]).arg(tools::pod_steer()?);
    command.args(["exec", "--service", "web", "--ports", "80:8080", "--name", "a", "--", "sleep", "60"]);
    let mut server = stage.host.start("a", &mut command)?;
    stage.daemon.wait_for("the reason", |status| {
        let backend = status.service("web")?.backends.iter().find(|backend| backend.name == "a")?;
        let said = backend.warnings().join("\n");
        let is_named = said.contains("listens on port 8080 by MPTCP") && said.contains(REMEDY);
        (backend.state == "not-steered" && is_named).then_some(())
    })?;
    server.kill()?;
    stage.daemon.wait_for("it to be gone", |status| status.service("web").is_none().then_some(()))
}

/// Listens by TCP, and on another address by MPTCP.
const BOTH: &str = r#"
import socket, time
listeners = []
for address, protocol in [("127.0.0.1", 0), ("127.0.0.2", 262)]:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    listener.bind((address, 8080))
    listener.listen(128)
    listeners.append(listener)
print("listening", flush=True)
time.sleep(600)
"#;

#[test]
fn a_listener_by_mptcp_beside_another_one_stays_a_condition() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    require!(tools::mptcp());
    let mut stage = Stage::without_engine()?;
    let mut command = stage.host.command(tools::find("python3").context("python3 is not installed")?)?;
    let server = stage.host.start("both", command.args(["-c", BOTH]))?;
    wait::until("the listeners", || server.stdout().contains("listening").then_some(()))?;
    let mut register = stage.daemon.cli()?;
    register.args(["register", "--service", "web", "--ports", "80:8080", "--name", "both"]);
    run(register.args(["--pid", &server.pid().to_string()]))?;
    // A daemon looks at everything when it starts and every 30 seconds, and at a part in between.
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    let said = |status: &Status| status.backend("web", "both").reasons().contains(&"mptcp");
    stage.daemon.wait_for("the condition", |status| said(status).then_some(()))?;
    let mut others = Vec::new();
    for name in ["other-1", "other-2", "other-3"] {
        others.push(Exec::new(name, "other", "90:8090", "127.0.0.1:8090").start(&stage)?);
        stage.daemon.wait_ready("other", others.len())?;
        let status = stage.daemon.status()?;
        assert!(said(&status), "after {name}: {status}");
    }
    Ok(())
}
