//! What goes wrong while a version replaces another one: engines that are away, and programs that start what was stopped.

use super::*;

/// Told to start, and running but not ready.
fn runs(view: &mut View, id: &str) {
    set(view, id, State::Starting);
    view.backends.get_mut(id).unwrap().told_to_start = true;
}

/// On the way back, the old version `a` is about to be started.
fn until_back(view: &mut View, decision: &mut Decision) -> (Operation, i64) {
    let (mut deploy, now) = until_started(view, decision);
    runs(view, "b");
    set(view, "b", State::Exited);
    view.backends.get_mut("b").unwrap().start_failure = Some("has exited".to_owned());
    go_on(&mut deploy, view, decision, now);
    assert!(deploy.goes_back());
    (deploy, now + 1_000)
}

#[test]
fn an_engine_that_is_away_is_told_again() {
    let (mut view, mut decision) = (created(), Decision::default());
    let (mut deploy, now) = start(recreate(|_| {}), &view, &mut decision, NOW);
    // It was told to stop the old version, and could not be reached.
    view.backends.get_mut("a").unwrap().stop_unanswered = true;
    assert_eq!(go_on(&mut deploy, &view, &mut decision, NOW + 100), []);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, NOW + 1_000), []);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, NOW + 1_100), [Effect::Stop(ids(&["a"]))]);
    assert_eq!(now, [Effect::Stop(ids(&["a"]))]);
    view.backends.get_mut("a").unwrap().stop_unanswered = false;
    set(&mut view, "a", State::Stopping);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, NOW + 9_000), [], "it has been told");
    set(&mut view, "a", State::Exited);
    let now = NOW + 10_000;
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now), [Effect::Start(ids(&["b"]))]);
    // Nor could it be reached then.
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now + 999), []);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now + 1_000), [Effect::Start(ids(&["b"]))]);
    view.backends.get_mut("b").unwrap().told_to_start = true;
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now + 5_000), []);
    set(&mut view, "b", State::Standby);
    go_on(&mut deploy, &view, &mut decision, now + 5_001);
    assert_eq!(outcome(&deploy), Some(Outcome::Done));
}

#[test]
fn a_server_gets_no_second_signal() {
    let mut view =
        view(&[("a", "v1", State::Ready), ("restarted", "v1", State::Starting), ("b", "v2", State::Created)]);
    view.coverage = port(&["v1"]);
    view.backends.get_mut("restarted").unwrap().is_starting = true;
    let mut decision = Decision::default();
    let order = recreate(|order| order.backends = Some(1));
    let (mut deploy, effects) = start(order, &view, &mut decision, NOW);
    assert_eq!(effects, [Effect::Stop(ids(&["a", "restarted"]))]);
    set(&mut view, "a", State::Stopping);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, NOW + 1_000), [Effect::Stop(ids(&["restarted"]))]);
    // Whatever becomes of a start, there is a deadline.
    go_on(&mut deploy, &view, &mut decision, NOW + 60_000);
    assert!(deploy.goes_back(), "{deploy:?}");
}

#[test]
fn an_old_backend_that_ends_late_is_started_again() {
    let (mut view, mut decision) = (created(), Decision::default());
    let (mut deploy, _) = start(recreate(|_| {}), &view, &mut decision, NOW);
    set(&mut view, "a", State::Stopping);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, NOW + 60_000), []);
    assert!(deploy.goes_back() && matches!(deploy.phase, Phase::Starting { told: true, .. }), "{deploy:?}");
    set(&mut view, "a", State::Exited);
    let now = NOW + 62_000;
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now), [Effect::Start(ids(&["a"]))]);
    view.backends.get_mut("a").unwrap().told_to_start = true;
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now + 5_000), [], "once");
    set(&mut view, "a", State::Standby);
    go_on(&mut deploy, &view, &mut decision, now + 5_001);
    assert_eq!((outcome(&deploy), decision.paused), (Some(Outcome::WentBack), false));
}

#[test]
fn a_daemon_that_was_away_for_long_starts_the_old_version_all_the_same() {
    let (mut view, mut decision) = (created(), Decision::default());
    let (mut deploy, now) = until_back(&mut view, &mut decision);
    go_on(&mut deploy, &view, &mut decision, now);
    resume(&mut deploy);
    let progress = step(&mut deploy, &view, &decision, at(now + 600_000));
    assert_eq!(progress.effects, [Effect::Start(ids(&["a"]))]);
}

#[test]
fn an_old_version_that_was_removed_is_not_waited_for() {
    let (mut view, mut decision) = (created(), Decision::default());
    let (mut deploy, now) = until_back(&mut view, &mut decision);
    view.backends.remove(&BackendId::from("a"));
    go_on(&mut deploy, &view, &mut decision, now);
    go_on(&mut deploy, &view, &mut decision, now + 1);
    assert_eq!((outcome(&deploy), decision.paused), (Some(Outcome::WentBack), false));
    assert!(message(&deploy).contains("could not be put back: it was removed; nothing serves web"), "{deploy:?}");
}

#[test]
fn another_program_that_starts_the_old_version_ends_the_deploy() {
    let (mut view, mut decision) = (created(), Decision::default());
    let (mut deploy, now) = until_started(&mut view, &mut decision);
    // Both would be ready at the same time.
    runs(&mut view, "b");
    set(&mut view, "b", State::Standby);
    set(&mut view, "a", State::Starting);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now + 500), [Effect::Stop(ids(&["b"]))]);
    assert!(deploy.goes_back() && decision.paused);
    set(&mut view, "b", State::Exited);
    set(&mut view, "a", State::Standby);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now + 600), []);
    assert_eq!((outcome(&deploy), decision.paused), (Some(Outcome::WentBack), false));
    assert!(message(&deploy).starts_with("a was started meanwhile, and not by pod-steer; web is as"), "{deploy:?}");
}

#[test]
fn another_program_that_starts_the_new_version_on_the_way_back() {
    let (mut view, mut decision) = (created(), Decision::default());
    let (mut deploy, now) = until_back(&mut view, &mut decision);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now), [Effect::Start(ids(&["a"]))]);
    view.backends.get_mut("a").unwrap().told_to_start = true;
    set(&mut view, "a", State::Standby);
    set(&mut view, "b", State::Starting);
    let mut stuck = (deploy.clone(), view.clone(), decision.clone());
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now + 1_000), [Effect::Stop(ids(&["b"]))]);
    assert!(decision.paused, "the old one serves only when the new one has ended");
    set(&mut view, "b", State::Exited);
    go_on(&mut deploy, &view, &mut decision, now + 1_500);
    assert_eq!((outcome(&deploy), decision.paused), (Some(Outcome::WentBack), false));
    // Clients do not wait for it for ever.
    let (deploy, view, decision) = (&mut stuck.0, &stuck.1, &mut stuck.2);
    go_on(deploy, view, decision, now + 10_000);
    assert!(message(deploy).ends_with("b of v2 did not stop, and runs beside it"), "{deploy:?}");
}

#[test]
fn nothing_waits_for_an_old_backend_that_does_not_return() {
    let mut view = view(&[
        ("a", "v1", State::Ready),
        ("fails", "v1", State::Ready),
        ("sick", "v1", State::Unhealthy),
        ("b", "v2", State::Created),
    ]);
    view.coverage = port(&["v1"]);
    let mut decision = Decision::default();
    let (mut deploy, _) = start(recreate(|order| order.backends = Some(1)), &view, &mut decision, NOW);
    for id in ["a", "fails", "sick"] {
        set(&mut view, id, State::Exited);
    }
    go_on(&mut deploy, &view, &mut decision, NOW + 100);
    view.backends.get_mut("b").unwrap().start_failure = Some("could not be started: no such file".to_owned());
    go_on(&mut deploy, &view, &mut decision, NOW + 200);
    let now = NOW + 1_300;
    go_on(&mut deploy, &view, &mut decision, now);
    for id in ["a", "fails", "sick"] {
        runs(&mut view, id);
    }
    set(&mut view, "a", State::Standby);
    go_on(&mut deploy, &view, &mut decision, now + 100);
    assert!(decision.paused, "one that served is about to");
    set(&mut view, "fails", State::Exited);
    view.backends.get_mut("fails").unwrap().start_failure = Some("has exited".to_owned());
    set(&mut view, "a", State::Standby);
    go_on(&mut deploy, &view, &mut decision, now + 200);
    assert_eq!((outcome(&deploy), decision.paused), (Some(Outcome::WentBack), false), "{deploy:?}");
}
