//! A paused service whose clients are held: a listener of pod-steer's accepts them, and its queue goes to the servers when the pause ends.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    held::{Waiting, holders, kill, kill_together, retries, wait_gone, wait_held, wait_opened},
    netns::NetNs,
    process::raise_files,
    report, require,
    rollouts::{clients, none_lost, web, web_on},
    scale, tools, wait,
};
use rustix::process::Signal;

const V4: &str = "127.0.0.1:80";
const V6: &str = "[::1]:80";
/// How long clients are held.
const HELD: Duration = Duration::from_millis(1200);

#[test]
fn held_clients_are_answered_and_none_repeats_a_syn() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let held = scale::of(200, 10_000);
    raise_files()?;
    let stage = Stage::without_engine()?;
    stage.host.net().sysctl("net.core.somaxconn", "16384")?;
    let _server = web_on(&stage, "v1-1", "[::]:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let before = retries(&stage)?;
    let paused = stage.daemon.order_done("pause web")?;
    ensure!(paused.stdout.contains("clients of 80 are held"), "{}", paused.stdout);
    ensure!(holders(&stage).len() == 2, "a process and its keeper: {:?}", holders(&stage));

    let begun = Instant::now();
    let mut clients = Waiting::connect(stage.host.net(), &[V4, V6], held)?;
    wait_held(&stage, held)?;
    let metrics = stage.daemon.order_done("metrics")?.stdout;
    ensure!(metrics.contains(&format!("pod_steer_service_held{{service=\"web\"}} {held}")), "{metrics}");
    let shown = stage.daemon.order_done("status")?.stdout;
    ensure!(shown.contains(&format!("paused, {held} clients are held now")), "{shown}");
    thread::sleep(HELD.saturating_sub(begun.elapsed()));
    clients.wait_still()?;

    let ordered = Instant::now();
    let unpaused = stage.daemon.order_done("unpause web")?;
    ensure!(unpaused.stdout.contains(&format!("{held} held clients go to its servers")), "{}", unpaused.stdout);
    ensure!(clients.answered("v1-1")? == held, "all are answered by v1-1");
    report::figure(
        &format!("{held} held clients are answered after the order to unpause"),
        format!("{:?}", ordered.elapsed()),
    );
    ensure!(retries(&stage)? == before, "{} SYNs were repeated", retries(&stage)? - before);
    let service = stage.daemon.wait_idle("web")?;
    let (moved, paused) = (service.backends[0].moved_in, service.counter("paused"));
    ensure!((moved, paused) == (held as u64, held as u64), "{service:#?}");
    wait_gone(&stage)
}

#[test]
fn the_death_of_a_holding_process_or_of_the_daemon_loses_no_client() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    const CLIENTS: usize = 60;
    let mut stage = Stage::without_engine()?;
    let _server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let before = retries(&stage)?;
    for dies in ["the first", "the keeper", "the daemon", "the daemon and the first"] {
        stage.daemon.order_done("pause web")?;
        let mut clients = Waiting::connect(stage.host.net(), &[V4], CLIENTS)?;
        wait_held(&stage, CLIENTS)?;
        let pids = holders(&stage);
        ensure!(pids.len() == 2, "{pids:?}");
        if dies.contains("daemon") {
            stage.daemon.kill()?;
        }
        match dies {
            "the keeper" => kill(pids[1])?,
            "the daemon" => {}
            _ => kill(pids[0])?,
        }
        // Clients that come now are held too.
        clients.streams.extend(Waiting::connect(stage.host.net(), &[V4], CLIENTS)?.streams);
        if dies.contains("daemon") {
            stage.daemon.restart()?;
        }
        wait_held(&stage, 2 * CLIENTS)?;
        clients.wait_still()?;
        stage.daemon.order_done("unpause web")?;
        ensure!(clients.answered("v1-1")? == 2 * CLIENTS, "{dies} died");
        stage.daemon.wait_idle("web")?;
        wait_gone(&stage)?;
    }
    ensure!(retries(&stage)? == before, "{} SYNs were repeated", retries(&stage)? - before);
    Ok(())
}

#[test]
fn servers_share_the_queue_by_their_weights() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    const CLIENTS: usize = 400;
    let stage = Stage::without_engine()?;
    let _servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("shift web v1=75 v2=25")?;
    stage.daemon.order_done("pause web")?;
    let clients = Waiting::connect(stage.host.net(), &[V4], CLIENTS)?;
    wait_held(&stage, CLIENTS)?;
    stage.daemon.order_done("unpause web")?;
    let of_v2 = clients.answered("v2-1")?;
    report::figure("of 400 held clients, served by the version with a quarter", of_v2);
    // A binomial distribution with a standard deviation of 8.7: five of them.
    ensure!((57..=143).contains(&of_v2), "{of_v2} of {CLIENTS} by v2");
    Ok(())
}

/// A server's own queue is not lost when it ends during a pause without another server: it waits with the held clients.
#[test]
fn the_queue_of_the_last_server_is_held_too() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    const CLIENTS: usize = 20;
    let stage = Stage::without_engine()?;
    let deaf = web(&stage, "v1-1").server(&["--accept-delay-ms", "600000"]).start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let mut clients = Waiting::connect(stage.host.net(), &[V4], CLIENTS)?;
    stage.daemon.wait_for("the clients to be connected", |status| {
        (status.service("web")?.opened() == CLIENTS as u64).then_some(())
    })?;
    stage.daemon.order_done("pause web")?;
    deaf.process.signal(Signal::KILL)?;
    // One of them may have been accepted.
    wait::until_ok("the queue to be held", || {
        let web = stage.daemon.said_of("web")?;
        Ok((web["pause"]["held"].as_u64() >= Some(CLIENTS as u64 - 1)).then_some(()))
    })?;
    clients.streams.extend(Waiting::connect(stage.host.net(), &[V4], CLIENTS)?.streams);
    let shown = stage.daemon.order_done("status")?.stdout;
    ensure!(shown.contains("clients are held now"), "a service without a backend: {shown}");
    let _server = web(&stage, "v1-2").start(&stage)?;
    stage.daemon.wait_for("v1-2 to listen", |status| {
        let backends = &status.service("web")?.backends;
        backends.iter().any(|one| one.name == "v1-2" && one.sockets == 1).then_some(())
    })?;
    clients.wait_still()?;
    stage.daemon.order_done("unpause web")?;
    ensure!(clients.answered("v1-2")? == 2 * CLIENTS, "all are answered by v1-2");
    Ok(())
}

#[test]
fn an_unload_during_a_hold_leaves_nothing() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    for daemon_lives in [true, false] {
        let mut stage = Stage::without_engine()?;
        let _server = web(&stage, "v1-1").start(&stage)?;
        stage.daemon.wait_ready("web", 1)?;
        stage.daemon.order_done("pause web")?;
        let pids = holders(&stage);
        ensure!(pids.len() == 2, "{pids:?}");
        if !daemon_lives {
            stage.daemon.kill()?;
        }
        stage.daemon.unload()?;
        for pid in pids {
            wait::until("a holding process to be gone", || {
                fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |command| command.is_empty()).then_some(())
            })?;
        }
        let cgroup = stage.host.cgroup().join("pod-steer");
        ensure!(!cgroup.exists(), "{} is left", cgroup.display());
    }
    Ok(())
}

/// Handshakes that are complete on one side only, and SYN cookies: the final packet may find another listener than the first one.
/// Clients that come without a pause between them while the service is paused and unpaused.
#[test]
fn pauses_under_load_lose_nothing_and_repeat_no_syn() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    let before = retries(&stage)?;
    let load = clients().threads(8).start(stage.host.net())?;
    for _ in 0..10 {
        stage.daemon.order_done("pause web")?;
        thread::sleep(Duration::from_millis(50));
        stage.daemon.order_done("unpause web")?;
        let answered = load.answered();
        wait::until("clients to be answered", || (load.answered() > answered + 20).then_some(()))?;
    }
    let tally = load.stop()?;
    report::figure("10 pauses under the load of 8 clients", &tally);
    none_lost(&tally)?;
    ensure!(retries(&stage)? == before, "{} SYNs were repeated", retries(&stage)? - before);
    Ok(())
}

/// Each port of a service is held or not for itself, a port below 1024 too, and each is told.
/// A server in another network namespace than the daemon's.
#[test]
fn clients_in_a_pod_are_held_there() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let pod = NetNs::new()?;
    let _server = web(&stage, "v1-1").inside(&pod).start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.order_done("pause web")?;
    let mut clients = Waiting::connect(&pod, &[V4], 30)?;
    wait_held(&stage, 30)?;
    clients.wait_still()?;
    stage.daemon.order_done("unpause web")?;
    ensure!(clients.answered("v1-1")? == 30, "all are answered");
    Ok(())
}

/// Without a server in the same form no socket can get the queue, and the command says so.
#[test]
fn an_unpause_without_a_server_refuses_the_held_clients() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.order_done("pause web")?;
    let clients = Waiting::connect(stage.host.net(), &[V4], 5)?;
    wait_held(&stage, 5)?;
    server.process.signal(Signal::KILL)?;
    let _other = web_on(&stage, "v1-2", "[::]:8080").start(&stage)?;
    stage.daemon.wait_for("the other server to listen", |status| {
        let backends = &status.service("web")?.backends;
        backends.iter().all(|one| one.name == "v1-2" && one.sockets == 1).then_some(())
    })?;
    let unpaused = stage.daemon.order_done("unpause web")?.stdout;
    // Other clients may be held for it meanwhile.
    let refused = ["5 held clients are refused: no server listens", "of 5 held clients, those go to its servers"];
    ensure!(refused.iter().any(|refused| unpaused.contains(refused)), "{unpaused}");
    clients.lost()?;
    Waiting::connect(stage.host.net(), &[V4], 5)?.answered("v1-2").map(drop)
}

/// One process that is killed is replaced, so that the death of the other one loses no client either.
#[test]
fn a_process_that_was_killed_is_replaced() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _server = web_on(&stage, "v1-1", "[::]:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.order_done("pause web")?;
    let mut clients = Waiting::connect(stage.host.net(), &[V4, V6], 20)?;
    for round in 0..4 {
        let first = holders(&stage);
        ensure!(first.len() == 2, "{first:?}");
        kill(first[round % 2])?;
        wait::until("another process", || {
            let now = holders(&stage);
            (now.len() == 2 && now != first).then_some(())
        })?;
        // It has the listeners when the daemon says so.
        wait::until("the daemon to have it", || {
            (stage.daemon.log().matches("another has its place").count() == round + 1).then_some(())
        })?;
    }
    clients.wait_still()?;
    stage.daemon.order_done("unpause web")?;
    ensure!(clients.answered("v1-1")? == 20, "all are answered");
    wait_gone(&stage)
}

/// A pause that ends at once, and a daemon that does: nothing is left, and the next pause holds.
#[test]
fn a_pause_that_ends_while_it_begins_leaves_nothing() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let _server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    for _ in 0..10 {
        let (mut pause, mut unpause) = (stage.daemon.cli()?, stage.daemon.cli()?);
        let pause = thread::spawn(move || pause.args(["pause", "web"]).output());
        unpause.args(["unpause", "web"]).output()?;
        pause.join().expect("it does not panic")?;
        stage.daemon.order_done("unpause web")?;
        wait_gone(&stage)?;
    }
    // The daemon is killed, or told to stop, at any time while it starts the process.
    for after_ms in (0..30).step_by(3) {
        let mut pause = stage.daemon.cli()?;
        let pause = thread::spawn(move || pause.args(["pause", "web"]).output());
        thread::sleep(Duration::from_millis(after_ms));
        if after_ms % 2 == 0 {
            stage.daemon.kill()?;
        } else {
            stage.daemon.terminate()?;
        }
        pause.join().expect("it does not panic")?;
        stage.daemon.restart()?;
        stage.daemon.order_done("unpause web")?;
        wait_gone(&stage)?;
    }
    stage.daemon.order_done("pause web")?;
    let clients = Waiting::connect(stage.host.net(), &[V4], 5)?;
    wait_held(&stage, 5)?;
    stage.daemon.order_done("unpause web")?;
    ensure!(clients.answered("v1-1")? == 5, "all are answered");
    Ok(())
}

/// If both processes are killed, the servers get what they held, as they get any queue; the next clients are held by another.
#[test]
fn killed_together_the_processes_are_replaced() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.order_done("pause web")?;
    let earlier = Waiting::connect(stage.host.net(), &[V4], 5)?;
    wait_held(&stage, 5)?;
    let first = holders(&stage);
    kill_together(&stage)?;
    ensure!(earlier.answered("v1-1")? == 5, "the server gets the queue");
    wait::until("two other processes", || {
        let now = holders(&stage);
        (now.len() == 2 && now.iter().all(|pid| !first.contains(pid))).then_some(())
    })?;
    wait_opened(&stage, 2)?;
    wait_held(&stage, 0)?;
    let clients = Waiting::connect(stage.host.net(), &[V4], 5)?;
    wait_held(&stage, 5)?;
    stage.daemon.order_done("unpause web")?;
    ensure!(clients.answered("v1-1")? == 5, "the later ones are answered");
    Ok(())
}
