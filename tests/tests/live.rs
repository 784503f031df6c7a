//! However a connection ends, it is counted as both opened and closed, or as neither: LIVE returns to zero.

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::{Backend, Exec},
    require,
    segments::{ACK, FIN, Peer, RST, SYN},
    tools, wait,
};
use rustix::process::Signal;

/// Option of TCP Fast Open (RFC 7413) without a cookie: asks for one.
const COOKIE_REQUEST: [u8; 2] = [34, 2];
/// Every listener takes data in a SYN, with a cookie; without one too.
const FAST_OPEN: &str = "1027";
const FAST_OPEN_WITHOUT_COOKIE: &str = "1539";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn stage() -> Result<(Stage, Peer)> {
    let stage = Stage::without_engine()?;
    let net = stage.host.net();
    // Connections of a dead peer time out within seconds.
    for (name, value) in [
        ("tcp_synack_retries", "1"),
        ("tcp_retries2", "2"),
        ("tcp_orphan_retries", "1"),
        ("tcp_fin_timeout", "1"),
        ("tcp_fastopen", FAST_OPEN),
    ] {
        net.sysctl(&format!("net.ipv4.{name}"), value)?;
    }
    let peer = Peer::new(net)?;
    Ok((stage, peer))
}

fn server(stage: &Stage, name: &str, port: u16, args: &[&str]) -> Result<Backend> {
    let exec = Exec::new(name, "web", &format!("{port}:{port}"), &format!("0.0.0.0:{port}"));
    exec.server(args).start(stage)
}

/// Waits until as many connections of `web` are counted as closed as were opened.
fn agrees(stage: &Stage, opened: u64) -> Result<()> {
    stage.daemon.wait_for("opened and closed to agree", |status| {
        let backends = &status.service("web")?.backends;
        let sum = |of: fn(&pod_steer_tests::status::Backend) -> u64| backends.iter().map(of).sum::<u64>();
        (sum(|b| b.live) == 0 && sum(|b| b.opened) == opened && sum(|b| b.closed) == opened).then_some(())
    })
}

#[test]
fn of_connections_that_are_established() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let (stage, mut peer) = stage()?;
    // A server that waits for its client's end, and one that sends its answer and closes first.
    let _backends = [server(&stage, "web-1", 80, &[])?, server(&stage, "raw-1", 81, &["--raw"])?];
    stage.daemon.wait_ready("web", 2)?;
    let mut opened = 0;
    let mut open =
        |peer: &mut Peer, to: u16, end: &dyn Fn(&mut pod_steer_tests::segments::Connection) -> Result<()>| {
            let mut connection = peer.connection(to);
            connection.open()?;
            opened += 1;
            end(&mut connection)
        };
    // The client ends: by a reset, at once and after data; by closing, with and without data; or it vanishes after closing.
    open(&mut peer, 80, &|c| c.reset())?;
    open(&mut peer, 80, &|c| c.send(ACK, &[], GET).and_then(|()| c.expect(ACK)).and_then(|_| c.reset()))?;
    open(&mut peer, 80, &|c| c.close())?;
    open(&mut peer, 80, &|c| c.send(ACK, &[], GET).and_then(|()| c.close()))?;
    open(&mut peer, 80, &|c| c.send(FIN | ACK, &[], GET))?;
    open(&mut peer, 80, &|c| c.send(FIN | ACK, &[], GET).and_then(|()| c.expect(FIN)).and_then(|_| c.reset()))?;
    // The server closes first, and the client answers in every way, or not at all.
    open(&mut peer, 81, &|c| {
        c.expect(FIN)?;
        c.send(FIN | ACK, &[], &[])?;
        c.expect(ACK).map(drop)
    })?;
    open(&mut peer, 81, &|c| c.expect(FIN).and_then(|_| c.reset()))?;
    open(&mut peer, 81, &|c| c.expect(FIN).and_then(|_| c.send(ACK, &[], &[])))?;
    open(&mut peer, 81, &|c| c.expect(FIN).map(drop))?;
    open(&mut peer, 81, &|_| Ok(()))?;
    // Both close at the same time.
    open(&mut peer, 81, &|c| {
        c.send(FIN | ACK, &[], &[])?;
        c.expect(FIN)?;
        c.send(ACK, &[], &[])
    })?;
    // The client closes its window and vanishes.
    let mut full = peer.connection(80);
    full.window = 0;
    full.open()?;
    full.send(ACK, &[], GET)?;
    full.send(FIN | ACK, &[], &[])?;
    agrees(&stage, opened + 1)
}

#[test]
fn of_connections_that_never_were() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let (stage, mut peer) = stage()?;
    let _backend = server(&stage, "web-1", 80, &[])?;
    stage.daemon.wait_ready("web", 1)?;
    // Half-open connections: reset, timed out, and acknowledged with a wrong number.
    let mut reset = peer.connection(80);
    reset.half_open()?;
    reset.send(RST, &[], &[])?;
    peer.connection(80).half_open()?;
    let mut wrong = peer.connection(80);
    wrong.send(SYN, &[], &[])?;
    wrong.send(ACK, &[], &[])?;
    wrong.expect(RST)?;
    // A complete connection follows them, by SYN cookies too.
    let mut real = peer.connection(80);
    real.open()?;
    real.close()?;
    stage.host.net().sysctl("net.ipv4.tcp_syncookies", "2")?;
    let mut cookie = peer.connection(80);
    cookie.open()?;
    cookie.send(ACK, &[], GET)?;
    cookie.expect(ACK)?;
    cookie.close()?;
    let mut cookie = peer.connection(80);
    cookie.open()?;
    cookie.reset()?;
    let mut forged = peer.connection(80);
    forged.send(ACK, &[], &[])?;
    forged.expect(RST)?;
    agrees(&stage, 3)
}

#[test]
fn of_tcp_fast_open() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let (stage, mut peer) = stage()?;
    let backend = server(&stage, "web-1", 80, &[])?;
    stage.daemon.wait_ready("web", 1)?;
    // The client asks for a cookie and uses it.
    let mut first = peer.connection(80);
    first.send(SYN, &COOKIE_REQUEST, &[])?;
    let options = first.expect(SYN | ACK)?.options;
    first.send(ACK, &[], &[])?;
    first.close()?;
    let at = options.windows(2).position(|option| option == [34, 10]).context("the host gives a cookie")?;
    let cookie = options[at..at + 10].to_vec();
    let mut opened = 1;
    // With data in its SYN a connection exists before its handshake is complete. Then it continues, or ends by a reset, by the
    // client's silence, or by a last segment that also closes.
    for option in [&cookie[..], &[]] {
        if option.is_empty() {
            stage.host.net().sysctl("net.ipv4.tcp_fastopen", FAST_OPEN_WITHOUT_COOKIE)?;
        }
        let mut whole = peer.connection(80);
        whole.send(SYN, option, GET)?;
        let answer = whole.expect(SYN | ACK)?;
        whole.send(ACK, &[], &[])?;
        ensure!(answer.ack != 0, "{answer:?}");
        whole.close()?;
        let mut reset = peer.connection(80);
        reset.send(SYN, option, GET)?;
        reset.expect(SYN | ACK)?;
        reset.reset()?;
        let mut silent = peer.connection(80);
        silent.send(SYN, option, GET)?;
        silent.expect(SYN | ACK)?;
        let mut ended = peer.connection(80);
        ended.send(SYN, option, GET)?;
        ended.expect(SYN | ACK)?;
        ended.send(FIN | ACK, &[], &[])?;
        ended.expect(FIN)?;
        ended.send(ACK, &[], &[])?;
        opened += 4;
    }
    agrees(&stage, opened)?;

    // The server ends while some connections are open and some are half-open. Until then none may time out.
    for name in ["tcp_synack_retries", "tcp_retries2", "tcp_orphan_retries"] {
        stage.host.net().sysctl(&format!("net.ipv4.{name}"), "5")?;
    }
    let mut left = peer.connection(80);
    left.send(SYN, &cookie, GET)?;
    left.expect(SYN | ACK)?;
    let mut open = peer.connection(80);
    open.open()?;
    stage.daemon.wait_for("both to be counted", |status| (status.backend("web", "web-1").live == 2).then_some(()))?;
    let _other = server(&stage, "web-2", 80, &[])?;
    stage.daemon.wait_ready("web", 2)?;
    backend.process.signal(Signal::KILL)?;
    stage.daemon.wait_for("web-1 to be gone", |status| (status.service("web")?.backends.len() == 1).then_some(()))?;
    agrees(&stage, 0)
}

#[test]
fn of_queues_that_overflow_or_lose_their_listener() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let (stage, mut peer) = stage()?;
    // Half-open connections must outlive several starts of servers.
    stage.host.net().sysctl("net.ipv4.tcp_synack_retries", "3")?;
    let mut deaf = server(&stage, "deaf-1", 80, &["--accept-delay-ms", "600000", "--backlog", "3"])?;
    stage.daemon.wait_ready("web", 1)?;
    stage.host.net().sysctl("net.ipv4.tcp_fastopen", FAST_OPEN_WITHOUT_COOKIE)?;
    // More connections than the queue has room for: some are established, and the kernel drops the last handshake segment of the rest.
    for _ in 0..8 {
        let mut connection = peer.connection(80);
        if connection.send(SYN, &[], &[]).is_ok() && connection.expect(SYN | ACK).is_ok() {
            connection.send(ACK, &[], &[])?;
        } else {
            break;
        }
    }
    // Two more with data in the SYN, which a full queue does not accept.
    for _ in 0..2 {
        peer.connection(80).send(SYN, &[], GET)?;
    }
    let waiting = stage.daemon.wait_for("the queue to be full", |status| {
        Some(status.backend("web", "deaf-1").live).filter(|live| *live >= 3)
    })?;
    ensure!(waiting < 8, "the queue has overflowed: {waiting}");
    deaf.process.kill()?;
    wait::until_ok("deaf-1 to be gone", || Ok(stage.daemon.status()?.service("web").is_none().then_some(())))?;

    // The same with a migration target: queued connections are moved, and end there in every way.
    let first = server(&stage, "first-1", 80, &["--accept-delay-ms", "600000"])?;
    stage.daemon.wait_ready("web", 1)?;
    let mut ports = Vec::new();
    for fast in [false, false, false, true, true] {
        let mut connection = peer.connection(80);
        connection.send(SYN, &[], if fast { GET } else { &[] })?;
        connection.expect(SYN | ACK)?;
        if !fast {
            connection.send(ACK, &[], &[])?;
        }
        ports.push(connection.state());
    }
    stage.daemon.wait_for("all to wait", |status| (status.backend("web", "first-1").live == 5).then_some(()))?;
    let second = server(&stage, "second-1", 80, &["--accept-delay-ms", "600000"])?;
    stage.daemon.wait_ready("web", 2)?;
    first.process.signal(Signal::TERM)?;
    // A server that does not accept cannot end on SIGTERM either.
    first.process.signal(Signal::KILL)?;
    let moved = stage.daemon.wait_for("those that waited to move", |status| {
        let second = status.service("web")?.backends.iter().find(|b| b.name == "second-1")?.clone();
        (second.live == 5).then_some(second.moved_in)
    })?;
    ensure!(moved == 5, "{moved} moved");
    // The moved connections are reset, closed or silent; one of the half-open ones is reset.
    peer.resume(ports[0]).reset()?;
    peer.resume(ports[1]).send(FIN | ACK, &[], &[])?;
    peer.resume(ports[3]).reset()?;
    stage
        .daemon
        .wait_for("two of them to be gone", |status| (status.backend("web", "second-1").live <= 3).then_some(()))?;
    let third = server(&stage, "third-1", 80, &[])?;
    stage.daemon.wait_ready("web", 2)?;
    // Moved once more, to a server that accepts them. Connections that ended in the queue are not counted there.
    second.process.signal(Signal::KILL)?;
    let moved = stage.daemon.wait_for("second-1 to be gone", |status| {
        let backends = &status.service("web")?.backends;
        (backends.len() == 1).then(|| backends[0].moved_in)
    })?;
    ensure!(moved == 3, "three were alive: {moved}");
    peer.resume(ports[2]).reset()?;
    peer.resume(ports[4]).reset()?;
    stage.daemon.wait_for("none to be left", |status| (status.backend("web", &third.name).live == 0).then_some(()))?;
    Ok(())
}
