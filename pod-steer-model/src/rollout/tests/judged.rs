//! Canaries and watched deploys whose versions are compared.

use pod_steer_ebpf::{Observed, first_byte_bucket};

use super::*;
use crate::judge::{Compared, Judging, Mode, Side};

/// A version that has answered so many connections, and reset so many more.
fn side(connections: u64, reset: u64) -> Side {
    let ended = connections + reset;
    let mut observed =
        Observed { opened: ended, ended, reset, asked: ended, answered: connections, ..Observed::default() };
    observed.first_byte[first_byte_bucket(1_000_000)] = connections;
    Side { observed, ..Side::default() }
}

fn seen(view: &View, new: Side, old: Side) -> View {
    let compared = Compared { new, old, others: "v1".to_owned(), one_of: [1, 1], ..Compared::default() };
    View { compared: Some(Box::new(compared)), ..view.clone() }
}

fn names(operation: &Operation) -> Vec<&str> {
    operation.steps.iter().map(|step| step.name.as_str()).collect()
}

#[test]
fn a_canary_that_is_worse_goes_back_as_soon_as_it_is_certain() {
    let view = two();
    let mut decision = Decision::default();
    let (mut operation, _) = start(canary(&[5_000, 10_000]), &view, &mut decision, NOW);
    assert_eq!(weights(&decision), [("v1", 5_000), ("v2", 5_000)]);
    // Few connections are no reason for a look.
    go_on(&mut operation, &seen(&view, side(5, 5), side(10, 0)), &mut decision, NOW + 10);
    assert!(matches!(operation.phase, Phase::Stepping { looks: 0, .. }), "{:?}", operation.phase);
    // An equal version stays, and is not looked at again before there is more.
    let equal = seen(&view, side(1_000, 0), side(1_000, 0));
    for ms in [20, 30] {
        go_on(&mut operation, &equal, &mut decision, NOW + ms);
        assert!(matches!(operation.phase, Phase::Stepping { looks: 1, .. }), "{:?}", operation.phase);
    }
    go_on(&mut operation, &seen(&view, side(2_000, 100), side(2_000, 0)), &mut decision, NOW + 40);
    assert_eq!(decision.traffic, operation.before);
    let end = operation.end.clone().expect("it has ended");
    assert_eq!(end.outcome, Outcome::WentBack);
    assert!(
        end.message.starts_with("v2 resets more connections: 100 of 2100 connections (4.8%), v1 0 of 2000"),
        "{}",
        end.message
    );
    assert_eq!(names(&operation).last(), Some(&"worse"));
}

#[test]
fn a_step_says_how_it_was_judged() {
    let view = two();
    let run = |mode: Mode, seen: Option<View>| {
        let mut order = canary(&[5_000, 10_000]);
        if let Order::Canary(canary) = &mut order {
            canary.judge.mode = mode;
        }
        let (view, mut decision) = (seen.as_ref().unwrap_or(&view), Decision::default());
        let (mut operation, _) = start(order, view, &mut decision, NOW);
        for ms in [1_000, 2_000] {
            go_on(&mut operation, view, &mut decision, NOW + ms);
        }
        operation
    };
    let judged = run(Mode::On, Some(seen(&view, side(1_000, 0), side(1_000, 0))));
    assert_eq!(names(&judged), ["ready", "50 %", "no worse", "100 %", "no worse"]);
    let detail = &judged.steps[2].detail;
    assert!(detail.starts_with("v2: 1000 connections, 0 reset") && detail.contains("(compared 2 times)"), "{detail}");
    let blind = run(Mode::On, None);
    assert_eq!(names(&blind), ["ready", "50 %", "not judged", "100 %", "not judged"]);
    assert!(blind.steps[2].detail == "nothing was observed", "{:?}", blind.steps);
    assert_eq!(blind.end.map(|end| end.outcome), Some(Outcome::Done));
    assert_eq!(
        run(Mode::Required, None).end.map(|end| end.outcome),
        Some(Outcome::WentBack),
        "it was not judged either"
    );
    let required = run(Mode::Required, Some(seen(&view, side(10, 0), side(10, 0))));
    assert_eq!(required.end.map(|end| end.outcome), Some(Outcome::WentBack));
    assert_eq!(names(&run(Mode::Off, None)), ["ready", "50 %", "100 %"]);
}

fn watched() -> Order {
    deploy(|order| order.watch = Some(Watch { for_ms: 60_000, judge: Judging::default() }))
}

#[test]
fn a_watched_deploy_observes_before_and_after_the_switch() {
    let view = two();
    let mut decision = Decision::default();
    let (mut operation, _) = start(watched(), &view, &mut decision, NOW);
    go_on(&mut operation, &view, &mut decision, NOW + 29_000);
    assert_eq!(decision, Decision::default(), "the old version is observed first");
    go_on(&mut operation, &view, &mut decision, NOW + 30_000);
    assert!(decision.traffic.is_all_of("v2"));
    let equal = seen(&view, side(1_000, 0), side(1_000, 0));
    go_on(&mut operation, &equal, &mut decision, NOW + 40_000);
    let (mut worse, mut back) = (operation.clone(), decision.clone());
    go_on(&mut operation, &equal, &mut decision, NOW + 60_000);
    assert!(matches!(operation.phase, Phase::Stepping { step: 2, .. }), "{:?}", operation.phase);
    step(&mut operation, &equal, &decision, at(NOW + 90_000));
    assert!(matches!(operation.phase, Phase::Draining { .. }), "{:?}", operation.phase);
    assert_eq!(names(&operation), ["ready", "observed", "no worse"], "parts that end alike are one step");
    assert_eq!(operation.steps[2].took_us, 60_000_000);
    go_on(&mut worse, &seen(&view, side(3_000, 100), side(1_000, 0)), &mut back, NOW + 50_000);
    assert_eq!((back.traffic, outcome(&worse)), (worse.before.clone(), Some(Outcome::WentBack)));
}

#[test]
fn what_comes_or_ends_during_a_watch_is_noticed() {
    let mut view = two();
    let mut decision = Decision::default();
    let order = deploy(|order| {
        order.watch = Some(Watch { for_ms: 60_000, judge: Judging::default() });
        order.stop_old = true;
    });
    let (mut operation, _) = start(order, &view, &mut decision, NOW);
    go_on(&mut operation, &view, &mut decision, NOW + 30_000);
    // The new one ends while there is no way back, and the old one is ready again later.
    let (mut ended, mut back) = (operation.clone(), decision.clone());
    let mut lost = view.clone();
    lost.backends.get_mut("a").expect("the old one").state = State::Unhealthy;
    lost.backends.get_mut("b").expect("the new one").state = State::Exited;
    for ms in [31_000, 61_000] {
        go_on(&mut ended, &lost, &mut back, NOW + ms);
        assert_eq!(outcome(&ended), None);
    }
    lost.backends.get_mut("a").expect("the old one").state = State::Ready;
    go_on(&mut ended, &lost, &mut back, NOW + 62_000);
    assert_eq!(outcome(&ended), Some(Outcome::WentBack), "{ended:?}");
    // A version that is started meanwhile is none of the old ones.
    let next = BackendView { version: "v3".to_owned(), has_served: false, ..view.backends["b"].clone() };
    view.backends.insert("c".into(), next);
    go_on(&mut operation, &view, &mut decision, NOW + 60_000);
    step(&mut operation, &view, &decision, at(NOW + 90_000));
    let Phase::Draining { old, .. } = &operation.phase else { panic!("{:?}", operation.phase) };
    assert_eq!(*old, BTreeSet::from([BackendId::from("a")]));
}

#[test]
fn a_watch_needs_something_to_compare_with() {
    let refused = |change: fn(&mut DeployOrder), view: &View| {
        let mut order = watched();
        if let Order::Deploy(deploy) = &mut order {
            change(deploy);
        }
        check(&order, view, &["web"], &Decision::default(), None, None).expect_err("it is refused").to_string()
    };
    let no_time = refused(|deploy| deploy.watch = Some(Watch { for_ms: 0, judge: Judging::default() }), &two());
    assert!(no_time.contains("--watch 5m"), "{no_time}");
    let slow = |deploy: &mut DeployOrder| deploy.watch.as_mut().expect("it is watched").judge.max_slowdown_percent = 0;
    assert!(refused(slow, &two()).contains("--max-slowdown 25%"));
    let long = Watch { for_ms: Watch::MAX_MS + 1, judge: Judging::default() };
    let order = deploy(|deploy| deploy.watch = Some(long));
    assert!(check(&order, &two(), &["web"], &Decision::default(), None, None).is_err());
    let paused = Decision { paused: true, ..Decision::default() };
    let said = check(&watched(), &two(), &["web"], &paused, None, None).expect_err("no client would come").to_string();
    assert!(said.contains("pod-steer unpause web"), "{said}");
    let mut only = canary(&[10_000]);
    check(&only, &two(), &["web"], &Decision::default(), None, None).expect("it need not be judged");
    if let Order::Canary(canary) = &mut only {
        canary.judge.mode = Mode::Required;
    }
    assert!(check(&only, &two(), &["web"], &Decision::default(), None, None).is_err());
    let alone = view(&[("b", "v2", State::Ready)]);
    assert!(refused(|_| (), &alone).contains("there is no other version"));
}

#[test]
fn a_version_that_is_worse_stays_if_there_is_no_way_back() {
    let view = two();
    let mut decision = Decision::default();
    let (mut operation, _) = start(canary(&[5_000, 10_000]), &view, &mut decision, NOW);
    let mut worse = seen(&view, side(2_000, 100), side(2_000, 0));
    worse.backends.get_mut("a").expect("the old one").state = State::Unhealthy;
    let before = decision.clone();
    for (ms, reset) in [(10, 100), (20, 1_000)] {
        worse.compared.as_mut().expect("they are compared").new = side(2_000, reset);
        go_on(&mut operation, &worse, &mut decision, NOW + ms);
    }
    assert_eq!((outcome(&operation), &decision), (None, &before));
    assert_eq!(names(&operation), ["ready", "50 %", "worse"]);
    assert!(
        operation.steps[2].detail.ends_with("it stays, since no backend from before is ready"),
        "{:?}",
        operation.steps
    );
}

#[test]
fn a_version_that_is_slower_than_before_has_to_be_so_for_a_while() {
    let view = two();
    let slow = |is_slow: bool| {
        let (mut new, old) = (side(5_000, 0), side(5_000, 0));
        if is_slow {
            new.observed.first_byte = [0; pod_steer_ebpf::FIRST_BYTE_BUCKETS];
            new.observed.first_byte[first_byte_bucket(100_000_000)] = 5_000;
        }
        let mut seen = seen(&view, new, old);
        seen.compared.as_mut().expect("they are compared").is_before = true;
        seen
    };
    let run = |slow_parts: [bool; 4]| {
        let mut decision = Decision::default();
        let watch = Some(Watch { for_ms: 120_000, judge: Judging::default() });
        let (mut operation, _) = start(deploy(|order| order.watch = watch), &view, &mut decision, NOW);
        go_on(&mut operation, &view, &mut decision, NOW + 30_000);
        for (part, is_slow) in (2..).zip(slow_parts) {
            step(&mut operation, &slow(is_slow), &decision, at(NOW + part * 30_000));
        }
        (names(&operation)[2..].join(", "), outcome(&operation))
    };
    let short = {
        let mut decision = Decision::default();
        let watch = Some(Watch { for_ms: 30_000, judge: Judging::default() });
        let (mut operation, _) = start(deploy(|order| order.watch = watch), &view, &mut decision, NOW);
        go_on(&mut operation, &view, &mut decision, NOW + 30_000);
        step(&mut operation, &slow(true), &decision, at(NOW + 60_000));
        operation
    };
    assert!(matches!(short.phase, Phase::Draining { .. }), "{:?}", short.phase);
    assert_eq!(run([true, true, false, true]), ("slower, slower, no worse, slower".to_owned(), None));
    assert_eq!(run([false, true, true, true]), ("no worse, slower, slower, worse".to_owned(), Some(Outcome::WentBack)));
}
