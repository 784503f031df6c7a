//! What waits in a dying listener's queue is served by another backend.

use std::{thread, time::Duration};

use anyhow::Result;
use pod_steer_tests::{
    daemon::Stage,
    exec::{Backend, Exec},
    journal::Killed,
    load::Load,
    report, require, tools, wait,
};
use rustix::process::Signal;

const CLIENTS: u64 = 40;

/// Two backends, of which one never accepts; clients wait in its queue.
fn queue_up(stage: &Stage) -> Result<(Backend, Backend, pod_steer_tests::load::Running, u64)> {
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

fn everybody_is_answered(signal: Signal) -> Result<()> {
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
    everybody_is_answered(Signal::KILL)
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
    // More clients than are accepted at a time: both queues always hold somebody.
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
