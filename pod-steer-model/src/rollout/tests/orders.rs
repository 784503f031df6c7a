//! Rollbacks, refusals, and what holds for every order.

use std::sync::Arc;

use pod_steer_ebpf::FAMILY_V4;

use super::*;
use crate::{ports::Port, rule::RuleKey};

#[test]
fn rollbacks_undo_one_operation_each() {
    let ended = |id: u64, order: Order, outcome: Outcome| {
        let mut ended = operation(order, Traffic::default());
        ended.id = id;
        end(&mut ended, outcome, at(NOW), "");
        ended
    };
    let shift = || Order::Shift(ShiftOrder::default());
    let behind_of = |history: &[Operation]| behind(history).map(|operation| operation.id);
    let mut history = vec![ended(1, shift(), Outcome::Done), ended(2, deploy(|_| {}), Outcome::Left)];
    history.push(ended(3, deploy(|_| {}), Outcome::Failed));
    history.push(ended(4, Order::Pause(Default::default()), Outcome::Done));
    assert_eq!(behind_of(&history), Some(2));
    history.push(ended(5, Order::Rollback, Outcome::Done));
    assert_eq!(behind_of(&history), Some(1));
    // An operation that a rollback ended while it ran is not undone again.
    history.push(ended(6, canary(&[10_000]), Outcome::Aborted));
    history.push(ended(7, Order::Rollback, Outcome::Done));
    assert_eq!(behind_of(&history), Some(1));
    history.push(ended(8, Order::Rollback, Outcome::Done));
    assert_eq!(behind_of(&history), None);
    // The traffic from before the service lost its backends is not restored.
    history.push(ended(9, deploy(|_| {}), Outcome::Done));
    assert_eq!(behind_of(&history), Some(9));
    history.push(ended(10, Order::Forget, Outcome::Done));
    assert_eq!(behind_of(&history), None);
}

#[test]
fn invalid_orders_are_refused_with_a_hint() {
    let shift = |weights: &[(&str, u32)]| {
        let weights = weights.iter().map(|(version, weight)| ((*version).to_owned(), *weight)).collect();
        Order::Shift(ShiftOrder { weights, ..ShiftOrder::default() })
    };
    let mut not_ready = two();
    not_ready.backends.get_mut("b").unwrap().state = State::Starting;
    let cases: [(&View, Order, &str); 10] = [
        (
            &View { service: "wbe".to_owned(), ..View::default() },
            Order::Pause(Default::default()),
            "no service \"wbe\"; did you mean web?; known: api, web",
        ),
        (&two(), deploy(|order| order.version = "v9".to_owned()), "its versions: v1, v2"),
        (&two(), deploy(|order| order.timeout_ms = 0), "time-out is zero"),
        (&two(), shift(&[("v1", 0), ("v2", 0)]), "all weights are zero"),
        (&two(), shift(&[("v1", 70_000)]), "too large"),
        (&not_ready, shift(&[("v2", 1)]), "no backend of it is ready"),
        (&two(), canary(&[500, 300, 10_000]), "steps of a canary must increase"),
        (&two(), canary(&[20_000]), "give at most 100 %"),
        (&two(), Order::Rollback, "nothing to roll back"),
        (
            &two(),
            Order::Drain(DrainOrder { backend: Some("x".to_owned()), ..DrainOrder::default() }),
            "its backends: a, b",
        ),
    ];
    for (view, order, hint) in cases {
        let refused = check(&order, view, &["api", "web"], &Decision::default(), None, None).unwrap_err();
        assert!(matches!(&refused, Refusal::Input(text) if text.contains(hint)), "{hint}: {refused}");
        assert!(!refused.to_string().contains('\n'));
    }
}

#[test]
fn a_service_has_one_operation_at_a_time() {
    let held = operation(canary(&[10_000]), Traffic::default());
    let refused = check(&Order::Pause(Default::default()), &two(), &["web"], &Decision::default(), Some(&held), None)
        .unwrap_err();
    let Refusal::Held(text) = refused else { panic!("{refused}") };
    assert!(text.contains("web is held by root: the canary of v2"), "{text}");
    assert_eq!(check(&Order::Rollback, &two(), &["web"], &Decision::default(), Some(&held), None), Ok(()));
}

#[test]
fn a_version_is_ready_only_on_every_port() {
    let mut view = two();
    let coverage = |port: u16, versions: &[&str]| Coverage {
        key: RuleKey { port: Port::tcp(port), family: FAMILY_V4, ..RuleKey::default() },
        versions: Arc::new(versions.iter().map(|version| (*version).to_owned()).collect()),
    };
    view.coverage = vec![coverage(80, &["v1", "v2"]), coverage(443, &["v1"])];
    let mut decision = Decision::default();
    let (mut deploy, _) = start(deploy(|_| {}), &view, &mut decision, NOW);
    go_on(&mut deploy, &view, &mut decision, NOW + 10_000);
    assert_eq!((outcome(&deploy), decision), (Some(Outcome::Failed), Decision::default()));
    let message = deploy.end.unwrap().message;
    assert!(message.contains("v2 does not listen for port 443 by IPv4"), "{message}");
}

#[test]
fn a_rollback_restores_drains() {
    let view = view(&[("a", "v1", State::Ready), ("b", "v2", State::Drained)]);
    let bad = Part::Version("v2".to_owned());
    let mut decision = Decision { drained: BTreeSet::from([bad.clone()]), ..Decision::default() };
    let refused = check(&canary(&[10_000]), &view, &["web"], &decision, None, None).unwrap_err();
    assert!(refused.to_string().contains("v2 of web is drained"), "{refused}");

    let (deployed, _) = start(deploy(|_| {}), &view, &mut decision, NOW);
    assert_eq!((outcome(&deployed), decision.drained.len()), (Some(Outcome::Done), 0));
    let mut rollback = operation(Order::Rollback, Traffic::default());
    let progress = begin(&mut rollback, &view, &decision, Some(&deployed), at(NOW));
    let next = progress.decision.unwrap();
    assert_eq!((next.traffic, next.drained), (Traffic::default(), BTreeSet::from([bad])));
}

#[test]
fn a_running_operation_can_always_be_ended() {
    let before = Traffic { weights: Some(BTreeMap::from([("v1".to_owned(), 1)])), ..Traffic::default() };
    let held = operation(deploy(|_| {}), before.clone());
    let view = view(&[("b", "v2", State::Ready)]);
    let decision = Decision { traffic: before, ..Decision::default() };
    assert_eq!(check(&Order::Rollback, &view, &["web"], &decision, Some(&held), Some(&held)), Ok(()));
    let mut rollback = operation(Order::Rollback, Traffic::default());
    let progress = begin(&mut rollback, &view, &decision, Some(&held), at(NOW));
    assert_eq!(progress.decision, None, "no backend would serve");
    assert!(rollback.end.unwrap().message.contains("traffic stays as it is"));
    // An operation that has ended is not undone then.
    let refused = check(&Order::Rollback, &view, &["web"], &decision, None, Some(&held)).unwrap_err();
    assert!(refused.to_string().contains("start one first"), "{refused}");
}
