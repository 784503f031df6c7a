//! Claims: the service of each port, and the backends that serve there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use pod_steer_ebpf::{FAMILY_V4, FAMILY_V6};

use super::{
    Backend, Network, Phase, Plan, Sockets, World,
    foreign::{self, Foreign},
    scope::Facts,
    score::ANY_ADDRESS,
};
use crate::{
    address::address_bytes,
    condition::{Condition, Reason},
    ids::{BackendId, BackendIndex, NetnsCookie},
    listener::Listener,
    ports::{Port, PortMap},
    rule::RuleKey,
    settings::Fallback,
};

/// A rule that has had a socket. Its service keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claimed {
    /// The service.
    pub service: String,
    /// It belongs to a claim on every address of its port.
    pub of_port: bool,
    /// Backends that have listened at just this address or on just this device. `None` if an earlier daemon knew.
    pub listeners: Option<BTreeSet<BackendId>>,
}

/// The service that claims a port, or one address of it.
pub(super) struct Claim<'a> {
    pub service: &'a str,
    /// The backend that claimed it first.
    pub holder: &'a str,
    /// The backends that serve there, and the port on which each listens.
    pub parts: Vec<(&'a Backend, Port)>,
    /// Whether one of them listens or has listened. Until then other services may claim the port.
    pub is_firm: bool,
}

/// All claims, and the parts that were refused.
#[derive(Default)]
pub(super) struct Claims<'a> {
    /// By the address and port that each names.
    pub by_key: BTreeMap<RuleKey, Claim<'a>>,
    pub refused: Vec<Refused<'a>>,
}

/// A part of a port that a backend does not claim.
pub(super) struct Refused<'a> {
    pub key: RuleKey,
    pub backend: &'a Backend,
    /// Where it listens for it.
    pub port: Port,
    pub condition: Condition,
}

/// The claims, by the address and port that they name. A service never loses a port that it has to a newcomer. For a
/// free port, the oldest backend that listens decides. `withheld` are claims that a backend does not get, with its
/// index.
pub(super) fn of<'a>(
    facts: &Facts<'a>,
    sockets: &Sockets<'_>,
    foreign: &Foreign<'_>,
    by_age: &[&'a Backend],
    withheld: &BTreeSet<(BackendIndex, RuleKey)>,
    plan: &mut Plan,
) -> Claims<'a> {
    let world = facts.world;
    let held = held(facts.claimed.iter().copied());
    let pods = world.pods();
    let mut claims = Claims::default();
    for backend in by_age {
        if world.abandoned.contains_key(&backend.id) {
            continue;
        }
        let own = |key: &RuleKey| {
            !withheld.contains(&(backend.index, *key)) && held.get(key) == Some(&backend.spec.service.as_str())
        };
        for netns in backend.keeps_ports_in() {
            // A port that may no longer be claimed is not kept either.
            let service = &backend.spec.service;
            for map in backend.spec.ports.iter().filter(|map| world.may_claim(service, map.service_port())) {
                claim(&mut claims.by_key, plan, backend, map, true, keys(netns.cookie, map).filter(own));
            }
        }
    }
    let mut wanted = Vec::new();
    for backend in by_age {
        let Some(netns) = backend.ingress() else { continue };
        if let Some(fault) = world.abandoned.get(&backend.id) {
            plan.add_condition(backend.index, fault.clone());
            continue;
        }
        if backend.network == Network::Own
            && backend.forwarded().is_none()
            && !(pods.has(backend) || pods.has_unreached(backend))
        {
            // The network of a container ends with it.
            if backend.phase != Phase::Exited {
                plan.add_condition(backend.index, backend.own_network());
            }
            continue;
        }
        for map in &backend.spec.ports {
            let mut not_to_have = None;
            match obstacle(facts, sockets, foreign, &held, backend, netns.cookie, map) {
                Some(Obstacle::Whole(condition)) => {
                    plan.add_condition(backend.index, condition);
                    continue;
                }
                Some(Obstacle::Part(key, condition)) => {
                    not_to_have = Some(key);
                    claims.refused.push(Refused { key, backend, port: map.target_port(), condition });
                }
                None => {}
            }
            wanted.push((!listens(sockets, backend, netns.cookie, map.target_port()), backend, map, not_to_have));
        }
    }
    // A stable sort: by age among those that listen, then among the others.
    wanted.sort_by_key(|(is_silent, ..)| *is_silent);
    for (is_silent, backend, map, not_to_have) in wanted {
        let Some(netns) = backend.ingress() else { continue };
        let free = |key: &RuleKey| {
            Some(*key) != not_to_have
                && !withheld.contains(&(backend.index, *key))
                && held.get(key).is_none_or(|holder| *holder != backend.spec.service)
        };
        claim(&mut claims.by_key, plan, backend, map, !is_silent, keys(netns.cookie, map).filter(free));
    }
    claims
}

fn listens(sockets: &Sockets<'_>, backend: &Backend, netns_cookie: NetnsCookie, target: Port) -> bool {
    sockets.of(backend.index).any(|(_, socket)| (socket.netns_cookie, socket.port) == (netns_cookie, target))
}

/// The claim that a rule belongs to.
pub(super) fn of_rule(key: &RuleKey, of_port: bool) -> RuleKey {
    let addr = if of_port { ANY_ADDRESS } else { key.addr };
    RuleKey { addr, ifindex: 0, ..*key }
}

/// The service that has each claim.
fn held<'a>(claimed: impl Iterator<Item = (&'a RuleKey, &'a Claimed)>) -> BTreeMap<RuleKey, &'a str> {
    claimed.map(|(key, claimed)| (of_rule(key, claimed.of_port), claimed.service.as_str())).collect()
}

/// Whether some port of a backend in a namespace is not claimed yet.
pub(super) fn some_are_free(world: &World, netns_cookie: NetnsCookie, ports: &[PortMap]) -> bool {
    let held = held(world.claimed.iter());
    ports.iter().any(|map| !keys(netns_cookie, map).any(|key| held.contains_key(&key)))
}

/// What keeps a backend from claiming a port.
enum Obstacle {
    /// It may claim none of it, for this reason.
    Whole(Condition),
    /// It may not claim this.
    Part(RuleKey, Condition),
}

/// What keeps a backend from claiming a port, whichever service has it.
fn obstacle(
    facts: &Facts<'_>,
    sockets: &Sockets<'_>,
    foreign: &Foreign<'_>,
    held: &BTreeMap<RuleKey, &str>,
    backend: &Backend,
    netns_cookie: NetnsCookie,
    map: &PortMap,
) -> Option<Obstacle> {
    let world = facts.world;
    if !world.policy.allows(map.service_port()) {
        return Some(Obstacle::Whole(Condition::new(
            Reason::PortNotAllowed,
            format!("port {} is not allowed", map.service_port()),
            "allow it with `run --allow-ports` or `allow-ports` in the configuration, or choose another",
        )));
    }
    if let Some(fault) = world.configured.port_fault(&backend.spec.service, map.service_port()) {
        return Some(Obstacle::Whole(fault));
    }
    let all: Vec<RuleKey> = keys(netns_cookie, map).collect();
    let free = || all.iter().filter(|key| !held.contains_key(key));
    // The kernel's own lookup gives the clients of that address to a server that listens on it.
    let mut own = sockets.of(backend.index).filter(|(_, socket)| socket.port == map.target_port()).peekable();
    let is_there = map.port == map.target && (own.peek().is_none() || own.any(|(_, socket)| Some(socket.ip) == map.ip));
    if !is_there && let Some(other) = free().find_map(|key| serves(facts, key, &backend.spec.service)) {
        return Some(Obstacle::Whole(Condition::new(
            Reason::PortOfOtherService,
            format!(
                "port {} at that address already belongs to the service `{other}`, whose servers listen there",
                map.service_port()
            ),
            "choose another address or port",
        )));
    }
    if world.options(&backend.spec.service).fallback != Fallback::Refuse {
        return None;
    }
    let taken: Vec<(RuleKey, Condition)> =
        free().filter_map(|key| Some((*key, is_taken(map.service_port(), foreign.has(key)?)))).collect();
    // A server that is to listen on the port itself cannot listen where another does, and may listen elsewhere. For
    // other servers, the family on which they listen is not known yet.
    let none_is_free = taken.len() == all.len() || map.port != map.target && free().count() == all.len();
    let (key, condition) = taken.into_iter().next_back()?;
    Some(if none_is_free { Obstacle::Whole(condition) } else { Obstacle::Part(key, condition) })
}

/// The other service whose clients a claim of one address would take, if there is one: it has claimed the port at every
/// address, and its sockets serve that address.
fn serves<'a>(facts: &Facts<'a>, claim: &RuleKey, service: &str) -> Option<&'a str> {
    if claim.addr == ANY_ADDRESS {
        return None;
    }
    let covers = |rule: &RuleKey| {
        let at = RuleKey { addr: claim.addr, ifindex: 0, ..*rule };
        at == *claim && (rule.addr == ANY_ADDRESS || rule.addr == claim.addr)
    };
    let others = facts.claimed.iter().filter(|(_, claimed)| claimed.of_port && claimed.service != service);
    others.filter(|(rule, _)| covers(rule)).map(|(_, claimed)| claimed.service.as_str()).next()
}

/// Why a port on which an unmanaged server listens is not claimed.
pub(super) fn is_taken(port: Port, listener: &Listener) -> Condition {
    let place = foreign::place(listener);
    Condition::new(
        Reason::PortInUse,
        format!("a process that pod-steer does not manage already listens on port {port}, at {place}"),
        "stop it (if it is docker-proxy, start the container without `-p`), choose another port or address, or set the fallback to `pass` \
         to let it answer whenever no backend is left",
    )
}

/// Claims one port for a backend's service, or names the service that has it.
fn claim<'a>(
    claims: &mut BTreeMap<RuleKey, Claim<'a>>,
    plan: &mut Plan,
    backend: &'a Backend,
    map: &PortMap,
    is_firm: bool,
    keys: impl Iterator<Item = RuleKey>,
) {
    for key in keys {
        let service = backend.spec.service.as_str();
        let claim =
            claims.entry(key).or_insert_with(|| Claim { service, holder: &backend.name, parts: Vec::new(), is_firm });
        if claim.service == service {
            claim.is_firm |= is_firm;
            claim.parts.push((backend, map.target_port()));
            continue;
        }
        if !claim.is_firm {
            continue;
        }
        let condition = Condition::new(
            Reason::PortOfOtherService,
            format!(
                "port {map} already belongs to the service `{}` (first claimed by {})",
                claim.service, claim.holder
            ),
            "choose another port for one of the two",
        );
        plan.add_condition(backend.index, condition);
    }
}

/// The claims of one port: both families, unless it has an address.
pub(super) fn keys(netns_cookie: NetnsCookie, map: &PortMap) -> impl Iterator<Item = RuleKey> + use<> {
    let families: &[u8] = match map.ip {
        None => &[FAMILY_V4, FAMILY_V6],
        Some(IpAddr::V4(_)) => &[FAMILY_V4],
        Some(IpAddr::V6(_)) => &[FAMILY_V6],
    };
    let (port, addr) = (map.service_port(), map.ip.map(address_bytes).unwrap_or(ANY_ADDRESS));
    families.iter().map(move |&family| RuleKey { netns_cookie, addr, port, family, ifindex: 0 })
}
