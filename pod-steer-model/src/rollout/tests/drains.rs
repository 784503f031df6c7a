//! Drains that wait, and what happens at their deadline.

use std::time::Duration;

use super::*;

fn drain(change: impl FnOnce(&mut DrainOrder)) -> Order {
    let mut order =
        DrainOrder { version: Some("v1".to_owned()), drain_timeout_ms: Some(5_000), ..DrainOrder::default() };
    change(&mut order);
    Order::Drain(order)
}

fn with_connections(live: u64) -> View {
    let mut view = two();
    view.backends.get_mut("a").unwrap().live = live;
    view
}

fn message(operation: &Operation) -> &str {
    operation.end.as_ref().map_or("", |end| &end.message)
}

#[test]
fn a_drain_waits_only_if_it_is_told_to() {
    let view = with_connections(3);
    let mut decision = Decision::default();
    let (at_once, _) = start(drain(|order| order.drain_timeout_ms = None), &view, &mut decision, NOW);
    assert_eq!(outcome(&at_once), Some(Outcome::Done));
    assert!(decision.drained.contains(&Part::Version("v1".to_owned())));

    // It is drained already, and its connections have to end still.
    let mut view = view;
    let (mut waiting, _) = start(drain(|_| {}), &view, &mut decision, NOW);
    assert_eq!(outcome(&waiting), None);
    assert_eq!(already(&drain(|_| {}), &view, &decision, None, &[]), None);
    view.backends.get_mut("a").unwrap().live = 0;
    // Those of another version do not count.
    view.backends.get_mut("b").unwrap().live = 7;
    go_on(&mut waiting, &view, &mut decision, NOW + 2_000);
    assert_eq!((outcome(&waiting), decision.revision), (Some(Outcome::Done), 1));
    assert_eq!(message(&waiting), "version v1 of web gets no new connections, and has none left");
    assert_eq!(waiting.steps[0].detail, "3 connections");
}

#[test]
fn what_is_open_at_the_deadline_is_left_or_reset() {
    let mut decision = Decision::default();
    let view = with_connections(3);
    let (mut left, _) = start(drain(|_| {}), &view, &mut decision, NOW);
    go_on(&mut left, &view, &mut decision, NOW + 5_000);
    assert_eq!(outcome(&left), Some(Outcome::Left));
    assert_eq!(message(&left), "version v1 of web gets no new connections; 3 connections remained at the deadline");

    for order in
        [drain(|order| order.at_deadline = AtDeadline::Reset), deploy(|order| order.at_deadline = AtDeadline::Reset)]
    {
        let mut view = with_connections(3);
        let (mut resets, mut now) = (start(order, &view, &mut decision, NOW).0, NOW + 4_999);
        go_on(&mut resets, &view, &mut decision, now);
        assert_eq!(resetting(&resets), None, "not before the deadline");
        now += 1;
        go_on(&mut resets, &view, &mut decision, now);
        assert_eq!(resetting(&resets), Some(&BTreeSet::from([BackendId::from("a")])));
        assert_eq!(outcome(&resets), None);
        note_reset(&mut resets, 2);
        // One ended on its own.
        view.backends.get_mut("a").unwrap().live = 0;
        go_on(&mut resets, &view, &mut decision, now + 100);
        assert_eq!(outcome(&resets), Some(Outcome::Done));
        assert!(
            message(&resets).ends_with("2 connections reset") || message(&resets).ends_with("2 old connections reset")
        );
        let drained = resets.steps.iter().find(|step| step.name == "drained").unwrap();
        assert_eq!(drained.detail, "3 connections, 2 of them reset");
        decision = Decision::default();
    }
}

#[test]
fn connections_that_cannot_be_reset_do_not_hold_an_operation() {
    let mut decision = Decision::default();
    let view = with_connections(3);
    let order = deploy(|order| (order.at_deadline, order.stop_old) = (AtDeadline::Reset, true));
    let (mut deploy, mut now) = (start(order, &view, &mut decision, NOW).0, NOW + 5_000);
    go_on(&mut deploy, &view, &mut decision, now);
    assert!(resetting(&deploy).is_some());
    now += 60_000;
    let effects = go_on(&mut deploy, &view, &mut decision, now);
    assert_eq!(outcome(&deploy), Some(Outcome::Left));
    assert!(message(&deploy).ends_with("3 old connections remained at the deadline, so nothing was stopped"));
    assert_eq!(effects, [Effect::KeepAll]);
}

#[test]
fn a_drain_that_waits_can_be_ended() {
    let view = with_connections(3);
    let mut decision = Decision::default();
    let (waiting, _) = start(drain(|_| {}), &view, &mut decision, NOW);
    let v1 = PartOrder { version: Some("v1".to_owned()), backend: None };
    let checked = |order: &Order| check(order, &view, &["web"], &decision, Some(&waiting), Some(&waiting));
    assert_eq!(checked(&Order::Resume(v1)), Ok(()));
    assert_eq!(checked(&Order::Rollback), Ok(()));
    assert!(matches!(checked(&Order::Pause(Default::default())), Err(Refusal::Held(_))));
    let mut rollback = operation(Order::Rollback, Traffic::default());
    let progress = begin(&mut rollback, &view, &decision, Some(&waiting), at(NOW));
    assert!(progress.decision.unwrap().drained.is_empty(), "{rollback:?}");
    // What was drained before stays drained.
    let (again, _) = start(drain(|_| {}), &view, &mut decision.clone(), NOW);
    let mut rollback = operation(Order::Rollback, Traffic::default());
    assert_eq!(begin(&mut rollback, &view, &decision, Some(&again), at(NOW)).decision, None);
    let other = PartOrder { version: Some("v2".to_owned()), backend: None };
    assert!(matches!(checked(&Order::Resume(other)), Err(Refusal::Held(_))));
    let reset = drain(|order| (order.drain_timeout_ms, order.at_deadline) = (None, AtDeadline::Reset));
    assert!(matches!(check(&reset, &view, &["web"], &decision, None, None), Err(Refusal::Input(_))));
}

#[test]
fn idle_connections_are_closed_while_a_drain_waits() {
    let mut decision = Decision::default();
    let mut view = with_connections(3);
    let (plain, _) = start(drain(|_| {}), &view, &mut decision, NOW);
    assert_eq!(closing(&plain), None);
    let order = drain(|order| {
        (order.close_idle_ms, order.close_rate, order.at_deadline) = (Some(1_500), Some(200), AtDeadline::Reset);
    });
    let (mut closes, _) = start(order, &view, &mut decision, NOW);
    let wanted = Closing {
        backends: BTreeSet::from([BackendId::from("a")]),
        which: Closes { idle: Some(Duration::from_millis(1_500)), old: None, rate: Some(200) },
        deadline_ms: NOW + 5_000,
    };
    assert_eq!(closing(&closes), Some(wanted));
    note_closed(&mut closes, 1);
    note_closed(&mut closes, 1);
    view.backends.get_mut("a").unwrap().live = 1;
    go_on(&mut closes, &view, &mut decision, NOW + 5_000);
    assert_eq!(closing(&closes), None, "the rest is reset");
    note_reset(&mut closes, 1);
    view.backends.get_mut("a").unwrap().live = 0;
    go_on(&mut closes, &view, &mut decision, NOW + 5_100);
    assert_eq!(closes.steps[0].detail, "3 connections, 2 of them closed when idle, 1 of them reset");
    for (after, rate, timeout) in
        [(None, Some(1), Some(1)), (Some(0), Some(1), Some(1)), (Some(1), Some(0), Some(1)), (Some(1), None, None)]
    {
        let order = drain(|order| {
            (order.close_idle_ms, order.close_rate, order.drain_timeout_ms) = (after, rate, timeout);
        });
        assert!(matches!(check(&order, &view, &["web"], &decision, None, None), Err(Refusal::Input(_))));
    }
}

#[test]
fn old_connections_are_closed_while_a_drain_waits() {
    let hour = Duration::from_secs(3_600);
    for (idle, when) in [(None, "when old"), (Some(1_000), "when idle or old")] {
        let mut decision = Decision::default();
        let mut view = with_connections(2);
        let order = drain(|order| (order.close_idle_ms, order.max_age_ms) = (idle, Some(3_600_000)));
        let (mut closes, _) = start(order, &view, &mut decision, NOW);
        let which = closing(&closes).unwrap().which;
        assert_eq!(which, Closes { idle: idle.map(Duration::from_millis), old: Some(hour), rate: None });
        note_closed(&mut closes, 2);
        view.backends.get_mut("a").unwrap().live = 0;
        go_on(&mut closes, &view, &mut decision, NOW + 100);
        assert_eq!(closes.steps[0].detail, format!("2 connections, 2 of them closed {when}"));
    }
    for (age, rate, timeout) in [(Some(0), Some(1), Some(1)), (Some(1), Some(0), Some(1)), (Some(1), None, None)] {
        let order = drain(|order| (order.max_age_ms, order.close_rate, order.drain_timeout_ms) = (age, rate, timeout));
        assert!(matches!(check(&order, &two(), &["web"], &Decision::default(), None, None), Err(Refusal::Input(_))));
    }
}

#[test]
fn an_order_that_does_not_say_which_connections_it_closes_leaves_it_to_the_options() {
    let completed = |given: Option<u64>, timeout: Option<u64>, option| {
        let mut order = drain(|order| {
            (order.close_idle_ms, order.max_age_ms, order.drain_timeout_ms) = (given, given, timeout);
        });
        order.complete(OfService { close_idle_ms: option, max_age_ms: option, wake_max_hold_ms: 60_000 });
        let Order::Drain(order) = order else { unreachable!() };
        assert_eq!(order.close_idle_ms, order.max_age_ms);
        order.close_idle_ms
    };
    assert_eq!(completed(None, Some(1), 2_000), Some(2_000));
    assert_eq!(completed(None, Some(1), 0), None);
    assert_eq!(completed(Some(500), Some(1), 2_000), Some(500));
    assert_eq!(completed(Some(0), Some(1), 2_000), Some(0), "it closes none");
    for timeout in [None, Some(0)] {
        assert_eq!(completed(None, timeout, 2_000), None, "it waits for none");
    }
    let none = drain(|order| order.close_idle_ms = Some(0));
    assert_eq!(check(&none, &two(), &["web"], &Decision::default(), None, None), Ok(()));
}
