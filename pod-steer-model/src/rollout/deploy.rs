//! A deploy: wait until the version is ready, move everything at once, let old connections end, stop the old backends.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    BackendView, Decision, DeployOrder, Operation, Outcome, Part, Phase, Traffic, View, Watch,
    check::check_before,
    drain::{self, Remaining},
    judged::{failure, look, stepping},
    step::{Effect, Progress, can_serve, decide, done, end, is_ready, restore, roll_back},
    words,
};
use crate::{ids::BackendId, state::State, time::Now};

/// Minimum time that old backends may take to stop. For one that is never killed, this is all of it.
const STOP_MIN_MS: i64 = 60_000;
/// Time that an engine takes at most to start a container again that it restarts.
pub(super) const AGAIN_MS: i64 = 1_000;
/// Time that an engine may take to answer, in addition.
const STOP_MARGIN_MS: i64 = 10_000;

pub(super) fn step(
    operation: &mut Operation,
    order: &DeployOrder,
    view: &View,
    decision: &Decision,
    now: Now,
) -> Progress {
    match operation.phase.clone() {
        Phase::Waiting { since_ms, deadline_ms, backends } => {
            let wanted = order.backends.ok_or(backends);
            if is_ready(operation, view, &order.version, wanted, (since_ms, deadline_ms), now) {
                let Some(watch) = &order.watch else { return switch(operation, order, view, decision, now) };
                operation.phase = stepping(BEFORE, &order.version, view, watch.before_ms(), now);
            }
            Progress::default()
        }
        Phase::Stepping { .. } => match &order.watch {
            Some(watch) => watched_step(operation, order, watch, view, decision, now),
            None => Progress::default(),
        },
        Phase::Draining { old, .. } => {
            if view.able(&order.version).next().is_none() && old.iter().any(|id| can_serve(view, id)) {
                let reason = format!("no backend of {} is ready any more", order.version);
                return roll_back(operation, view, decision, now, reason);
            }
            let Some(remaining) = drain::wait(operation, view, now) else { return Progress::default() };
            let can_stop = |id: &BackendId| view.backends.get(id).is_some_and(|backend| backend.can_stop);
            let old = old.into_iter().filter(can_stop).collect();
            drained(operation, order, view, old, &remaining, now)
        }
        Phase::Stopping { old, deadline_ms, again_ms } if is_lost(view, decision, &order.version) => {
            start_again(operation, order, view, decision, (old, deadline_ms, again_ms), now)
        }
        Phase::Stopping { old, deadline_ms, again_ms: Some(again_ms) } => {
            if now.ms < again_ms {
                return Progress::default();
            }
            let is_up = |id: &&BackendId| view.backends.get(*id).is_some_and(|backend| backend.state.is_present());
            let up: BTreeSet<BackendId> = old.iter().filter(is_up).cloned().collect();
            operation.phase = Phase::Stopping { old, deadline_ms, again_ms: None };
            let effects = if up.is_empty() { Vec::new() } else { vec![Effect::Stop(up)] };
            Progress { effects, ..Progress::default() }
        }
        Phase::Stopping { old, deadline_ms, again_ms: None } => {
            let running = |id: &&BackendId| view.backends.get(*id).is_some_and(|b| b.state != State::Exited);
            let running = old.iter().filter(running).count() as u64;
            if running == 0 {
                done(operation, "stopped", 0, words::count(old.len() as u64, "backend"));
                conclude(operation, order, &Remaining::default(), now);
            } else if now.ms >= deadline_ms {
                let message = format!("{} did not stop; the new version serves", words::count(running, "old backend"));
                end(operation, Outcome::Left, now, message);
            }
            Progress::default()
        }
        Phase::Starting { .. } | Phase::Ended => Progress::default(),
    }
}

/// The step of a watched deploy in which the old version is observed, before the switch. In each later one it is compared with the new one.
const BEFORE: usize = 0;

fn watched_step(
    operation: &mut Operation,
    order: &DeployOrder,
    watch: &Watch,
    view: &View,
    decision: &Decision,
    now: Now,
) -> Progress {
    let Phase::Stepping { step, watched, since_ms, next_ms, .. } = operation.phase.clone() else {
        return Progress::default();
    };
    let is_over = now.ms >= next_ms;
    // One that was drained when the step began is not watched.
    let is_gone = view.able(&order.version).next().is_none();
    let reason = failure(view, &watched, since_ms)
        .or_else(|| is_gone.then(|| format!("no backend of {} is ready any more", order.version)));
    let next = |step: usize| stepping(step, &order.version, view, watch.before_ms(), now);
    if step == BEFORE {
        if let Some(reason) = reason {
            end(operation, Outcome::Failed, now, format!("{reason}; nothing has changed"));
        } else if is_over {
            done(operation, "observed", now.ms - since_ms, "the old version, before the switch".to_owned());
            let decision = take_over(operation, &order.version, view, decision);
            operation.phase = next(step + 1);
            return Progress { decision, effects: Vec::new() };
        }
        return Progress::default();
    }
    let reason = reason.filter(|_| check_before(view, operation).is_ok());
    if let Some(reason) = reason.or_else(|| look(operation, view, is_over, now)) {
        return roll_back(operation, view, decision, now, reason);
    }
    if is_over && step < watch.windows() {
        operation.phase = next(step + 1);
    } else if is_over {
        // Versions that have come since the switch have got nothing, and are none of the old ones.
        let old = old_backends(view, &decision.traffic, &order.version);
        operation.phase = drain::draining(old, order.drain_timeout_ms, view, now);
    }
    Progress::default()
}

/// Starts old backends again, because the new version has ended while they stop. One that still stops can be started only when it has
/// ended; until then it serves for as long as it listens.
fn start_again(
    operation: &mut Operation,
    order: &DeployOrder,
    view: &View,
    decision: &Decision,
    (old, deadline_ms, again_ms): (BTreeSet<BackendId>, i64, Option<i64>),
    now: Now,
) -> Progress {
    let is_down = |id: &BackendId| view.backends.get(id).is_none_or(|one| one.state == State::Exited);
    let (down, up): (BTreeSet<BackendId>, BTreeSet<BackendId>) = old.into_iter().partition(is_down);
    let is_over = up.is_empty() || now.ms >= deadline_ms;
    if down.is_empty() && !is_over {
        return Progress::default();
    }
    let can_start = |id: &BackendId| view.backends.get(id).is_some_and(|one| one.can_start);
    let startable: BTreeSet<BackendId> = down.into_iter().filter(can_start).collect();
    let mut progress =
        Progress { decision: decide(decision, |next| restore(next, operation, view)), effects: Vec::new() };
    if is_over {
        let is_there = |one: &BackendView| one.version != order.version && one.state != State::Exited;
        let then = match startable.is_empty() && !view.backends.values().any(is_there) {
            true => "its old backends have ended, and pod-steer cannot start them: start a version",
            false => "the old version is started again",
        };
        let message = format!("no backend of {} is ready any more; {then}", order.version);
        end(operation, Outcome::WentBack, now, message);
    } else {
        operation.phase = Phase::Stopping { old: up, deadline_ms, again_ms };
    }
    if !startable.is_empty() {
        progress.effects.push(Effect::Start(startable));
    }
    progress
}

/// Whether a version that has got everything has ended, or had: then the traffic from before is back already.
fn is_lost(view: &View, decision: &Decision, version: &str) -> bool {
    view.able(version).next().is_none() || !decision.traffic.is_all_of(version)
}

/// The backends that a version replaces, when this was the traffic. One that waits, and has never got a connection, is none: another version
/// that is deployed next, perhaps.
fn old_backends(view: &View, traffic: &Traffic, version: &str) -> BTreeSet<BackendId> {
    let is_old = |backend: &BackendView| {
        backend.version != version && (backend.has_served || traffic.has_share(&backend.version))
    };
    view.backends.iter().filter(|(_, backend)| is_old(backend)).map(|(id, _)| id.clone()).collect()
}

fn switch(operation: &mut Operation, order: &DeployOrder, view: &View, decision: &Decision, now: Now) -> Progress {
    let old = old_backends(view, &decision.traffic, &order.version);
    operation.phase = drain::draining(old, order.drain_timeout_ms, view, now);
    let decision = take_over(operation, &order.version, view, decision);
    Progress { decision, effects: Vec::new() }
}

/// Gives a version all connections. Its drains end: it is meant to serve.
pub(super) fn take_over(
    operation: &mut Operation,
    version: &str,
    view: &View,
    decision: &Decision,
) -> Option<Decision> {
    let is_meant = |part: &&Part| match part {
        Part::Service => false,
        Part::Version(drained) => drained == version,
        Part::Backend(id) => view.backends.get(id).is_some_and(|backend| backend.version == version),
    };
    operation.undrained = decision.drained.iter().filter(is_meant).cloned().collect();
    decide(decision, |next| {
        next.traffic = Traffic { weights: Some(BTreeMap::from([(version.to_owned(), 1)])), from: BTreeMap::new() };
        next.drained.retain(|part| !operation.undrained.contains(part));
    })
}

fn drained(
    operation: &mut Operation,
    order: &DeployOrder,
    view: &View,
    old: BTreeSet<BackendId>,
    remaining: &Remaining,
    now: Now,
) -> Progress {
    let mut progress = Progress::default();
    if let Some(keep_ms) = order.keep_old_ms {
        let at_ms = now.ms.saturating_add(i64::try_from(keep_ms).unwrap_or(i64::MAX));
        progress.effects.push(Effect::StopLater { version: order.version.clone(), old, at_ms });
        conclude(operation, order, remaining, now);
    } else if order.stop_old && remaining.is_nothing() {
        let has_exited = |id: &BackendId| view.backends.get(id).is_some_and(|backend| backend.state == State::Exited);
        let again_ms = old.iter().any(has_exited).then(|| now.ms.saturating_add(AGAIN_MS));
        let deadline_ms = now.ms.saturating_add(stop_max_ms(view, &old));
        operation.phase = Phase::Stopping { old: old.clone(), deadline_ms, again_ms };
        progress.effects.push(Effect::Stop(old));
    } else {
        conclude(operation, order, remaining, now);
    }
    progress
}

/// How long all of these may take to stop: until the last one that its engine kills must have ended.
pub(super) fn stop_max_ms(view: &View, old: &BTreeSet<BackendId>) -> i64 {
    let longest = old.iter().filter_map(|id| view.backends.get(id)?.stop_ms).max().unwrap_or(0);
    longest.saturating_add(STOP_MARGIN_MS).max(STOP_MIN_MS)
}

fn conclude(operation: &mut Operation, order: &DeployOrder, remaining: &Remaining, now: Now) {
    let (service, version) = (operation.service.clone(), &order.version);
    let Some(left) = remaining.title("old ") else {
        let reset = match remaining.reset {
            0 => String::new(),
            reset => format!("; {} reset", words::count(reset, "old connection")),
        };
        return end(operation, Outcome::Done, now, format!("{version} has all connections of {service}{reset}"));
    };
    let stopped = if order.stop_old { ", so nothing was stopped" } else { "" };
    let message = format!("{version} has all new connections of {service}; {left}{stopped}");
    end(operation, Outcome::Left, now, message);
}
