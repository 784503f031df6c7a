//! From facts to a [`Plan`]: who may claim which port, and what each backend does. Who serves, and how much, is decided in
//! `serving`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use pod_steer_ebpf::{
    FALLBACK_PASS, FALLBACK_REFUSE, FAMILY_V4, FAMILY_V6, ManagedPort, PORT_LISTENS, PORT_SERVED, PROTO_TCP,
    RULE_HAS_ADDRESSES, RuleKey,
};

use super::{
    Backend, BackendId, Health, Network, Phase, Plan, PlannedRule, Sockets, State, World,
    serving::{Serving, surely_takes},
};
use crate::{labels::Fallback, ports::PortMap, procs::address_bytes, slots::Member};

/// Who holds a rule.
struct Claim<'a> {
    service: &'a str,
    holder: &'a str,
    fallback: Fallback,
    /// Who takes part, and on which port each listens.
    parts: Vec<(&'a Backend, u16)>,
}

/// The plan; and by service, the ids of the backends that serve, but not of a service whose checks are not trusted.
pub(super) fn plan(world: &World) -> (Plan, BTreeMap<String, BTreeSet<BackendId>>) {
    let mut plan = Plan::default();
    let sockets = Sockets::new(&world.sockets);
    let pods: BTreeSet<u64> = world
        .backends
        .values()
        .filter(|backend| matches!(backend.network, Network::Joined))
        .filter_map(|backend| backend.netns.map(|netns| netns.cookie))
        .collect();

    // A newcomer never takes a port from a service that has it; for a free port, the older backend decides.
    let mut by_age: Vec<&Backend> = world.backends.values().collect();
    by_age.sort_by_key(|backend| backend.age());
    let mut claims: BTreeMap<RuleKey, Claim<'_>> = BTreeMap::new();
    for backend in &by_age {
        let Some(netns) = backend.netns else { continue };
        for map in &backend.spec.ports {
            let held = |key: &RuleKey| world.claimed.get(key) == Some(&backend.spec.service);
            claim(&mut claims, &mut plan, backend, map, keys(netns.cookie, map).filter(held));
        }
    }
    for backend in by_age {
        let listens = world.configured.listening_ports(&backend.spec).into_iter().map(|port| (port, PORT_LISTENS));
        for (port, purpose) in listens.chain(backend.spec.ports.iter().map(|map| (map.port, PORT_SERVED))) {
            let key = ManagedPort { backend: backend.index, port, proto: PROTO_TCP, pad: 0 };
            *plan.managed_ports.entry(key).or_default() |= purpose;
        }
        let Some(netns) = backend.netns else { continue };
        if backend.network == Network::Own && !pods.contains(&netns.cookie) {
            plan.hindrances.entry(backend.index).or_default().push(
                "it has a network namespace of its own, where no client of the shared port arrives; run it with \
                 `--network host`, or with `--network container:ID` to share a pod's"
                    .to_owned(),
            );
            continue;
        }
        for map in &backend.spec.ports {
            if let Some(hindrance) = hindered(world, backend, netns.cookie, map) {
                plan.hindrances.entry(backend.index).or_default().push(hindrance);
                continue;
            }
            let free = |key: &RuleKey| world.claimed.get(key).is_none_or(|holder| *holder != backend.spec.service);
            claim(&mut claims, &mut plan, backend, map, keys(netns.cookie, map).filter(free));
        }
    }

    for (index, ports) in &world.lingering {
        for port in ports {
            let key = ManagedPort { backend: *index, port: *port, proto: PROTO_TCP, pad: 0 };
            plan.managed_ports.insert(key, PORT_SERVED);
        }
    }

    let serving = Serving::of(world, &sockets);
    for (key, claim) in &claims {
        plan.namespaces.insert(key.netns_cookie);
        let (table, networks) = serving.tables(key, claim.service, &claim.parts);
        let claims = |member: &Member| match world.sockets.get(&member.cookie) {
            Some(socket) => surely_takes(socket, key.family),
            // That of a pause.
            None => true,
        };
        if !world.claimed.contains_key(key) && !table.members.iter().any(claims) {
            continue;
        }
        if !table.members.is_empty() {
            // Of a paused service something may have a member and nobody who listens.
            let coverage = Some(serving.coverage(key, &claim.parts)).filter(|coverage| !coverage.versions.is_empty());
            plan.coverage.entry(claim.service.to_owned()).or_default().extend(coverage);
        }
        let rule = PlannedRule {
            service: Some(claim.service.to_owned()),
            fallback: match claim.fallback {
                Fallback::Refuse => FALLBACK_REFUSE,
                Fallback::Pass => FALLBACK_PASS,
            },
            flags: 0,
            table: Some(table),
            networks,
        };
        plan.rules.insert(*key, rule);
    }
    let serving = serving.conclude(&mut plan);
    let with_address: Vec<RuleKey> = plan.rules.keys().filter(|key| key.addr != [0; 16]).copied().collect();
    for key in with_address {
        plan.rules.entry(RuleKey { addr: [0; 16], ..key }).or_default().flags |= RULE_HAS_ADDRESSES;
    }

    let tables = |rule: &PlannedRule| -> Vec<u32> {
        let networks = rule.networks.values().map(|networks| &networks.table);
        rule.table.iter().chain(networks).flat_map(|table| &table.members).map(|member| member.backend).collect()
    };
    let served: BTreeSet<u32> = plan.rules.values().flat_map(tables).collect();
    for backend in world.backends.values() {
        let listens = sockets.of(backend.index).any(|(_, socket)| backend.serves_by(socket));
        let here = backend.netns.is_some_and(|netns| world.steered.contains(&netns.cookie));
        let served = here && served.contains(&backend.index);
        let state = state(world, backend, &plan, here && listens, served);
        plan.states.insert(backend.index, state);
    }
    (plan, serving)
}

/// Why a port may not be claimed, whoever has it.
fn hindered(world: &World, backend: &Backend, netns_cookie: u64, map: &PortMap) -> Option<String> {
    if !world.policy.allows(map.port) {
        return Some(format!("port {map} is not one that may be claimed; `run --allow-ports` says which may"));
    }
    let held = is_held(world, netns_cookie, map);
    let foreign = world.foreign.get(&netns_cookie).is_some_and(|ports| ports.contains(&map.port));
    (foreign && !held && backend.spec.fallback == Fallback::Refuse).then(|| {
        format!(
            "somebody who is not managed listens on port {} already; end that, choose another port, or declare the \
             fallback `pass` if it is to answer whenever no backend is left",
            map.port
        )
    })
}

/// Whether somebody has claimed a port.
pub(super) fn is_held(world: &World, netns_cookie: u64, map: &PortMap) -> bool {
    keys(netns_cookie, map).any(|key| world.claimed.contains_key(&key))
}

/// Claims one port for a backend's service, or says who has it.
fn claim<'a>(
    claims: &mut BTreeMap<RuleKey, Claim<'a>>,
    plan: &mut Plan,
    backend: &'a Backend,
    map: &PortMap,
    keys: impl Iterator<Item = RuleKey>,
) {
    for key in keys {
        let service = backend.spec.service.as_str();
        let claim = claims.entry(key).or_insert_with(|| Claim {
            service,
            holder: &backend.name,
            fallback: backend.spec.fallback,
            parts: Vec::new(),
        });
        if claim.service == service {
            claim.parts.push((backend, map.target));
            continue;
        }
        let text = format!(
            "port {map} is already claimed by the service `{}` (first by {}); give one of the two another port",
            claim.service, claim.holder
        );
        let said = plan.hindrances.entry(backend.index).or_default();
        if !said.contains(&text) {
            said.push(text);
        }
    }
}

/// The rules of one port: both families, unless an address says which.
fn keys(netns_cookie: u64, map: &PortMap) -> impl Iterator<Item = RuleKey> + use<> {
    let families: &[u8] = match map.ip {
        None => &[FAMILY_V4, FAMILY_V6],
        Some(IpAddr::V4(_)) => &[FAMILY_V4],
        Some(IpAddr::V6(_)) => &[FAMILY_V6],
    };
    let (port, addr) = (map.port, map.ip.map(address_bytes).unwrap_or_default());
    families.iter().map(move |&family| RuleKey { netns_cookie, addr, port, proto: PROTO_TCP, family, pad: 0 })
}

fn state(world: &World, backend: &Backend, plan: &Plan, listens: bool, served: bool) -> State {
    match backend.phase {
        Phase::Created => return State::Created,
        Phase::Exited => return State::Exited,
        Phase::Stopping => return State::Stopping,
        Phase::Paused => return State::Paused,
        Phase::Running => {}
    }
    let hindered = plan.hindrances.contains_key(&backend.index) || !backend.troubles.is_empty();
    match (backend.health, backend.probed) {
        (Health::Unhealthy, _) | (_, Health::Unhealthy) => return State::Unhealthy,
        (Health::Starting, _) => return State::Starting,
        // Nobody probes where nothing is steered.
        (_, Health::Starting) if !hindered => return State::Starting,
        _ => {}
    }
    match (served, hindered, listens) {
        (true, _, _) => State::Ready,
        (false, true, _) => State::NotSteered,
        (false, false, false) => State::Starting,
        (false, false, true) if world.is_drained(backend) => State::Drained,
        (false, false, true) => State::Standby,
    }
}
