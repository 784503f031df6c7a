//! Worlds made from specs, and what holds of every plan.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use pod_steer::{
    ids::{BackendIndex, NetnsCookie, SocketCookie},
    labels::Spec,
    netns::Netns,
    ports::{Port, PortMap},
    world::{Backend, Kind, Network, Phase, Plan, Socket, World},
};

/// The only network namespace.
pub const HOST: Netns = Netns { dev: 4, inode: 1, cookie: NetnsCookie(10) };
/// A time since boot.
pub const NOW_MS: i64 = 1_000_000;

/// A world in which each of these specs has a backend that listens on all of its ports, by IPv4 and IPv6.
pub fn world(specs: impl IntoIterator<Item = Spec>) -> World {
    let mut world = World::default();
    (world.steered, world.now_ms) = (BTreeSet::from([HOST.cookie]), NOW_MS);
    let mut cookies = (100..).map(SocketCookie);
    for (index, spec) in (0..).map(BackendIndex).zip(specs) {
        for port in spec.ports.iter().map(PortMap::target_port).collect::<BTreeSet<Port>>() {
            let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
            for ip in any {
                let v6only = Some(ip.is_ipv6());
                let netns_cookie = HOST.cookie;
                let socket =
                    Socket { backend: index, netns_cookie, ip, port, hidden_port: None, v6only, ifindex: 0, uid: None };
                world.sockets.extend(cookies.next().map(|cookie| (cookie, socket)));
            }
        }
        let backend = backend(index, spec);
        world.backends.insert(backend.id.clone(), backend);
    }
    world
}

fn backend(index: BackendIndex, spec: Spec) -> Backend {
    Backend {
        name: format!("name{index}"),
        seen: index.0.into(),
        phase: Phase::Running,
        network: Network::Host,
        netns: Some(HOST),
        ..Backend::new(format!("id{index}"), Kind::Exec, index, spec)
    }
}

/// Plans, and checks the plan.
pub fn check(world: &mut World) -> Plan {
    let plan = world.plan();
    for (key, rule) in &plan.rules {
        assert!(key.port.number > 0, "a rule without a port: {key:?}");
        let networks = rule.networks.values().map(|networks| &networks.table);
        for table in rule.table.iter().chain(networks) {
            for member in table.members.iter().chain(&table.reserve).chain(&table.withheld) {
                let socket = world.sockets.get(&member.cookie);
                let known = socket.is_some_and(|socket| socket.backend == member.backend);
                assert!(known || world.pause_cookie == Some(member.cookie), "{member:?} is no socket");
            }
        }
    }
    for service in world.backends.values().map(|backend| &backend.spec.service) {
        let all: f64 = plan.shares(service).into_values().sum();
        assert!((0.0..=1.000_001).contains(&all), "the shares of {service} add up to {all}");
    }
    plan
}
