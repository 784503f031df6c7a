//! Which service may have which port, and who takes part.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use pod_steer_ebpf::{FAMILY_V4, FAMILY_V6, PROTO_TCP, RuleKey};

use super::{Backend, BackendId, Network, Plan, World, score::ANY_ADDRESS};
use crate::{labels::Fallback, ports::PortMap, procs::address_bytes};

/// A rule that has had a socket: its service keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claimed {
    /// The service.
    pub service: String,
    /// It belongs to a claim on every address of its port.
    pub of_port: bool,
    /// Backends that have listened at just this address or on just this device. `None` if an earlier daemon knew.
    pub listeners: Option<BTreeSet<BackendId>>,
}

/// Who holds a port, or one address of it.
pub(super) struct Claim<'a> {
    pub service: &'a str,
    /// The backend that was the first.
    pub holder: &'a str,
    pub fallback: Fallback,
    /// Who takes part, and on which port each listens.
    pub parts: Vec<(&'a Backend, u16)>,
}

/// The claims, by the address and port that they name. A newcomer never takes a port from a service that has it; for a
/// free port, the older backend decides.
pub(super) fn of<'a>(world: &'a World, by_age: &[&'a Backend], plan: &mut Plan) -> BTreeMap<RuleKey, Claim<'a>> {
    let held = held(world);
    let pods: BTreeSet<u64> = world
        .backends
        .values()
        .filter(|backend| matches!(backend.network, Network::Joined))
        .filter_map(|backend| backend.netns.map(|netns| netns.cookie))
        .collect();
    let mut claims: BTreeMap<RuleKey, Claim<'_>> = BTreeMap::new();
    for backend in by_age {
        let Some(netns) = backend.netns else { continue };
        // What may not be claimed any more is not kept either.
        for map in backend.spec.ports.iter().filter(|map| world.policy.allows(map.port)) {
            let own = |key: &RuleKey| held.get(key) == Some(&backend.spec.service.as_str());
            claim(&mut claims, plan, backend, map, keys(netns.cookie, map).filter(own));
        }
    }
    for backend in by_age {
        let Some(netns) = backend.netns else { continue };
        if backend.network == Network::Own && !pods.contains(&netns.cookie) {
            plan.hinder(
                backend.index,
                "it has a network namespace of its own, where no client of the shared port arrives; run it with \
                 `--network host`, or with `--network container:ID` to share a pod's"
                    .to_owned(),
            );
            continue;
        }
        for map in &backend.spec.ports {
            if let Some(hindrance) = hindered(world, &held, backend, netns.cookie, map) {
                plan.hinder(backend.index, hindrance);
                continue;
            }
            let free = |key: &RuleKey| held.get(key).is_none_or(|holder| *holder != backend.spec.service);
            claim(&mut claims, plan, backend, map, keys(netns.cookie, map).filter(free));
        }
    }
    claims
}

/// The claim that a rule belongs to.
pub(super) fn of_rule(key: &RuleKey, of_port: bool) -> RuleKey {
    let addr = if of_port { ANY_ADDRESS } else { key.addr };
    RuleKey { addr, ifindex: 0, ..*key }
}

/// The service that has each claim.
fn held(world: &World) -> BTreeMap<RuleKey, &str> {
    world.claimed.iter().map(|(key, claimed)| (of_rule(key, claimed.of_port), claimed.service.as_str())).collect()
}

/// Whether some port of a backend in a namespace is nobody's yet.
pub(super) fn some_are_free(world: &World, netns_cookie: u64, ports: &[PortMap]) -> bool {
    let held = held(world);
    ports.iter().any(|map| !keys(netns_cookie, map).any(|key| held.contains_key(&key)))
}

/// Why a port may not be claimed, whoever has it.
fn hindered(
    world: &World,
    held: &BTreeMap<RuleKey, &str>,
    backend: &Backend,
    netns_cookie: u64,
    map: &PortMap,
) -> Option<String> {
    if !world.policy.allows(map.port) {
        return Some(format!(
            "port {} is not allowed; allow it with `run --allow-ports` or `allow-ports` in the configuration, or choose another",
            map.port
        ));
    }
    let held = keys(netns_cookie, map).any(|key| held.contains_key(&key));
    let foreign = world.foreign.get(&netns_cookie).is_some_and(|ports| ports.contains(&map.port));
    (foreign && !held && backend.spec.fallback == Fallback::Refuse).then(|| {
        format!(
            "a process that pod-steer does not manage already listens on port {}; stop it, choose another port, or set the \
             fallback to `pass` to let it answer whenever no backend is left",
            map.port
        )
    })
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
            "port {map} already belongs to the service `{}` (first claimed by {}); choose another port for one of the two",
            claim.service, claim.holder
        );
        plan.hinder(backend.index, text);
    }
}

/// The claims of one port: both families, unless an address says which.
pub(super) fn keys(netns_cookie: u64, map: &PortMap) -> impl Iterator<Item = RuleKey> + use<> {
    let families: &[u8] = match map.ip {
        None => &[FAMILY_V4, FAMILY_V6],
        Some(IpAddr::V4(_)) => &[FAMILY_V4],
        Some(IpAddr::V6(_)) => &[FAMILY_V6],
    };
    let (port, addr) = (map.port, map.ip.map(address_bytes).unwrap_or(ANY_ADDRESS));
    families.iter().map(move |&family| RuleKey { netns_cookie, addr, port, proto: PROTO_TCP, family, ifindex: 0 })
}
