//! A listener belongs to the backend whose process holds it, whichever process made it.

use std::{net::TcpStream, time::Duration};

use anyhow::{Context as _, Result};
use pod_steer_tests::{
    daemon::Stage,
    exec::Exec,
    handover::{self, Listener},
    load::{Load, Tally},
    process::Process,
    require, tools, wait,
};
use rustix::process::Signal;

fn clients(stage: &Stage, count: u64) -> Result<Tally> {
    Load::to("127.0.0.1:80".parse()?).count(count).run(stage.host.net())
}

fn all_answered_by(stage: &Stage, name: &str) -> Result<()> {
    let tally = clients(stage, 50)?;
    assert_eq!(tally.answered_by(name), 50, "{tally}\n{}", stage.daemon.status()?);
    Ok(())
}

/// Waits until the service is gone and has no condition.
fn until_gone(stage: &Stage, backend: &str) -> Result<()> {
    stage.daemon.wait_for(&format!("{backend} to be gone"), |status| {
        let services = &status.services;
        let there = services.iter().flat_map(|service| &service.backends).any(|one| one.name == backend);
        (!there).then_some(())
    })
}

#[test]
fn a_socket_activated_server_is_steered() -> Result<()> {
    require!(tools::root_and(&["ip", "systemd-socket-activate"]));
    let stage = Stage::without_engine()?;
    let mut activate = stage.host.command("systemd-socket-activate")?;
    let socket = format!("POD_STEER_SOCKET={}", stage.daemon.socket().display());
    activate.args(["-l", "8080", "-E", &socket]).arg(tools::pod_steer()?);
    activate.args(["exec", "--service", "web", "--version", "v1", "--ports", "80:8080", "--name", "a", "--"]);
    activate.arg(tools::named_server()?).args(["--name", "a", "--fds", "1"]);
    let mut activated = stage.host.start("a", &mut activate)?;
    let direct = Load::to("127.0.0.1:8080".parse()?);
    wait::until_ok("the first client, who starts it", || {
        Ok((direct.clone().count(1).run(stage.host.net())?.answered_by("a") == 1).then_some(()))
    })?;
    let service = stage.daemon.wait_ready("web", 1)?;
    assert_eq!(service.backends[0].sockets, 1);
    all_answered_by(&stage, "a")?;
    assert!(stage.daemon.status()?.backend("web", "a").steered >= 50, "{}", stage.daemon.status()?);

    // Its port can be shared although the server did not ask for that, and the end of the daemon changes nothing.
    let mut other = Exec::new("b", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    let tally = clients(&stage, 200)?;
    assert!(tally.answered_by("a") > 0 && tally.answered_by("b") > 0, "{tally}");
    assert_eq!(tally.answered(), 200, "{tally}");
    other.process.kill()?;
    stage.daemon.wait_ready("web", 1)?;
    activated.kill()?;
    until_gone(&stage, "a")
}

/// Starts a server with a listener that it inherits.
fn inherits(stage: &Stage, name: &str, version: &str, ports: &str) -> Result<Process> {
    let mut command = stage.host.command(tools::find("python3").context("python3 is not installed")?)?;
    command.env("POD_STEER_SOCKET", stage.daemon.socket()).args(["-c", OTHER_SOCKETS]).arg(tools::pod_steer()?);
    command.args(["exec", "--service", "web", "--ports", ports, "--name", name, "--version", version, "--"]);
    stage.host.start(name, command.arg(tools::named_server()?).args(["--name", name, "--fds", "4"]))
}

#[test]
fn connections_of_an_inherited_listener_are_counted() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let mut stage = Stage::without_engine()?;
    let _old = inherits(&stage, "old", "v1", "80:8080")?;
    stage.daemon.wait_ready("web", 1)?;
    let kept = stage.host.net().run(|| TcpStream::connect("127.0.0.1:80"))?;
    let counts = |stage: &Stage| {
        stage
            .daemon
            .wait_for("the connection to be counted", |status| (status.backend("web", "old").live == 1).then_some(()))
    };
    counts(&stage)?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    counts(&stage)?;
    let _new = Exec::new("new", "web", "80:8080", "0.0.0.0:8080").flags(&["--version", "v2"]).start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    let left = stage.daemon.order("deploy web v2 --drain-timeout 1s")?;
    assert_eq!(left.code, Some(3), "{left:?}");
    all_answered_by(&stage, "new")?;
    drop(kept);
    stage.daemon.wait_idle("web")?;
    Ok(())
}

/// Descriptors 3, 4 and 5 are a UDP socket, a unix socket and a listener on an undeclared port; 6 is the server's own.
const OTHER_SOCKETS: &str = r#"
import os, socket, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 8080))
unix = socket.socket(socket.AF_UNIX)
unix.bind("\0pod-steer-tests")
unix.listen(1)
other = socket.socket()
other.bind(("127.0.0.1", 9999))
other.listen(1)
own = socket.socket()
own.bind(("0.0.0.0", 8080))
own.listen(128)
for number, one in enumerate((udp, unix, other, own), 3):
    os.dup2(one.fileno(), number + 100)
for number in range(3, 7):
    os.dup2(number + 100, number)
    os.close(number + 100)
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn inherited_sockets_of_other_kinds_do_no_harm() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    // The clients' port may be the port that it listens on.
    for (ports, target) in [("80:8080", "127.0.0.1:80"), ("8080", "127.0.0.1:8080")] {
        let mut server = inherits(&stage, "a", "v1", ports)?;
        let service = stage.daemon.wait_ready("web", 1)?;
        assert_eq!((service.backends[0].sockets, service.backends[0].warnings()), (1, vec![]));
        let tally = Load::to(target.parse()?).count(50).run(stage.host.net())?;
        assert_eq!(tally.answered_by("a"), 50, "{tally}\n{}", stage.daemon.status()?);
        assert_eq!(stage.daemon.status()?.backend("web", "a").steered, 50);
        server.kill()?;
        until_gone(&stage, "a")?;
    }
    Ok(())
}

/// A server hands its listener to another one and ends. One of the two answers every client.
fn ends_after_handing_over(stage: &Stage, first: &mut Process) -> Result<()> {
    let load = Load::to("127.0.0.1:80".parse()?).threads(4).pause(Duration::from_millis(1)).start(stage.host.net())?;
    wait::until("clients", || (load.answered() > 100).then_some(()))?;
    first.signal(Signal::TERM)?;
    first.wait(wait::STUCK)?;
    until_gone(stage, "first")?;
    let service = stage.daemon.wait_ready("web", 1)?;
    let before = load.answered();
    wait::until("more clients", || (load.answered() > before + 100).then_some(()))?;
    let tally = load.stop()?;
    assert!(tally.losses.is_empty(), "{tally}\n{}", stage.daemon.log_tail());
    assert_eq!(tally.answered_by("first") + tally.answered_by("second"), tally.connections(), "{tally}");
    assert_eq!((service.backends[0].name.as_str(), service.backends[0].sockets), ("second", 1));
    assert_eq!(service.counter("refused_no_backend"), 0);
    all_answered_by(stage, "second")
}

#[test]
fn a_listener_that_was_passed_is_the_holders_when_the_first_ends() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let mut stage = Stage::without_engine()?;
    let path = stage.host.dir().join("giver");
    let mut first = handover::exec(&stage, "first", "v1", Listener::Opens, &path)?;
    stage.daemon.wait_ready("web", 1)?;
    let mut second = handover::exec(&stage, "second", "v2", Listener::Takes, &path)?;
    // Both hold it: it belongs to the older one, and the other one has a condition that says why it waits.
    stage.daemon.wait_for("the reason", |status| {
        let said = status.service("web")?.backends.iter().find(|backend| backend.name == "second")?.warnings();
        said.iter().any(|text| text.contains("port 8080 is also held by first")).then_some(())
    })?;
    assert_eq!(stage.daemon.status()?.backend("web", "first").state, "ready");
    assert_eq!(stage.daemon.status()?.backend("web", "second").state, "not-steered");
    ends_after_handing_over(&stage, &mut first)?;
    assert!(stage.daemon.status()?.backend("web", "second").warnings().is_empty(), "{}", stage.daemon.status()?);

    // The next daemon finds the same.
    stage.daemon.kill()?;
    all_answered_by(&stage, "second")?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    all_answered_by(&stage, "second")?;
    // The backend that gets the first one's index next inherits no listener.
    let _third = Exec::new("third", "api", "90:8080", "127.0.0.9:8080").start(&stage)?;
    assert_eq!(stage.daemon.wait_ready("web", 1)?.backends[0].sockets, 1);
    all_answered_by(&stage, "second")?;
    second.signal(Signal::TERM)?;
    second.wait(wait::STUCK)?;
    until_gone(&stage, "second")
}

#[test]
fn a_holder_that_closes_its_copy_gives_way() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    let path = stage.host.dir().join("giver");
    let first = handover::exec(&stage, "first", "v1", Listener::Opens, &path)?;
    stage.daemon.wait_ready("web", 1)?;
    let _second = handover::exec(&stage, "second", "v2", Listener::Takes, &path)?;
    first.signal(Signal::USR2)?;
    stage.daemon.wait_state("web", "second", "ready")?;
    all_answered_by(&stage, "second")?;
    stage
        .daemon
        .wait_for("the first one to have nothing", |status| (status.backend("web", "first").sockets == 0).then_some(()))
}

#[test]
fn a_holder_is_found_by_the_next_daemon() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let mut stage = Stage::without_engine()?;
    let path = stage.host.dir().join("giver");
    let mut first = handover::exec(&stage, "first", "v1", Listener::Opens, &path)?;
    let _second = handover::exec(&stage, "second", "v2", Listener::Takes, &path)?;
    stage.daemon.wait_ready("web", 1)?;
    let load = Load::to("127.0.0.1:80".parse()?).threads(2).pause(Duration::from_millis(1)).start(stage.host.net())?;
    wait::until("clients", || (load.answered() > 50).then_some(()))?;
    stage.daemon.kill()?;
    first.signal(Signal::TERM)?;
    first.wait(wait::STUCK)?;
    stage.daemon.restart()?;
    until_gone(&stage, "first")?;
    stage.daemon.wait_state("web", "second", "ready")?;
    let before = load.answered();
    wait::until("more clients", || (load.answered() > before + 50).then_some(()))?;
    let tally = load.stop()?;
    assert!(tally.losses.is_empty(), "{tally}\n{}", stage.daemon.log_tail());
    all_answered_by(&stage, "second")
}

/// Listens, starts a backend that inherits the listener, and ends on SIGTERM.
const PARENT: &str = r#"
import os, signal, socket, sys
listener = socket.socket()
listener.bind(("0.0.0.0", 8080))
listener.listen(1024)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if os.fork() == 0:
    os.execv(sys.argv[1], sys.argv[1:])
signal.pause()
"#;

#[test]
fn a_listener_that_a_child_inherits_is_the_childs_when_its_parent_ends() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    let python = tools::find("python3").context("python3 is not installed")?;
    let web = ["exec", "--service", "web", "--ports", "80:8080"];
    let mut command = stage.daemon.cli()?;
    command.args(web).args(["--name", "first", "--"]).arg(python).args(["-c", PARENT]).arg(tools::pod_steer()?);
    command.args(web).args(["--name", "second", "--"]).arg(tools::named_server()?);
    let mut first = stage.host.start("first", command.args(["--name", "second", "--fds", "1"]))?;
    stage.daemon.wait_state("web", "second", "not-steered")?;
    assert_eq!(stage.daemon.status()?.backend("web", "first").state, "ready");
    all_answered_by(&stage, "second")?;
    let load = Load::to("127.0.0.1:80".parse()?).threads(2).pause(Duration::from_millis(1)).start(stage.host.net())?;
    wait::until("clients", || (load.answered() > 50).then_some(()))?;
    first.kill()?;
    until_gone(&stage, "first")?;
    stage.daemon.wait_state("web", "second", "ready")?;
    let tally = load.stop()?;
    assert_eq!(tally.answered_by("second"), tally.connections(), "{tally}");
    all_answered_by(&stage, "second")
}

#[test]
fn a_backend_of_another_service_serves_its_own_clients_only() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    let path = stage.host.dir().join("giver");
    let mut first = handover::exec(&stage, "first", "v1", Listener::Opens, &path)?;
    stage.daemon.wait_ready("web", 1)?;
    let exec = |name: &str, ports: &str| -> Result<Process> {
        let mut command = stage.daemon.cli()?;
        command.args(["exec", "--service", name, "--ports", ports, "--name", name, "--"]);
        stage.host.start(name, command.args(handover::command(name, Listener::Takes, &path)?))
    };
    let _stranger = exec("stranger", "70:7070")?;
    let _wants = exec("wants", "90:8080")?;
    stage.daemon.wait_state("wants", "wants", "not-steered")?;
    first.signal(Signal::TERM)?;
    first.wait(wait::STUCK)?;
    until_gone(&stage, "first")?;
    stage.daemon.wait_ready("wants", 1)?;
    let at = |port: u16| Load::to(([127, 0, 0, 1], port).into()).count(20).run(stage.host.net());
    assert_eq!(at(80)?.refused(), 20, "web has no backend any more");
    // Two processes accept from one socket.
    let tally = at(90)?;
    assert_eq!(tally.answered_by("wants") + tally.answered_by("stranger"), 20, "{tally}");
    assert_eq!(at(70)?.refused(), 20, "it holds a listener, on a port that it did not declare");
    Ok(())
}
