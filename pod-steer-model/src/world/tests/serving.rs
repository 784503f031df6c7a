//! Which backends serve, and how much.

use super::*;
use crate::{
    rollout::{Policy, Traffic},
    slots::Member,
};

const WEB: &str = "web";

/// Backends of one service with their versions, each with a socket: backend 0 has cookie 100, and so on.
fn versions<const N: usize>(versions: [&str; N]) -> World {
    let indices = 0..N as u32;
    let backends = indices.clone().zip(versions).map(|(index, version)| {
        let mut backend = backend(index, WEB, "80");
        backend.spec.version = version.to_owned();
        backend
    });
    world(backends, indices.map(|index| socket(index, "0.0.0.0", 80)))
}

fn decide(world: &mut World, change: impl FnOnce(&mut Decision)) {
    change(world.decisions.entry(WEB.to_owned()).or_default());
}

fn weights<const N: usize>(weights: [(&str, u32); N]) -> Traffic {
    let weights = weights.into_iter().map(|(version, weight)| (version.to_owned(), weight)).collect();
    Traffic { weights: Some(weights), ..Traffic::default() }
}

/// Shares of the members of the table, in percent, by cookie.
fn shares(plan: &Plan) -> Vec<(u64, f64)> {
    let Some(table) = plan.rules.get(&key(FAMILY_V4, 80)).and_then(|rule| rule.table.as_ref()) else { return vec![] };
    let all: u64 = table.members.iter().map(|member| member.weight).sum();
    let share = |member: &Member| (member.cookie.0, (member.weight as f64 / all as f64 * 1e4).round() / 100.0);
    table.members.iter().map(share).collect()
}

/// Cookies of the reserve of the table.
fn reserve(plan: &Plan) -> Vec<u64> {
    let table = plan.rules.get(&key(FAMILY_V4, 80)).and_then(|rule| rule.table.as_ref());
    table.map(|table| table.reserve.iter().map(|member| member.cookie.0).collect()).unwrap_or_default()
}

fn health(world: &mut World, index: u32, health: Health) {
    world.backends.get_mut(format!("id{index}").as_str()).unwrap().probed = health;
}

#[test]
fn shares_by_version_whatever_the_number_of_backends() {
    let mut world = versions(["v1", "v1", "v1", "v2"]);
    assert_eq!(shares(&world.plan()), [(100, 25.0), (101, 25.0), (102, 25.0), (103, 25.0)]);
    decide(&mut world, |decision| decision.traffic = weights([("v1", 90), ("v2", 10)]));
    assert_eq!(shares(&world.plan()), [(100, 30.0), (101, 30.0), (102, 30.0), (103, 10.0)]);
    // A version's share stays with it when one of its backends goes.
    world.backends.get_mut("id0").unwrap().phase = Phase::Stopping;
    assert_eq!(shares(&world.plan()), [(101, 45.0), (102, 45.0), (103, 10.0)]);
    // And goes to the others with the last of them.
    world.backends.get_mut("id3").unwrap().phase = Phase::Exited;
    assert_eq!(shares(&world.plan()), [(101, 50.0), (102, 50.0)]);
    assert!(world.plan().service_conditions.is_empty());
}

#[test]
fn a_version_without_a_share_stands_by() {
    let mut world = versions(["v1", "v2"]);
    decide(&mut world, |decision| decision.traffic = weights([("v1", 1)]));
    let plan = world.plan();
    assert_eq!(shares(&plan), [(100, 100.0)]);
    assert_eq!((plan.states[&BackendIndex(0)], plan.states[&BackendIndex(1)]), (State::Ready, State::Standby));
    assert_eq!(reserve(&plan), [101], "it is in the reserve");
    // It serves rather than that all clients are refused, unless the policy makes versions wait.
    world.backends.get_mut("id0").unwrap().phase = Phase::Exited;
    let plan = world.plan();
    assert_eq!(shares(&plan), [(101, 100.0)]);
    assert!(
        plan.service_conditions[WEB][0].message.contains("no version that has a share"),
        "{:?}",
        plan.service_conditions
    );
    world.backends.get_mut("id1").unwrap().spec.options.rollout = Some(Policy::Manual);
    assert_eq!(shares(&world.plan()), []);
}

#[test]
fn the_reserve_has_the_backends_that_could_serve() {
    let mut world = versions(["v1", "v2", "v2", "v3"]);
    assert!(reserve(&world.plan()).is_empty(), "every version has a share");
    decide(&mut world, |decision| {
        decision.traffic = weights([("v1", 1)]);
        decision.drained.insert(Part::Version("v3".to_owned()));
    });
    assert_eq!(reserve(&world.plan()), [101, 102]);
    health(&mut world, 1, Health::Unhealthy);
    assert_eq!(reserve(&world.plan()), [102]);
    world.backends.get_mut("id3").unwrap().spec.options.rollout = Some(Policy::Manual);
    assert!(reserve(&world.plan()).is_empty(), "versions wait");
}

#[test]
fn a_version_of_the_weight_zero_does_not_serve_alone() {
    let mut world = versions(["v1", "v2"]);
    world.backends.get_mut("id1").unwrap().spec.weight = 0;
    decide(&mut world, |decision| decision.traffic = weights([("v2", 1)]));
    let plan = world.plan();
    assert_eq!(shares(&plan), [(100, 100.0)], "v1 serves on");
    assert!(plan.service_conditions[WEB][0].message.contains("no version that has a share"));
}

/// Its policy gives the first version everything once that is ready. A moment earlier, both listen.
#[test]
fn until_its_policy_decides_the_oldest_version_serves() {
    for policy in [Policy::Manual, Policy::Latest] {
        let mut world = versions(["v1", "v2"]);
        for (id, created_ms) in [("id0", 20), ("id1", 10)] {
            let backend = world.backends.get_mut(id).unwrap();
            (backend.spec.options.rollout, backend.created_ms) = (Some(policy), created_ms);
        }
        assert_eq!(shares(&world.plan()), [(101, 100.0)], "{policy:?}");
        health(&mut world, 1, Health::Unhealthy);
        assert_eq!(shares(&world.plan()), [(100, 100.0)], "the oldest one that passes its checks");
    }
}

#[test]
fn drained_parts_get_nothing() {
    for part in [Part::Backend("id1".into()), Part::Version("v2".to_owned())] {
        let mut world = versions(["v1", "v2"]);
        decide(&mut world, |decision| _ = decision.drained.insert(part));
        let plan = world.plan();
        assert_eq!(shares(&plan), [(100, 100.0)]);
        assert_eq!(plan.states[&BackendIndex(1)], State::Drained);
    }
    let mut world = versions(["v1", "v2"]);
    world.plan();
    decide(&mut world, |decision| _ = decision.drained.insert(Part::Service));
    assert_eq!(shares(&world.plan()), []);
}

#[test]
fn when_all_checks_fail_the_last_set_stays() {
    let mut world = versions(["v1", "v1", "v1"]);
    // Never ready: not part of any last set.
    health(&mut world, 2, Health::Starting);
    assert_eq!(shares(&world.plan()), [(100, 50.0), (101, 50.0)]);
    health(&mut world, 0, Health::Unhealthy);
    assert_eq!(shares(&world.plan()), [(101, 100.0)]);
    health(&mut world, 1, Health::Unhealthy);
    let plan = world.plan();
    assert_eq!(shares(&plan), [(101, 100.0)]);
    assert!(plan.service_conditions[WEB][0].message.contains("3 of 3 backends fail"), "{:?}", plan.service_conditions);
    health(&mut world, 0, Health::Healthy);
    let plan = world.plan();
    assert_eq!(shares(&plan), [(100, 100.0)]);
    assert!(plan.service_conditions.is_empty());
}

#[test]
fn below_the_threshold_checks_are_not_trusted() {
    let mut world = versions(["v1", "v1", "v1", "v1"]);
    for backend in world.backends.values_mut() {
        backend.spec.options.panic_percent = Some(50);
    }
    world.plan();
    health(&mut world, 0, Health::Unhealthy);
    health(&mut world, 1, Health::Unhealthy);
    assert_eq!(shares(&world.plan()).len(), 2);
    health(&mut world, 2, Health::Unhealthy);
    let plan = world.plan();
    assert_eq!(shares(&plan).len(), 2, "the last set, of which one passes");
    assert!(plan.service_conditions[WEB][0].message.contains("3 of 4"), "{:?}", plan.service_conditions);
}

#[test]
fn a_new_backend_starts_slowly() {
    let mut world = versions(["v1", "v1"]);
    world.now_ms = 1_000_000;
    world.backends.get_mut("id0").unwrap().ready_since_ms = Some(0);
    world.backends.get_mut("id1").unwrap().spec.options.slow_start_ms = Some(10_000);
    let plan = world.plan();
    assert_eq!(shares(&plan), [(100, 90.91), (101, 9.09)], "10 to 1");
    assert_eq!(plan.next_ms(), Some(1_000_200));
    world.now_ms += 5_000;
    assert_eq!(shares(&world.plan()), [(100, 66.67), (101, 33.33)], "10 to 5");
    world.now_ms += 5_000;
    let plan = world.plan();
    assert_eq!(shares(&plan), [(100, 50.0), (101, 50.0)]);
    assert_eq!(plan.next_ms(), None);
}

#[test]
fn networks_have_their_version() {
    let mut world = versions(["v1", "v2"]);
    decide(&mut world, |decision| {
        decision.traffic = weights([("v1", 1)]);
        decision.traffic.from.insert("10.0.0.0/8".parse().unwrap(), "v2".to_owned());
        decision.traffic.from.insert("fd00::/8".parse().unwrap(), "v2".to_owned());
    });
    let plan = world.plan();
    let rule = &plan.rules[&key(FAMILY_V4, 80)];
    assert_eq!(rule.networks["v2"].networks, BTreeSet::from(["10.0.0.0/8".parse().unwrap()]));
    assert_eq!(rule.networks["v2"].table.members[0].cookie.0, 101);
    assert!(plan.decisions[WEB].has_networks);
}

#[test]
fn a_paused_service_has_one_member() {
    let mut world = versions(["v1", "v2"]);
    world.pause_cookie = Some(SocketCookie(7));
    decide(&mut world, |decision| {
        decision.paused = true;
        decision.revision = 3;
    });
    let plan = world.plan();
    assert_eq!(members(&plan, key(FAMILY_V4, 80)), [7]);
    assert_eq!(plan.decisions[WEB], PlannedDecision { revision: 3, has_networks: false });
    assert_eq!(plan.states[&BackendIndex(0)], State::Standby);
}

#[test]
fn a_paused_service_keeps_its_clients_without_backends() {
    let mut world = versions(["v1"]);
    world.plan();
    world.pause_cookie = Some(SocketCookie(7));
    decide(&mut world, |decision| decision.paused = true);
    world.backends.clear();
    world.sockets.clear();
    for _ in 0..2 {
        let plan = world.plan();
        assert_eq!(members(&plan, key(FAMILY_V4, 80)), [7]);
        assert!(plan.steers_in(HOST.cookie));
    }
    decide(&mut world, |decision| decision.paused = false);
    assert!(world.plan().rules.is_empty());
}

#[test]
fn ports_that_a_version_lacks_are_served_by_the_others() {
    let mut world = versions(["v1", "v2"]);
    for backend in world.backends.values_mut() {
        backend.spec.ports = ports::parse("80,443").unwrap();
    }
    world.sockets.insert(SocketCookie(200), socket(0, "0.0.0.0", 443));
    decide(&mut world, |decision| decision.traffic = weights([("v2", 1)]));
    let plan = world.plan();
    assert_eq!(members(&plan, key(FAMILY_V4, 80)), [101]);
    assert_eq!(members(&plan, key(FAMILY_V4, 443)), [200]);
    let titles: Vec<_> = plan.coverage[WEB].iter().map(|c| format!("{}: {}", c.title(), c.versions.len())).collect();
    assert_eq!(titles, ["port 80 by IPv4: 2", "port 443 by IPv4: 1"]);
}
