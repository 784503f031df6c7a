//! A canary: a growing share of new connections, as long as the version is healthy.

use std::collections::BTreeMap;

use super::{
    CanaryOrder, Decision, Operation, Outcome, Phase, View,
    check::WHOLE,
    step::{Progress, decide, done, end, is_ready, roll_back},
    words,
};
use crate::{ids::BackendId, state::State, time::Now};

pub(super) fn step(
    operation: &mut Operation,
    order: &CanaryOrder,
    view: &View,
    decision: &Decision,
    now: Now,
) -> Progress {
    match operation.phase.clone() {
        Phase::Waiting { since_ms, deadline_ms, backends } => {
            if is_ready(operation, view, &order.version, Err(backends), (since_ms, deadline_ms), now) {
                return stepped(operation, order, 0, view, decision, now);
            }
            Progress::default()
        }
        Phase::Stepping { step, watched, since_ms, next_ms } => {
            if let Some(reason) = failure(view, &watched, since_ms) {
                return roll_back(operation, view, decision, now, reason);
            }
            if now.ms < next_ms {
                return Progress::default();
            }
            let next = step.saturating_add(1);
            if next < order.steps.len() {
                return stepped(operation, order, next, view, decision, now);
            }
            let apart =
                if decision.traffic.from.is_empty() { "" } else { ", except those from networks that have a version" };
            let message = format!("{} has all new connections of {}{apart}", order.version, operation.service);
            end(operation, Outcome::Done, now, message);
            Progress::default()
        }
        Phase::Draining { .. } | Phase::Stopping { .. } | Phase::Starting { .. } | Phase::Ended => Progress::default(),
    }
}

/// Goes to a step. After the last step the version has everything, and has to stay healthy for one more step.
fn stepped(
    operation: &mut Operation,
    order: &CanaryOrder,
    step: usize,
    view: &View,
    decision: &Decision,
    now: Now,
) -> Progress {
    let Some(share) = order.steps.get(step).copied() else { return Progress::default() };
    let next_ms = now.ms.saturating_add(i64::try_from(order.every_ms).unwrap_or(i64::MAX));
    let watched = view.ready(&order.version).map(|(id, backend)| (id.clone(), backend.name.clone())).collect();
    operation.phase = Phase::Stepping { step, watched, since_ms: now.ms, next_ms };
    let detail = format!("step {} of {}: {} of new connections", step + 1, order.steps.len(), words::share(share));
    done(operation, &words::share(share), 0, detail);
    let weights = weights(operation, order, share, view);
    let decision = decide(decision, |next| next.traffic.weights = Some(weights));
    Progress { decision, effects: Vec::new() }
}

/// The new version's share. The other versions divide the rest as they did before.
fn weights(operation: &Operation, order: &CanaryOrder, share: u32, view: &View) -> BTreeMap<String, u32> {
    let mut weights = BTreeMap::from([(order.version.clone(), share)]);
    if share >= WHOLE {
        return weights;
    }
    let before = operation.before.weights.iter().flatten().map(|(version, weight)| (version.clone(), *weight));
    let mut others: BTreeMap<String, u32> =
        before.filter(|(version, weight)| *version != order.version && *weight > 0).collect();
    if others.is_empty() {
        for backend in view.backends.values().filter(|b| b.version != order.version && b.state.could_serve()) {
            let all: &mut u32 = others.entry(backend.version.clone()).or_default();
            *all = all.saturating_add(backend.weight);
        }
    }
    let all: u64 = others.values().map(|weight| u64::from(*weight)).sum();
    for (version, weight) in others {
        let part = u64::from(WHOLE - share) * u64::from(weight) / all.max(1);
        weights.insert(version, u32::try_from(part).unwrap_or(WHOLE).max(1));
    }
    weights
}

/// What is wrong with the version that is being tried, if anything is.
fn failure(view: &View, watched: &BTreeMap<BackendId, String>, since_ms: i64) -> Option<String> {
    for (id, name) in watched {
        let Some(backend) = view.backends.get(id) else { return Some(format!("{name} is gone")) };
        if backend.state == State::Starting && !backend.steered {
            return Some(format!("the network namespace of {name} is no longer steered"));
        }
        if matches!(backend.state, State::Starting | State::NotListening) {
            return Some(format!("{name} has stopped listening"));
        }
        if !backend.state.could_serve() {
            return Some(format!("{name} is {}{}", backend.state.word(), backend.condition_in_brackets()));
        }
        if backend.ready_since_ms.is_some_and(|since| since > since_ms) {
            return Some(format!("{name} was not ready for a while"));
        }
        if backend.overflows > 0 {
            let clients = words::count(backend.overflows, "client");
            return Some(format!("the accept queue of {name} overflowed, {clients} turned away"));
        }
    }
    None
}
