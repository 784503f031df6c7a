//! Backends that were told to stop.

use super::*;
use crate::rollout::{Policy, Traffic};

const NOW: i64 = 1_000_000;

/// Backends of one service with their versions, each with a socket: backend 0 has cookie 100, and so on.
fn web<const N: usize>(versions: [&str; N]) -> World {
    let indices = 0..N as u32;
    let backends = indices.clone().zip(versions).map(|(index, version)| {
        let mut backend = backend(index, "web", "80");
        backend.spec.version = version.to_owned();
        backend
    });
    let mut world = world(backends, indices.map(|index| socket(index, "0.0.0.0", 80)));
    world.now_ms = NOW;
    world
}

fn of(world: &mut World, index: u32) -> &mut Backend {
    world.backends.get_mut(format!("id{index}").as_str()).unwrap()
}

/// Cookies of the members and of the reserve.
fn table(plan: &Plan) -> (Vec<u64>, Vec<u64>) {
    let table = plan.rules[&key(FAMILY_V4, 80)].table.clone().unwrap();
    let cookies = |of: &[crate::slots::Member]| of.iter().map(|member| member.cookie.0).collect();
    (cookies(&table.members), cookies(&table.reserve))
}

#[test]
fn a_stopping_backend_serves_when_no_other_does() {
    let mut world = web(["v1", "v1"]);
    world.plan();
    of(&mut world, 0).told_to_stop(NOW);
    let plan = world.plan();
    assert_eq!(table(&plan), (vec![101], vec![100]), "it is in the reserve");
    assert_eq!(plan.states[&BackendIndex(0)], State::Stopping);
    for phase in [Phase::Created, Phase::Paused, Phase::Exited] {
        of(&mut world, 1).is_now(phase);
        assert_eq!(table(&world.plan()), (vec![100], vec![]), "{phase:?}");
    }
    of(&mut world, 1).is_now(Phase::Running);
    of(&mut world, 1).probed = Health::Starting;
    world.last_serving.clear();
    assert_eq!(table(&world.plan()), (vec![100], vec![]), "the other one has not passed its check yet");
    of(&mut world, 1).probed = Health::Healthy;
    assert_eq!(table(&world.plan()), (vec![101], vec![100]));
    // Two that stop share what is left.
    of(&mut world, 1).told_to_stop(NOW);
    assert_eq!(table(&world.plan()), (vec![100, 101], vec![]));
    of(&mut world, 0).health = Health::Unhealthy;
    assert_eq!(table(&world.plan()), (vec![101], vec![]));
    world.decisions.entry("web".to_owned()).or_default().drained.insert(Part::Backend("id1".into()));
    assert_eq!(table(&world.plan()), (vec![], vec![]), "the operator has drained it");
}

#[test]
fn a_usable_version_without_a_share_comes_before_a_stopping_one() {
    let mut world = web(["v1", "v2"]);
    world.plan();
    let traffic = Traffic { weights: Some(BTreeMap::from([("v1".to_owned(), 1)])), ..Traffic::default() };
    world.decisions.entry("web".to_owned()).or_default().traffic = traffic;
    of(&mut world, 0).told_to_stop(NOW);
    assert_eq!(table(&world.plan()), (vec![101], vec![100]));
    // With the policy `manual` versions wait: then the one that has the share serves as long as it can.
    of(&mut world, 1).spec.options.rollout = Some(Policy::Manual);
    assert_eq!(table(&world.plan()), (vec![100], vec![]));
    // One that has no share does not stand in.
    of(&mut world, 0).is_now(Phase::Running);
    of(&mut world, 1).told_to_stop(NOW);
    assert_eq!(table(&world.plan()), (vec![100], vec![]));
}

#[test]
fn networks_keep_their_version_while_it_stops() {
    let mut world = web(["v1", "v2"]);
    world.plan();
    let from = BTreeMap::from([("10.0.0.0/8".parse().unwrap(), "v2".to_owned())]);
    world.decisions.entry("web".to_owned()).or_default().traffic = Traffic { weights: None, from };
    of(&mut world, 1).told_to_stop(NOW);
    let plan = world.plan();
    let own = &plan.rules[&key(FAMILY_V4, 80)].networks["v2"].table;
    assert_eq!(own.members.iter().map(|member| member.cookie.0).collect::<Vec<_>>(), [101]);
    assert_eq!(table(&plan), (vec![100], vec![101]), "all other clients get the other version");
}

#[test]
fn a_backend_that_listens_after_its_stop_timeout_is_running() {
    let mut world = web(["v1", "v1"]);
    of(&mut world, 0).stop_timeout_s = Some(3);
    of(&mut world, 0).told_to_stop(NOW);
    assert_eq!(world.plan().next_ms(), Some(NOW + 5_000), "two seconds for the engine's SIGKILL");
    // A second signal changes nothing.
    of(&mut world, 0).told_to_stop(NOW + 2_000);
    world.now_ms = NOW + 4_999;
    assert_eq!(world.plan().states[&BackendIndex(0)], State::Stopping);
    world.now_ms = NOW + 5_000;
    let plan = world.plan();
    assert_eq!((plan.states[&BackendIndex(0)], plan.next_ms()), (State::Ready, None));
    assert_eq!(table(&plan), (vec![100, 101], vec![]));
    assert_eq!(world.backends["id0"].stop_by_ms, None);
    // The next signal counts anew.
    of(&mut world, 0).told_to_stop(NOW + 6_000);
    assert_eq!(world.plan().states[&BackendIndex(0)], State::Stopping);
    // A backend that has closed its listener is stopping, however long that takes.
    world.sockets.remove(&SocketCookie(100));
    world.now_ms = NOW + 60_000;
    let plan = world.plan();
    assert_eq!((plan.states[&BackendIndex(0)], plan.next_ms()), (State::Stopping, None));
}

#[test]
fn the_stop_timeout_is_the_containers() {
    let until = |timeout_s: Option<i64>| {
        let mut stopping = backend(0, "web", "80");
        stopping.stop_timeout_s = timeout_s;
        stopping.told_to_stop(NOW);
        stopping.stop_by_ms
    };
    assert_eq!(until(None), Some(NOW + 12_000));
    assert_eq!(until(Some(0)), Some(NOW + 2_000));
    assert_eq!(until(Some(120)), Some(NOW + 122_000));
    assert_eq!(until(Some(-1)), None, "it has no limit");
    assert_eq!(until(Some(i64::MAX)), Some(i64::MAX));
}

#[test]
fn the_stop_timeout_of_a_frozen_backend_begins_when_it_is_thawed() {
    for timeout_s in [None, Some(-1)] {
        let mut frozen = backend(0, "web", "80");
        frozen.stop_timeout_s = timeout_s;
        frozen.told_to_stop(NOW);
        frozen.was_paused();
        assert_eq!(frozen.phase, Phase::Paused);
        frozen.was_unpaused(NOW + 50_000);
        let until = timeout_s.is_none().then_some(NOW + 62_000);
        assert_eq!((frozen.phase, frozen.stop_by_ms), (Phase::Stopping, until));
        // A new start forgets it.
        frozen.is_now(Phase::Running);
        frozen.was_paused();
        frozen.was_unpaused(NOW + 90_000);
        assert_eq!((frozen.phase, frozen.stop_by_ms), (Phase::Running, None));
    }
}

#[test]
fn the_older_claim_is_the_one_that_was_seen_first() {
    let mut first = backend(0, "web", "80");
    let mut second = backend(1, "api", "80");
    // The wall clock was set back in between.
    (first.seen, first.created_ms) = (1, 9_000);
    (second.seen, second.created_ms) = (2, 1_000);
    let mut world = world([first, second], [socket(0, "0.0.0.0", 80), socket(1, "0.0.0.0", 80)]);
    let plan = world.plan();
    assert_eq!(plan.rules[&key(FAMILY_V4, 80)].service.as_deref(), Some("web"));
    assert!(plan.conditions.contains_key(&BackendIndex(1)));
    assert_eq!(world.next_seen(), 3);
}
