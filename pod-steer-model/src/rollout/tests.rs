//! Orders and their steps, on values.

mod drains;
mod idle;
mod judged;
mod old;
mod orders;
mod recreate;

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{condition::Reason, time::Now, world::Coverage};

const NOW: i64 = 1_000_000;

/// This time since boot; the wall clock is far from it.
fn at(ms: i64) -> Now {
    Now { ms, wall_ms: 1_700_000_000_000 }
}

/// `name version state`, each a backend that has been ready for long, with an id like its name.
fn view(backends: &[(&str, &str, State)]) -> View {
    let of = |(name, version, state): &(&str, &str, State)| BackendView {
        name: (*name).to_owned(),
        version: (*version).to_owned(),
        state: *state,
        ready_since_ms: state.could_serve().then_some(0),
        live: 0,
        uncounted: None,
        steered: true,
        overflows: 0,
        weight: 1,
        has_served: true,
        can_stop: true,
        stop_ms: Some(12_000),
        can_start: true,
        is_transient: false,
        stop_unanswered: false,
        told_to_start: false,
        is_starting: false,
        start_failure: None,
        condition: None,
    };
    let backends = backends.iter().map(|b| (b.0.into(), of(b))).collect();
    View { service: "web".to_owned(), backends, ..View::default() }
}

pub(super) fn two() -> View {
    view(&[("a", "v1", State::Ready), ("b", "v2", State::Ready)])
}

fn operation(order: Order, before: Traffic) -> Operation {
    Operation {
        id: 1,
        service: "web".to_owned(),
        who: "root".to_owned(),
        begun_ms: NOW,
        order,
        before,
        undrained: BTreeSet::new(),
        recreation: None,
        phase: Phase::Ended,
        steps: Vec::new(),
        end: None,
        not_stored: None,
    }
}

fn deploy(change: impl FnOnce(&mut DeployOrder)) -> Order {
    let mut order = DeployOrder {
        version: "v2".to_owned(),
        backends: None,
        timeout_ms: 10_000,
        drain_timeout_ms: 5_000,
        at_deadline: AtDeadline::Leave,
        close_idle_ms: None,
        max_age_ms: None,
        close_rate: None,
        stop_old: false,
        keep_old_ms: None,
        recreate: false,
        allow_drop: false,
        max_hold_ms: None,
        watch: None,
    };
    change(&mut order);
    Order::Deploy(order)
}

fn canary(steps: &[u32]) -> Order {
    let version = "v2".to_owned();
    Order::Canary(CanaryOrder {
        version,
        steps: steps.to_vec(),
        every_ms: 1_000,
        timeout_ms: 10_000,
        judge: crate::judge::Judging::default(),
    })
}

/// Begins an operation and takes all steps that are due then.
fn start(order: Order, view: &View, decision: &mut Decision, now_ms: i64) -> (Operation, Vec<Effect>) {
    let mut begun = operation(order, decision.traffic.clone());
    let progress = begin(&mut begun, view, decision, None, at(now_ms));
    let mut effects = progress.effects;
    *decision = progress.decision.unwrap_or_else(|| decision.clone());
    effects.extend(go_on(&mut begun, view, decision, now_ms));
    (begun, effects)
}

fn go_on(operation: &mut Operation, view: &View, decision: &mut Decision, now_ms: i64) -> Vec<Effect> {
    let mut effects = Vec::new();
    loop {
        let before = operation.clone();
        let progress = step(operation, view, decision, at(now_ms));
        effects.extend(progress.effects);
        *decision = progress.decision.unwrap_or_else(|| decision.clone());
        if *operation == before {
            return effects;
        }
    }
}

fn outcome(operation: &Operation) -> Option<Outcome> {
    operation.end.as_ref().map(|end| end.outcome)
}

fn weights(decision: &Decision) -> Vec<(&str, u32)> {
    decision.traffic.weights.iter().flatten().map(|(version, weight)| (version.as_str(), *weight)).collect()
}

#[test]
fn a_deploy_waits_switches_drains_and_ends() {
    let (mut now, mut decision) = (NOW, Decision::default());
    let mut view = view(&[("a", "v1", State::Ready), ("b", "v2", State::Starting)]);
    let (mut deploy, _) = start(deploy(|_| {}), &view, &mut decision, now);
    assert!(matches!(deploy.phase, Phase::Waiting { .. }));
    assert_eq!(decision.revision, 0, "nothing has changed yet");

    // Ready, and for long enough.
    view.backends.get_mut("b").unwrap().state = State::Ready;
    view.backends.get_mut("b").unwrap().ready_since_ms = Some(now);
    view.backends.get_mut("a").unwrap().live = 3;
    now += 400;
    go_on(&mut deploy, &view, &mut decision, now);
    assert!(matches!(deploy.phase, Phase::Waiting { .. }), "it may be one that comes and goes");
    now += 100;
    go_on(&mut deploy, &view, &mut decision, now);
    assert_eq!((weights(&decision), decision.revision), (vec![("v2", 1)], 1));
    assert!(matches!(deploy.phase, Phase::Draining { connections: 3, .. }), "{:?}", deploy.phase);

    view.backends.get_mut("a").unwrap().live = 0;
    now += 2_000;
    go_on(&mut deploy, &view, &mut decision, now);
    assert_eq!(outcome(&deploy), Some(Outcome::Done));
    let steps: Vec<(&str, u64)> = deploy.steps.iter().map(|step| (step.name.as_str(), step.took_us)).collect();
    assert_eq!(steps, [("ready", 500_000), ("drained", 2_000_000)]);
    assert_eq!(deploy.steps[1].detail, "3 connections");
}

#[test]
fn a_drain_waits_until_connections_are_counted() {
    for (counted, ends) in [(Some(2), "done"), (None, "left")] {
        let (mut now, mut decision) = (NOW, Decision::default());
        let mut view = two();
        view.backends.get_mut("a").unwrap().uncounted = Some("not yet".to_owned());
        let (mut deploy, _) = start(deploy(|order| order.stop_old = true), &view, &mut decision, now);
        assert!(matches!(deploy.phase, Phase::Draining { connections: 0, .. }), "{:?}", deploy.phase);
        now += 1_000;
        go_on(&mut deploy, &view, &mut decision, now);
        assert!(matches!(deploy.phase, Phase::Draining { .. }), "nothing is known yet: {:?}", deploy.phase);
        if let Some(live) = counted {
            let old = view.backends.get_mut("a").unwrap();
            (old.uncounted, old.live, old.can_stop) = (None, live, false);
            // Without a step: there is none while lookups may still use the former tables.
            assert_eq!(note_connections(&mut deploy, &view), 2);
            assert!(matches!(deploy.phase, Phase::Draining { connections: 2, .. }), "{:?}", deploy.phase);
            view.backends.get_mut("a").unwrap().live = 0;
        } else {
            now += 5_000;
        }
        go_on(&mut deploy, &view, &mut decision, now);
        let end = deploy.end.clone().unwrap();
        assert_eq!(end.outcome.word(), ends, "{end:?}");
        let drained = &deploy.steps.iter().find(|step| step.name == "drained").unwrap().detail;
        if counted.is_some() {
            assert_eq!(drained, "2 connections");
        } else {
            assert_eq!(drained, "0 connections, those of a not counted");
            assert!(end.message.contains("of a could not be counted, so nothing was stopped"), "{}", end.message);
        }
    }
}

#[test]
fn a_version_that_is_never_ready_changes_nothing() {
    let mut decision = Decision::default();
    let mut view = view(&[("a", "v1", State::Ready), ("b", "v2", State::Unhealthy)]);
    view.backends.get_mut("b").unwrap().condition = Some(Condition::without_remedy(Reason::CheckFails, "answers 503"));
    let (mut deploy, _) = start(deploy(|_| {}), &view, &mut decision, NOW);
    go_on(&mut deploy, &view, &mut decision, NOW + 10_000);
    assert_eq!((outcome(&deploy), decision), (Some(Outcome::Failed), Decision::default()));
    let message = &deploy.end.unwrap().message;
    assert!(message.contains("0 of 1 backends") && message.contains("b is unhealthy (answers 503)"), "{message}");
}

#[test]
fn a_deploy_waits_for_the_wanted_number_of_backends() {
    let mut decision = Decision::default();
    let view = two();
    let (deploy, _) = start(deploy(|order| order.backends = Some(2)), &view, &mut decision, NOW);
    assert!(matches!(deploy.phase, Phase::Waiting { .. }));
}

#[test]
fn remaining_connections_are_reported() {
    let (mut decision, mut view) = (Decision::default(), two());
    view.backends.get_mut("a").unwrap().live = 2;
    let (mut deploy, _) = start(deploy(|order| order.stop_old = true), &view, &mut decision, NOW);
    let effects = go_on(&mut deploy, &view, &mut decision, NOW + 5_000);
    let kept = vec![Effect::KeepAll];
    assert_eq!((outcome(&deploy), effects), (Some(Outcome::Left), kept), "nothing that is in use is stopped");
    assert!(deploy.end.unwrap().message.contains("2 old connections remained at the deadline"));
}

#[test]
fn old_backends_may_use_their_stop_timeout() {
    for (stop_ms, stops_at_ms) in [(Some(2_000), 60_000), (Some(302_000), 312_000), (None, 60_000)] {
        let (mut decision, mut view) = (Decision::default(), two());
        view.backends.get_mut("a").unwrap().stop_ms = stop_ms;
        let (mut stopping, _) = start(deploy(|order| order.stop_old = true), &view, &mut decision, NOW);
        go_on(&mut stopping, &view, &mut decision, NOW + stops_at_ms - 1);
        assert_eq!(outcome(&stopping), None, "{stop_ms:?}");
        go_on(&mut stopping, &view, &mut decision, NOW + stops_at_ms);
        assert_eq!(outcome(&stopping), Some(Outcome::Left), "{stop_ms:?}");
    }
}

#[test]
fn old_backends_are_stopped_or_kept() {
    let old = BTreeSet::from(["a".into()]);
    let (mut decision, mut view) = (Decision::default(), two());
    let (mut stopping, effects) = start(deploy(|order| order.stop_old = true), &view, &mut decision, NOW);
    assert!(effects.contains(&Effect::Stop(old.clone())), "{effects:?}");
    assert_eq!(outcome(&stopping), None);
    view.backends.get_mut("a").unwrap().state = State::Exited;
    go_on(&mut stopping, &view, &mut decision, NOW + 100);
    assert_eq!(outcome(&stopping), Some(Outcome::Done));

    let (mut decision, view) = (Decision::default(), two());
    let (kept, effects) = start(deploy(|order| order.keep_old_ms = Some(600_000)), &view, &mut decision, NOW);
    assert_eq!(outcome(&kept), Some(Outcome::Done));
    let later = Effect::StopLater { version: "v2".to_owned(), old, at_ms: NOW + 600_000 };
    assert!(effects.contains(&later), "{effects:?}");
}

#[test]
fn a_deploy_rolls_back_if_its_version_dies_during_the_drain() {
    let (mut decision, mut view) = (Decision::default(), two());
    view.backends.get_mut("a").unwrap().live = 1;
    let (mut deploy, _) = start(deploy(|_| {}), &view, &mut decision, NOW);
    assert_eq!(weights(&decision), [("v2", 1)]);
    view.backends.get_mut("b").unwrap().state = State::Exited;
    go_on(&mut deploy, &view, &mut decision, NOW + 10);
    assert_eq!((outcome(&deploy), &decision.traffic), (Some(Outcome::WentBack), &Traffic::default()));
    assert_eq!(decision.revision, 2);
}

#[test]
fn a_canary_grows_step_by_step() {
    let (mut decision, view) = (Decision::default(), two());
    let (mut canary, _) = start(canary(&[100, 2_500, 10_000]), &view, &mut decision, NOW);
    assert_eq!(weights(&decision), [("v1", 9_900), ("v2", 100)]);
    go_on(&mut canary, &view, &mut decision, NOW + 999);
    assert_eq!(weights(&decision), [("v1", 9_900), ("v2", 100)]);
    go_on(&mut canary, &view, &mut decision, NOW + 1_000);
    assert_eq!(weights(&decision), [("v1", 7_500), ("v2", 2_500)]);
    go_on(&mut canary, &view, &mut decision, NOW + 2_000);
    assert_eq!(weights(&decision), [("v2", 10_000)]);
    assert_eq!(outcome(&canary), None, "it has to stay healthy for one more step");
    go_on(&mut canary, &view, &mut decision, NOW + 3_000);
    assert_eq!(outcome(&canary), Some(Outcome::Done));
}

#[test]
fn a_canary_keeps_the_shares_of_the_others() {
    let mut decision = Decision::default();
    let shares = BTreeMap::from([("v0".to_owned(), 1), ("v1".to_owned(), 3), ("v2".to_owned(), 7)]);
    decision.traffic.weights = Some(shares);
    let view = view(&[("z", "v0", State::Ready), ("a", "v1", State::Ready), ("b", "v2", State::Ready)]);
    start(canary(&[2_000, 10_000]), &view, &mut decision, NOW);
    assert_eq!(weights(&decision), [("v0", 2_000), ("v1", 6_000), ("v2", 2_000)]);
}

#[test]
fn a_failing_canary_rolls_back() {
    type Harm = fn(&mut View);
    let not_steered: Harm = |view| {
        let backend = view.backends.get_mut("b").unwrap();
        (backend.state, backend.steered) = (State::Starting, false);
    };
    let harms: [(Harm, &str); 6] = [
        (not_steered, "the network namespace of b is no longer steered"),
        (|view| view.backends.get_mut("b").unwrap().state = State::Starting, "b has stopped listening"),
        (|view| view.backends.get_mut("b").unwrap().state = State::Unhealthy, "b is unhealthy"),
        (|view| drop(view.backends.remove("b")), "b is gone"),
        (|view| view.backends.get_mut("b").unwrap().ready_since_ms = Some(NOW + 5), "not ready for a while"),
        (|view| view.backends.get_mut("b").unwrap().overflows = 2, "overflowed, 2 clients"),
    ];
    for (harm, reason) in harms {
        let (mut decision, mut view) = (Decision::default(), two());
        let (mut canary, _) = start(canary(&[500, 10_000]), &view, &mut decision, NOW);
        harm(&mut view);
        go_on(&mut canary, &view, &mut decision, NOW + 10);
        assert_eq!((outcome(&canary), &decision.traffic), (Some(Outcome::WentBack), &Traffic::default()), "{reason}");
        let message = canary.end.unwrap().message;
        assert!(message.contains(reason), "{message}");
    }
    // Its link is being attached again: the canary goes on, and a version that is not ready yet waits for the link.
    let (mut decision, mut repaired) = (Decision::default(), two());
    let (mut going, _) = start(canary(&[500, 10_000]), &repaired, &mut decision, NOW);
    repaired.backends.get_mut("b").unwrap().steered = false;
    go_on(&mut going, &repaired, &mut decision, NOW + 10);
    assert_eq!(outcome(&going), None);
    let (mut waiting, _) = start(deploy(|_| {}), &repaired, &mut decision, NOW);
    assert!(matches!(waiting.phase, Phase::Waiting { .. }));
    repaired.backends.get_mut("b").unwrap().steered = true;
    go_on(&mut waiting, &repaired, &mut decision, NOW + 20);
    assert_eq!(outcome(&waiting), Some(Outcome::Done));
    // Another one that comes meanwhile is not watched yet.
    let (mut decision, mut all) = (Decision::default(), two());
    let (mut canary, _) = start(canary(&[500, 10_000]), &all, &mut decision, NOW);
    all.backends.extend(view(&[("c", "v2", State::Starting)]).backends);
    go_on(&mut canary, &all, &mut decision, NOW + 10);
    assert_eq!(outcome(&canary), None);
}

#[test]
fn a_deploy_waits_for_a_version_that_is_stopping() {
    let stopping = view(&[("a", "v1", State::Ready), ("b", "v2", State::Stopping), ("c", "v3", State::Exited)]);
    let refused = |order: Order| check(&order, &stopping, &["web"], &Decision::default(), None, None).err();
    assert_eq!(refused(deploy(|_| {})), None);
    assert_eq!(refused(canary(&[10_000])), None);
    let mut decision = Decision::default();
    let (mut waits, _) = start(deploy(|_| {}), &stopping, &mut decision, NOW);
    assert!(matches!(waits.phase, Phase::Waiting { .. }));
    go_on(&mut waits, &two(), &mut decision, NOW + 1_000);
    assert_eq!((outcome(&waits), weights(&decision)), (Some(Outcome::Done), vec![("v2", 1)]));
    let (mut fails, _) = start(deploy(|_| {}), &stopping, &mut Decision::default(), NOW);
    go_on(&mut fails, &stopping, &mut Decision::default(), NOW + 10_000);
    let message = fails.end.unwrap().message;
    assert!(message.contains("0 of 1 backends of v2") && message.contains("b was told to stop"), "{message}");

    let shift = |version: &str| {
        let weights = BTreeMap::from([(version.to_owned(), 1)]);
        refused(Order::Shift(ShiftOrder { weights, ..ShiftOrder::default() })).unwrap().to_string()
    };
    assert!(shift("v2").contains("b was told to stop: wait until"), "{}", shift("v2"));
    assert_eq!(shift("v3"), "every backend of version v3 of web has ended (c); start one");
}
