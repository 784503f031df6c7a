//! Falling asleep and waking.

use std::sync::Arc;

use super::*;

fn coverage(versions: &[&str]) -> Vec<Coverage> {
    let versions = versions.iter().map(|version| (*version).to_owned()).collect();
    vec![Coverage { versions: Arc::new(versions), ..Coverage::default() }]
}

/// `a` of v1 and `b` of v2 serve.
fn awake() -> View {
    View { coverage: coverage(&["v1", "v2"]), ..two() }
}

fn set(view: &mut View, id: &str, state: State) {
    let backend = view.backends.get_mut(id).unwrap();
    backend.state = state;
    backend.ready_since_ms = state.could_serve().then_some(NOW);
    let able = view.backends.values().filter(|backend| backend.state.could_serve());
    let versions: Vec<String> = able.map(|backend| backend.version.clone()).collect();
    view.coverage = coverage(&versions.iter().map(String::as_str).collect::<Vec<_>>());
}

fn both(view: &mut View, state: State) {
    ["a", "b"].into_iter().for_each(|id| set(view, id, state));
}

fn ids(ids: &[&str]) -> BTreeSet<BackendId> {
    ids.iter().copied().map(BackendId::from).collect()
}

fn ended(operation: &Operation) -> (Outcome, &str) {
    operation.end.as_ref().map(|end| (end.outcome, end.message.as_str())).unwrap()
}

fn asleep() -> (View, Decision) {
    let (mut view, mut decision) = (awake(), Decision::default());
    let (mut idle, effects) = start(Order::Idle, &view, &mut decision, NOW);
    assert!(effects.is_empty() && decision.paused && decision.asleep.is_none());
    let effects = go_on(&mut idle, &view, &mut decision, NOW + 300);
    assert_eq!(effects, [Effect::Stop(ids(&["a", "b"]))]);
    both(&mut view, State::Exited);
    go_on(&mut idle, &view, &mut decision, NOW + 400);
    assert_eq!(ended(&idle), (Outcome::Done, "web sleeps until a client comes"));
    assert!(decision.paused && decision.asleep.as_ref().unwrap().containers == ids(&["a", "b"]));
    (view, decision)
}

fn wake(max_hold_ms: Option<u64>) -> Order {
    Order::Wake(WakeOrder { max_hold_ms })
}

#[test]
fn all_containers_are_started_again_and_serve_together() {
    let (mut view, mut decision) = asleep();
    let (mut wake, effects) = start(wake(Some(5_000)), &view, &mut decision, NOW + 1_000);
    assert_eq!(effects, [Effect::Start(ids(&["a", "b"]))]);
    assert_eq!(decision.pause_until_ms, Some(NOW + 6_000));
    both(&mut view, State::Starting);
    assert!(go_on(&mut wake, &view, &mut decision, NOW + 1_200).is_empty());
    view.held = 3;
    set(&mut view, "a", State::Standby);
    go_on(&mut wake, &view, &mut decision, NOW + 1_300);
    assert!(wake.end.is_none(), "the other one is about to serve");
    set(&mut view, "b", State::Standby);
    go_on(&mut wake, &view, &mut decision, NOW + 1_400);
    assert_eq!(ended(&wake), (Outcome::Done, "web is awake after 0.4 s; 3 clients were held"));
    assert_eq!((decision.paused, decision.asleep, decision.pause_until_ms), (false, None, None));
}

#[test]
fn one_that_is_late_keeps_no_client_waiting_for_long() {
    let (mut view, mut decision) = asleep();
    let (mut wake, _) = start(wake(None), &view, &mut decision, NOW);
    set(&mut view, "a", State::Standby);
    set(&mut view, "b", State::Starting);
    go_on(&mut wake, &view, &mut decision, NOW + 9_999);
    assert!(wake.end.is_none());
    go_on(&mut wake, &view, &mut decision, NOW + 10_000);
    assert!(ended(&wake).0 == Outcome::Done && !decision.paused);
}

#[test]
fn only_containers_that_get_clients_end_the_hold() {
    let (mut view, mut decision) = asleep();
    decision.traffic.weights = Some([("v2".to_owned(), 1)].into());
    let (mut first, _) = start(wake(Some(60_000)), &view, &mut decision, NOW);
    set(&mut view, "a", State::Standby);
    set(&mut view, "b", State::Starting);
    go_on(&mut first, &view, &mut decision, NOW + 20_000);
    assert!(first.end.is_none(), "a gets no clients, and b is about to serve");
    let (mut hopeless, mut other) = (view.clone(), decision.clone());
    hopeless.backends.get_mut("b").unwrap().start_failure = Some("could not be started: why".to_owned());
    go_on(&mut first.clone(), &hopeless, &mut other, NOW + 20_000);
    assert!(!other.paused, "no other one is left");
    set(&mut view, "a", State::Drained);
    set(&mut view, "b", State::Standby);
    go_on(&mut first, &view, &mut decision, NOW + 20_000);
    assert!(first.end.is_some() && !decision.paused);
}

#[test]
fn clients_of_a_port_that_is_not_served_yet_are_held() {
    let (mut view, mut decision) = asleep();
    let (mut first, _) = start(wake(Some(60_000)), &view, &mut decision, NOW);
    set(&mut view, "a", State::Standby);
    set(&mut view, "b", State::Starting);
    view.without_heir = Some("0.0.0.0:81".to_owned());
    go_on(&mut first, &view, &mut decision, NOW + 50_000);
    assert!(first.end.is_none(), "b is about to listen there");
    let (mut failed, mut other) = (view.clone(), decision.clone());
    failed.backends.get_mut("b").unwrap().start_failure = Some("has exited".to_owned());
    go_on(&mut first.clone(), &failed, &mut other, NOW + 50_000);
    assert!(!other.paused, "it will not");
    go_on(&mut first, &view, &mut decision, NOW + 60_000);
    assert!(first.end.is_some() && !decision.paused, "they are refused from now on");
}

#[test]
fn one_that_could_not_serve_before_is_not_waited_for() {
    let (mut view, mut decision) = (awake(), Decision::default());
    set(&mut view, "b", State::Unhealthy);
    let (mut idle, _) = start(Order::Idle, &view, &mut decision, NOW);
    go_on(&mut idle, &view, &mut decision, NOW + 300);
    both(&mut view, State::Exited);
    go_on(&mut idle, &view, &mut decision, NOW + 400);
    assert_eq!(decision.asleep.as_ref().unwrap().unable, ids(&["b"]));
    let (mut first, effects) = start(wake(None), &view, &mut decision, NOW + 1_000);
    assert_eq!(effects, [Effect::Start(ids(&["a", "b"]))]);
    set(&mut view, "a", State::Standby);
    set(&mut view, "b", State::NotListening);
    go_on(&mut first, &view, &mut decision, NOW + 1_100);
    assert!(first.end.is_some() && !decision.paused);
}

#[test]
fn what_comes_after_the_order_is_not_stopped() {
    let (mut view, mut decision) = (awake(), Decision::default());
    let (mut idle, _) = start(Order::Idle, &view, &mut decision, NOW);
    view.cannot_sleep = Some("c could not be started again".to_owned());
    assert!(go_on(&mut idle, &view, &mut decision, NOW + 300).is_empty());
    assert_eq!(ended(&idle), (Outcome::Failed, "c could not be started again; web does not sleep"));
    assert!(!decision.paused && decision.asleep.is_none());
}

#[test]
fn a_client_in_the_moment_of_falling_asleep_is_served() {
    let (mut view, mut decision) = (awake(), Decision::default());
    let (mut idle, _) = start(Order::Idle, &view, &mut decision, NOW);
    view.held = 1;
    assert!(go_on(&mut idle, &view, &mut decision, NOW + 300).is_empty());
    assert_eq!(ended(&idle), (Outcome::Failed, "a client came; web does not sleep"));
    assert!(!decision.paused);
    // A connection whose handshake a server had begun.
    view.held = 0;
    view.backends.get_mut("b").unwrap().live = 1;
    let (mut idle, _) = start(Order::Idle, &view, &mut decision, NOW);
    assert!(go_on(&mut idle, &view, &mut decision, NOW + 999).is_empty() && idle.end.is_none());
    assert!(go_on(&mut idle, &view, &mut decision, NOW + 1_000).is_empty() && !decision.paused);
    assert_eq!(ended(&idle).1, "web has 1 open connection; web does not sleep");
}

#[test]
fn unknown_connections_keep_it_awake() {
    let mut view = awake();
    view.backends.get_mut("a").unwrap().uncounted = Some("why".to_owned());
    let refused = check(&Order::Idle, &view, &["web"], &Decision::default(), None, None).unwrap_err();
    assert!(refused.to_string().starts_with("the connections of a are not known (why)"), "{refused}");
    let quiet = Quiet { opened: 7, condition: 1, since_ms: 10 };
    let later = Quiet { since_ms: 20, ..quiet };
    assert_eq!(later.after(None, 0), later);
    assert_eq!(later.after(Some(quiet), 0), quiet);
    assert_eq!(later.after(Some(quiet), 1), later, "one is open");
    assert_eq!(Quiet { opened: 8, ..later }.after(Some(quiet), 0).since_ms, 20, "one was open in between");
    assert_eq!(Quiet { condition: 2, ..later }.after(Some(quiet), 0).since_ms, 20, "another backend serves");
    assert_eq!(Quiet { since_ms: 5, ..quiet }.after(Some(quiet), 0).since_ms, 5, "it is of another boot");
    assert_eq!([9, 10, 11].map(|ms| quiet.has_lasted(ms, 20)), [true, true, false]);
}

#[test]
fn a_container_that_cannot_be_started_is_started_again_after_pauses_that_grow() {
    let (mut view, mut decision) = asleep();
    let (mut wake, _) = start(wake(Some(2_000)), &view, &mut decision, NOW);
    for id in ["a", "b"] {
        view.backends.get_mut(id).unwrap().start_failure = Some("could not be started: why".to_owned());
    }
    let mut told = Vec::new();
    for ms in (0..200_000).step_by(500) {
        if !go_on(&mut wake, &view, &mut decision, NOW + ms).is_empty() {
            told.push(ms);
        }
    }
    assert_eq!(told[..3], [1_000, 2_000, 3_000]);
    assert!(told.windows(2).all(|two| two[1] - two[0] <= 60_500) && told.len() < 15, "{told:?}");
    assert!(wake.end.is_none() && decision.is_pause_over(NOW + 2_000), "its clients are refused by then");
    let failures = wake_failures(&view, decision.asleep.as_ref().unwrap()).unwrap();
    assert_eq!(failures, "a could not be started: why, b could not be started: why");
    // One of them serves in the end.
    view.backends.get_mut("a").unwrap().start_failure = None;
    set(&mut view, "a", State::Standby);
    let effects = go_on(&mut wake, &view, &mut decision, NOW + 200_000);
    assert_eq!(effects, [Effect::StartLater(ids(&["b"]))]);
    assert!(ended(&wake).1.ends_with("b could not be started: why") && !decision.paused);
}

#[test]
fn one_that_never_listens_leaves_the_service_awake() {
    let (mut view, mut decision) = asleep();
    let (mut wake, _) = start(wake(Some(2_000)), &view, &mut decision, NOW);
    both(&mut view, State::NotListening);
    go_on(&mut wake, &view, &mut decision, NOW + 1_999);
    assert!(wake.end.is_none() && decision.paused);
    go_on(&mut wake, &view, &mut decision, NOW + 2_000);
    assert!(ended(&wake).0 == Outcome::Failed && !decision.paused && decision.asleep.is_none());
}

#[test]
fn what_an_operator_removes_or_starts_meanwhile_is_respected() {
    let (mut view, mut decision) = asleep();
    view.backends.remove("a");
    let mut alone = decision.clone();
    let (_, effects) = start(wake(None), &view, &mut alone, NOW);
    assert_eq!(effects, [Effect::Start(ids(&["b"]))]);
    let mut running = view.clone();
    set(&mut running, "b", State::Ready);
    let (by_hand, effects) = start(wake(None), &running, &mut decision.clone(), NOW);
    assert!(effects.is_empty() && by_hand.end.is_some(), "it serves already: {by_hand:?}");
    view.backends.clear();
    let (gone, effects) = start(wake(None), &view, &mut decision.clone(), NOW);
    assert!(effects.is_empty() && ended(&gone).0 == Outcome::Failed, "{gone:?}");
    // Another container is there in their place, and is started a little later.
    let mut again = two();
    again.backends.retain(|id, _| id == "a");
    let again = View { backends: [("c".into(), again.backends["a"].clone())].into(), ..again };
    let mut created = again.clone();
    set(&mut created, "c", State::Created);
    let (mut first, _) = start(wake(Some(5_000)), &created, &mut decision, NOW);
    assert!(first.end.is_none() && decision.paused);
    let mut never = decision.clone();
    go_on(&mut first.clone(), &created, &mut never, NOW + 5_000);
    assert!(!never.paused, "it was not");
    let again = View { coverage: coverage(&["v1"]), ..again };
    go_on(&mut first, &again, &mut decision, NOW + 1_000);
    assert!(ended(&first).0 == Outcome::Done && !decision.paused);
}

#[test]
fn a_late_engine_keeps_nothing_asleep() {
    let (view, mut decision) = asleep();
    let unknown = View { backends: BTreeMap::new(), is_partial: true, ..view.clone() };
    let (mut first, effects) = start(wake(Some(5_000)), &unknown, &mut decision, NOW);
    go_on(&mut first, &unknown, &mut decision, NOW + 600_000);
    assert!(effects.is_empty() && first.end.is_none() && decision.asleep.is_some());
    assert_eq!(go_on(&mut first, &view, &mut decision, NOW + 600_000), [Effect::Start(ids(&["a", "b"]))]);
}

#[test]
fn a_container_that_does_not_stop_ends_the_sleep() {
    let (mut view, mut decision) = (awake(), Decision::default());
    let (mut idle, _) = start(Order::Idle, &view, &mut decision, NOW);
    go_on(&mut idle, &view, &mut decision, NOW + 300);
    set(&mut view, "a", State::Exited);
    view.backends.get_mut("b").unwrap().stop_unanswered = true;
    assert!(go_on(&mut idle, &view, &mut decision, NOW + 400).is_empty());
    assert_eq!(go_on(&mut idle, &view, &mut decision, NOW + 1_400), [Effect::Stop(ids(&["b"]))]);
    go_on(&mut idle, &view, &mut decision, NOW + 100_000);
    assert_eq!(ended(&idle), (Outcome::Failed, "b did not stop, so web wakes"));
    assert!(decision.asleep.is_some(), "it is woken next");
    let (wake, effects) = start(wake(None), &view, &mut decision, NOW + 100_000);
    assert_eq!(effects, [Effect::Start(ids(&["a"]))]);
    assert!(wake.end.is_some() && !decision.paused, "b serves meanwhile");
}

#[test]
fn orders_that_have_nothing_to_change() {
    let (view, decision) = asleep();
    let said = |order: Order, decision: &Decision| already(&order, &view, decision, None, &[]);
    assert_eq!(said(Order::Idle, &decision).unwrap(), "web sleeps already");
    assert_eq!(said(wake(None), &Decision::default()).unwrap(), "web does not sleep");
    assert!(said(wake(None), &decision).is_none());
    let refused = check(&wake(Some(0)), &view, &["web"], &decision, None, None).unwrap_err();
    assert!(refused.to_string().contains("held for no time at all"));
    let refused = check(&Order::Idle, &awake(), &["web"], &Decision { paused: true, ..decision }, None, None);
    assert!(refused.unwrap_err().to_string().contains("web is paused"));
}
