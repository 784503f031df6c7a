//! Traffic does not depend on the daemon: no connection is lost while it is killed and restarted.

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    check,
    daemon::Stage,
    exec::Exec,
    handover::{self, Listener},
    load::{Load, Loss},
    report, require, server, tools, wait,
};
use rustix::process::Signal;

#[test]
fn killed_and_restarted_under_load() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let weights = [("web-1", 1), ("web-2", 1), ("web-3", 2)];
    let containers = weights
        .iter()
        .map(|(name, weight)| {
            let spec = server::named(name, "0.0.0.0:8080").service("web", "8080:8080").weight(*weight);
            stage.engine().start_container(&spec)
        })
        .collect::<Result<Vec<_>>>()?;
    let before = stage.daemon.wait_ready("web", 3)?;
    let load = Load::to("127.0.0.1:8080".parse()?).threads(3).start(stage.host.net())?;

    let mut opened = 0;
    for round in 0..4 {
        thread::sleep(Duration::from_millis(200));
        if round < 3 {
            stage.daemon.kill()?;
        } else {
            stage.daemon.terminate()?;
        }
        let answered = load.answered();
        wait::until("connections while there is no daemon", || (load.answered() > answered + 200).then_some(()))?;
        stage.daemon.restart()?;
        let status = stage.daemon.status()?;
        let service = status.service("web").expect("the service is adopted");
        assert_eq!(service.ready(), 3, "adopted as they were: {service:#?}");
        assert_eq!(service.namespaces, before.namespaces);
        assert!(service.opened() > opened, "counters go on: {} after {opened}", service.opened());
        opened = service.opened();
    }
    let tally = load.stop()?;
    report::figure("daemon killed three times and stopped once under load", &tally);
    // From the first connection to the last, over four daemons.
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)?;
    check::shares_follow("shares over four daemons", &tally, &weights)?;
    drop(containers);
    Ok(())
}

#[test]
fn backends_that_end_without_a_daemon_are_skipped() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let start = |stage: &Stage, name: &str| {
        stage.engine().start_container(&server::named(name, "0.0.0.0:8080").service("web", "8080:8080"))
    };
    let _kept = [start(&stage, "web-1")?, start(&stage, "web-2")?];
    let doomed = start(&stage, "web-3")?;
    stage.daemon.wait_ready("web", 3)?;
    stage.daemon.kill()?;
    doomed.stop()?;
    // The tables still name its socket. The kernel program finds another one for the same packet.
    let tally = Load::to("127.0.0.1:8080".parse()?).threads(2).count(2000).run(stage.host.net())?;
    assert_eq!(tally.answered_by("web-1") + tally.answered_by("web-2"), 2000, "{tally}");
    stage.daemon.restart()?;
    let service = stage.daemon.wait_ready("web", 2)?;
    assert!(service.counter("stale_slots") > 0, "{:?}", service.counters);
    assert_eq!(service.counter("refused_no_backend"), 0);
    drop(doomed);
    stage.daemon.wait_for("the removed container to be gone", |status| {
        status.service("web").filter(|service| service.backends.len() == 2).map(drop)
    })?;
    // The tables contain only the two again.
    let stale = service.counter("stale_slots");
    let tally = Load::to("127.0.0.1:8080".parse()?).threads(2).count(2000).run(stage.host.net())?;
    assert_eq!(tally.answered(), 2000, "{tally}");
    check::shares_follow("after a restart", &tally, &[("web-1", 1), ("web-2", 1)])?;
    assert_eq!(stage.daemon.status()?.service("web").expect("it is there").counter("stale_slots"), stale);
    Ok(())
}

#[test]
fn an_engine_that_goes_away_and_comes_back() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    // A port for each, so that one that starts while no daemon runs can bind.
    let start = |stage: &Stage, name: &str, port: u16| {
        let spec = server::named(name, &format!("0.0.0.0:{port}")).service("web", &format!("80:{port}"));
        stage.engine().start_container(&spec)
    };
    let _first = start(&stage, "web-1", 8081)?;
    stage.daemon.wait_ready("web", 1)?;
    let load = Load::to("127.0.0.1:80".parse()?).pause(Duration::from_millis(1)).start(stage.host.net())?;
    // With live-restore containers outlive their engine.
    stage.restart_engine()?;
    let second = start(&stage, "web-2", 8082)?;
    stage.daemon.wait_ready("web", 2)?;
    wait::until("connections", || (load.answered() > 1000).then_some(()))?;
    second.stop()?;
    stage.daemon.wait_ready("web", 1)?;
    let tally = load.stop()?;
    // Listeners on different ports are no reuseport group: what waits in the queue of the one that stops cannot move.
    assert_eq!((tally.refused(), tally.lost(|loss| !matches!(loss, Loss::ResetBefore(_)))), (0, 0), "{tally}");
    assert!(tally.losses.len() <= 1, "one client, so at most one waits: {tally}");
    assert!(tally.answered_by("web-1") > 0 && tally.answered_by("web-2") > 0, "{tally}");
    Ok(())
}

#[test]
fn a_container_whose_cgroup_is_deep_below_others_keeps_its_listener() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["python3"]));
    let mut stage = Stage::with_docker()?;
    let deep = server::named("deep-1", "0.0.0.0:9090").service("deep", "81:9090");
    // Deeper than the daemon watches the hierarchy.
    let deep = stage.engine().start_container(&deep.options(&["--cgroup-parent", "/a/b/c/d/e/f/g/h/i"]))?;
    stage.daemon.wait_ready("deep", 1)?;
    let path = stage.host.dir().join("giver");
    let mut server = handover::exec(&stage, "server", "v1", Listener::Opens, &path)?;
    let stranger = handover::start(&stage, "stranger", Listener::Takes, &path)?;
    stage.daemon.wait_ready("web", 1)?;

    stage.engine().signal(Signal::STOP)?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    // The daemon has searched for the holders of all listeners when it reports one that is held by another process.
    server.signal(Signal::TERM)?;
    server.wait(wait::STUCK)?;
    let reported = stage.daemon.wait_state("web", "server", "not-steered");
    let answered = Load::to("127.0.0.1:81".parse()?).count(50).run(stage.host.net())?;
    // An engine that hangs would keep its container from being removed.
    stage.engine().signal(Signal::CONT)?;
    reported?;
    assert_eq!(answered.answered_by("deep-1"), 50, "{answered}\n{}", stage.daemon.log_tail());
    drop((stranger, deep));
    Ok(())
}

#[test]
fn processes_are_adopted_with_their_counters() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let exec = |name: &str| Exec::new(name, "web", "80:8080", "0.0.0.0:8080").start(&stage);
    let mut backends = vec![exec("web-1")?, exec("web-2")?];
    stage.daemon.wait_ready("web", 2)?;
    let load = Load::to("127.0.0.1:80".parse()?).threads(2).start(stage.host.net())?;
    wait::until("load", || (load.answered() > 200).then_some(()))?;
    stage.daemon.kill()?;
    wait::until("load", || (load.answered() > 400).then_some(()))?;
    stage.daemon.restart()?;
    assert_eq!(stage.daemon.status()?.service("web").map(|service| service.ready()), Some(2));
    wait::until("load", || (load.answered() > 600).then_some(()))?;
    let tally = load.stop()?;
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)?;
    // The new daemon sees them end as if it had started them.
    backends.remove(0).process.kill()?;
    stage.daemon.wait_ready("web", 1)?;
    // And it accepts new ones.
    let _third = Exec::new("web-3", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    Ok(())
}

/// Restarts of the daemon at most, until three are in the same second as the container's.
const ROUNDS_MAX: u32 = 20;

/// The engine tells a new session of the last second again, of a death of the container among others.
#[test]
fn a_container_that_was_started_again_just_before_the_daemon_serves_on() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let spec = server::named("web-1", "0.0.0.0:8080").service("web", "8080:8080");
    let container = stage.engine().start_container(&spec)?;
    stage.daemon.wait_ready("web", 1)?;
    let mut repeated = 0;
    for _ in 0..ROUNDS_MAX {
        // The engine repeats events from a whole second on.
        let into = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
        thread::sleep(Duration::from_nanos(1_000_000_000 - u64::from(into)));
        let before = stage.daemon.log().len();
        container.kill("KILL")?;
        container.start()?;
        stage.daemon.wait_ready("web", 1)?;
        let load = Load::to("127.0.0.1:8080".parse()?).threads(1).start(stage.host.net())?;
        stage.daemon.kill()?;
        stage.daemon.restart()?;
        let answered = load.answered();
        wait::until("more connections", || (load.answered() > answered + 500).then_some(()))?;
        let tally = load.stop()?;
        ensure!(tally.losses.is_empty(), "{tally}\n{}", stage.daemon.log_tail());
        let log = stage.daemon.log().split_off(before);
        ensure!(!log.contains("had connections before it was attached"), "{}", stage.daemon.log_tail());
        repeated += usize::from(log.contains("event of a former run"));
        if repeated == 3 {
            break;
        }
    }
    // A machine may be too slow for that.
    report::figure("restarts of the daemon to which the engine repeated the end of a former run", repeated);
    Ok(())
}
