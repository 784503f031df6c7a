//! Measures the time from `listen()` to the first steered connection. Printed as a figure, never judged.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result};
use pod_steer_tests::{
    daemon::Stage,
    exec::{Exec, first_answer, listening_ns},
    report, require, server, stats, tools,
};

const PROCESSES: usize = 100;
const CONTAINERS: usize = 20;

#[test]
fn of_processes() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let mut times = Vec::new();
    for number in 0..PROCESSES {
        let name = format!("web-{number}");
        // Below the range of ephemeral ports: a client that often connects to a port of that range connects to itself in the
        // end (TCP's simultaneous open).
        let port = 2_000 + u16::try_from(number)?;
        let target = SocketAddr::from(([127, 0, 0, 1], port));
        let ports = format!("{port}:8080");
        let mut backend = thread::scope(|scope| {
            let client = scope.spawn(|| stage.host.net().run(|| first_answer(target, &name)));
            let backend = Exec::new(&name, &name, &ports, "0.0.0.0:8080").launch(&stage);
            let opened = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
            backend.map(|backend| (backend, opened))
        })?;
        let listened = backend.0.listening()?.context("it answered, so it listens")?;
        times.push(Duration::from_nanos(backend.1.saturating_sub(listened)));
        backend.0.process.kill()?;
    }
    report::figure("listen() to first steered connection, processes", stats::median_and_maximum(&mut times));
    Ok(())
}

#[test]
fn of_containers_that_join_others() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let _first = stage.engine().start_container(&server::named("first", "0.0.0.0:8080").service("web", "8080:8080"))?;
    stage.daemon.wait_ready("web", 1)?;
    let target = "127.0.0.1:8080".parse()?;
    let mut times = Vec::new();
    for number in 0..CONTAINERS {
        let name = format!("web-{number}");
        // Most of the slots, so that it gets nearly every attempt after it has joined.
        let spec = server::named(&name, "0.0.0.0:8080").service("web", "8080:8080").weight(99);
        let container = stage.engine().create_container(&spec)?;
        let opened = thread::scope(|scope| {
            let client = scope.spawn(|| stage.host.net().run(|| first_answer(target, &name)));
            container.start()?;
            client.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
        })?;
        let listened = container.said("it to listen", listening_ns)?;
        times.push(Duration::from_nanos(opened.saturating_sub(listened)));
    }
    report::figure("listen() to first steered connection, containers", stats::median_and_maximum(&mut times));
    Ok(())
}
