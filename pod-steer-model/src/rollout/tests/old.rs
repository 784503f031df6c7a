//! Which backends are old, which versions can serve, and how much a rollback undoes.

use std::collections::{BTreeMap, BTreeSet};

use super::{super::deploy::AGAIN_MS, *};

#[test]
fn a_version_that_waits_is_no_old_one() {
    let mut view = view(&[("a", "v1", State::Ready), ("b", "v2", State::Ready), ("c", "v3", State::Standby)]);
    view.backends.get_mut("c").unwrap().has_served = false;
    let mut decision = Decision::default();
    decision.traffic.weights = Some(BTreeMap::from([("v1".to_owned(), 1)]));
    let (_, effects) = start(deploy(|order| order.stop_old = true), &view, &mut decision, NOW);
    assert!(effects.contains(&Effect::Stop(BTreeSet::from(["a".into()]))), "{effects:?}");
}

/// `docker restart` ends a container for a moment.
#[test]
fn an_old_backend_that_is_restarted_is_stopped_again() {
    let old = BTreeSet::from(["a".into()]);
    let (mut decision, mut view) = (Decision::default(), two());
    view.backends.get_mut("a").unwrap().state = State::Exited;
    let (mut stopping, effects) = start(deploy(|order| order.stop_old = true), &view, &mut decision, NOW);
    assert!(effects.contains(&Effect::Stop(old.clone())), "{effects:?}");
    assert!(go_on(&mut stopping, &view, &mut decision, NOW + AGAIN_MS - 1).is_empty());
    view.backends.get_mut("a").unwrap().state = State::Ready;
    let again = go_on(&mut stopping, &view, &mut decision, NOW + AGAIN_MS);
    assert_eq!((again, outcome(&stopping)), (vec![Effect::Stop(old)], None));
    view.backends.get_mut("a").unwrap().state = State::Exited;
    go_on(&mut stopping, &view, &mut decision, NOW + AGAIN_MS + 100);
    assert_eq!(outcome(&stopping), Some(Outcome::Done));
}

#[test]
fn a_deploy_of_what_serves_is_nothing_to_undo() {
    let (mut decision, view) = (Decision::default(), two());
    let order = || deploy(|order| order.drain_timeout_ms = 0);
    let (first, _) = start(order(), &view, &mut decision, NOW);
    let (again, _) = start(order(), &view, &mut decision, NOW);
    let mut history = vec![Operation { id: 1, ..first }, Operation { id: 2, ..again }];
    let undone = |history: &[Operation]| behind(history).map(|operation| operation.id);
    assert_eq!(undone(&history), Some(1));
    // A rollback that ended it has not undone the deploy before it; the next one does.
    let rollback = |id| {
        let (mut rollback, _) = start(Order::Rollback, &view, &mut Decision::default(), NOW);
        end(&mut rollback, Outcome::Done, at(NOW), String::new());
        Operation { id, ..rollback }
    };
    history[1].end.as_mut().unwrap().outcome = Outcome::Aborted;
    history.push(rollback(3));
    assert_eq!(undone(&history), Some(1));
    history.push(rollback(4));
    assert_eq!(undone(&history), None);
}

#[test]
fn versions_of_the_weight_zero_are_refused() {
    let mut view = two();
    view.backends.get_mut("b").unwrap().weight = 0;
    let refused =
        |order: &Order| check(order, &view, &["web"], &Decision::default(), None, None).unwrap_err().to_string();
    let shift = ShiftOrder { weights: BTreeMap::from([("v2".to_owned(), 5)]), ..ShiftOrder::default() };
    for order in [deploy(|_| ()), canary(&[5_000, 10_000]), Order::Shift(shift)] {
        assert!(refused(&order).contains("the weight 0"), "{order:?}: {}", refused(&order));
    }
}

#[test]
fn a_drain_of_a_backend_that_is_gone_can_be_ended() {
    let gone = Part::Backend("0123456789ab".into());
    let decision = Decision { drained: BTreeSet::from([gone]), ..Decision::default() };
    let resume = |id: &str| Order::Resume(PartOrder { version: None, backend: Some(id.to_owned()) });
    let checked = |id| check(&resume(id), &two(), &["web"], &decision, None, None);
    assert!(checked("0123").is_ok() && checked("99").is_err() && checked("").is_err());
    let (mut operation, mut decision) = (operation(resume("0123"), Traffic::default()), decision.clone());
    let progress = begin(&mut operation, &two(), &decision, None, at(NOW));
    decision = progress.decision.unwrap();
    assert!(decision.drained.is_empty());
}

fn ids(ids: &[&str]) -> BTreeSet<BackendId> {
    ids.iter().copied().map(BackendId::from).collect()
}

fn set(view: &mut View, id: &str, state: State) {
    view.backends.get_mut(id).unwrap().state = state;
}

/// A deploy that has told the old backends `a` and `c` to stop.
fn stopping() -> (Operation, View, Decision) {
    let mut view = view(&[("a", "v1", State::Ready), ("c", "v1", State::Ready), ("b", "v2", State::Ready)]);
    let mut decision = Decision::default();
    let (stopping, effects) = start(deploy(|order| order.stop_old = true), &view, &mut decision, NOW);
    assert_eq!(effects, [Effect::Stop(ids(&["a", "c"]))]);
    set(&mut view, "a", State::Stopping);
    set(&mut view, "c", State::Stopping);
    (stopping, view, decision)
}

#[test]
fn old_backends_start_again_if_the_new_version_ends_while_they_stop() {
    let (mut deploy, mut view, mut decision) = stopping();
    set(&mut view, "b", State::Exited);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, NOW + 1_000), [], "they serve as long as they listen");
    set(&mut view, "a", State::Exited);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, NOW + 2_000), [Effect::Start(ids(&["a"]))]);
    assert_eq!((outcome(&deploy), &decision.traffic), (None, &Traffic::default()));
    // The new one may come back meanwhile: the old one has been started.
    set(&mut view, "a", State::Ready);
    set(&mut view, "b", State::Ready);
    set(&mut view, "c", State::Exited);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, NOW + 3_000), [Effect::Start(ids(&["c"]))]);
    let end = deploy.end.unwrap();
    assert_eq!(end.outcome, Outcome::WentBack);
    assert_eq!(end.message, "no backend of v2 is ready any more; the old version is started again");
}

#[test]
fn a_deploy_says_so_if_its_old_backends_cannot_be_started_again() {
    let (mut deploy, mut view, mut decision) = stopping();
    set(&mut view, "b", State::Exited);
    // Processes: they are gone when they have ended.
    view.backends.retain(|id, _| **id == *"b");
    assert_eq!(go_on(&mut deploy, &view, &mut decision, NOW + 1_000), []);
    let end = deploy.end.unwrap();
    assert_eq!(end.outcome, Outcome::WentBack);
    assert!(end.message.ends_with("pod-steer cannot start them: start a version"), "{}", end.message);
    // One that does not stop serves on.
    let (mut deploy, mut view, mut decision) = stopping();
    set(&mut view, "b", State::Exited);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, NOW + 60_000), []);
    assert_eq!((outcome(&deploy), decision.traffic), (Some(Outcome::WentBack), Traffic::default()));
}

#[test]
fn a_backend_that_ends_before_the_switch_has_to_become_ready() {
    for order in [deploy(|_| {}), canary(&[5_000, 10_000])] {
        let mut decision = Decision::default();
        let three = [("b", "v2", State::Ready), ("c", "v2", State::Starting), ("d", "v2", State::Starting)];
        let mut view = view(&[&[("a", "v1", State::Ready)], &three[..]].concat());
        let (mut waiting, _) = start(order, &view, &mut decision, NOW);
        set(&mut view, "c", State::Exited);
        view.backends.remove("d");
        go_on(&mut waiting, &view, &mut decision, NOW + 10_000);
        assert_eq!((outcome(&waiting), decision), (Some(Outcome::Failed), Decision::default()));
        let message = waiting.end.unwrap().message;
        assert!(message.contains("1 of 3 backends of v2 are ready") && message.contains("c is exited"), "{message}");
    }
}

#[test]
fn backends_that_are_kept_for_a_while_are_kept_for_good_only_by_what_has_moved() {
    let (mut decision, view) = (Decision::default(), two());
    for (order, keeps) in [
        (deploy(|_| {}), true),
        (canary(&[10_000]), true),
        (deploy(|order| order.backends = Some(2)), false),
        (Order::Drain(DrainOrder { drain_timeout_ms: Some(1_000), ..DrainOrder::default() }), false),
    ] {
        let (mut operation, mut effects) = start(order, &view, &mut decision, NOW);
        effects.extend(go_on(&mut operation, &view, &mut decision, NOW + 10_000));
        assert_eq!(effects, if keeps { vec![Effect::KeepAll] } else { vec![] }, "{operation:?}");
    }
    let (later, effects) = start(deploy(|order| order.keep_old_ms = Some(1_000)), &view, &mut decision, NOW);
    assert!(matches!(&effects[..], [Effect::KeepAll, Effect::StopLater { .. }]), "{effects:?}");
    // A rollback keeps what the deploy was to stop, but ends only what a running one has done.
    let kept = |last: &Operation| {
        begin(&mut operation(Order::Rollback, Traffic::default()), &view, &decision, Some(last), at(NOW)).effects
    };
    assert_eq!(kept(&later), [Effect::KeepAll]);
    assert_eq!(kept(&Operation { end: None, ..later }), []);
}

#[test]
fn a_rollback_needs_a_version_that_served_before() {
    let mut view = two();
    let (deployed, _) = start(deploy(|order| order.stop_old = true), &view, &mut Decision::default(), NOW);
    let deployed =
        Operation { end: Some(End { outcome: Outcome::Done, at_ms: 0, message: String::new() }), ..deployed };
    let checked = |view: &View| {
        check(&Order::Rollback, view, &["web"], &Decision::default(), None, Some(&deployed))
            .map_err(|no| no.to_string())
    };
    assert_eq!(checked(&view), Ok(()));
    set(&mut view, "a", State::Exited);
    let refused = checked(&view).unwrap_err();
    assert!(refused.starts_with("before the deploy of v2, all versions of web shared, and no backend"), "{refused}");
    view.backends.remove("a");
    assert!(checked(&view).is_err());
    // A shift has no version of its own.
    let shift = Operation { order: Order::Shift(ShiftOrder::default()), ..deployed.clone() };
    assert!(check(&Order::Rollback, &view, &["web"], &Decision::default(), None, Some(&shift)).is_ok());
}
