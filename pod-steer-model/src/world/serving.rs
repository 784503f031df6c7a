//! Which backends serve, and how much: by operators' decisions and the results of checks, and by what applies if these
//! leave no backend.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use pod_steer_ebpf::{FAMILY_V4, NONE, RULE_OF_PORT};

use super::{
    Backend, Phase, Plan, PlannedDecision, PlannedNetworks, PlannedRule, PlannedTable, Sockets, World,
    scope::Facts,
    tables::{OfRule, Tables},
};
use crate::{
    condition::{Condition, Reason},
    ids::{BackendId, BackendIndex, SocketCookie},
    ports::Port,
    rollout::{Decision, Policy},
    rule::RuleKey,
    settings::ServiceOptions,
    slots::Member,
};

/// A version's weight is shared out among its backends, and theirs among their sockets. This number leaves room for both,
/// and divides evenly by every count up to 16.
const WEIGHT_UNIT: u128 = 720_720;

/// A slow start begins with this part of a backend's weight, in thousandths.
const RAMP_START: u64 = 100;
/// Its whole weight.
const RAMP_END: u64 = 1000;
/// Number of steps of a slow start, and the least time between two of them in milliseconds.
const RAMP_STEPS: u64 = 50;
const RAMP_STEP_MS: u64 = 200;

/// The serving backends of every service.
pub(super) struct Serving<'a> {
    world: &'a World,
    facts: &'a Facts<'a>,
    sockets: &'a Sockets<'a>,
    services: BTreeMap<&'a str, Service<'a>>,
}

/// The serving backends of one service.
#[derive(Default)]
struct Service<'a> {
    options: ServiceOptions,
    decision: Option<&'a Decision>,
    /// Shares by version, if they are in force.
    weights: Option<&'a BTreeMap<String, u32>>,
    /// Indices of the backends that may serve.
    usable: BTreeSet<BackendIndex>,
    /// Indices of these, and of backends that may serve as soon as they listen.
    allowed: BTreeSet<BackendIndex>,
    /// Indices of backends that serve when none of these is left.
    reserve: BTreeSet<BackendIndex>,
    /// Indices of those that were told to stop and still listen: they serve when no other backend can.
    stopping: BTreeSet<BackendIndex>,
    /// For the versions of networks: the backends that may serve, and those that were told to stop.
    by_version: BTreeMap<&'a str, (BTreeSet<BackendIndex>, BTreeSet<BackendIndex>)>,
    /// Whether too few pass their checks, so that the last ones that passed serve on: such a set is not remembered.
    is_last_set: bool,
    conditions: Vec<Condition>,
}

impl<'a> Serving<'a> {
    pub(super) fn of(facts: &'a Facts<'a>, sockets: &'a Sockets<'a>) -> Self {
        let world = facts.world;
        let mut backends: BTreeMap<&str, Vec<&Backend>> = BTreeMap::new();
        for backend in facts.backends.iter().copied() {
            backends.entry(&backend.spec.service).or_default().push(backend);
        }
        let chosen = backends.iter().map(|(name, backends)| (*name, choose(world, sockets, name, backends)));
        Self { world, facts, sockets, services: chosen.collect() }
    }

    /// The tables of one rule, and the versions that listen for it.
    pub(super) fn tables(
        &self,
        key: &RuleKey,
        service: &str,
        parts: &[(&Backend, Port)],
        tables: &mut Tables,
    ) -> OfRule {
        let Some(chosen) = self.services.get(service) else { return Default::default() };
        let table = |usable, weights| self.table(key, parts, usable, weights, chosen.options.slow_start_ms);
        let mut all = table(&chosen.usable, chosen.weights);
        // Backends that serve the other ports may not listen on this one.
        let mut reserve = table(&chosen.reserve, None).members;
        if reserve.is_empty() {
            reserve = table(&chosen.stopping, None).members;
        }
        let is_alone = all.members.is_empty();
        if is_alone {
            all.members = std::mem::take(&mut reserve);
        }
        if let Some(paused) = self.paused(service, key, &all.members) {
            let versions = self.versions(key, parts);
            return OfRule { table: tables.one(paused), networks: BTreeMap::new(), versions };
        }
        if !is_alone {
            let members: BTreeSet<SocketCookie> = all.members.iter().map(|member| member.cookie).collect();
            all.reserve = reserve;
            all.reserve.retain(|member| !members.contains(&member.cookie));
            // The reserve has no shares, and a table must not change because a weight in its reserve grows.
            all.reserve.iter_mut().for_each(|member| member.weight = 0);
        }
        let mut networks = BTreeMap::<String, PlannedNetworks>::new();
        for (network, version) in chosen.decision.iter().flat_map(|decision| &decision.traffic.from) {
            if matches!(network, IpNet::V4(_)) == (key.family == FAMILY_V4) {
                networks.entry(version.clone()).or_default().networks.insert(*network);
            }
        }
        for (version, own) in &mut networks {
            if let Some((usable, stopping)) = chosen.by_version.get(version.as_str()) {
                let running = table(usable, None);
                own.table = tables.one(if running.members.is_empty() { table(stopping, None) } else { running });
            }
        }
        OfRule { table: tables.one(all), networks, versions: self.versions(key, parts) }
    }

    /// The backend that may serve clients of a rule, if it is the only one, and the port that it listens on.
    pub(super) fn only(&self, service: &str, parts: &[(&Backend, Port)]) -> Option<(BackendIndex, Port)> {
        let chosen = self.services.get(service)?;
        // The kernel programs do not know which user owns a listener.
        if self.world.configured.users(service).is_some() {
            return None;
        }
        if chosen.decision.is_some_and(|decision| decision.paused) {
            return None;
        }
        for set in [&chosen.allowed, &chosen.reserve] {
            let mut own = parts.iter().filter(|(backend, _)| set.contains(&backend.index) && backend.spec.weight > 0);
            if let Some((backend, port)) = own.next() {
                // No socket of another namespace can be assigned.
                let is_here = backend.forwarded().is_none();
                return (is_here && own.next().is_none()).then_some((backend.index, *port));
            }
        }
        None
    }

    /// The versions that listen for a rule's destination.
    fn versions(&self, key: &RuleKey, parts: &[(&Backend, Port)]) -> Arc<BTreeSet<String>> {
        let covers = |(backend, port): &&(&Backend, Port)| self.fitting(backend, *port, key).next().is_some();
        let versions: BTreeSet<&str> =
            parts.iter().filter(covers).map(|(backend, _)| backend.spec.version.as_str()).collect();
        Arc::new(versions.into_iter().map(str::to_owned).collect())
    }

    /// The sockets of a backend that listen on `port` and certainly take clients of a rule, each with its rank in the
    /// lookup. An IPv6 socket gets no IPv4 clients until it is known to take them.
    fn fitting(
        &self,
        backend: &Backend,
        port: Port,
        key: &RuleKey,
    ) -> impl Iterator<Item = (u8, &[SocketCookie])> + Clone {
        let (key, ways) = (*key, self.sockets.ways(backend.index, key.netns_cookie, port).iter());
        ways.filter_map(move |(bound, cookies)| Some((bound.surely().score(&key)?, cookies.as_slice())))
    }

    /// Those of them from which the kernel would choose.
    fn best(&self, backend: &Backend, port: Port, key: &RuleKey) -> impl Iterator<Item = SocketCookie> + Clone {
        let fitting = self.fitting(backend, port, key);
        let best = fitting.clone().map(|(score, _)| score).max();
        fitting.filter(move |(score, _)| Some(*score) == best).flat_map(|(_, cookies)| cookies.iter().copied())
    }

    /// One table: the fitting sockets of the backends that may serve.
    fn table(
        &self,
        key: &RuleKey,
        parts: &[(&Backend, Port)],
        usable: &BTreeSet<BackendIndex>,
        weights: Option<&BTreeMap<String, u32>>,
        slow_start_ms: u64,
    ) -> PlannedTable {
        let mut fitting = Vec::new();
        let mut of_versions: BTreeMap<&str, u128> = BTreeMap::new();
        for (backend, port) in parts.iter().filter(|(backend, _)| usable.contains(&backend.index)) {
            let own = self.best(backend, *port, key);
            let sockets = own.clone().count();
            let weight = u128::from(backend.spec.weight) * u128::from(self.ramp(backend, slow_start_ms));
            if weight > 0 && sockets > 0 {
                *of_versions.entry(&backend.spec.version).or_default() += weight;
                fitting.push((*backend, weight, own, sockets));
            }
        }
        let mut members = Vec::new();
        for (backend, weight, own, sockets) in fitting {
            let version = backend.spec.version.as_str();
            let weight = match weights {
                None => weight * WEIGHT_UNIT,
                Some(weights) => {
                    let share = weights.get(version).copied().unwrap_or(0);
                    let all = of_versions.get(version).copied().unwrap_or(weight);
                    u128::from(share) * WEIGHT_UNIT * u128::from(RAMP_END) * weight / all
                }
            };
            let weight = u64::try_from(weight / sockets as u128).unwrap_or(u64::MAX);
            let is_forwarded = backend.forwarded().is_some();
            let own = own.map(|cookie| Member { cookie, backend: backend.index, weight, is_forwarded });
            members.extend(own.filter(|member| member.weight > 0));
        }
        members.sort_unstable();
        members.dedup_by_key(|member| member.cookie);
        PlannedTable { members, ..PlannedTable::default() }
    }

    /// How far a backend is in its slow start, in thousandths.
    fn ramp(&self, backend: &Backend, slow_ms: u64) -> u64 {
        // A backend that is not ready yet begins now.
        let since = backend.ready_since_ms.unwrap_or(self.world.now_ms);
        let elapsed = u64::try_from(self.world.now_ms - since).unwrap_or(0);
        if elapsed >= slow_ms { RAMP_END } else { (RAMP_END * elapsed / slow_ms).max(RAMP_START) }
    }

    /// The table of a rule whose service is paused; nothing if it is not. `members` would serve otherwise.
    fn paused(&self, service: &str, key: &RuleKey, members: &[Member]) -> Option<PlannedTable> {
        let decision = self.world.decisions.get(service).filter(|decision| decision.paused)?;
        if decision.is_pause_over(self.world.now_ms) {
            return Some(PlannedTable::default());
        }
        let silent =
            Member { cookie: self.world.pause_cookie?, backend: BackendIndex(NONE), weight: 1, is_forwarded: false };
        let (holding, others) = self.world.holding(service, key, members);
        let withheld = others.into_iter().map(|member| Member { weight: 0, ..member }).collect();
        Some(if holding.is_empty() {
            PlannedTable { members: vec![silent], withheld, ..PlannedTable::default() }
        } else {
            // Should the process that holds clients die, the SYNs of others are discarded until there is another.
            let reserve = vec![Member { weight: 0, ..silent }];
            PlannedTable { members: holding, reserve, withheld }
        })
    }

    /// A paused service keeps its clients waiting even if it has no backend: adds the rules of such services. Returns
    /// their keys.
    pub(super) fn keep_paused(&self, plan: &mut Plan, tables: &mut Tables) -> Vec<RuleKey> {
        let is_paused = |service: &str| self.world.decisions.get(service).is_some_and(|decision| decision.paused);
        let mut added = Vec::new();
        for (key, claimed) in self.facts.claimed.iter().copied().filter(|(_, claimed)| is_paused(&claimed.service)) {
            if plan.rules.contains_key(key) || !self.world.may_claim(&claimed.service, key.port) {
                continue;
            }
            let Some(paused) = self.paused(&claimed.service, key, &[]) else { continue };
            let rule = PlannedRule {
                service: Some(claimed.service.clone()),
                flags: if claimed.of_port { RULE_OF_PORT } else { 0 },
                table: Some(tables.one(paused)),
                ..PlannedRule::default()
            };
            plan.rules.insert(*key, rule);
            plan.steer_in(&claimed.service, key.netns_cookie);
            added.push(*key);
        }
        added
    }

    /// Adds everything to the plan that is not about tables. Returns the serving backends, by service.
    pub(super) fn conclude(self, plan: &mut Plan) -> BTreeMap<String, BTreeSet<BackendId>> {
        let slow_ms = |backend: &Backend| self.services.get(backend.spec.service.as_str())?.slow_ms(backend);
        for backend in &self.facts.backends {
            let slow_ms = slow_ms(backend).filter(|slow_ms| self.ramp(backend, *slow_ms) < RAMP_END);
            let step_ms = slow_ms.map(|slow_ms| (slow_ms / RAMP_STEPS).max(RAMP_STEP_MS).cast_signed());
            plan.changes_at(&backend.spec.service, step_ms.map(|step_ms| self.world.now_ms + step_ms));
            plan.changes_at(&backend.spec.service, backend.stops_at(self.world.now_ms));
        }
        // A service that has lost its backends is paused until then too.
        for (name, decision) in &self.world.decisions {
            plan.changes_at(name, decision.pause_until_ms.filter(|_| !decision.is_pause_over(self.world.now_ms)));
        }
        let mut serving = BTreeMap::new();
        for (name, chosen) in self.services {
            let decision = chosen.decision.cloned().unwrap_or_default();
            let has_networks = !decision.paused && !decision.traffic.from.is_empty();
            plan.decisions.insert(name.to_owned(), PlannedDecision { revision: decision.revision, has_networks });
            if !chosen.is_last_set && !chosen.usable.is_empty() {
                let usable = self.facts.backends.iter().filter(|backend| chosen.usable.contains(&backend.index));
                serving.insert(name.to_owned(), usable.map(|backend| backend.id.clone()).collect());
            }
            if !chosen.conditions.is_empty() {
                plan.service_conditions.insert(name.to_owned(), chosen.conditions);
            }
        }
        serving
    }
}

impl Service<'_> {
    /// How long the share of a backend grows, if it may serve and its service has a slow start.
    fn slow_ms(&self, backend: &Backend) -> Option<u64> {
        let slow_ms = self.options.slow_start_ms;
        (slow_ms > 0 && self.usable.contains(&backend.index)).then_some(slow_ms)
    }
}

/// The backends that get clients of a service, or would if it were not paused; those that do where these do not listen; and then others.
pub(super) fn would_serve(world: &World, sockets: &Sockets<'_>, service: &str) -> [BTreeSet<BackendIndex>; 3] {
    let Service { usable, reserve, stopping, .. } =
        choose(world, sockets, service, &world.of_service(service).collect::<Vec<_>>());
    [usable, reserve, stopping]
}

fn passes(backend: &Backend) -> bool {
    backend.health.passes() && backend.probed.passes()
}

fn choose<'a>(world: &'a World, sockets: &Sockets<'_>, name: &str, backends: &[&'a Backend]) -> Service<'a> {
    let decision = world.decisions.get(name);
    let options = world.options(name);
    let weights = decision.and_then(|decision| decision.traffic.weights.as_ref());
    let mut chosen = Service { options, decision, weights, ..Service::default() };

    let listens = |backend: &Backend| sockets.of(backend.index).any(|(_, socket)| backend.serves_by(socket));
    let in_phase = |phase: Phase| -> Vec<&Backend> {
        let is = |backend: &&Backend| backend.phase == phase && listens(backend) && !world.is_drained(backend);
        backends.iter().copied().filter(is).collect()
    };
    let running = in_phase(Phase::Running);
    let served = |backend: &Backend| world.last_serving.get(name).is_some_and(|last| last.contains(&backend.id));
    // The backends in `of` that may serve, and whether some of them fail their checks.
    let trusted = |of: &[&Backend]| -> (BTreeSet<BackendIndex>, bool) {
        let passing = of.iter().filter(|backend| passes(backend)).count();
        let panic = passing * 100 < usize::from(options.panic_percent) * of.len();
        let usable = of.iter().filter(|backend| passes(backend) || (panic && served(backend)));
        let usable: BTreeSet<BackendIndex> = usable.map(|backend| backend.index).collect();
        let kept = usable.len() > passing;
        (usable, kept)
    };

    // Until its policy has given the first version everything, the oldest one that listens serves, and all others wait.
    let first = match weights {
        None if options.rollout != Policy::Balance => running.iter().filter(|b| passes(b)).min_by_key(|b| b.age()),
        _ => None,
    };
    let has_share = |backend: &&Backend| match weights {
        Some(weights) => weights.get(&backend.spec.version).is_some_and(|weight| *weight > 0),
        None => first.is_none_or(|first| first.spec.version == backend.spec.version),
    };
    let (with_share, others): (Vec<&Backend>, Vec<&Backend>) = running.iter().copied().partition(has_share);
    (chosen.usable, chosen.is_last_set) = trusted(&with_share);
    if chosen.is_last_set {
        let failing = with_share.iter().filter(|backend| !passes(backend)).count();
        let all = with_share.len();
        chosen.conditions.push(Condition::new(
            Reason::TooFewHealthy,
            format!("{failing} of {all} backends fail their checks; the last ones that passed serve on"),
            "look at them, or set pod-steer.panic-threshold lower",
        ));
    }
    if options.rollout != Policy::Manual {
        chosen.reserve = others.iter().filter(|backend| passes(backend)).map(|backend| backend.index).collect();
    }
    // Backends of the weight 0 get nothing, whatever the share of their version.
    let none_serves = weights.is_some() && with_share.iter().all(|backend| backend.spec.weight == 0);
    if with_share.is_empty() || none_serves {
        let others = std::mem::take(&mut chosen.reserve);
        if !others.is_empty() {
            chosen.weights = None;
            chosen.usable = others;
            chosen.conditions.push(Condition::new(
                Reason::OtherVersionServes,
                "no version that has a share has a backend left; the others serve",
                "deploy one of them, or start the missing one",
            ));
        }
    }
    let may_serve = |backend: &&Backend| {
        backend.phase == Phase::Running && !world.is_drained(backend) && has_share(backend) && passes(backend)
    };
    let allowed = backends.iter().copied().filter(may_serve).map(|backend| backend.index);
    chosen.allowed = chosen.usable.iter().copied().chain(allowed).collect();
    if options.rollout == Policy::Manual && with_share.is_empty() && others.iter().any(|backend| passes(backend)) {
        chosen.conditions.push(Condition::new(
            Reason::VersionWaits,
            "no version that has a share has a backend left, and by the policy `manual` the others wait",
            "deploy one of them, or start the missing one",
        ));
    }
    // A server that was told to stop serves on while it listens and no other backend serves, as it would without
    // pod-steer.
    let stopping: Vec<&Backend> = in_phase(Phase::Stopping).into_iter().filter(|backend| passes(backend)).collect();
    let may_stand_in = |backend: &&&Backend| options.rollout != Policy::Manual || has_share(backend);
    chosen.stopping = stopping.iter().filter(may_stand_in).map(|backend| backend.index).collect();
    for version in decision.iter().flat_map(|decision| decision.traffic.from.values()) {
        let of_version = |of: &[&'a Backend]| -> Vec<&Backend> {
            of.iter().copied().filter(|backend| backend.spec.version == *version).collect()
        };
        let last = of_version(&stopping).into_iter().map(|backend| backend.index).collect();
        chosen.by_version.insert(version, (trusted(&of_version(&running)).0, last));
    }
    chosen
}
