//! A backend that asks for many resources leaves room for all others, and gets conditions about its own limits only.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bpf,
    container::Spec,
    daemon::Stage,
    exec::{Exec, python},
    image::Image,
    load::Load,
    process::{Process, run},
    require,
    status::Status,
    tools, wait,
};

/// Starts another service with one backend. It gets its clients and has no condition.
fn has_room(stage: &Stage, port: u16) -> Result<()> {
    let other = Exec::new("web-1", "web", &format!("{port}:8080"), "0.0.0.0:8080").start(stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let tally = Load::to(SocketAddr::from(([127, 0, 0, 1], port))).count(20).run(stage.host.net())?;
    ensure!(tally.answered_by("web-1") == 20, "{tally}");
    let status = stage.daemon.status()?;
    ensure!(status.said_about("web").is_empty(), "{status}");
    drop(other);
    stage.daemon.wait_for("web to be gone", |status| status.service("web").is_none().then_some(()))
}

/// A backend that never listens.
fn silent(stage: &Stage, service: &str, ports: &str) -> Result<Process> {
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", service, "--ports", ports, "--name", service, "--", "sleep", "600"]);
    stage.host.start(service, &mut command)
}

/// How many entries a map has.
fn entries(stage: &Stage, map: &str) -> Result<usize> {
    Ok(bpf::entries(&stage.host, map)?.len())
}

#[test]
fn a_range_of_ports_takes_an_entry_for_each_64() -> Result<()> {
    require!(tools::root_and(&["ip", "bpftool"]));
    let stage = Stage::without_engine()?;
    let _range = silent(&stage, "range", "20000-21023:30000-31023")?;
    stage.daemon.wait_for("the backend", |status| status.service("range").map(drop))?;
    let (ports, own) = (entries(&stage, "MANAGED_PORTS")?, entries(&stage, "OWN_PORTS")?);
    // 17 blocks of the clients' ports and 17 of the server's.
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

/// The conditions of the one backend of a service. None before it exists.
fn warnings(status: &Status, service: &str) -> Vec<String> {
    let backends = status.service(service).into_iter().flat_map(|service| &service.backends);
    backends.flat_map(|backend| backend.warnings()).collect()
}

#[test]
fn a_loop_of_listeners_is_slowed_down_and_reported() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    let mut looping = python(&stage, "loop", "90:9000", LOOPS)?;
    wait::until("it to loop", || looping.stdout().contains("looping").then_some(()))
        .with_context(|| looping.stderr())?;
    let said = stage.daemon.wait_for("the condition of the loop", |status| {
        warnings(status, "loop").into_iter().find(|said| said.contains("faster than 512 a second"))
    })?;
    ensure!(said.contains("left out so far"), "{said}");
    for _ in 0..3 {
        has_room(&stage, 80)?;
    }
    let log = stage.daemon.log();
    // Once for each time that it holds: on a busy machine the loop may be slow for a while.
    let (ended, raised): (Vec<_>, Vec<_>) =
        log.lines().filter(|line| line.contains("faster than 512")).partition(|line| line.contains("ended: "));
    ensure!((1..=1 + ended.len()).contains(&raised.len()), "it is logged once: {log}");
    looping.kill()?;
    stage.daemon.wait_for("the loop to be gone", |status| status.service("loop").is_none().then_some(()))
}

/// A backend that reads numbers: it opens as many listeners with SO_REUSEPORT on one port, or closes as many for a negative number.
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
    let mut stage = Stage::limited("LISTENERS=64")?;
    let go = stage.host.dir().join("orders");
    run(stage.host.command("mkfifo")?.arg(&go))?;
    let program = OPENS.replace("sys.stdin", &format!("open('{}')", go.display()));
    let greedy = python(&stage, "greedy", "90:9000", &program)?;
    let mut orders = fs::File::options().write(true).open(&go)?;
    // Three quarters of 64 are 48.
    writeln!(orders, "60")?;
    wait::until("it to listen", || greedy.stdout().contains("done 60").then_some(()))
        .with_context(|| greedy.stderr())?;
    let sockets = |status: &Status, count: u64| (status.backend("greedy", "greedy-1").sockets == count).then_some(());
    let said = stage.daemon.wait_for("the condition of the greedy service", |status| {
        sockets(status, 48)?;
        warnings(status, "greedy").into_iter().find(|said| said.contains("too many listening sockets"))
    })?;
    ensure!(said.contains("48 of 64, of which 75 % are in use"), "{said}");
    has_room(&stage, 80)?;
    // The next daemon counts them again, and removes none.
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_for("the same sockets", |status| sockets(status, 48))?;
    // Closes the oldest ones, which the daemon has registered.
    writeln!(orders, "-20")?;
    wait::until("it to close some", || greedy.stdout().contains("done 40").then_some(()))?;
    stage.daemon.wait_for("the others to be registered", |status| {
        sockets(status, 40)?;
        warnings(status, "greedy").is_empty().then_some(())
    })?;
    // Listeners that the daemon has registered count too.
    writeln!(orders, "20")?;
    stage
        .daemon
        .wait_for("eight more", |status| sockets(status, 48).filter(|()| !warnings(status, "greedy").is_empty()))
}

#[test]
fn many_listeners_above_the_quota_cost_the_daemon_few_descriptors() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::limited("LISTENERS=512")?;
    let go = stage.host.dir().join("orders");
    run(stage.host.command("mkfifo")?.arg(&go))?;
    let program = OPENS.replace("sys.stdin", &format!("open('{}')", go.display()));
    let greedy = python(&stage, "greedy", "90:9000", &program)?;
    let mut orders = fs::File::options().write(true).open(&go)?;
    let descriptors = format!("/proc/{}/fd", stage.daemon.pid());
    let opened = || fs::read_dir(&descriptors).map_or(0, Iterator::count);
    let (before, ends) = (opened(), AtomicBool::new(false));
    let most = thread::scope(|scope| {
        let most = scope.spawn(|| {
            let mut most = 0;
            while !ends.load(Ordering::Relaxed) {
                most = most.max(opened());
            }
            most
        });
        let mut looks = || {
            writeln!(orders, "1500")?;
            wait::until("it to listen", || greedy.stdout().contains("done 1500").then_some(()))?;
            // Three quarters of 512 are 384.
            let full = |status: &Status| {
                let registered = status.backend("greedy", "greedy-1").sockets;
                (registered == 384 && !warnings(status, "greedy").is_empty()).then_some(())
            };
            stage.daemon.wait_for("as many as it may have", full)?;
            // Closes the oldest ones, which the daemon has registered.
            writeln!(orders, "-300")?;
            wait::until("it to close some", || greedy.stdout().contains("done 1200").then_some(()))?;
            // By the API: a process for each look would be slower than the daemon on a busy machine.
            wait::until_ok("some to be gone", || {
                let sockets = stage.daemon.said_of("greedy")?["backends"][0]["sockets"].as_u64();
                Ok((sockets.context("no sockets")? < 384).then_some(()))
            })?;
            stage.daemon.wait_for("others in their place", full)
        };
        let looked = looks();
        ends.store(true, Ordering::Relaxed);
        let most = most.join().map_err(|_| anyhow::anyhow!("the count of descriptors failed"))?;
        looked.map(|()| most)
    })?;
    ensure!(most < before + 200, "{most} descriptors, {before} before");
    has_room(&stage, 80)
}

/// A backend that listens on each of a range of ports.
const RANGE: &str = "import socket, time
held = []
for port in range(20000, 20100):
    s = socket.socket()
    s.bind(('0.0.0.0', port))
    s.listen()
    held.append(s)
print('listening', flush=True)
time.sleep(600)";

#[test]
fn rules_and_tables_of_a_greedy_service_leave_room() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    for (limit, what) in [("RULES=64", "quota of rules"), ("SLOT_TABLES=64", "quota of slot tables")] {
        let stage = Stage::limited(limit)?;
        let mut greedy = python(&stage, "greedy", "20000-20099", RANGE)?;
        wait::until("it to listen", || greedy.stdout().contains("listening").then_some(()))
            .with_context(|| greedy.stderr())?;
        stage.daemon.wait_state("greedy", "greedy-1", "not-steered")?;
        let said = stage.daemon.wait_for("its condition", |status| {
            warnings(status, "greedy").into_iter().find(|said| said.contains(what))
        })?;
        ensure!(said.contains("48 of 64, of which 75 % are in use") && said.contains("stop services"), "{said}");
        has_room(&stage, 80)?;
        // It keeps its tables, and changes of them take effect.
        let second = Exec::new("greedy-2", "greedy", "20000:8081", "0.0.0.0:8081").start(&stage)?;
        stage.daemon.wait_state("greedy", "greedy-2", "ready")?;
        stage.daemon.order_done("drain greedy --backend greedy-1")?;
        let tally = Load::to("127.0.0.1:20000".parse()?).count(20).run(stage.host.net())?;
        ensure!(tally.answered_by("greedy-2") == 20, "{tally}");
        drop(second);
        // Another service that asks for many gets the same condition, and gets its tables when there is room again.
        let status = stage.daemon.status()?;
        ensure!(status.conditions.iter().all(|of| of.subject.contains("greedy")), "{status}");
        let late = RANGE.replace("range(20000, 20100)", "range(30000, 30040)");
        let _late = python(&stage, "late", "30000-30039", &late)?;
        stage.daemon.wait_state("late", "late-1", "not-steered")?;
        greedy.kill()?;
        stage.daemon.wait_ready("late", 1)?;
        stage.daemon.wait_for("no condition", |status| status.warnings().is_empty().then_some(()))?;
    }
    Ok(())
}

#[test]
fn networks_of_a_service_outlive_a_daemon_at_the_quota() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let mut stage = Stage::limited("SLOT_TABLES=64")?;
    let backend = |stage: &Stage, name: &str, version: &str, port: u16| {
        let flags = ["--version", version];
        Exec::new(name, "web", &format!("80:{port}"), &format!("0.0.0.0:{port}")).flags(&flags).start(stage)
    };
    let _versions = (backend(&stage, "web-1", "v1", 8081)?, backend(&stage, "web-2", "v2", 8082)?);
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("shift web v1=1 --from 127.0.0.1/32=v2 --from 10.99.0.0/16=v1")?;
    let _greedy = python(&stage, "greedy", "20000-20099", RANGE)?;
    stage.daemon.wait_for("the tables to be in use", |status| {
        warnings(status, "greedy").iter().any(|said| said.contains("48 of 64") || said.contains("75 %")).then_some(())
    })?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 2)?;
    // A change of its tables takes effect.
    let _third = backend(&stage, "web-3", "v2", 8083)?;
    stage.daemon.wait_state("web", "web-3", "ready")?;
    stage.daemon.order_done("drain web --backend web-2")?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(20).run(stage.host.net())?;
    ensure!(tally.answered_by("web-3") == 20, "{tally}");
    let status = stage.daemon.status()?;
    ensure!(status.said_about("web").is_empty(), "{status}");
    Ok(())
}

/// An `exec` that must be refused; returns its error.
fn refused(stage: &Stage, service: &str, ports: &str) -> Result<String> {
    let mut refused = silent(stage, service, ports)?;
    ensure!(!refused.wait(wait::STUCK)?.success(), "it is refused");
    Ok(refused.stderr())
}

#[test]
fn ports_of_a_greedy_service_leave_room() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::limited("MANAGED_PORTS=64,OWN_PORTS=128")?;
    let _greedy = silent(&stage, "greedy", "20000-21023:30000-31023")?;
    stage.daemon.wait_for("the backend", |status| status.service("greedy").map(drop))?;
    let said = refused(&stage, "greedy", "20000-21023:30000-31023")?;
    ensure!(said.contains("blocks of 64 ports: 48 of 64"), "{said}");
    has_room(&stage, 80)
}

#[test]
fn backends_of_a_greedy_service_leave_room() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::configured("max-backends = 8\n")?;
    let mut greedy = Vec::new();
    for n in 1..=6 {
        greedy.push(silent(&stage, "greedy", "90:9000")?);
        stage.daemon.wait_for("the backend", |status| (status.service("greedy")?.backends.len() == n).then_some(()))?;
    }
    let said = refused(&stage, "greedy", "90:9000")?;
    ensure!(said.contains("may have no more backends: 6 of 8"), "{said}");
    has_room(&stage, 80)?;
    greedy.pop();
    stage.daemon.wait_for("one to be gone", |status| (status.service("greedy")?.backends.len() == 5).then_some(()))?;
    let _again = silent(&stage, "greedy", "90:9000")?;
    stage.daemon.wait_for("another", |status| (status.service("greedy")?.backends.len() == 6).then_some(()))
}

#[test]
fn many_backends_with_many_ports_leave_room() -> Result<()> {
    require!(tools::root_and(&["ip", "bpftool"]));
    let stage = Stage::without_engine()?;
    let mut many = Vec::new();
    for n in 1..=66 {
        many.push(silent(&stage, "many", "20000-21023:30000-31023")?);
        stage.daemon.wait_for("the backend", |status| (status.service("many")?.backends.len() == n).then_some(()))?;
    }
    let used = (entries(&stage, "MANAGED_PORTS")?, entries(&stage, "OWN_PORTS")?);
    ensure!(used == (66 * 34, 66 * 34), "{used:?}");
    has_room(&stage, 80)
}

#[test]
fn a_container_that_is_one_too_many_is_managed_when_there_is_room() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker_configured("max-backends = 1\n")?;
    let named = |service: &str, port: u16| {
        let name = format!("{service}-1");
        let listen = format!("0.0.0.0:{port}");
        Spec::new(Image::Named, &name).service(service, &port.to_string()).args(&[
            "/named-server",
            "--name",
            &name,
            "--listen",
            &listen,
        ])
    };
    let first = stage.engine().start_container(&named("first", 81))?;
    stage.daemon.wait_ready("first", 1)?;
    let _second = stage.engine().start_container(&named("second", 82))?;
    stage.daemon.wait_for("its condition", |status| {
        status.said_about("second-1").iter().any(|said| said.contains("all 1 backends are in use")).then_some(())
    })?;
    drop(first);
    stage.daemon.wait_ready("second", 1)?;
    stage.daemon.wait_for("no condition", |status| status.warnings().is_empty().then_some(()))
}
