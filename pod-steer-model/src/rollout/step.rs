//! What operations have in common: beginning, becoming ready, rolling back, ending.

use std::collections::BTreeSet;

use crate::{ids::BackendId, state::State, time::Now};

use super::{
    CanaryOrder, Decision, DeployOrder, End, Operation, Order, Outcome, Phase, ShiftOrder, Step, Traffic, View, canary,
    check, deploy, drain, idle, recreate, wake, words,
};

/// A backend counts as ready when it has been ready for this long, so one that comes and goes does not.
const STABLE_MS: i64 = 500;

/// What the daemon does besides storing the operation and the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Stop these backends, by id, now.
    Stop(BTreeSet<BackendId>),
    /// Start these containers, by id, now.
    Start(BTreeSet<BackendId>),
    /// They could not be started: start them later, again and again until they run or something else is ordered.
    StartLater(BTreeSet<BackendId>),
    /// Stop them at this time, unless something else is decided before.
    StopLater {
        /// The version that replaced them.
        version: String,
        /// Their ids.
        old: BTreeSet<BackendId>,
        /// When, in milliseconds since the machine booted.
        at_ms: i64,
    },
    /// Keep the old backends that were to be stopped later: they are needed again.
    KeepAll,
}

/// The result of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// The new decision, if it changes.
    pub decision: Option<Decision>,
    /// What the daemon has to do.
    pub effects: Vec<Effect>,
}

pub(super) fn decide(decision: &Decision, change: impl FnOnce(&mut Decision)) -> Option<Decision> {
    let mut next = decision.clone();
    change(&mut next);
    if next == *decision {
        return None;
    }
    next.revision = decision.revision.wrapping_add(1);
    Some(next)
}

pub(super) fn done(operation: &mut Operation, name: &str, took_ms: i64, detail: String) {
    let took_us = u64::try_from(took_ms).unwrap_or(0).saturating_mul(1000);
    operation.steps.push(Step { name: name.to_owned(), took_us, detail });
}

/// Ends an operation.
pub fn end(operation: &mut Operation, outcome: Outcome, now: Now, message: impl Into<String>) {
    operation.phase = Phase::Ended;
    operation.end = Some(End { outcome, at_ms: now.wall_ms, message: message.into() });
}

/// Begins an operation that was checked. One that needs no time has ended when this returns. `last` is the operation
/// that a rollback undoes.
pub fn begin(
    operation: &mut Operation,
    view: &View,
    decision: &Decision,
    last: Option<&Operation>,
    now: Now,
) -> Progress {
    let mut progress = Progress::default();
    let mut message = String::new();
    match operation.order.clone() {
        Order::Deploy(order) if order.recreate => return recreate::begin(operation, &order, view, decision, now),
        Order::Deploy(DeployOrder { version, timeout_ms, .. })
        | Order::Canary(CanaryOrder { version, timeout_ms, .. }) => {
            let deadline_ms = now.ms.saturating_add(i64::try_from(timeout_ms).unwrap_or(i64::MAX));
            let backends = u32::try_from(view.present(&version).count()).unwrap_or(u32::MAX);
            operation.phase = Phase::Waiting { since_ms: now.ms, deadline_ms, backends };
            return progress;
        }
        Order::Shift(shift) => {
            progress.decision = decide(decision, |next| shifted(&mut next.traffic, &shift));
            progress.effects.push(Effect::KeepAll);
            message = format!(
                "new connections of {}: {}",
                operation.service,
                words_of(progress.decision.as_ref().unwrap_or(decision))
            );
        }
        Order::Rollback if last.is_some_and(Operation::is_recreating) => {
            return last.map(|last| recreate::roll_back(operation, last, view, decision, now)).unwrap_or_default();
        }
        Order::Rollback if last.is_some_and(|last| matches!(last.order, Order::Wake(_))) => {
            return wake::give_up(operation, decision, now);
        }
        Order::Idle => return idle::begin(operation, decision, now),
        Order::Wake(order) => return wake::begin(operation, order, view, decision, now),
        Order::Rollback => {
            let title = last.map(Operation::title).unwrap_or_default();
            // One that still runs has not kept them.
            if last.is_some_and(|last| last.end.is_some()) {
                progress.effects.push(Effect::KeepAll);
            }
            // A running operation can always be ended, even if there is nothing to restore.
            if let Some(last) = last.filter(|last| check::check_before(view, last).is_ok()) {
                progress.decision = decide(decision, |next| restore(next, last, view));
                let now = words_of(progress.decision.as_ref().unwrap_or(decision));
                message = format!("{} is as it was before {title}: {now}", operation.service);
            } else {
                message =
                    format!("{title} is ended; no backend that served before is ready, so traffic stays as it is");
            }
        }
        Order::Drain(order) => {
            if let Ok(part) = check::check_part(view, &order.part()) {
                message = format!("{} gets no new connections", view.title(&part));
                let members = drain::members(view, &part);
                progress.decision = decide(decision, |next| _ = next.drained.insert(part));
                if let Some(timeout_ms) = order.drain_timeout_ms {
                    operation.phase = drain::draining(members, timeout_ms, view, now);
                    if let Phase::Draining { has_drained, .. } = &mut operation.phase {
                        *has_drained = progress.decision.is_some();
                    }
                    return progress;
                }
            }
        }
        Order::Resume(part) => {
            if let Ok(part) = check::drained_part(view, decision, &part) {
                message = format!("{} gets new connections again", view.title(&part));
                progress.decision = decide(decision, |next| _ = next.drained.remove(&part));
            }
        }
        Order::Pause(order) => {
            let until_ms = order.max_ms.map(|max_ms| now.ms.saturating_add(i64::try_from(max_ms).unwrap_or(i64::MAX)));
            progress.decision = decide(decision, |next| (next.paused, next.pause_until_ms) = (true, until_ms));
            message = format!("new connections to {} wait", operation.service);
        }
        Order::Unpause => {
            progress.decision = decide(decision, |next| (next.paused, next.pause_until_ms) = (false, None));
            message = format!("new connections to {} are served again", operation.service);
        }
        Order::Forget => {
            progress.decision = decide(decision, |next| {
                next.traffic = Traffic::default();
                next.drained.clear();
            });
            progress.effects.push(Effect::KeepAll);
            message = format!("{} has no backend any more: its shares, networks and drains end", operation.service);
        }
    }
    end(operation, Outcome::Done, now, message);
    progress
}

/// Restores the traffic and the drains from before an operation.
pub(super) fn restore(decision: &mut Decision, operation: &Operation, view: &View) {
    decision.traffic = operation.before.clone();
    decision.drained.extend(operation.undrained.iter().cloned());
    if let (Order::Drain(order), Phase::Draining { has_drained: true, .. }) = (&operation.order, &operation.phase)
        && let Ok(part) = check::check_part(view, &order.part())
    {
        decision.drained.remove(&part);
    }
}

fn shifted(traffic: &mut Traffic, shift: &ShiftOrder) {
    if shift.balance {
        traffic.weights = None;
    }
    if !shift.weights.is_empty() {
        traffic.weights = Some(shift.weights.clone());
    }
    traffic.from.retain(|network, _| !shift.not_from.contains(network));
    traffic.from.extend(shift.from.clone());
}

/// Where new connections go, for messages.
fn words_of(decision: &Decision) -> String {
    let mut words = match &decision.traffic.weights {
        None => "all versions share".to_owned(),
        Some(weights) => {
            let given = weights.iter().filter(|(_, weight)| **weight > 0);
            given.map(|(version, weight)| format!("{version}={weight}")).collect::<Vec<_>>().join(" ")
        }
    };
    for (network, version) in &decision.traffic.from {
        words.push_str(&format!(", {network} to {version}"));
    }
    words
}

/// The next step of an operation, if it is due.
pub fn step(operation: &mut Operation, view: &View, decision: &Decision, now: Now) -> Progress {
    if operation.end.is_some() {
        return Progress::default();
    }
    let mut progress = match operation.order.clone() {
        _ if operation.recreation.is_some() => recreate::step(operation, view, decision, now),
        Order::Deploy(order) => deploy::step(operation, &order, view, decision, now),
        Order::Canary(order) => canary::step(operation, &order, view, decision, now),
        Order::Drain(order) => drain::step(operation, &order, view, now),
        Order::Idle => idle::step(operation, view, decision, now),
        Order::Wake(_) => wake::step(operation, view, decision, now),
        _ => Progress::default(),
    };
    // Those that an earlier deploy was to stop later may be the ones that serve now. If this one has failed, they still are to be stopped.
    let has_moved = operation.end.as_ref().is_some_and(|end| matches!(end.outcome, Outcome::Done | Outcome::Left));
    if has_moved && operation.moves_traffic() {
        progress.effects.insert(0, Effect::KeepAll);
    }
    progress
}

/// Whether the wanted backends of a version are ready, and have been for a while: so many, or all that are there and at least so many as
/// there were. At the deadline the operation fails.
pub(super) fn is_ready(
    operation: &mut Operation,
    view: &View,
    version: &str,
    wanted: Result<u32, u32>,
    (since_ms, deadline_ms): (i64, i64),
    now: Now,
) -> bool {
    let present = view.present(version).count();
    let wanted = wanted.map_or_else(|were| present.max(were as usize).max(1), |wanted| wanted as usize);
    let stable = view
        .able(version)
        .filter(|(_, backend)| backend.ready_since_ms.is_some_and(|since| now.ms.saturating_sub(since) >= STABLE_MS))
        .filter(|(_, backend)| backend.steered);
    let ready = stable.count();
    let uncovered = view.uncovered(&[version]);
    if ready >= wanted && uncovered.is_none() {
        let took_ms = now.ms - since_ms;
        let detail = format!("{ready} of {wanted} backends of {version}");
        done(operation, "ready", took_ms, detail);
        return true;
    }
    if now.ms >= deadline_ms {
        let after = words::time(now.ms - since_ms);
        let why = match uncovered {
            Some(title) if ready >= wanted => {
                format!("{version} does not listen for {title}, although other versions do")
            }
            _ => reasons(view, version),
        };
        let service = &operation.service;
        let message = format!(
            "{ready} of {wanted} backends of {version} are ready after {after}: {why}; nothing has changed: wait longer with \
                     --timeout, or see pod-steer status {service}"
        );
        end(operation, Outcome::Failed, now, message);
    }
    false
}

/// Why backends of a version are not ready.
pub(super) fn reasons(view: &View, version: &str) -> String {
    let of_version =
        view.backends.values().filter(|backend| backend.version == version && !backend.state.could_serve());
    let mut reasons: Vec<String> = of_version
        .map(|backend| {
            let name = &backend.name;
            match (backend.state, &backend.condition) {
                (State::Created, _) => format!("{name} has not been started"),
                (State::Stopping, _) => format!("{name} was told to stop"),
                (State::NotListening, Some(condition)) => format!("{name}: {condition}"),
                _ => format!("{name} is {}{}", backend.state.word(), backend.condition_in_brackets()),
            }
        })
        .collect();
    if reasons.is_empty() {
        let there = view.present(version).count();
        reasons.push(format!("there are {there}, but they have not been ready for long enough"));
    }
    reasons.join(", ")
}

pub(super) fn roll_back(
    operation: &mut Operation,
    view: &View,
    decision: &Decision,
    now: Now,
    reason: String,
) -> Progress {
    let decision = decide(decision, |next| restore(next, operation, view));
    let message = format!("{reason}; {} is as it was before", operation.service);
    end(operation, Outcome::WentBack, now, message);
    Progress { decision, effects: Vec::new() }
}

pub(super) fn can_serve(view: &View, id: &str) -> bool {
    view.backends.get(id).is_some_and(|backend| backend.state.could_serve())
}

/// Number of connections that backends hold.
pub(super) fn live(view: &View, ids: &BTreeSet<BackendId>) -> u64 {
    ids.iter().filter_map(|id| view.backends.get(id)).map(|backend| backend.live).sum()
}
