//! Another backend serves the connections in the queue of a listener that ends.

use std::{
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::{Backend, Exec},
    journal::Killed,
    load::{self, Load},
    report, require, server, tools, wait,
};
use rustix::process::Signal;

const CLIENTS: u64 = 40;

/// Two backends, of which one never accepts, with clients in its queue.
fn queue_up(stage: &Stage) -> Result<(Backend, Backend, load::Running, u64)> {
    let start =
        |name: &str, args: &[&str]| Exec::new(name, "web", "8080:8080", "0.0.0.0:8080").server(args).start(stage);
    let deaf = start("deaf", &["--accept-delay-ms", "600000"])?;
    let good = start("good", &[])?;
    stage.daemon.wait_ready("web", 2)?;
    let clients = Load::to("127.0.0.1:8080".parse()?).threads(CLIENTS).count(CLIENTS).start(stage.host.net())?;
    let waiting = stage.daemon.wait_for("every client to be connected", |status| {
        let service = status.service("web")?;
        (service.opened() == CLIENTS).then(|| status.backend("web", "deaf").opened)
    })?;
    assert!(waiting > 0 && waiting < CLIENTS, "{waiting} of {CLIENTS} wait: too few to show anything");
    wait::until("the other clients' answers", || (clients.answered() == CLIENTS - waiting).then_some(()))?;
    Ok((deaf, good, clients, waiting))
}

fn all_clients_are_answered(signal: Signal) -> Result<()> {
    let stage = Stage::without_engine()?;
    let (deaf, _good, clients, waiting) = queue_up(&stage)?;
    deaf.process.signal(signal)?;
    let tally = clients.stop()?;
    assert_eq!(tally.answered_by("good"), CLIENTS, "{tally}");
    let status = stage.daemon.status()?;
    let service = status.service("web").expect("the service has a backend");
    assert_eq!(status.backend("web", "good").moved_in, waiting, "{service:#?}");
    report::figure(
        &format!("queue of a listener closed by {signal:?}"),
        format!("{waiting} moved, {waiting} answered"),
    );
    let good = stage.daemon.wait_idle("web")?;
    assert_eq!(good.counter("refused_no_backend"), 0);
    Ok(())
}

#[test]
fn of_a_process_that_is_killed() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    all_clients_are_answered(Signal::KILL)
}

#[test]
fn while_connections_keep_coming() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let start = |name: &str| {
        let exec = Exec::new(name, "web", "8080:8080", "0.0.0.0:8080");
        exec.journal(&stage.host.dir().join(format!("{name}.journal")))
            .server(&["--accept-delay-ms", "1"])
            .start(&stage)
    };
    let _steady = start("steady")?;
    let mut doomed = start("doomed-0")?;
    stage.daemon.wait_ready("web", 2)?;
    // More clients than the servers accept at a time, so that both queues always hold connections.
    let load = Load::to("127.0.0.1:8080".parse()?).threads(16).start(stage.host.net())?;
    let mut journals = Vec::new();
    for round in 1..=20 {
        thread::sleep(Duration::from_millis(50));
        doomed.process.kill()?;
        journals.push(stage.host.dir().join(format!("{}.journal", doomed.name)));
        doomed = start(&format!("doomed-{round}"))?;
        stage.daemon.wait_for("the new backend", |status| {
            (status.service("web")?.backends.iter().any(|one| one.name == doomed.name && one.state == "ready"))
                .then_some(())
        })?;
    }
    let tally = load.stop()?;
    report::figure("20 kills of a listener with a queue", &tally);
    Killed::read(&journals)?.accounts_for(&tally)?;
    assert_eq!(tally.refused(), 0, "{tally}");
    Ok(())
}

/// A pause keeps out new clients only: queued connections are served.
#[test]
fn of_a_paused_service() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let (deaf, _good, clients, waiting) = queue_up(&stage)?;
    stage.daemon.order_done("pause web")?;
    deaf.process.signal(Signal::KILL)?;
    let tally = clients.stop()?;
    assert_eq!(tally.answered_by("good"), CLIENTS, "{waiting} waited: {tally}");
    stage.daemon.order_done("unpause web").map(drop)
}

/// An engine removes the cgroup of a container that has ended. The connections of its queue go on elsewhere, and are counted.
#[test]
fn of_a_container_whose_cgroup_is_gone() -> Result<()> {
    require!(tools::docker());
    const CLIENTS: usize = 20;
    let mut stage = Stage::with_docker()?;
    let start = |name: &str, service: &str, port: u16, delay: &str| {
        let listen = format!("0.0.0.0:{port}");
        let spec = server::named_with(name, &["--listen", &listen, "--accept-delay-ms", delay]);
        stage.engine().start_container(&spec.service(service, &format!("{port}:{port}")))
    };
    let deaf = start("deaf", "web", 8080, "600000")?;
    let _good = start("good", "web", 8080, "0")?;
    let other = start("other", "other", 9090, "0")?;
    stage.daemon.wait_ready("web", 2)?;
    let target: SocketAddr = "127.0.0.1:8080".parse()?;
    let connect = || Ok(stage.host.net().run(|| TcpStream::connect(target))?);
    let mut streams = (0..CLIENTS).map(|_| connect()).collect::<Result<Vec<_>>>()?;
    let waiting = stage.daemon.wait_for("every client to be connected", |status| {
        let all = status.service("web")?.opened() == CLIENTS as u64;
        all.then(|| status.backend("web", "deaf").opened)
    })?;
    ensure!(waiting > 0, "none waits");
    deaf.kill("KILL")?;
    drop(deaf);
    let live = |stage: &Stage| {
        stage.daemon.wait_for("one ready backend", |status| match status.service("web")?.backends.as_slice() {
            [good] if good.state == "ready" => Some(good.live),
            _ => None,
        })
    };
    ensure!(live(&stage)? == CLIENTS as u64, "{}", stage.daemon.status()?);
    // At its end the daemon looks at what is left of those before it.
    drop(other);
    stage.daemon.wait_for("it to be gone", |status| {
        status.service("other").is_none_or(|own| own.backends.is_empty()).then_some(())
    })?;
    // The look is in the next turns of its loop.
    thread::sleep(Duration::from_millis(500));
    ensure!(live(&stage)? == CLIENTS as u64, "{}", stage.daemon.status()?);
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    ensure!(live(&stage)? == CLIENTS as u64, "{}", stage.daemon.status()?);
    for stream in &mut streams {
        let (name, _) = load::ask(stream, target, false).map_err(|loss| anyhow!("{loss:?}"))?;
        ensure!(name == "good", "{name}");
    }
    report::figure("a queue whose cgroup is gone", format!("{waiting} moved, {CLIENTS} live and answered"));
    drop(streams);
    stage.daemon.wait_idle("web").map(drop)
}

/// A server that opens a new listener before it closes the old one, while no daemon can publish it.
#[test]
fn of_a_server_that_reloads_without_a_daemon() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let mut stage = Stage::without_engine()?;
    let go = stage.host.dir().join("go");
    let server = "import os, socket, sys, time
def listen():
    s = socket.socket()
    s.bind(('0.0.0.0', 8080))
    s.listen(100)
    return s
old = listen()
print('listening', flush=True)
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
new = listen()
old.close()
while True:
    c = new.accept()[0]
    c.recv(1000)
    c.sendall(b'HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: 3\\r\\n\\r\\nnew')
    c.close()";
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", "web", "--ports", "80:8080", "--name", "one", "--", "python3", "-c", server]);
    let process = stage.host.start("server", command.arg(&go))?;
    wait::until("it to listen", || process.stdout().contains("listening").then_some(()))?;
    stage.daemon.wait_ready("web", 1)?;
    let clients = Load::to("127.0.0.1:80".parse()?).threads(10).count(10).start(stage.host.net())?;
    stage.daemon.wait_for("clients in the queue", |status| (status.service("web")?.opened() == 10).then_some(()))?;
    stage.daemon.kill()?;
    std::fs::write(&go, "")?;
    let tally = clients.stop()?;
    assert_eq!(tally.answered(), 10, "{tally} {}", process.stderr());
    Ok(())
}
