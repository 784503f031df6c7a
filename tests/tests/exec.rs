//! Processes without a container engine: `exec` and `register`.

use std::{fs, os::unix::process::ExitStatusExt as _, path::PathBuf};

use anyhow::{Context as _, Result};
use pod_steer_tests::{
    check, daemon::Stage, exec::Exec, load::Load, process::output, require, status::Status, tools, wait,
};
use rustix::process::Signal;

const WEB: [&str; 5] = ["exec", "--service", "web", "--ports", "80:8080"];

#[test]
fn processes_share_a_port_by_weight() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let start = |name: &str, version: &str, weight: &str| {
        let flags = ["--version", version, "--weight", weight];
        Exec::new(name, "web", "80:8080", "0.0.0.0:8080").flags(&flags).start(&stage)
    };
    let _servers = [start("web-1", "v1", "1")?, start("web-2", "v1", "2")?, start("web-3", "v2", "5")?];
    stage.daemon.wait_ready("web", 3)?;
    let load = Load::to("127.0.0.1:80".parse()?).threads(4);
    let weights = [("web-1", 1), ("web-2", 2), ("web-3", 5)];
    let service = check::measured_shares("processes", &stage.daemon, stage.host.net(), &load, &weights)?;
    assert!(service.backends.iter().all(|backend| backend.kind == "exec" && backend.engine.is_none()));
    assert_eq!(stage.daemon.status()?.backend("web", "web-3").version, "v2");
    Ok(())
}

#[test]
fn exit_codes_signals_and_output_are_the_commands_own() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let sh = |script: &str| output(stage.daemon.cli()?.args(WEB).args(["--", "sh", "-c", script]));
    let outcome = sh("echo out; echo err >&2; exit 7")?;
    assert_eq!(outcome.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "out\n");
    assert_eq!(String::from_utf8_lossy(&outcome.stderr), "err\n");
    assert_eq!(sh("kill -9 $$")?.status.signal(), Some(9));

    // `exec` has become the server itself, so signals need no forwarding.
    let mut server = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    let exe = fs::read_link(format!("/proc/{}/exe", server.process.pid()))?;
    assert_eq!(exe, tools::named_server()?);
    server.process.signal(Signal::TERM)?;
    assert_eq!(server.process.wait(wait::STUCK)?.code(), Some(0));

    let missing = output(stage.daemon.cli()?.args(WEB).args(["--", "no-such-command"]))?;
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no-such-command"), "{missing:?}");
    Ok(())
}

#[test]
fn a_process_that_ends_leaves_no_cgroup() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    // Each daemon has a cgroup below `pod-steer`, and each command one below that.
    let below = |dir: PathBuf| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.is_dir()).collect()
    };
    let count = || below(stage.host.cgroup().join("pod-steer")).into_iter().flat_map(below).count();
    let mut server = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    assert_eq!(count(), 1);
    server.process.kill()?;
    wait::until("the cgroup to be gone", || (count() == 0).then_some(()))?;
    stage.daemon.wait_for("the backend to be gone", |status| {
        status.service("web").is_none_or(|service| service.ready() == 0).then_some(())
    })
}

#[test]
fn children_serve_too() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let mut command = stage.daemon.cli()?;
    let server = tools::named_server()?;
    let script = format!("{} --name child --listen 0.0.0.0:8080 & wait", server.display());
    command.args(WEB).args(["--", "sh", "-c", &script]);
    let _parent = stage.host.start("parent", &mut command)?;
    stage.daemon.wait_ready("web", 1)?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(50).run(stage.host.net())?;
    assert_eq!(tally.answered_by("child"), 50, "{tally}");
    Ok(())
}

#[test]
fn processes_that_listen_already_are_adopted() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let mut servers = Vec::new();
    // Registered processes do not share a port, so each has one of its own.
    for (name, port) in [("old-1", "8081"), ("old-2", "8082")] {
        let mut command = stage.host.command(tools::named_server()?)?;
        command.args(["--name", name, "--listen", &format!("0.0.0.0:{port}")]);
        let server = stage.host.start(name, &mut command)?;
        wait::until("the server", || server.stdout().contains("listening").then_some(()))?;
        let mut register = stage.daemon.cli()?;
        register.args(["register", "--service", "web", "--ports", &format!("80:{port}"), "--name", name]);
        let outcome = output(register.args(["--pid", &server.pid().to_string()]))?;
        assert!(outcome.status.success(), "{outcome:?}");
        servers.push(server);
    }
    let service = stage.daemon.wait_ready("web", 2)?;
    assert!(service.backends.iter().all(|backend| backend.kind == "registered"), "{service:#?}");
    let tally = Load::to("127.0.0.1:80".parse()?).threads(2).count(2000).run(stage.host.net())?;
    assert!(tally.losses.is_empty() && tally.disguised.is_empty(), "{tally}");
    check::shares_follow("adopted processes", &tally, &[("old-1", 1), ("old-2", 1)])?;
    let service = stage.daemon.status()?.service("web").expect("it is there").clone();
    for backend in &service.backends {
        assert_eq!(backend.steered, tally.answered_by(&backend.name), "{service:#?}");
    }
    servers.remove(0).kill()?;
    stage.daemon.wait_ready("web", 1)?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(50).run(stage.host.net())?;
    assert_eq!(tally.answered_by("old-2"), 50, "{tally}");
    Ok(())
}

#[test]
fn a_process_in_a_namespace_of_its_own_is_steered_there() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let client = stage.host.new_client()?;
    let _there = Exec::new("there", "web", "80:8080", "0.0.0.0:8080").inside(&client.ns).start(&stage)?;
    let service = stage.daemon.wait_ready("web", 1)?;
    let (device, inode) = client.ns.id()?;
    assert_eq!(service.namespaces[0].id, format!("{device}:{inode}"));
    let tally = Load::to((client.ip4, 80).into()).count(50).run(stage.host.net())?;
    assert_eq!(tally.answered_by("there"), 50, "{tally}");
    assert!(tally.disguised.is_empty());
    Ok(())
}

/// Listens in a network namespace of its own, and in its original one after a signal.
const LISTENS_ELSEWHERE: &str = r#"
import ctypes, os, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
NEW_NET = 0x40000000
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def check(result):
    if result:
        raise OSError(ctypes.get_errno(), "")
def listen():
    listener = socket.socket()
    listener.bind(("0.0.0.0", 8080))
    listener.listen(16)
    return listener
started = os.open("/proc/self/ns/net", os.O_RDONLY)
check(libc.unshare(NEW_NET))
elsewhere = listen()
check(libc.setns(started, NEW_NET))
signal.sigwait([signal.SIGUSR1])
elsewhere.close()
here = listen()
signal.pause()
"#;

#[test]
fn a_listener_in_another_namespace_is_reported_while_it_is_open() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    let python = tools::find("python3").context("python3 is not installed")?;
    let mut command = stage.daemon.cli()?;
    command.args(WEB).args(["--name", "web-1", "--"]).arg(python).args(["-c", LISTENS_ELSEWHERE]);
    let server = stage.host.start("web-1", &mut command)?;
    let reasons = |status: &Status| Some(status.service("web")?.backends.first()?.reasons().join(" "));
    stage.daemon.wait_for("the condition", |status| reasons(status)?.contains("listener-elsewhere").then_some(()))?;
    server.signal(Signal::USR1)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.wait_for("no condition", |status| reasons(status)?.is_empty().then_some(()))
}
