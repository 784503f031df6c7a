//! Limits of holding clients: ports that cannot be held, time limits, and floods of SYNs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::Exec,
    held::{Waiting, holders, retries, wait_gone, wait_held},
    load::{End, Loss, attempt},
    require,
    rollouts::{web, web_on},
    tools,
};
use rustix::process::Signal;

const V4: &str = "127.0.0.1:80";
const V6: &str = "[::1]:80";
/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn clients_of_another_users_server_are_not_held_and_the_command_says_so() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let stage = Stage::without_engine()?;
    let _server = web(&stage, "v1-1").user(1234).start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let paused = stage.daemon.order_done("pause web")?;
    let words = "SYNs to 80 are discarded, and clients repeat them: its server belongs to the user 1234";
    ensure!(paused.stdout.contains(words), "{}", paused.stdout);
    let history = stage.daemon.history("web")?;
    ensure!(history.last().and_then(|last| last.end.as_ref()).is_some_and(|end| end.message.contains(words)));
    let web = stage.daemon.said_of("web")?;
    ensure!(web["pause"]["ports"][0]["held"] == false && holders(&stage).is_empty(), "{web}");
    let end = stage.host.net().run(|| attempt(V4.parse().expect("an address"), 1, Duration::from_millis(1500)));
    ensure!(matches!(end, End::Lost(Loss::ConnectTimedOut, _)), "{end:?}");
    stage.daemon.order_done("unpause web")?;
    Waiting::connect(stage.host.net(), &[V4], 1)?.answered("v1-1").map(drop)
}

#[test]
fn a_pause_with_a_limit_refuses_clients_after_it() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    const LIMIT: Duration = Duration::from_secs(8);
    let mut stage = Stage::without_engine()?;
    let _server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let begun = Instant::now();
    stage.daemon.order_done("pause web --max 8s")?;
    let mut clients = Waiting::connect(stage.host.net(), &[V4], 10)?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    let (waited, took) = (clients.wait_still(), begun.elapsed());
    match waited {
        Ok(()) => clients.lost()?,
        Err(error) if took < LIMIT => return Err(error),
        // The machine was so slow that they were refused meanwhile.
        Err(_) => {}
    }
    ensure!(begun.elapsed() >= LIMIT, "after {:?}", begun.elapsed());
    let end = || stage.host.net().run(|| attempt(V4.parse().expect("an address"), 1, PATIENCE));
    ensure!(matches!(end(), End::Lost(Loss::Refused, _)), "{:?}", end());
    let shown = stage.daemon.order_done("status")?.stdout;
    ensure!(shown.contains("new connections are refused"), "{shown}");
    wait_gone(&stage)?;
    stage.daemon.order_done("unpause web")?;
    ensure!(matches!(end(), End::Answered(_)), "{:?}", end());
    let refused = stage.daemon.order("pause web --max 0s")?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("--max"), "{refused:?}");
    Ok(())
}

#[test]
fn a_flooded_service_is_held_with_syn_cookies() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    const CLIENTS: usize = 100;
    let stage = Stage::without_engine()?;
    // Always, not only under a flood.
    stage.host.net().sysctl("net.ipv4.tcp_syncookies", "2")?;
    let _server = web_on(&stage, "v1-1", "[::]:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let before = (stage.host.net().tcp_counter("SyncookiesRecv")?, retries(&stage)?);
    for _ in 0..3 {
        stage.daemon.order_done("pause web")?;
        let clients = Waiting::connect(stage.host.net(), &[V4, V6], CLIENTS)?;
        wait_held(&stage, CLIENTS)?;
        stage.daemon.order_done("unpause web")?;
        ensure!(clients.answered("v1-1")? == CLIENTS, "all are answered");
    }
    let cookies = stage.host.net().tcp_counter("SyncookiesRecv")? - before.0;
    ensure!(cookies >= 3 * CLIENTS as u64, "{cookies} handshakes were by cookies");
    ensure!(retries(&stage)? == before.1, "{} SYNs were repeated", retries(&stage)? - before.1);
    Ok(())
}

#[test]
fn ports_are_held_one_by_one() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    stage.host.net().sysctl("net.core.somaxconn", "64")?;
    let shared = Exec::new("web-1", "web", "80:80,81:8081", "0.0.0.0:80").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let paused = stage.daemon.order_done("pause web")?.stdout;
    ensure!(paused.contains("clients of 80 are held (at most 64 at a listener"), "{paused}");
    ensure!(
        paused.contains("SYNs to 81 are discarded") && paused.contains("no server that gets clients listens there"),
        "{paused}"
    );
    let clients = Waiting::connect(stage.host.net(), &[V4], 10)?;
    wait_held(&stage, 10)?;
    stage.daemon.order_done("unpause web")?;
    ensure!(clients.answered("web-1")? == 10, "all are answered");
    drop(shared);
    Ok(())
}

/// Two versions that listen in different forms, each of which the kernel shares among sockets of its own: clients are held for the version that has
/// the share, although the kernel would give IPv4 clients to the other one.
#[test]
fn what_is_held_goes_to_the_version_that_has_the_share() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _versions =
        [web_on(&stage, "v1-1", "[::]:8080").start(&stage)?, web_on(&stage, "v2-1", "0.0.0.0:8080").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("shift web v1=1")?;
    stage.daemon.order_done("pause web")?;
    let clients = Waiting::connect(stage.host.net(), &[V4, V6], 20)?;
    wait_held(&stage, 20)?;
    let unpaused = stage.daemon.order_done("unpause web")?.stdout;
    ensure!(unpaused.contains("20 held clients go to its servers"), "{unpaused}");
    ensure!(clients.answered("v1-1")? == 20, "v2 has no share");
    // Where none has a share, no client is held, and none is refused.
    stage.daemon.order_done("drain web")?;
    let paused = stage.daemon.order_done("pause web")?.stdout;
    ensure!(paused.contains("no server that gets clients listens there"), "{paused}");
    Ok(())
}

/// The versions change while clients are held. They go to the one that they were held for.
#[test]
fn what_was_held_for_a_version_goes_there_after_a_shift() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let net = stage.host.net();
    let _old = web_on(&stage, "v1-1", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.order_done("shift web v1=1")?;
    let _new = web_on(&stage, "v2-1", "[::]:8080").start(&stage)?;
    // It serves IPv6 clients, which have no other server.
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("pause web")?;
    let before = Waiting::connect(net, &[V4], 10)?;
    wait_held(&stage, 10)?;
    // IPv6 clients are held for the new version already.
    stage.daemon.order_done("shift web v2=1")?;
    let after = Waiting::connect(net, &[V4], 10)?;
    wait_held(&stage, 20)?;
    let unpaused = stage.daemon.order_done("unpause web")?.stdout;
    ensure!(unpaused.contains("20 held clients go to its servers"), "{unpaused}");
    let (before, after) = (before.answered("v1-1")?, after.answered("v2-1")?);
    ensure!((before, after) == (10, 10), "{before} {after}");
    Ok(())
}

/// Two listeners of pod-steer hold the clients of two ports of servers behind one front. The queue of a server that ends waits at the one with which
/// it shares its port.
#[test]
fn the_queue_of_a_server_that_ends_waits_with_those_of_its_port() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let net = stage.host.net();
    for (deaf, other) in [(8081, 8082), (8084, 8083)] {
        let ports = |port: u16| format!("80:{port}");
        let [one, two] = [deaf, other].map(|port| (format!("v1-{port}"), ports(port), format!("0.0.0.0:{port}")));
        let deaf = Exec::new(&one.0, "web", &one.1, &one.2).server(&["--accept-delay-ms", "600000"]).start(&stage)?;
        stage.daemon.wait_ready("web", 1)?;
        let clients = Waiting::connect(net, &[V4], 8)?;
        let _other = Exec::new(&two.0, "web", &two.1, &two.2).start(&stage)?;
        stage.daemon.wait_ready("web", 2)?;
        stage.daemon.order_done("pause web")?;
        deaf.process.signal(Signal::KILL)?;
        wait_held(&stage, 8)?;
        let name = format!("{}-again", one.0);
        let _again = Exec::new(&name, "web", &one.1, &one.2).start(&stage)?;
        stage.daemon.wait_state("web", &name, "standby")?;
        stage.daemon.order_done("unpause web")?;
        ensure!(clients.answered(&name)? == 8, "all are answered");
    }
    Ok(())
}
