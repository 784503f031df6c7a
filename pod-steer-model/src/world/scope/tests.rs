mod orders;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::world::{
    Network, Phase, Plan,
    tests::{HOST, backend, listener, members, socket, world},
};

/// A change of one of a few backends, or of something beside them.
#[derive(Clone, Debug)]
enum Step {
    Comes { index: u32, service: usize, ports: usize },
    Goes(u32),
    Listens { index: u32, ip: usize, port: u16, hidden: Option<u16> },
    Closes(usize),
    Phase(u32, Phase),
    Foreign(usize),
}

const SERVICES: [&str; 4] = ["a", "b", "c", "d"];
const PORTS: [&str; 6] = ["80", "80:8080", "80:8080,81:8081", "127.0.0.2:81:8080", "82", "80-82"];
const ADDRESSES: [&str; 4] = ["0.0.0.0", "::", "127.0.0.2", "::1"];
const FOREIGN: [&[(&str, u16)]; 3] = [&[], &[("127.0.0.3", 80)], &[("0.0.0.0", 82), ("127.0.0.2", 81)]];

fn step() -> impl Strategy<Value = Step> {
    let index = || 0..6_u32;
    let port = prop_oneof![Just(80), Just(81), Just(82), Just(8080), Just(8081)];
    let hidden = prop_oneof![4 => Just(None), 1 => prop_oneof![Just(81), Just(82), Just(45_000)].prop_map(Some)];
    let phase = prop_oneof![Just(Phase::Running), Just(Phase::Stopping), Just(Phase::Exited)];
    prop_oneof![
        3 => (index(), 0..SERVICES.len(), 0..PORTS.len()).prop_map(|(index, service, ports)| Step::Comes { index, service, ports }),
        1 => index().prop_map(Step::Goes),
        5 => (index(), 0..ADDRESSES.len(), port, hidden).prop_map(|(index, ip, port, hidden)| Step::Listens { index, ip, port, hidden }),
        2 => (0..20_usize).prop_map(Step::Closes),
        1 => (index(), phase).prop_map(|(index, phase)| Step::Phase(index, phase)),
        1 => (0..FOREIGN.len()).prop_map(Step::Foreign),
    ]
}

/// Applies the step, and returns what has changed, as the daemon does.
fn happen(world: &mut World, cookies: &mut u64, step: &Step) -> Changed {
    let mut changed = Changed::default();
    let service_of =
        |world: &World, index: u32| world.by_index(BackendIndex(index)).map(|backend| backend.spec.service.clone());
    match *step {
        Step::Comes { index, service, ports } => {
            let before = service_of(world, index);
            // An index is given out again when nothing of its former backend is left.
            world.sockets.retain(|_, socket| socket.backend.0 != index);
            world.backends.retain(|_, backend| backend.index.0 != index);
            let mut new = backend(index, SERVICES[service], PORTS[ports]);
            (new.id, new.seen) = (format!("{index}-{cookies}").into(), *cookies);
            *cookies += 1;
            world.backends.insert(new.id.clone(), new);
            before.iter().for_each(|service| changed.add(service));
            changed.add(SERVICES[service]);
        }
        Step::Goes(index) => {
            let before = service_of(world, index);
            world.sockets.retain(|_, socket| socket.backend.0 != index);
            world.backends.retain(|_, backend| backend.index.0 != index);
            before.iter().for_each(|service| changed.add(service));
        }
        Step::Listens { index, ip, port, hidden } => {
            let Some(service) = service_of(world, index) else { return changed };
            let new = Socket { hidden_port: hidden.map(Port::tcp), ..socket(index, ADDRESSES[ip], port) };
            world.sockets.insert(SocketCookie(*cookies), new);
            *cookies += 1;
            changed.add(&service);
        }
        Step::Closes(place) => {
            let Some((cookie, socket)) = world.sockets.iter().nth(place) else { return changed };
            let (cookie, index) = (*cookie, socket.backend.0);
            let service = service_of(world, index);
            world.remove_socket(cookie, world.now_ms);
            service.iter().for_each(|service| changed.add(service));
        }
        Step::Phase(index, phase) => {
            let Some(backend) = world.by_index_mut(BackendIndex(index)) else { return changed };
            backend.phase = phase;
            changed.add(&service_of(world, index).unwrap());
        }
        Step::Foreign(which) => {
            let listeners = FOREIGN[which].iter().map(|(ip, port)| listener(ip, *port)).collect();
            if world.note_foreign(HOST.cookie, listeners) {
                changed = Changed::All;
            }
        }
    }
    changed
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// The plan of the services that a change concerns equals that part of a plan of everything.
    #[test]
    fn a_part_is_planned_as_the_whole_would_be(steps in vec(step(), 1..40)) {
        let mut parts = world([], []);
        let (mut plan, mut cookies) = (parts.plan(), 1_000);
        for step in steps {
            let mut whole = parts.clone();
            let changed = happen(&mut parts, &mut cookies.clone(), &step);
            let changed_whole = happen(&mut whole, &mut cookies, &step);
            prop_assert_eq!(&changed, &changed_whole);
            let mut of_whole = plan.clone();
            parts.replan(&changed, &mut plan);
            whole.replan(&Changed::All, &mut of_whole);
            prop_assert_eq!(&plan, &of_whole, "after {:?}", &step);
            prop_assert_eq!(&parts.claimed, &whole.claimed);
            prop_assert_eq!(&parts.left, &whole.left);
            prop_assert_eq!(&parts.backends, &whole.backends);
            prop_assert_eq!((&parts.last_serving, &parts.listening), (&whole.last_serving, &whole.listening));
        }
    }
}

fn of(service: &str) -> Changed {
    Changed::Services(BTreeSet::from([service.to_owned()]))
}

#[test]
fn services_that_do_not_meet_are_left_as_they_are() {
    let backends = [backend(0, "web", "80"), backend(1, "api", "81"), backend(2, "both", "81,82")];
    let mut world = world(backends, [socket(0, "0.0.0.0", 80), socket(1, "0.0.0.0", 81)]);
    let mut plan = world.plan();
    let scope = Scope::of(&world, &of("both"));
    assert_eq!(["web", "api", "both"].map(|service| scope.has_service(service)), [false, true, true]);
    // Its change was not reported, so it is not planned.
    world.sockets.insert(SocketCookie(200), socket(0, "0.0.0.0", 80));
    world.sockets.insert(SocketCookie(201), socket(1, "0.0.0.0", 81));
    world.replan(&of("api"), &mut plan);
    let four = |port| crate::world::tests::key(pod_steer_ebpf::FAMILY_V4, port);
    assert_eq!((members(&plan, four(80)), members(&plan, four(81))), (vec![100], vec![101, 201]));
    world.replan(&Changed::All, &mut plan);
    assert_eq!(members(&plan, four(80)), [100, 200]);
}

#[test]
fn services_of_other_namespaces_do_not_meet() {
    let other = Netns { cookie: NetnsCookie(99), ..HOST };
    let pod = |index, service| Backend { netns: Some(other), ..backend(index, service, "80") };
    let backends = [backend(0, "web", "80"), pod(1, "pod"), pod(2, "sidecar"), backend(3, "api", "80-90")];
    let world = world(backends, []);
    let scope = Scope::of(&world, &of("pod"));
    assert_eq!(["web", "pod", "sidecar", "api"].map(|service| scope.has_service(service)), [false, true, true, false]);
}

#[test]
fn lingering_ports_of_another_service_stay() {
    let mut world = world([backend(0, "web", "80"), backend(3, "api", "90")], []);
    let mut plan = world.plan();
    // The index was the first one's before it was the other's.
    let lingering =
        |service: &str, port| Lingering { service: service.to_owned(), ports: BTreeSet::from([Port::tcp(port)]) };
    world.backends.remove("id0");
    world.lingering.insert(BackendIndex(0), lingering("web", 80));
    world.replan(&of("web"), &mut plan);
    world.lingering.insert(BackendIndex(0), lingering("api", 500));
    world.replan(&of("api"), &mut plan);
    world.replan(&of("web"), &mut plan);
    assert!(plan.managed_ports.keys().any(|block| (block.backend, block.block) == (0, 500 / 64)));
}

#[test]
fn a_released_port_concerns_the_service_that_waits_for_it() {
    let backends = [backend(0, "web", "80"), backend(1, "api", "80")];
    let mut world = world(backends, [socket(0, "0.0.0.0", 80), socket(1, "0.0.0.0", 80)]);
    let mut plan = world.plan();
    assert!(plan.conditions.contains_key(&BackendIndex(1)), "the port is the other's");
    world.backends.remove("id0");
    world.sockets.remove(&SocketCookie(100));
    world.replan(&of("web"), &mut plan);
    let four = crate::world::tests::key(pod_steer_ebpf::FAMILY_V4, 80);
    assert_eq!((members(&plan, four), plan.conditions.len()), (vec![101], 0));
}

#[test]
fn a_reused_index_belongs_to_its_new_backend() {
    let mut world = world([backend(0, "web", "80")], [socket(0, "0.0.0.0", 80)]);
    let mut plan = world.plan();
    world.backends.remove("id0");
    world.sockets.clear();
    world
        .lingering
        .insert(BackendIndex(0), Lingering { service: "web".to_owned(), ports: BTreeSet::from([Port::tcp(80)]) });
    world.replan(&of("web"), &mut plan);
    let blocks = |plan: &Plan| plan.managed_ports.keys().map(|block| (block.backend, block.block)).collect::<Vec<_>>();
    assert_eq!(blocks(&plan), [(0, 1)]);
    world.lingering.clear();
    let new = Backend { network: Network::Host, ..backend(0, "api", "200") };
    world.backends.insert("new".into(), new);
    world.replan(&of("api"), &mut plan);
    assert_eq!(blocks(&plan), [(0, 3)]);
    world.replan(&of("web"), &mut plan);
    assert_eq!((blocks(&plan), plan.states.len()), (vec![(0, 3)], 1));
}
