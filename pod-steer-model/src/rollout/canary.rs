//! A canary: a growing share of new connections, as long as the version is healthy.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Decision, Operation, Outcome, Phase, View,
    check::WHOLE,
    judged::{failure, look, stepping},
    step::{Progress, decide, done, end, is_ready, roll_back},
    words,
};
use crate::{judge::Judging, time::Now};

/// See [`Order::Canary`](super::Order::Canary).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CanaryOrder {
    /// The version.
    pub version: String,
    /// Shares of the version in hundredths of a percent, ascending; the last is 10,000.
    pub steps: Vec<u32>,
    /// How long each step lasts, in milliseconds.
    pub every_ms: u64,
    /// How long the version may take to be ready, in milliseconds.
    pub timeout_ms: u64,
    /// How each step compares the version with the others.
    #[serde(default)]
    pub judge: Judging,
}

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
        Phase::Stepping { step, watched, since_ms, next_ms, .. } => {
            if let Some(reason) = failure(view, &watched, since_ms) {
                return roll_back(operation, view, decision, now, reason);
            }
            let is_over = now.ms >= next_ms;
            if let Some(reason) = look(operation, view, is_over, now) {
                return roll_back(operation, view, decision, now, reason);
            }
            if !is_over {
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
    operation.phase = stepping(step, &order.version, view, order.every_ms, now);
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
