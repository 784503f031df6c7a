//! The daemon is killed at each step of a deploy and of a canary. New connections follow the decision before the step or the one after
//! it, no connection is lost, and the next daemon completes the operation.

use std::{
    cell::Cell,
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use pod_steer_tests::{
    check,
    orders::Operation,
    report, require,
    rollouts::{Scene, answer, answered_by_version, clients, connect, hold, none_lost},
    tools, wait,
};
use rustix::{net::sockopt::set_socket_linger, process::Signal};
use serde_json::{Value, json};

/// New connections by which shares are measured.
const SHARES_LOOKED_AT: u64 = 1000;
/// How long old backends are kept.
const KEEP_MS: u64 = 4000;
/// Shares of the canary's steps, in hundredths of a percent.
const STEPS: [u64; 3] = [2000, 6000, 10_000];
/// The length of those steps: longer if the daemon could not be killed within one.
const EVERY_MS: [u64; 3] = [1000, 5000, 5000];

/// When the daemon is killed.
enum When {
    /// From outside, when the operation is in this state.
    Seen(fn(&Operation) -> bool),
    /// From inside, at an instant that is too short to observe.
    At(&'static str),
}

/// What keeps a step from completing.
#[derive(Clone, Copy, PartialEq)]
enum Hold {
    Nothing,
    /// The new version is not ready until after the restart.
    NotReady,
    /// A client of the old version stays until after the restart.
    Client,
    /// The old version does not heed SIGTERM until after the restart.
    Deaf,
}

/// A row of the table of a deploy.
struct Step {
    name: &'static str,
    when: When,
    hold: Hold,
    /// The version of all new connections while no daemon runs, and when one runs again.
    dead: &'static str,
    restarted: &'static str,
    extra: (&'static str, Value),
}

fn in_phase(name: &'static str) -> impl Fn(&Operation) -> bool {
    move |operation| operation.phase.name == name
}

#[test]
fn at_each_step_of_a_deploy() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let none = || ("stop_old", json!(false));
    let stop = || ("stop_old", json!(true));
    let step = |name, when, hold, dead, restarted, extra| Step { name, when, hold, dead, restarted, extra };
    let table = [
        step("accepted and waiting", When::Seen(|op| in_phase("waiting")(op)), Hold::NotReady, "v1", "v1", none()),
        step("decided and stored", When::At("stored"), Hold::Nothing, "v1", "v2", none()),
        step("tables built", When::At("built"), Hold::Nothing, "v1", "v2", none()),
        step("just switched", When::At("switched"), Hold::Nothing, "v2", "v2", none()),
        step("draining", When::Seen(|op| in_phase("draining")(op)), Hold::Client, "v2", "v2", none()),
        step("stopping the old ones", When::Seen(|op| in_phase("stopping")(op)), Hold::Deaf, "v2", "v2", stop()),
        step(
            "keeping the old ones",
            When::Seen(|op| op.end.is_some()),
            Hold::Nothing,
            "v2",
            "v2",
            ("keep_old_ms", json!(KEEP_MS)),
        ),
    ];
    for step in table {
        killed_deploy(&step).map_err(|error| error.context(format!("killed when: {}", step.name)))?;
    }
    Ok(())
}

fn killed_deploy(step: &Step) -> Result<()> {
    let mut scene = Scene::new(step.hold != Hold::NotReady)?;
    if let When::At(point) = step.when {
        scene.stage.daemon.kill()?;
        scene.stage.daemon.restart_to_die(point)?;
        scene.stage.daemon.wait_state("web", "v2-1", "standby")?;
    }
    let held: Option<TcpStream> = match step.hold {
        Hold::Client | Hold::Deaf => Some(hold(scene.stage.host.net())?),
        Hold::Nothing | Hold::NotReady => None,
    };
    let holds = u64::from(held.is_some());
    let load = clients().threads(2).start(scene.stage.host.net())?;
    let mut order = json!({
        "order": "deploy", "version": "v2", "timeout_ms": 60_000, "drain_timeout_ms": 60_000, "stop_old": false
    });
    order[step.extra.0] = step.extra.1.clone();
    let begun = scene.stage.daemon.begin(&order);
    let ordered = Instant::now();
    let mut held = held;
    match step.when {
        When::At(_) => scene.stage.daemon.wait_until_dead()?,
        When::Seen(is) => {
            let id = begun?;
            if step.hold == Hold::Deaf {
                // When the held client is the only one left there.
                scene.stage.daemon.wait_for("the old version to have one client", |status| {
                    let old = status.backend("web", "v1-1");
                    (old.state == "standby" && old.live == 1).then_some(())
                })?;
                scene.old.process.signal(Signal::STOP)?;
                if let Some(held) = held.take() {
                    // A reset, because the stopped server cannot close its side.
                    set_socket_linger(&held, Some(Duration::ZERO))?;
                }
            }
            scene.stage.daemon.wait_operation(id, step.name, is)?;
            scene.stage.daemon.kill()?;
        }
    }
    scene.all_by(step.dead)?;
    scene.stage.daemon.restart()?;
    scene.all_by(step.restarted)?;

    let history = scene.stage.daemon.history("web")?;
    let id = history.last().map_or(0, |last| last.id);
    ensure!(history.len() == 2 && history[1].order == "deploy", "the shift, and the deploy: {history:?}");
    match step.hold {
        Hold::NotReady => answer(&scene.stage, "v2-1", "200 OK")?,
        Hold::Deaf => scene.old.process.signal(Signal::CONT)?,
        Hold::Client | Hold::Nothing => {}
    }
    drop(held);
    scene.stage.daemon.wait_ended(id, "done")?;
    scene.all_by("v2")?;
    let tally = load.stop()?;
    none_lost(&tally)?;
    report::figure(&format!("daemon killed: {}", step.name), &tally);
    scene.total.merge(tally);
    match step.extra.0 {
        "keep_old_ms" => {
            wait::until_ok("the old version to be stopped", || Ok(scene.old.process.has_ended()?.then_some(())))?;
            let kept = ordered.elapsed();
            ensure!(kept >= Duration::from_millis(KEEP_MS), "stopped after {kept:?}");
        }
        _ if step.hold == Hold::Deaf => _ = scene.old.process.wait(wait::STUCK)?,
        _ => scene.counts_agree(holds)?,
    }
    Ok(())
}

/// When the daemon is killed in a canary; the steps that are done then.
enum Canary {
    /// Before the first step: the version is not ready.
    Waiting,
    /// In the midst of a step, from 0.
    In(usize),
    /// From inside, on the way to a step.
    To(usize, &'static str),
}

#[test]
fn at_each_step_of_a_canary() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut table = vec![Canary::Waiting];
    table.extend((0..STEPS.len()).map(Canary::In));
    table.extend((0..STEPS.len()).flat_map(|step| ["stored", "built", "switched"].map(|at| Canary::To(step, at))));
    for row in table {
        let (name, share) = match row {
            Canary::Waiting => ("waiting".to_owned(), 0),
            Canary::In(step) => (format!("in step {step}"), STEPS[step]),
            Canary::To(step, at @ "switched") => (format!("to step {step}, {at}"), STEPS[step]),
            Canary::To(step, at) => {
                (format!("to step {step}, {at}"), step.checked_sub(1).map_or(0, |from| STEPS[from]))
            }
        };
        killed_in_time(&row, &name, share).with_context(|| format!("killed when: {name}"))?;
    }
    Ok(())
}

/// Repeats a row with longer steps if the daemon was killed too late.
fn killed_in_time(row: &Canary, name: &str, share: u64) -> Result<()> {
    for every_ms in EVERY_MS {
        if killed_canary(row, name, share, every_ms)? {
            return Ok(());
        }
    }
    bail!("the next step came before the daemon was killed")
}

/// `share` is the new version's while there is no daemon. Returns whether the daemon was certainly killed before the next step.
fn killed_canary(row: &Canary, name: &str, share: u64, every_ms: u64) -> Result<bool> {
    let mut scene = Scene::new(!matches!(row, Canary::Waiting))?;
    let load = clients().threads(2).start(scene.stage.host.net())?;
    let order =
        json!({ "order": "canary", "version": "v2", "steps": STEPS, "every_ms": every_ms, "timeout_ms": 60_000 });
    if let Canary::To(0, point) = row {
        scene.stage.daemon.kill()?;
        scene.stage.daemon.restart_to_die(point)?;
        scene.stage.daemon.wait_state("web", "v2-1", "standby")?;
        // The daemon ends while it handles the order, so an answer is not required.
        let _ = scene.stage.daemon.begin(&order);
        scene.stage.daemon.wait_until_dead()?;
    } else {
        // If an answer does not show the step, the step was taken after the request of that answer.
        let (requested, not_before) = (Cell::new(Instant::now()), Cell::new(Instant::now()));
        let id = scene.stage.daemon.begin(&order)?;
        let steps = match row {
            Canary::Waiting => 0,
            Canary::In(step) => step + 1,
            Canary::To(step, _) => *step,
        };
        let done = |operation: &Operation| operation.steps_done.iter().filter(|step| step.name.ends_with('%')).count();
        let seen = scene.stage.daemon.wait_operation(id, name, |operation| {
            let (is_done, now) = (done(operation) >= steps, Instant::now());
            if !is_done {
                not_before.set(requested.replace(now));
            }
            is_done
        })?;
        scene.stage.daemon.kill()?;
        // The version is not ready before the restart.
        let waits = matches!(row, Canary::Waiting);
        if !waits && (done(&seen) > steps || not_before.get().elapsed() >= Duration::from_millis(every_ms)) {
            return Ok(false);
        }
        if let Canary::To(_, point) = row {
            scene.stage.daemon.run_until_dead(point)?;
        }
    }
    let seen = connect(scene.stage.host.net(), SHARES_LOOKED_AT)?;
    match share {
        0 => ensure!(seen.answered_by("v1-1") == SHARES_LOOKED_AT, "{seen}"),
        10_000 => ensure!(seen.answered_by("v2-1") == SHARES_LOOKED_AT, "{seen}"),
        share => {
            let expected = [("v1-1", 10_000 - share), ("v2-1", share)];
            check::shares_follow(&format!("canary, daemon killed {name}"), &seen, &expected)?;
        }
    }
    scene.total.merge(seen);
    scene.stage.daemon.restart()?;
    if let Canary::Waiting = row {
        answer(&scene.stage, "v2-1", "200 OK")?;
    }
    let id = scene.stage.daemon.history("web")?.last().map_or(0, |last| last.id);
    let ended = scene.stage.daemon.wait_ended(id, "done")?;
    ensure!(ended.order == "canary" && ended.phase.name == "ended", "{ended:?}");
    scene.all_by("v2")?;
    let tally = load.stop()?;
    none_lost(&tally)?;
    ensure!(answered_by_version(&tally, "v1") > 0, "{tally}");
    scene.total.merge(tally);
    scene.counts_agree(0)?;
    Ok(true)
}
