use pod_steer_ebpf::{FAMILY_V4, FAMILY_V6};

use super::*;
use crate::{
    ids::{BackendIndex, SocketCookie},
    world::{
        State, Unreached,
        tests::{HOST, backend, key, members, socket, world},
    },
};

const INSIDE: Netns = Netns { dev: 4, inode: 77, cookie: NetnsCookie(77) };

fn bridge() -> Bridge {
    Bridge {
        ingress: HOST,
        nsid: 3,
        end: 9,
        device: 5,
        name: "docker0".to_owned(),
        v4: Some(Ipv4Addr::new(172, 17, 0, 2)),
        v6: None,
        gateway_v4: None,
        gateway_v6: None,
        elsewhere: BTreeSet::new(),
        is_internal: false,
    }
}

fn inside(index: u32, ip: &str, port: u16) -> Socket {
    Socket { netns_cookie: INSIDE.cookie, ..socket(index, ip, port) }
}

/// A backend on the host and one behind a bridge, with these sockets of the latter.
fn mixed(sockets: impl IntoIterator<Item = Socket>) -> World {
    let mut own = backend(1, "web", "80:8080");
    (own.network, own.netns, own.bridge) = (Network::Own, Some(INSIDE), Some(bridge()));
    let mut world = world([backend(0, "web", "80"), own], [socket(0, "0.0.0.0", 80)]);
    world.sockets.extend((200..).map(SocketCookie).zip(sockets));
    world.forwarding.insert(HOST.cookie);
    world
}

#[test]
fn a_forwarded_backend_shares_a_port_with_one_on_the_host() {
    let mut world = mixed([inside(1, "0.0.0.0", 8080)]);
    let plan = world.plan();
    assert_eq!(members(&plan, key(FAMILY_V4, 80)), [100, 200]);
    let table = plan.rules[&key(FAMILY_V4, 80)].table.clone().unwrap();
    assert_eq!(table.members.iter().map(|member| member.is_forwarded).collect::<Vec<_>>(), [false, true]);
    assert_eq!(plan.states[&BackendIndex(1)], State::Ready, "{:?}", plan.conditions);
    let destination = &plan.destinations[&BackendIndex(1)];
    assert_eq!((destination.ingress, destination.netns, destination.nsid), (HOST.cookie, INSIDE.cookie, 3));
    assert_eq!(destination.ports, BTreeMap::from([(80, BTreeSet::from([8080]))]));
    assert_eq!(plan.namespaces(), BTreeSet::from([HOST.cookie]), "its own namespace needs no program");
}

#[test]
fn its_service_keeps_the_port_while_it_is_not_connected() {
    let mut world = mixed([inside(1, "0.0.0.0", 8080)]);
    world.backends.remove("id0");
    world.sockets.retain(|_, socket| socket.backend == BackendIndex(1));
    assert_eq!(members(&world.plan(), key(FAMILY_V4, 80)), [200]);
    // Another service waits for the port.
    world.backends.insert("id2".into(), backend(2, "other", "80:9000"));
    world.sockets.insert(SocketCookie(300), socket(2, "0.0.0.0", 9000));
    let keeps = |world: &mut World, why: &str| {
        let plan = world.plan();
        let rule = &plan.rules[&key(FAMILY_V4, 80)];
        assert_eq!(rule.service.as_deref(), Some("web"), "{why}");
        assert_ne!(plan.states[&BackendIndex(2)], State::Ready, "{why}");
        plan
    };
    keeps(&mut world, "it runs");
    let own = |world: &mut World, change: fn(&mut Backend)| change(world.backends.get_mut("id1").unwrap());
    own(&mut world, |own| {
        own.connected(Err(Unreached::NoNetwork));
    });
    let plan = keeps(&mut world, "its network was disconnected");
    assert!(members(&plan, key(FAMILY_V4, 80)).is_empty());
    own(&mut world, |own| {
        own.phase = Phase::Exited;
        own.disconnected();
    });
    world.sockets.retain(|_, socket| socket.backend != BackendIndex(1));
    keeps(&mut world, "it is started again");
    own(&mut world, |own| {
        (own.phase, own.netns) = (Phase::Running, Some(Netns { cookie: NetnsCookie(78), ..INSIDE }));
    });
    keeps(&mut world, "it is not connected yet");
    own(&mut world, |own| {
        own.connected(Ok(bridge()));
    });
    world.sockets.insert(SocketCookie(201), Socket { netns_cookie: NetnsCookie(78), ..inside(1, "0.0.0.0", 8080) });
    assert_eq!(members(&keeps(&mut world, "it is connected"), key(FAMILY_V4, 80)), [201]);
    world.backends.remove("id1");
    world.sockets.retain(|_, socket| socket.backend != BackendIndex(1));
    assert_eq!(members(&world.plan(), key(FAMILY_V4, 80)), [300], "it is gone");
}

#[test]
fn a_disconnected_one_that_is_a_pod_keeps_both_of_its_claims() {
    let mut world = mixed([inside(1, "0.0.0.0", 8080)]);
    world.backends.remove("id0");
    world.sockets.retain(|_, socket| socket.backend == BackendIndex(1));
    world.plan();
    let mut sidecar = backend(2, "sidecar", "9000");
    (sidecar.network, sidecar.netns) = (Network::Joined, Some(INSIDE));
    world.backends.insert(sidecar.id.clone(), sidecar);
    world.backends.get_mut("id1").unwrap().connected(Err(Unreached::Macvlan { device: "eth0".to_owned() }));
    let plans = [world.plan(), world.plan(), world.plan()];
    for plan in &plans[1..] {
        assert_eq!(plan.rules.keys().collect::<Vec<_>>(), plans[0].rules.keys().collect::<Vec<_>>());
    }
    assert!(plans[0].rules.contains_key(&key(FAMILY_V4, 80)), "{:?}", plans[0].rules.keys());
}

#[test]
fn it_is_ready_only_where_packets_are_forwarded() {
    let mut world = mixed([inside(1, "0.0.0.0", 8080)]);
    world.forwarding.clear();
    let plan = world.plan();
    assert_eq!(plan.states[&BackendIndex(1)], State::Starting);
    assert_eq!(members(&plan, key(FAMILY_V4, 80)), [100, 200], "the kernel program passes over it");
}

#[test]
fn a_backend_that_wants_clients_by_its_sockets_alone_is_not_forwarded_to() {
    let mut world = mixed([inside(1, "0.0.0.0", 8080)]);
    world.backends.get_mut("id1").unwrap().spec.via = Via::Socket;
    let plan = world.plan();
    assert_eq!(members(&plan, key(FAMILY_V4, 80)), [100]);
    assert!(plan.destinations.is_empty());
    assert_eq!(plan.conditions[&BackendIndex(1)][0].reason, Reason::OwnNetwork);
    world.backends.get_mut("id1").unwrap().spec.via = Via::Forward;
    assert_eq!(members(&world.plan(), key(FAMILY_V4, 80)), [100, 200]);
}

#[test]
fn packets_are_handed_over_to_the_other_end_only_if_a_backend_asks_for_it_and_the_kernel_is_safe() {
    let mut world = mixed([inside(1, "0.0.0.0", 8080)]);
    let peer = |world: &mut World| {
        let plan = world.plan();
        let said = handed_over(world, &world.backends["id1"]).map(|condition| condition.reason);
        assert!(plan.conditions.is_empty() && plan.states[&BackendIndex(1)] == State::Ready);
        (plan.destinations[&BackendIndex(1)].peer, said)
    };
    assert_eq!(peer(&mut world), (None, None));
    world.backends.get_mut("id1").unwrap().spec.via = Via::Peer;
    assert_eq!(peer(&mut world), (Some(9), Some(Reason::PastFirewall)));
    world.peer_refused = Some("it is old".to_owned());
    assert_eq!(peer(&mut world), (None, Some(Reason::PeerRefused)));
}

#[test]
fn a_container_on_an_internal_network_is_not_forwarded_to() {
    let mut world = mixed([inside(1, "0.0.0.0", 8080)]);
    world.backends.get_mut("id1").unwrap().bridge.as_mut().unwrap().is_internal = true;
    let plan = world.plan();
    assert_eq!(members(&plan, key(FAMILY_V4, 80)), [100]);
    let said = &plan.conditions[&BackendIndex(1)][0];
    assert!(said.message.contains("internal") && !said.remedy.contains("pod-steer.via"), "{said}");
}

#[test]
fn a_socket_serves_the_families_of_the_container_s_addresses() {
    let of = |family, socket: Socket| {
        let mut world = mixed([socket]);
        let plan = world.plan();
        plan.rules.get(&key(family, 80)).is_some_and(|_| members(&plan, key(family, 80)).contains(&200))
    };
    let dual = |v6only| Socket { v6only: Some(v6only), ..inside(1, "::", 8080) };
    assert!(of(FAMILY_V4, dual(false)) && !of(FAMILY_V6, dual(false)), "it has no IPv6 address");
    assert!(!of(FAMILY_V4, dual(true)) && !of(FAMILY_V6, dual(true)));
    assert!(of(FAMILY_V4, inside(1, "172.17.0.2", 8080)));
    assert!(of(FAMILY_V4, inside(1, "::ffff:172.17.0.2", 8080)));
    for ip in ["127.0.0.1", "::1", "172.18.0.2", "::ffff:127.0.0.1"] {
        let mut world = mixed([inside(1, ip, 8080)]);
        // It may be seen before it is known how its container is connected.
        let bridge = world.backends.get_mut("id1").unwrap().bridge.take();
        world.plan();
        world.backends.get_mut("id1").unwrap().bridge = bridge;
        let plan = world.plan();
        assert_eq!(members(&plan, key(FAMILY_V4, 80)), [100], "{ip}");
        let reasons: Vec<Reason> = plan.conditions[&BackendIndex(1)].iter().map(|own| own.reason).collect();
        assert_eq!(reasons, [Reason::NotReachable], "{ip}");
    }
}

#[test]
fn a_socket_that_is_bound_to_a_device_gets_no_client() {
    for (device, serves) in [(0, true), (2, false), (1, false)] {
        let mut world = mixed([Socket { ifindex: device, ..inside(1, "0.0.0.0", 8080) }]);
        let plan = world.plan();
        assert_eq!(members(&plan, key(FAMILY_V4, 80)).contains(&200), serves, "{device}");
        let told = plan.conditions.get(&BackendIndex(1)).and_then(|all| all.first());
        assert_eq!(told.is_none(), serves, "{told:?}");
        assert!(told.is_none_or(|told| told.message.contains(&format!("by its device {device}"))), "{told:?}");
    }
}

#[test]
fn two_backends_at_one_port_of_a_namespace_are_told() {
    let of = |service: &str, ip: &str, port: u16| {
        let mut world = mixed([inside(1, "0.0.0.0", 8080), inside(2, ip, port)]);
        world.backends.get_mut("id1").unwrap().spec.via = Via::Forward;
        let mut joined = backend(2, service, if service == "web" { "80:8080" } else { "81:8080" });
        (joined.network, joined.netns) = (Network::Joined, Some(INSIDE));
        world.backends.insert(joined.id.clone(), joined);
        let plan = world.plan();
        let own = plan.conditions.get(&BackendIndex(1)).into_iter().flatten();
        own.map(|own| own.reason).collect::<Vec<_>>()
    };
    assert_eq!(of("web", "0.0.0.0", 8080), [Reason::ForwardedPortShared]);
    assert_eq!(of("metrics", "0.0.0.0", 8080), [Reason::ForwardedPortShared], "clients of web would come to it");
    assert_eq!(of("web", "172.17.0.2", 8080), [Reason::ForwardedPortShared]);
    assert!(of("web", "0.0.0.0", 8081).is_empty() && of("web", "127.0.0.1", 8080).is_empty());
    assert!(of("metrics", "0.0.0.0", 8081).is_empty());
}

#[test]
fn a_hidden_port_inside_is_a_target_and_no_rule() {
    let hidden = Socket { hidden_port: Some(crate::ports::Port::tcp(45_000)), ..inside(1, "0.0.0.0", 8080) };
    let mut world = mixed([hidden]);
    let plan = world.plan();
    assert!(plan.rules.keys().all(|key| key.port.number != 45_000));
    assert_eq!(plan.destinations[&BackendIndex(1)].ports[&80], BTreeSet::from([8080, 45_000]));
}
