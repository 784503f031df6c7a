//! What does not lead a client where policy does not send it.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::Exec,
    listeners::unmanaged,
    load::ask,
    process::run,
    require, tools, wait,
};
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt},
    process::Signal,
};

/// Asks a server, from a port of the client's choice.
fn ask_from(stage: &Stage, source: SocketAddr, target: SocketAddr) -> Result<String> {
    stage.host.net().run(|| {
        let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &source)?;
        connect(&socket, &target)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let asked = ask(&mut stream, target, false);
        asked.map(|(name, _)| name).map_err(|loss| anyhow!("{loss:?}"))
    })
}

/// A daemon that is killed in the midst of a probe leaves the port that the probe came from in the map of probes.
#[test]
fn a_probe_of_a_dead_daemon_leads_no_client_to_its_backend() -> Result<()> {
    require!(tools::root_and(&["ip", "ss"]));
    let mut stage = Stage::configured("[service.web.health]\nkind = 'http'\ninterval = '50ms'\ntimeout = '30s'\n")?;
    let _stranger = unmanaged(&stage, stage.host.net(), "stranger", &["[::1]:9000"])?;
    let _backend = Exec::new("v1-1", "web", "80:8080", "[::1]:8080").server(&["--answer-delay-ms", "1000"]).start(&stage)?;
    let sockets = |filter: &str| -> Result<String> {
        run(stage.host.command("ss")?.args(["-H", "-t", "-n", "state", "connected"]).arg(filter))
    };
    let client = wait::until_ok("a probe", || {
        let found = sockets("dport = :8080")?;
        Ok(found.split_whitespace().nth(3).map(str::to_owned))
    })?;
    let source: SocketAddr = client.parse().context(client)?;
    // The answer comes and stays unread: so the end of the daemon resets the connection, and its port is free at once.
    stage.daemon.signal(Signal::STOP)?;
    wait::until_ok("an unread answer", || {
        let found = sockets("dport = :8080")?;
        Ok(found.split_whitespace().nth(1).is_some_and(|unread| unread != "0").then_some(()))
    })?;
    stage.daemon.kill()?;
    wait::until_ok("the probe to be gone", || Ok(sockets("dport = :8080")?.trim().is_empty().then_some(())))?;
    for target in ["[::1]:9000", "[::1]:8080"] {
        let answer = ask_from(&stage, source, target.parse()?)?;
        let wanted = if target.ends_with("9000") { "stranger@[::1]:9000" } else { "v1-1" };
        ensure!(answer == wanted, "{target}: {answer}");
    }
    Ok(())
}
