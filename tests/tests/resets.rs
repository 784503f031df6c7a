//! Connections that are open at the deadline of a drain: `--at-deadline=reset` has the kernel reset them, whatever kind of backend
//! holds them, and no others.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bridged::{self, Kept},
    daemon::Stage,
    exec::Exec,
    netns::NetNs,
    report, require, server, tools, wait,
};

/// Connections that are kept for each server.
const EACH: usize = 6;

fn open(net: &NetNs, target: SocketAddr, number: usize) -> Result<Vec<Kept>> {
    (0..number).map(|_| Kept::open(net, target)).collect()
}

/// Every connection of these was reset.
fn all_reset(kept: Vec<Kept>) -> Result<()> {
    for mut one in kept {
        ensure!(one.goes_on().is_err(), "a connection of {} goes on", one.server);
    }
    Ok(())
}

#[test]
fn a_deploy_resets_what_is_open_at_its_deadline() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    // One in the host's network, a process, and one behind a bridge.
    let on_host = server::named("on-host", "0.0.0.0:8080").service("web", "80:8080").version("v1");
    let _old = [
        stage.engine().start_container(&on_host)?,
        stage.engine().start_container(&bridged::web("bridged").version("v1"))?,
    ];
    let _process = Exec::new("process", "web", "80:8080", "0.0.0.0:8080").flags(&["--version", "v1"]).start(&stage)?;
    stage.daemon.wait_ready("web", 3)?;
    // So many that each server has some.
    let old = open(&client.ns, target, 64)?;
    let names: BTreeSet<&str> = old.iter().map(|kept| kept.server.as_str()).collect();
    ensure!(names.len() == 3, "{names:?}");
    let _new = stage
        .engine()
        .start_container(&server::named("new", "0.0.0.0:8080").service("web", "80:8080").version("v2"))?;
    stage.daemon.wait_ready("web", 4)?;
    let ordered = stage.daemon.order("deploy web v2 --drain-timeout 1s --at-deadline reset")?.expect(0)?;
    let reset = format!("{} old connections reset", old.len());
    ensure!(ordered.stdout.contains(&reset), "{}", ordered.stdout);
    report::figure("deploy that resets at its deadline", ordered.stdout.trim_end().replace('\n', "; "));
    all_reset(old)?;
    let new = open(&client.ns, target, EACH)?;
    ensure!(new.iter().all(|kept| kept.server == "new"));
    let status = stage.daemon.wait_for("the old connections to be gone", |status| {
        let old = ["on-host", "bridged", "process"];
        old.iter().all(|name| status.backend("web", name).live == 0).then(|| status.clone())
    })?;
    ensure!(status.backend("web", "new").live == EACH as u64, "{status}");
    for mut kept in new {
        kept.goes_on()?;
    }
    Ok(())
}

#[test]
fn a_drain_waits_and_can_be_ended() -> Result<()> {
    let stage = Stage::without_engine()?;
    let version =
        |name: &str| Exec::new(name, "web", "80:8080", "0.0.0.0:8080").flags(&["--version", name]).start(&stage);
    let _servers = [version("v1")?, version("v2")?];
    stage.daemon.wait_ready("web", 2)?;
    let target: SocketAddr = ([127, 0, 0, 1], 80).into();
    let (of_v1, of_v2): (Vec<Kept>, Vec<Kept>) =
        open(stage.host.net(), target, 4 * EACH)?.into_iter().partition(|kept| kept.server == "v1");
    ensure!(!of_v1.is_empty() && !of_v2.is_empty());

    // Bad input changes nothing.
    for bad in ["--at-deadline reset", "--drain-timeout soon", "--drain-timeout 1s --at-deadline drop"] {
        stage.daemon.order(&format!("drain web --version v1 {bad}"))?.expect(2)?;
    }
    ensure!(stage.daemon.history("web")?.is_empty(), "bad input was recorded");

    let left = stage.daemon.order("drain web --version v1 --drain-timeout 500ms")?.expect(3)?;
    ensure!(left.stdout.contains(&format!("{} connections remained", of_v1.len())), "{}", left.stdout);
    for mut kept in of_v2 {
        kept.goes_on()?;
    }
    std::thread::scope(|scope| -> Result<()> {
        let waiting = scope.spawn(|| stage.daemon.order("drain web --version v1 --drain-timeout 60s"));
        stage.daemon.wait_for("the drain to wait", |status| {
            let operation = status.service("web")?.operation.as_ref()?;
            (operation.phase.name == "draining").then_some(())
        })?;
        stage.daemon.order("pause web")?.expect(2).or_else(|_| stage.daemon.order("pause web")?.expect(1))?;
        stage.daemon.order_done("resume web --version v1")?;
        let ended = waiting.join().ok().context("a thread panicked")??.expect(1)?;
        ensure!(ended.stderr.contains("ended by a resume"), "{}", ended.stderr);
        Ok(())
    })?;
    let reset = stage.daemon.order("drain web --version v1 --drain-timeout 0s --at-deadline reset")?.expect(0)?;
    ensure!(reset.stdout.contains(&format!("{} connections reset", of_v1.len())), "{}", reset.stdout);
    all_reset(of_v1)
}

/// A request whose answer has not begun is lost with its connection, and the client sees a reset rather than an end.
#[test]
fn a_client_sees_a_reset() -> Result<()> {
    let stage = Stage::without_engine()?;
    let _server =
        Exec::new("slow", "web", "80:8080", "0.0.0.0:8080").server(&["--answer-delay-ms", "60000"]).start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let mut client = stage.host.net().run(|| TcpStream::connect(("127.0.0.1", 80)))?;
    client.set_read_timeout(Some(wait::STUCK))?;
    client.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")?;
    stage.daemon.wait_for("the connection", |status| (status.backend("web", "slow").live == 1).then_some(()))?;
    stage.daemon.order("drain web --drain-timeout 100ms --at-deadline reset")?.expect(0)?;
    let error = client.read(&mut [0]).err().context("the connection was not reset")?;
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    Ok(())
}
