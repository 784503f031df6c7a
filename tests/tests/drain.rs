//! Old connections during a deploy: requests in flight are finished, open connections are waited for and counted, and those that are
//! open at the deadline are reported and left alone.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use pod_steer_tests::{
    container::Container,
    daemon::Stage,
    load::Load,
    orders::Ordered,
    report, require, server,
    status::{Backend, Status},
    tools, wait,
};

/// How long the old version takes to answer, and so the time for which a request is in flight.
const ANSWER_MS: u64 = 12_000;

fn target() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8080))
}

fn start(stage: &Stage, version: &str, args: &[&str]) -> Result<Container> {
    let args: Vec<&str> = [&["--listen", "0.0.0.0:8080"], args].concat();
    let spec = server::named_with(&format!("web-{version}"), &args).service("web", "8080:8080").version(version);
    stage.engine().start_container(&spec)
}

/// Opens one connection to the old version, then starts the new version.
fn begin(stage: &Stage, old_args: &[&str]) -> Result<(Container, TcpStream, Container)> {
    let old = start(stage, "v1", old_args)?;
    stage.daemon.wait_ready("web", 1)?;
    let client = stage.host.net().run(|| TcpStream::connect(target())).context("connecting to the old version")?;
    client.set_read_timeout(Some(wait::STUCK))?;
    let new = start(stage, "v2", &[])?;
    stage.daemon.wait_ready("web", 2)?;
    Ok((old, client, new))
}

/// Reads up to and including `end`.
fn read_to(stream: &mut TcpStream, end: &str) -> Result<String> {
    let mut received = Vec::new();
    let mut byte = [0];
    while !received.ends_with(end.as_bytes()) {
        ensure!(stream.read(&mut byte)? == 1, "closed after {:?}", String::from_utf8_lossy(&received));
        received.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&received).into_owned())
}

/// Runs a deploy beside the test.
fn deploying<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    stage: &'scope Stage,
    args: &'static str,
) -> Receiver<Result<Ordered>> {
    let (sender, receiver) = channel();
    scope.spawn(move || sender.send(stage.daemon.order(args)));
    receiver
}

fn returned(deploy: &Receiver<Result<Ordered>>) -> Result<Ordered> {
    deploy.recv_timeout(wait::STUCK).context("the deploy does not return")?
}

fn goes_on(deploy: &Receiver<Result<Ordered>>) -> Result<()> {
    match deploy.try_recv() {
        Err(TryRecvError::Empty) => Ok(()),
        early => bail!("the deploy has returned already: {early:?}"),
    }
}

/// The old version has one connection, and the deploy waits for it.
fn waits_for_one(status: &Status) -> Option<Backend> {
    let service = status.service("web")?;
    let draining = service.operation.as_ref().is_some_and(|operation| operation.phase.name == "draining");
    let old = service.backends.iter().find(|backend| backend.name == "web-v1")?;
    (draining && old.state == "standby" && old.live == 1).then(|| old.clone())
}

#[test]
fn a_request_in_flight_is_finished_and_its_connection_counted_until_it_is_gone() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let (_old, mut client, _new) = begin(&stage, &["--answer-delay-ms", &ANSWER_MS.to_string()])?;
    client.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
    thread::scope(|scope| {
        let deploy = deploying(scope, &stage, "deploy web v2 --drain-timeout 60s");
        let old = stage.daemon.wait_for("the deploy to wait for the old connection", waits_for_one)?;
        // The request is in flight and the answer has not begun. The new version serves new clients.
        client.set_nonblocking(true)?;
        ensure!(client.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
        client.set_nonblocking(false)?;
        let others = Load::to(target()).count(100).run(stage.host.net())?;
        ensure!(others.answered_by("web-v2") == 100, "{others}");
        let answer = read_to(&mut client, "\r\n\r\n")? + &read_to(&mut client, "\n")?;
        ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("web-v1 "), "{answer}");

        // Idle and still open: the client may use it again, so the deploy waits for it.
        stage.daemon.wait_for("the connection to be counted still", waits_for_one)?;
        goes_on(&deploy)?;
        drop(client);
        let ordered = returned(&deploy)?.expect(0)?;
        ensure!(ordered.stdout.contains("1 connection"), "{}", ordered.stdout);
        let left = stage.daemon.status()?.backend("web", "web-v1").clone();
        ensure!((left.live, left.opened) == (0, old.opened), "{left:?}");
        report::figure("deploy that waits for a kept-alive connection", ordered.stdout.trim_end().replace('\n', "; "));
        Ok(())
    })
}

#[test]
fn a_websocket_is_left_alone_and_reported() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let (_old, mut client, _new) = begin(&stage, &[])?;
    let upgrade = "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(upgrade.as_bytes())?;
    let switched = read_to(&mut client, "\r\n\r\n")?;
    ensure!(switched.starts_with("HTTP/1.1 101"), "{switched}");
    let mut echo = |word: &str| -> Result<()> {
        client.write_all(word.as_bytes())?;
        read_to(&mut client, word).map(drop)
    };
    echo("before the deploy\n")?;
    let ordered = thread::scope(|scope| {
        let deploy = deploying(scope, &stage, "deploy web v2 --drain-timeout 6s --stop-old");
        stage.daemon.wait_for("the deploy to wait for the WebSocket", waits_for_one)?;
        echo("during the deploy\n")?;
        returned(&deploy)
    })?;
    let ordered = ordered.expect(3)?;
    ensure!(ordered.took() >= Duration::from_secs(6), "not before its deadline: {:?}", ordered.took());
    let summary = last_line(&ordered.stdout).to_owned();
    ensure!(summary.contains("1 old connection") && summary.contains("nothing was stopped"), "{}", ordered.stdout);

    // An upgraded connection is reported separately and left alone, also with --stop-old.
    echo("after the deploy\n")?;
    let status = stage.daemon.status()?;
    ensure!(status.backend("web", "web-v1").live == 1, "{status}");
    let others = Load::to(target()).count(100).run(stage.host.net())?;
    ensure!(others.answered_by("web-v2") == 100, "{others}");
    let history = stage.daemon.history("web")?;
    let end = history.last().and_then(|deploy| deploy.end.as_ref()).context("the deploy is not in the history")?;
    ensure!(end.outcome == "left" && end.message == summary, "{end:?}");
    drop(client);
    stage.daemon.wait_idle("web")?;
    report::figure("deploy that leaves a WebSocket", format!("after {:?}: {summary}", ordered.took()));
    Ok(())
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

/// The kernel programs were not attached yet when the client came.
#[test]
fn connections_from_before_the_daemon_are_counted() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    stage.daemon.kill()?;
    let old = start(&stage, "v1", &[])?;
    wait::until("the server", || old.logs().ok().filter(|logs| logs.contains("listening")))?;
    let mut client = stage.host.net().run(|| TcpStream::connect(target()))?;
    client.set_read_timeout(Some(wait::STUCK))?;
    let counted = |stage: &Stage, live: u64| {
        let is = |status: &Status| (status.backend("web", &old.name).live == live).then_some(());
        stage.daemon.wait_for(&format!("{live} connections to be counted"), is)
    };
    for _ in 0..2 {
        stage.daemon.restart()?;
        stage.daemon.wait_ready("web", 1)?;
        counted(&stage, 1)?;
        stage.daemon.kill()?;
    }
    stage.daemon.restart()?;
    let _new = start(&stage, "v2", &[])?;
    stage.daemon.wait_ready("web", 2)?;
    let left = stage.daemon.order("deploy web v2 --stop-old --drain-timeout 1s")?.expect(3)?;
    let said = left.stdout.clone() + &left.stderr;
    ensure!(said.contains("1 old connection remained at the deadline, so nothing was stopped"), "{said}");
    client.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")?;
    read_to(&mut client, "\r\n\r\n").context("the old connection goes on")?;
    drop(client);
    counted(&stage, 0)?;
    stage.daemon.order_done("deploy web v2 --stop-old --drain-timeout 60s")?;
    stage.daemon.wait_state("web", &old.name, "exited")?;

    // When it is started again, the programs are attached before it listens.
    old.start()?;
    stage.daemon.wait_state("web", &old.name, "standby")?;
    let opened = |stage: &Stage| Ok::<_, anyhow::Error>(stage.daemon.status()?.backend("web", &old.name).opened);
    let before = opened(&stage)?;
    stage.daemon.order_done("deploy web v1 --drain-timeout 60s")?;
    let held = stage.host.net().run(|| TcpStream::connect(target()))?;
    counted(&stage, 1)?;
    ensure!(opened(&stage)? == before + 1, "the kernel programs count");
    drop(held);
    counted(&stage, 0)
}
