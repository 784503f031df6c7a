//! A backend that asks for a lot leaves room for every other one, and is told of its own limits alone.

use std::{fs, io::Write as _};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::{BPFFS, Conditions, Stage},
    exec::Exec,
    process::{Process, run},
    require,
    rollouts::all_by,
    status::Status,
    tools, wait,
};

/// A backend that never listens.
fn silent(stage: &Stage, service: &str, ports: &str) -> Result<Process> {
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", service, "--ports", ports, "--name", service, "--", "sleep", "600"]);
    stage.host.start(service, &mut command)
}

/// How many entries a map has.
fn entries(stage: &Stage, map: &str) -> Result<usize> {
    let mut dump = stage.host.command("bpftool")?;
    let dump = run(dump.args(["--json", "map", "dump", "pinned", &format!("{BPFFS}/maps/{map}")]))?;
    let entries: Vec<serde_json::Value> = serde_json::from_str(&dump)?;
    Ok(entries.len())
}

#[test]
fn a_range_of_ports_takes_an_entry_for_each_64() -> Result<()> {
    require!(tools::root_and(&["ip", "bpftool"]));
    let stage = Stage::without_engine()?;
    let _range = silent(&stage, "range", "20000-21023:30000-31023")?;
    stage.daemon.wait_for("the backend", |status| status.service("range").map(drop))?;
    let (ports, own) = (entries(&stage, "MANAGED_PORTS")?, entries(&stage, "OWN_PORTS")?);
    // 17 blocks of the clients' ports, 17 of the server's; those of the clients in both families.
    ensure!((ports, own) == (34, 34), "{ports} entries of ports, {own} of own ports");
    Ok(())
}

/// A backend that opens and closes listeners as fast as it can.
const LOOPS: &str = "import socket
n = 0
while True:
    s = socket.socket()
    s.bind(('0.0.0.0', 9000))
    s.listen()
    s.close()
    n += 1
    if n == 4000: print('looping', flush=True)";

/// A backend whose server is a Python program.
fn python(stage: &Stage, service: &str, ports: &str, program: &str) -> Result<Process> {
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", service, "--ports", ports, "--name", &format!("{service}-1"), "--"]);
    stage.host.start(service, command.args(["python3", "-u", "-c", program]))
}

/// The problems of the one backend of a service.
fn problems(status: &Status, service: &str) -> Vec<String> {
    status.backend(service, &format!("{service}-1")).problems.clone()
}

#[test]
fn a_loop_of_listeners_is_slowed_down_and_told() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    let mut looping = python(&stage, "loop", "90:9000", LOOPS)?;
    wait::until("it to loop", || looping.stdout().contains("looping").then_some(()))
        .with_context(|| looping.stderr())?;
    let said = stage.daemon.wait_for("the loop to be told", |status| {
        problems(status, "loop").into_iter().find(|said| said.contains("faster than 512 a second"))
    })?;
    ensure!(said.contains("left out so far"), "{said}");
    for n in 1..=3 {
        let other = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
        stage.daemon.wait_ready("web", 1)?;
        all_by(stage.host.net(), 20, "web")?;
        let status = stage.daemon.status()?;
        ensure!(status.said_about("web").is_empty(), "{n}: {status}");
        drop(other);
        stage.daemon.wait_for("web to be gone", |status| status.service("web").is_none().then_some(()))?;
    }
    let log = stage.daemon.log();
    ensure!(log.matches("faster than 512").count() == 1, "it is told once: {log}");
    looping.kill()?;
    stage.daemon.wait_for("the loop to be gone", |status| status.service("loop").is_none().then_some(()))
}

/// A backend that opens as many listeners as it reads, with SO_REUSEPORT on one port, and closes those when it reads a negative number.
const OPENS: &str = "import socket, sys
held = []
for line in sys.stdin:
    n = int(line)
    for _ in range(n):
        s = socket.socket()
        s.bind(('0.0.0.0', 9000))
        s.listen()
        held.append(s)
    for _ in range(-n): held.pop(0).close()
    print('done', len(held), flush=True)";

#[test]
fn sockets_above_the_quota_wait_for_room() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let env = vec![("POD_STEER_TEST_LIMITS", "LISTENERS=64".to_owned())];
    let mut stage = Stage::under(Conditions { env, ..Conditions::default() })?;
    let go = stage.host.dir().join("orders");
    run(stage.host.command("mkfifo")?.arg(&go))?;
    let program = OPENS.replace("sys.stdin", &format!("open('{}')", go.display()));
    let greedy = python(&stage, "greedy", "90:9000", &program)?;
    let mut orders = fs::File::options().write(true).open(&go)?;
    // Three quarters are 48.
    writeln!(orders, "60")?;
    wait::until("it to listen", || greedy.stdout().contains("done 60").then_some(()))
        .with_context(|| greedy.stderr())?;
    let sockets = |status: &Status, count: u64| (status.backend("greedy", "greedy-1").sockets == count).then_some(());
    let said = stage.daemon.wait_for("the greedy one to be told", |status| {
        sockets(status, 48)?;
        problems(status, "greedy").into_iter().find(|said| said.contains("too many listening sockets"))
    })?;
    ensure!(said.contains("it has 48, all together 48 of 64"), "{said}");
    let other = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    all_by(stage.host.net(), 20, "web")?;
    let status = stage.daemon.status()?;
    ensure!(status.said_about("web").is_empty(), "{status}");
    // A daemon that starts counts them again, and takes none away.
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_for("the same sockets", |status| sockets(status, 48))?;
    drop(other);
    // The oldest, which are registered.
    writeln!(orders, "-20")?;
    wait::until("it to close some", || greedy.stdout().contains("done 40").then_some(()))?;
    stage.daemon.wait_for("the others to be registered", |status| {
        sockets(status, 40)?;
        problems(status, "greedy").is_empty().then_some(())
    })?;
    // Those that the daemon has registered are counted too.
    writeln!(orders, "20")?;
    stage
        .daemon
        .wait_for("eight more", |status| sockets(status, 48).filter(|()| !problems(status, "greedy").is_empty()))
}
