//! Deploys of applications that must never run twice.

mod faults;

use std::sync::Arc;

use super::*;

/// A port on which these versions listen.
fn port(versions: &[&str]) -> Vec<Coverage> {
    let versions = versions.iter().map(|version| (*version).to_owned()).collect();
    vec![Coverage { versions: Arc::new(versions), ..Coverage::default() }]
}

/// `a` of v1 serves, `b` of v2 has been created.
fn created() -> View {
    let mut view = view(&[("a", "v1", State::Ready), ("b", "v2", State::Created)]);
    view.coverage = port(&["v1"]);
    view
}

fn recreate(change: impl FnOnce(&mut DeployOrder)) -> Order {
    deploy(|order| {
        order.recreate = true;
        change(order);
    })
}

fn set(view: &mut View, id: &str, state: State) {
    let backend = view.backends.get_mut(id).unwrap();
    backend.state = state;
    let version = backend.version.clone();
    let mut versions: BTreeSet<String> = view.coverage.first().map(|one| (*one.versions).clone()).unwrap_or_default();
    if state.could_serve() {
        versions.insert(version)
    } else {
        versions.remove(&version)
    };
    view.coverage[0].versions = Arc::new(versions);
}

fn ids(ids: &[&str]) -> BTreeSet<BackendId> {
    ids.iter().copied().map(BackendId::from).collect()
}

fn message(operation: &Operation) -> &str {
    operation.end.as_ref().map(|end| end.message.as_str()).unwrap_or_default()
}

/// Until the new version has been told to start.
fn until_started(view: &mut View, decision: &mut Decision) -> (Operation, i64) {
    let mut now = NOW;
    let (mut deploy, effects) = start(recreate(|_| {}), view, decision, now);
    assert_eq!(effects, [Effect::Stop(ids(&["a"]))]);
    assert!(decision.paused && decision.traffic == Traffic::default(), "{decision:?}");
    set(view, "a", State::Stopping);
    now += 100;
    assert_eq!(go_on(&mut deploy, view, decision, now), [], "the old one has not ended");
    set(view, "a", State::Exited);
    now += 100;
    assert_eq!(go_on(&mut deploy, view, decision, now), [Effect::Start(ids(&["b"]))]);
    (deploy, now)
}

#[test]
fn the_new_version_starts_when_the_old_one_has_ended_and_gets_everything_at_once() {
    let (mut view, mut decision) = (created(), Decision::default());
    let (mut deploy, now) = until_started(&mut view, &mut decision);
    set(&mut view, "b", State::Starting);
    view.held = 7;
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now + 50), []);
    assert!(decision.paused);
    set(&mut view, "b", State::Standby);
    // Not after half a second: clients wait.
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now + 51), [Effect::KeepAll]);
    assert_eq!((outcome(&deploy), decision.paused), (Some(Outcome::Done), false));
    assert_eq!(weights(&decision), [("v2", 1)]);
    assert_eq!(message(&deploy), "v2 has all connections of web; clients were held for 0.3 s, 7 at the end");
    let steps: Vec<&str> = deploy.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["drained", "stopped", "ready"]);
}

#[test]
fn old_connections_end_before_the_old_version_is_told_to_stop() {
    let (mut view, mut decision) = (created(), Decision::default());
    view.backends.get_mut("a").unwrap().live = 2;
    let (mut deploy, effects) = start(recreate(|_| {}), &view, &mut decision, NOW);
    assert_eq!(effects, []);
    let effects = go_on(&mut deploy, &view, &mut decision, NOW + 5_000);
    assert_eq!(effects, [Effect::Stop(ids(&["a"]))], "at the deadline it is stopped all the same");
    set(&mut view, "a", State::Exited);
    go_on(&mut deploy, &view, &mut decision, NOW + 5_100);
    set(&mut view, "b", State::Standby);
    go_on(&mut deploy, &view, &mut decision, NOW + 5_200);
    assert_eq!(outcome(&deploy), Some(Outcome::Left));
    assert!(
        message(&deploy).contains("2 old connections remained when the old version was told to stop"),
        "{deploy:?}"
    );
}

#[test]
fn a_version_that_fails_is_stopped_and_the_old_one_put_back() {
    type Fails = fn(&mut View);
    let ways: [(Fails, i64, &str); 4] = [
        (
            |view| {
                set(view, "b", State::Exited);
                view.backends.get_mut("b").unwrap().start_failure = Some("has exited".to_owned());
            },
            1_000,
            "b has exited",
        ),
        (
            |view| {
                view.backends.get_mut("b").unwrap().start_failure =
                    Some("could not be started: no such file".to_owned())
            },
            0,
            "b could not be started: no such file",
        ),
        (|view| set(view, "b", State::Starting), 0, "0 of 1 backends of v2 are ready after 10 s: b is starting"),
        // It listens where the held clients cannot go.
        (
            |view| {
                set(view, "b", State::Standby);
                view.without_heir = Some("0.0.0.0:80".to_owned());
            },
            0,
            "clients are held at 0.0.0.0:80",
        ),
    ];
    for (fails, again_ms, why) in ways {
        let (mut view, mut decision) = (created(), Decision::default());
        let (mut deploy, mut now) = until_started(&mut view, &mut decision);
        fails(&mut view);
        if view.backends["b"].start_failure.is_none() {
            assert_eq!(go_on(&mut deploy, &view, &mut decision, now + 9_999), [], "{why}");
            now += 10_000;
        }
        let effects = go_on(&mut deploy, &view, &mut decision, now);
        assert_eq!(effects[0], Effect::Stop(ids(&["b"])), "{why}");
        assert!(deploy.goes_back() && decision.paused, "{why}");
        if view.backends["b"].state != State::Created {
            set(&mut view, "b", State::Exited);
        }
        view.without_heir = None;
        now += again_ms;
        let effects = [&effects[1..], &go_on(&mut deploy, &view, &mut decision, now)].concat();
        assert_eq!(effects, [Effect::Start(ids(&["a"]))], "{why}");
        set(&mut view, "a", State::Standby);
        go_on(&mut deploy, &view, &mut decision, now);
        assert_eq!((outcome(&deploy), decision.paused), (Some(Outcome::WentBack), false), "{why}");
        assert!(message(&deploy).contains(why) && message(&deploy).contains("web is as it was before"), "{deploy:?}");
        assert_eq!(decision.traffic, Traffic::default());
    }
}

#[test]
fn the_old_version_is_never_started_beside_the_new_one() {
    let (mut view, mut decision) = (created(), Decision::default());
    let (mut deploy, mut now) = until_started(&mut view, &mut decision);
    set(&mut view, "b", State::Starting);
    now += 10_000;
    go_on(&mut deploy, &view, &mut decision, now);
    // It does not stop.
    now += 61_000;
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now), []);
    assert_eq!((outcome(&deploy), decision.paused), (Some(Outcome::WentBack), false));
    assert!(message(&deploy).contains("b did not stop, so the old version was not started again"), "{deploy:?}");
    // And the new one is not started beside an old one that something has started again.
    let (mut view, mut decision) = (created(), Decision::default());
    let (mut deploy, now) = until_started(&mut view, &mut decision);
    resume(&mut deploy);
    set(&mut view, "a", State::Ready);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now), [Effect::Stop(ids(&["a"]))]);
}

/// The engine may start the new version after it was told to stop it.
#[test]
fn a_version_that_is_being_started_counts_as_running() {
    let (mut view, mut decision) = (created(), Decision::default());
    let (mut deploy, mut now) = until_started(&mut view, &mut decision);
    view.backends.get_mut("b").unwrap().is_starting = true;
    now += 10_000;
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now), [Effect::Stop(ids(&["b"]))]);
    now += 1_000;
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now), [Effect::Stop(ids(&["b"]))], "the old one must wait");
    view.backends.get_mut("b").unwrap().is_starting = false;
    set(&mut view, "b", State::Starting);
    now += 1_000;
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now), [Effect::Stop(ids(&["b"]))]);
    set(&mut view, "b", State::Exited);
    assert_eq!(go_on(&mut deploy, &view, &mut decision, now), [Effect::Start(ids(&["a"]))]);
}

#[test]
fn a_rollback_puts_the_old_version_back_from_each_phase() {
    let rollback = |deploy: &Operation, view: &View, decision: &mut Decision, now: i64| {
        let mut begun = operation(Order::Rollback, decision.traffic.clone());
        let progress = begin(&mut begun, view, decision, Some(deploy), at(now));
        *decision = progress.decision.unwrap_or_else(|| decision.clone());
        let effects = [progress.effects, go_on(&mut begun, view, decision, now)].concat();
        (begun, effects)
    };
    // Nothing has been stopped.
    let (mut view, mut decision) = (created(), Decision::default());
    view.backends.get_mut("a").unwrap().live = 1;
    let (deploy, _) = start(recreate(|_| {}), &view, &mut decision, NOW);
    let (back, effects) = rollback(&deploy, &view, &mut decision, NOW);
    assert_eq!((outcome(&back), effects, decision.paused), (Some(Outcome::Done), vec![], false));

    // The old one was told to stop, and has not ended: it must end before it can be started.
    let (mut view, mut decision) = (created(), Decision::default());
    let (deploy, _) = start(recreate(|_| {}), &view, &mut decision, NOW);
    let (mut back, effects) = rollback(&deploy, &view, &mut decision, NOW);
    assert_eq!((effects, decision.paused), (vec![Effect::Stop(ids(&["b"]))], true));
    set(&mut view, "a", State::Exited);
    assert_eq!(go_on(&mut back, &view, &mut decision, NOW), [Effect::Start(ids(&["a"]))]);
    set(&mut view, "a", State::Standby);
    go_on(&mut back, &view, &mut decision, NOW);
    assert_eq!((outcome(&back), decision.paused), (Some(Outcome::Done), false));

    // The new one is starting; a second rollback goes on with the first.
    let (mut view, mut decision) = (created(), Decision::default());
    let (deploy, now) = until_started(&mut view, &mut decision);
    set(&mut view, "b", State::Starting);
    let (back, effects) = rollback(&deploy, &view, &mut decision, now);
    assert_eq!(effects, [Effect::Stop(ids(&["b"]))]);
    set(&mut view, "b", State::Exited);
    let (mut again, effects) = rollback(&back, &view, &mut decision, now);
    assert_eq!(effects, [Effect::Start(ids(&["a"]))]);
    set(&mut view, "a", State::Standby);
    go_on(&mut again, &view, &mut decision, now);
    assert_eq!((outcome(&again), decision.paused), (Some(Outcome::Done), false));
}

#[test]
fn repeating_it_changes_nothing() {
    let (mut view, mut decision) = (created(), Decision::default());
    let repeated = |view: &View, decision: &Decision| already(&recreate(|_| {}), view, decision, None, &[]);
    assert_eq!(repeated(&view, &decision), None);
    let (mut deploy, now) = until_started(&mut view, &mut decision);
    set(&mut view, "b", State::Ready);
    go_on(&mut deploy, &view, &mut decision, now);
    assert!(repeated(&view, &decision).unwrap().contains("v2 has all connections of web already"));
    set(&mut view, "a", State::Ready);
    assert_eq!(repeated(&view, &decision), None, "another version runs");
}

#[test]
fn what_cannot_be_recreated_is_refused() {
    let refused = |view: &View, order: Order, decision: Decision| {
        check(&order, view, &["web"], &decision, None, None).unwrap_err().to_string()
    };
    let paused = Decision { paused: true, ..Decision::default() };
    assert!(refused(&created(), recreate(|_| {}), paused).contains("is paused"));
    assert!(check(&recreate(|_| {}), &created(), &["web"], &Decision::default(), None, None).is_ok());
    let said = |view: &View, order: Order| refused(view, order, Decision::default());
    assert!(said(&two(), recreate(|_| {})).contains("b of version v2 of web runs already"));
    assert!(said(&created(), recreate(|order| order.stop_old = true)).contains("leave out --stop-old"));
    assert!(
        said(&created(), recreate(|order| order.version = "v9".to_owned())).contains("no stopped container of version")
    );
    let mut many = view(&[("a", "v1", State::Ready), ("b", "v2", State::Created), ("c", "v2", State::Exited)]);
    assert!(said(&many, recreate(|_| {})).contains("2 stopped containers (b, c), and 1 would"));
    assert!(
        check(&recreate(|order| order.backends = Some(2)), &many, &["web"], &Decision::default(), None, None).is_ok()
    );
    // One that the operator starts.
    let exec = recreate(|order| (order.version, order.backends) = ("v3".to_owned(), Some(1)));
    assert!(check(&exec, &many, &["web"], &Decision::default(), None, None).is_ok());
    // Its engine would remove what is to be put back.
    for id in ["a", "b"] {
        let mut transient = created();
        transient.backends.get_mut(id).unwrap().is_transient = true;
        assert!(said(&transient, recreate(|_| {})).contains("(--rm)"), "{id}");
    }
    let mut own = many.clone();
    own.backends.get_mut("a").unwrap().is_transient = true;
    assert!(check(&exec, &own, &["web"], &Decision::default(), None, None).is_ok(), "the operator starts both");
    many.backends.get_mut("a").unwrap().can_stop = false;
    assert!(said(&many, exec).contains("cannot be told to stop"));
    // A rollback afterwards would run both.
    let mut last = operation(recreate(|_| {}), Traffic::default());
    last.before.weights = Some(BTreeMap::from([("v1".to_owned(), 1)]));
    begin(&mut last, &created(), &Decision::default(), None, at(NOW));
    end(&mut last, Outcome::Done, at(NOW), "");
    let refused = check(&Order::Rollback, &two(), &["web"], &Decision::default(), None, Some(&last)).unwrap_err();
    assert!(refused.to_string().contains("pod-steer deploy web v1 --recreate"), "{refused}");
}
