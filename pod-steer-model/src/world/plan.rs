//! From facts to a [`Plan`]: the rules that follow from the claims, and the state of each backend. `serving` decides
//! which backends serve, and how much.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use pod_steer_ebpf::{
    FALLBACK_PASS, FALLBACK_REFUSE, RULE_HAS_ADDRESSES, RULE_HAS_DEVICES, RULE_OF_PORT, RULE_ON_DEMAND,
};

use super::{
    Backend, Claimed, Coverage, Health, Phase, Plan, PlannedRule, State, World, blocks, claims,
    destinations::{self, Destination},
    foreign::{Foreign, Left},
    forwarded, on_demand,
    scope::Facts,
    score::{ANY_ADDRESS, Bound},
    serving::Serving,
    sockets::WAYS_MAX,
    tables::{Answers, OfRule, Tables},
};
use crate::{
    condition::{Condition, Reason},
    ids::{BackendId, BackendIndex, NetnsCookie},
    rule::RuleKey,
    settings::Fallback,
    slots::Member,
};

/// The result of [`plan`].
pub(super) struct Planned {
    pub plan: Plan,
    /// By service: ids of the backends that serve; not for a service whose checks are not trusted.
    pub serving: BTreeMap<String, BTreeSet<BackendId>>,
    /// The rules that are claimed.
    pub claimed: BTreeMap<RuleKey, Claimed>,
    /// The rules that leave clients to unmanaged listeners.
    pub left: Left,
}

pub(super) fn plan(facts: &Facts<'_>, tables: &mut Tables) -> Planned {
    let Facts { world, refused, .. } = facts;
    let mut plan = Plan { managed_ports: blocks::managed(facts), ..Plan::default() };
    let sockets = facts.allowed_sockets();
    for (index, port) in sockets.overflowing() {
        let message = format!(
            "it listens on port {port} at more than {WAYS_MAX} addresses and interfaces: clients of the others do not come to it"
        );
        let condition = Condition::new(Reason::TooManyAddresses, message, "let it listen on every address");
        plan.add_condition(index, condition);
    }
    let mut by_age = facts.backends.clone();
    by_age.sort_by_key(|backend| backend.age());
    for (backend, condition) in refused.values() {
        condition.iter().for_each(|condition| plan.add_condition(*backend, condition.clone()));
    }
    let foreign = Foreign::new(world);
    by_age.retain(|backend| {
        let fault = world.image_fault(backend);
        let is_allowed = fault.is_none();
        fault.into_iter().for_each(|condition| plan.add_condition(backend.index, condition));
        is_allowed
    });
    let conflicts = on_demand::conflicts(&sockets, &by_age);
    by_age.retain(|backend| !conflicts.refused.contains(&backend.index));
    conflicts.conditions.into_iter().for_each(|(index, condition)| plan.add_condition(index, condition));
    let claims = claims::of(facts, &sockets, &foreign, &by_age, &conflicts.withheld, &mut plan);
    forwarded::destinations(facts, &mut plan);
    destinations::report_elsewhere(&sockets, &claims.by_key, &mut plan);
    destinations::report_refused(&sockets, &claims.refused, &mut plan);

    let serving = Serving::of(facts, &sockets);
    plan.own_ports = blocks::own(&claims.by_key);
    claims.by_key.iter().for_each(|(key, claim)| plan.steer_in(claim.service, key.netns_cookie));
    let (mut claimed, mut answers) = (BTreeMap::new(), Answers::default());
    let is_pause_over =
        |service: &str| world.decisions.get(service).is_some_and(|decision| decision.is_pause_over(world.now_ms));
    for Destination { key, claim, claimed: own } in destinations::of(facts, &sockets, &claims.by_key) {
        let parts = claim.parts.iter().map(|(backend, port)| (backend.index, *port));
        let make = || serving.tables(&key, claim.service, &claim.parts, tables);
        let OfRule { table, networks, versions } = answers.of(&key, claim.service, parts, make);
        let claims = |member: &Member| match facts.socket(member.cookie) {
            Some(socket) => Bound::from(socket).surely().score(&key).is_some(),
            // The listener of a pause.
            None => true,
        };
        if !world.claimed.contains_key(&key) && !table.members.iter().any(claims) {
            continue;
        }
        let options = world.options(claim.service);
        if options.fallback == Fallback::Refuse
            && let Some(listener) = foreign.is_at(&key)
        {
            let condition = claims::is_taken(key.port, listener);
            let members: BTreeSet<BackendIndex> = table.members.iter().map(|member| member.backend).collect();
            members.into_iter().for_each(|backend| plan.add_condition(backend, condition.clone()));
            continue;
        }
        if !table.members.is_empty() || is_pause_over(claim.service) {
            // A paused service may have a member although none of its backends listens.
            let coverage = Some(Coverage { key, versions }).filter(|coverage| !coverage.versions.is_empty());
            plan.coverage.entry(claim.service.to_owned()).or_default().extend(coverage);
        }
        let rule = PlannedRule {
            service: Some(claim.service.to_owned()),
            flags: if own.of_port { RULE_OF_PORT } else { 0 },
            table: Some(table),
            networks,
            only: serving.only(claim.service, &claim.parts),
            ..PlannedRule::of_options(&options)
        };
        let rule = if is_pause_over(claim.service) { PlannedRule { fallback: FALLBACK_REFUSE, ..rule } } else { rule };
        plan.rules.insert(key, rule);
        claimed.insert(key, own);
    }
    for key in on_demand::claims(&by_age) {
        let Some(claim) = claims.by_key.get(&key).filter(|_| !plan.rules.contains_key(&key)) else { continue };
        let Some(only) = serving.only(claim.service, &claim.parts) else { continue };
        // No server has listened there yet, so this takes the port from none.
        let rule = PlannedRule {
            service: Some(claim.service.to_owned()),
            fallback: FALLBACK_PASS,
            flags: RULE_ON_DEMAND,
            table: Some(Arc::default()),
            only: Some(only),
            ..PlannedRule::default()
        };
        plan.rules.insert(key, rule);
    }
    let left = foreign.leave(&mut plan);
    let paused = serving.keep_paused(&mut plan, tables);
    claimed.extend(paused.into_iter().filter_map(|key| Some((key, world.claimed.get(&key)?.clone()))));
    let serving = serving.conclude(&mut plan);

    let mut served = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for rule in plan.rules.values() {
        let networks = rule.networks.values().map(|networks| &networks.table);
        for table in rule.table.iter().chain(networks).filter(|table| seen.insert(Arc::as_ptr(table))) {
            served.extend(table.members.iter().map(|member| member.backend));
        }
    }
    let without_users: BTreeSet<BackendIndex> = refused.values().map(|(backend, _)| *backend).collect();
    for backend in &facts.backends {
        let listens = sockets.of(backend.index).any(|(_, socket)| backend.serves_by(socket));
        let here = backend.ingress().is_some_and(|netns| {
            is_steered(world, netns.cookie)
                && (backend.forwarded().is_none() || world.forwarding.contains(&netns.cookie))
        });
        let served = here && served.contains(&backend.index);
        let not_listening = world.not_listening(backend).filter(|_| !listens && backend.phase == Phase::Running);
        let not_listening = not_listening.filter(|_| !without_users.contains(&backend.index));
        // It listens where no client comes.
        let told = plan.conditions.get(&backend.index).into_iter().flatten();
        let is_unreachable = told.into_iter().any(|told| told.reason == Reason::NotReachable);
        let not_listening = not_listening.filter(|_| !is_unreachable);
        let state = state(world, backend, &plan, here && listens, served, not_listening.is_some());
        plan.states.insert(backend.index, state);
        if let Some(condition) = not_listening {
            plan.add_condition(backend.index, condition);
        }
    }
    Planned { plan, serving, claimed, left }
}

/// Marks on the rule for a whole port that rules for single addresses or devices exist: a lookup tries those only then.
pub(super) fn announce(plan: &mut Plan) {
    let single = plan.rules.keys().filter(|key| !key.is_of_port());
    for key in single.copied().collect::<Vec<_>>() {
        let flags = &mut plan.rules.entry(key.of_port()).or_default().flags;
        *flags |= if key.addr == ANY_ADDRESS { 0 } else { RULE_HAS_ADDRESSES };
        *flags |= if key.ifindex == 0 { 0 } else { RULE_HAS_DEVICES };
    }
}

/// Whether backends in this namespace can be reached, or will be again in a moment.
fn is_steered(world: &World, netns_cookie: NetnsCookie) -> bool {
    world.steered.contains(&netns_cookie) || world.repairing.contains(&netns_cookie)
}

fn state(world: &World, backend: &Backend, plan: &Plan, listens: bool, served: bool, is_silent: bool) -> State {
    match backend.phase {
        Phase::Created => return State::Created,
        Phase::Exited => return State::Exited,
        Phase::Stopping => return State::Stopping,
        Phase::Paused => return State::Paused,
        Phase::Running => {}
    }
    let has_condition = plan.conditions.contains_key(&backend.index) || !backend.conditions.is_empty();
    match (backend.health, backend.probed) {
        (Health::Unhealthy, _) | (_, Health::Unhealthy) => return State::Unhealthy,
        // No check can pass there.
        _ if is_silent && !has_condition => return State::NotListening,
        (Health::Starting, _) => return State::Starting,
        // Backends are probed only where their service is steered.
        (_, Health::Starting) if !has_condition => return State::Starting,
        _ => {}
    }
    match (served, has_condition, listens) {
        (true, _, _) => State::Ready,
        (false, true, _) => State::NotSteered,
        (false, false, false) => State::Starting,
        (false, false, true) if world.is_drained(backend) => State::Drained,
        (false, false, true) => State::Standby,
    }
}
