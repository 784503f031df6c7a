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
