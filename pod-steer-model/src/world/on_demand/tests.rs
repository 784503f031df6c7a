use pod_steer_ebpf::{FALLBACK_PASS, FALLBACK_REFUSE, FAMILY_V4, RULE_ON_DEMAND};

use crate::{
    condition::Reason,
    ids::{BackendIndex, SocketCookie},
    ports::{self, Port},
    world::{
        State, World,
        port_history::KEPT_MS,
        tests::{backend, key, members, reasons, socket, world},
    },
};

const PORTS: &str = "21:2121,30000-30001:31000-31001";

/// Adds a listener, which opens at the world's present time.
fn open(world: &mut World, cookie: u64, backend: u32, port: u16) {
    world.sockets.insert(SocketCookie(cookie), socket(backend, "0.0.0.0", port));
    world.opened_ms.insert(SocketCookie(cookie), world.now_ms);
}

fn close(world: &mut World, cookie: u64) {
    let now_ms = world.now_ms;
    world.remove_socket(SocketCookie(cookie), now_ms).unwrap();
}

/// A world at second 10 with one backend that listens on these ports and is ready. Sockets are numbered from 1000.
fn one(declared: &str, open_ports: &[u16]) -> World {
    let mut world = world([backend(0, "web", declared)], []);
    world.now_ms = 10_000;
    add(&mut world, 0, declared, open_ports);
    world.plan();
    world
}

/// Adds a backend that listens on these ports.
fn add(world: &mut World, index: u32, declared: &str, open_ports: &[u16]) {
    world.backends.insert(format!("id{index}").into(), backend(index, "web", declared));
    for port in open_ports {
        open(world, u64::from(index) * 10_000 + u64::from(*port), index, *port);
    }
}

fn states(plan: &crate::world::Plan) -> Vec<State> {
    plan.states.values().copied().collect()
}

#[test]
fn a_younger_server_with_the_same_ports_on_demand_is_refused_at_its_start() {
    let mut world = one(PORTS, &[2121]);
    world.now_ms = 10_999;
    assert!(world.plan().conditions.is_empty());
    assert_eq!(world.plan().next_ms(), Some(11_000), "then it is known that it opens them on demand");
    world.now_ms = 11_000;
    world.plan();
    add(&mut world, 1, PORTS, &[]);
    let plan = world.plan();
    let said = &plan.conditions[&BackendIndex(1)][0].message;
    assert!(said.contains("name0 of the same service opens the ports 30000-30001:31000-31001 on demand"), "{said}");
    // A container has started all the same.
    open(&mut world, 200, 1, 2121);
    let plan = world.plan();
    assert_eq!(
        (states(&plan), members(&plan, key(FAMILY_V4, 21))),
        (vec![State::Ready, State::NotSteered], vec![2121])
    );
    // A transfer of the first server changes nothing.
    open(&mut world, 300, 0, 31_000);
    assert_eq!(world.plan().states[&BackendIndex(1)], State::NotSteered);
    world.backends.remove("id0");
    world.sockets.retain(|_, socket| socket.backend == BackendIndex(1));
    assert_eq!(world.plan().states[&BackendIndex(1)], State::Ready);
}

#[test]
fn several_short_transfers_show_it_at_once() {
    let mut world = one(PORTS, &[2121]);
    for transfer in 0..3 {
        open(&mut world, 300, 0, 31_000 + transfer % 2);
        add(&mut world, 1, PORTS, &[]);
        assert!(world.plan().conditions.is_empty(), "{transfer} transfers");
        world.backends.remove("id1");
        close(&mut world, 300);
    }
    world.plan();
    open(&mut world, 300, 0, 31_000);
    add(&mut world, 1, PORTS, &[]);
    assert!(world.plan().conditions.contains_key(&BackendIndex(1)));
}

#[test]
fn a_server_that_has_served_loses_the_range_alone() {
    let mut world = one(PORTS, &[2121]);
    add(&mut world, 1, PORTS, &[2121]);
    let plan = world.plan();
    assert!(plan.conditions.is_empty());
    world.now_ms = 11_000;
    let plan = world.plan();
    assert_eq!(reasons(&plan, 1), [Reason::OnDemandConflict]);
    assert_eq!((states(&plan), members(&plan, key(FAMILY_V4, 21)).len()), (vec![State::Ready, State::Ready], 2));
    assert_eq!(plan.rules[&key(FAMILY_V4, 30_000)].only, Some((BackendIndex(0), Port::tcp(31_000))));
}

#[test]
fn a_range_of_its_own_and_another_service_are_no_conflict() {
    let mut world = one(PORTS, &[2121]);
    world.now_ms = 11_000;
    world.plan();
    add(&mut world, 1, "21:2121,30002-30003:31000-31001", &[2121]);
    world.backends.insert("id2".into(), backend(2, "web", "22"));
    assert!(world.plan().conditions.is_empty());
}

/// An ordinary service of two replicas: the older one closes one of two ports, or one after the other, and lives on.
#[test]
fn an_older_replica_that_closes_ports_takes_nothing_from_a_younger_one() {
    for declared in ["8080,8081", "8080-8081", "80:80,8080-8081", "80,8080,8081"] {
        let targets: Vec<u16> = ports::parse(declared).unwrap().iter().map(|map| map.target).collect();
        for lived_ms in [10, KEPT_MS - 1, 3_600_000] {
            let mut world = one(declared, &targets);
            add(&mut world, 1, declared, &targets);
            world.plan();
            for port in [8081, 8080] {
                world.now_ms += lived_ms;
                world.plan();
                close(&mut world, u64::from(port));
                let plan = world.plan();
                assert_eq!(reasons(&plan, 1), [], "{declared} {lived_ms} {port}");
                assert!(!reasons(&plan, 0).contains(&Reason::OnDemandConflict), "{declared} {lived_ms} {port}");
                assert_eq!(members(&plan, key(FAMILY_V4, port)), [10_000 + u64::from(port)], "{declared} {lived_ms}");
                assert_eq!(plan.states[&BackendIndex(1)], State::Ready);
            }
        }
    }
}

/// The replica that replaces one which has closed a port may start.
#[test]
fn a_new_version_may_replace_one_that_has_closed_a_port() {
    for (declared, lived_ms) in
        [("8080,8081", 10), ("8080-8081", 10), ("80,8080-8081", 10), ("80,8080-8081", 5_000), ("80,8080,8081", 10)]
    {
        let targets: Vec<u16> = ports::parse(declared).unwrap().iter().map(|map| map.target).collect();
        let mut world = one(declared, &targets);
        world.now_ms += lived_ms;
        close(&mut world, 8081);
        for later_ms in [0, 1_300, 5_000] {
            world.now_ms += later_ms;
            world.plan();
            add(&mut world, 1, declared, &[]);
            assert!(world.plan().conditions.is_empty(), "{declared} {lived_ms} {later_ms}");
            world.backends.remove("id1");
        }
    }
}

#[test]
fn a_range_that_a_replica_listens_on_steadily_is_an_ordinary_one() {
    const DECLARED: &str = "80,9000-9001";
    let mut world = one(DECLARED, &[80]);
    world.now_ms = 20_000;
    world.plan();
    // It declares the range and never listens there; a container that does is steered as soon as it does.
    add(&mut world, 1, DECLARED, &[80]);
    assert_eq!(world.plan().states[&BackendIndex(1)], State::NotSteered);
    open(&mut world, 200, 1, 9_000);
    open(&mut world, 201, 1, 9_001);
    let plan = world.plan();
    assert_eq!(
        (plan.states[&BackendIndex(1)], plan.next_ms()),
        (State::Ready, Some(20_000 + crate::world::port_history::SETTLE_MS))
    );
    // A third one need not wait for its listeners once those of the second are old.
    world.now_ms += KEPT_MS;
    add(&mut world, 2, DECLARED, &[80]);
    let plan = world.plan();
    assert!(plan.conditions.is_empty(), "{:?}", plan.conditions);
    assert_eq!(states(&plan), vec![State::Ready; 3]);
}

#[test]
fn hundreds_of_ports_that_are_listened_on_are_not_on_demand() {
    const DECLARED: &str = "80,2000-2299:3000-3299";
    let targets: Vec<u16> = [80].into_iter().chain(3000..=3299).collect();
    let mut world = one(DECLARED, &targets);
    for (index, later_ms) in [(1, 0), (2, 1_500), (3, 60_000)] {
        world.now_ms += later_ms;
        add(&mut world, index, DECLARED, &[]);
        assert!(world.plan().conditions.is_empty(), "{index} starts");
        add(&mut world, index, DECLARED, &targets);
        assert_eq!(members(&world.plan(), key(FAMILY_V4, 2_299)).len(), index as usize + 1);
    }
}

#[test]
fn a_range_without_another_port_is_not_on_demand() {
    let mut world = one("30000-30001", &[]);
    world.now_ms = 60_000;
    world.plan();
    add(&mut world, 1, "30000-30001", &[]);
    assert!(world.plan().conditions.is_empty());
}

#[test]
fn a_rule_names_the_only_backend_that_may_serve() {
    let mut world = world([backend(0, "ftp", PORTS)], [socket(0, "0.0.0.0", 2121)]);
    let plan = world.plan();
    let early = &plan.rules[&key(FAMILY_V4, 30_000)];
    assert_eq!(
        (early.only, early.fallback, early.flags),
        (Some((BackendIndex(0), Port::tcp(31_000))), FALLBACK_PASS, RULE_ON_DEMAND)
    );
    assert!(!world.claimed.contains_key(&key(FAMILY_V4, 30_000)), "no server has listened there");
    assert_eq!(plan.rules[&key(FAMILY_V4, 21)].only, Some((BackendIndex(0), Port::tcp(2121))));

    world.sockets.insert(SocketCookie(200), socket(0, "0.0.0.0", 31_000));
    let claimed = &world.plan().rules[&key(FAMILY_V4, 30_000)];
    assert_eq!((claimed.only, claimed.fallback), (Some((BackendIndex(0), Port::tcp(31_000))), FALLBACK_REFUSE));
    world.sockets.remove(&SocketCookie(200));
    assert_eq!(
        world.plan().rules[&key(FAMILY_V4, 30_000)].only,
        Some((BackendIndex(0), Port::tcp(31_000))),
        "between two transfers"
    );

    // With two such backends the listener's owner would be ambiguous; a drained one gets no clients.
    world.backends.insert("id1".into(), backend(1, "ftp", "21:2121"));
    world.sockets.insert(SocketCookie(101), socket(1, "0.0.0.0", 2121));
    let plan = world.plan();
    assert_eq!(plan.rules[&key(FAMILY_V4, 21)].only, None);
    assert_eq!(plan.rules[&key(FAMILY_V4, 30_000)].only, Some((BackendIndex(0), Port::tcp(31_000))));
    let drained = [crate::rollout::Part::Backend("id0".into())].into();
    world.decisions.insert("ftp".to_owned(), crate::rollout::Decision { drained, ..Default::default() });
    let plan = world.plan();
    assert_eq!(plan.rules[&key(FAMILY_V4, 21)].only, Some((BackendIndex(1), Port::tcp(2121))));
    assert_eq!(plan.rules[&key(FAMILY_V4, 30_000)].only, None);
}
