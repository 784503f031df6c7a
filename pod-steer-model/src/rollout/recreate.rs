//! A deploy of an application that must never run twice: its clients are held, the old version ends, the new one is started, and gets
//! the held clients as soon as it listens. If it fails, it is stopped, the old version is started again, and gets them.
//!
//! The phases are `Draining`, `Stopping` and `Starting`; on the way back `Stopping` and `Starting` again. A service is paused from the
//! first of them until it is served again, so a killed daemon leaves its clients held.

mod back;
mod check;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub(super) use back::roll_back;
pub(super) use check::{check, is_alone, no_rollback};

use super::{
    BackendView, Decision, DeployOrder, Operation, Order, Outcome, Phase, View,
    deploy::{AGAIN_MS, stop_max_ms, take_over},
    drain,
    step::{Effect, Progress, decide, done, end, reasons},
    words,
};
use crate::{
    ids::BackendId,
    state::{Coverage, State},
    time::Now,
};
use back::{because, finish_back, go_back, started_again};

/// What is replaced by what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Recreation {
    /// The version that is to take over.
    pub version: String,
    /// How many of its backends must be ready.
    pub wanted: u32,
    /// Ids of its containers.
    pub new: BTreeSet<BackendId>,
    /// Ids of the backends of the other versions that ran.
    pub old: BTreeSet<BackendId>,
    /// Where clients were served before it.
    pub ports: BTreeSet<String>,
    /// How long a version may take to be ready, in milliseconds.
    pub timeout_ms: u64,
    /// Since when clients have been held, in milliseconds since 1970.
    pub since_ms: i64,
    /// When its phase began, in milliseconds since 1970.
    pub phase_ms: i64,
    /// Number of old connections that were open when the old version was told to stop.
    pub left: u64,
    /// Why the old version is put back, if it is.
    pub reason: Option<String>,
}

impl Recreation {
    pub(super) fn times(&mut self) -> impl Iterator<Item = &mut i64> {
        [&mut self.since_ms, &mut self.phase_ms].into_iter()
    }
}

impl Operation {
    /// Whether it is replacing a version, or putting it back.
    pub fn is_recreating(&self) -> bool {
        self.recreation.is_some() && self.phase != Phase::Ended
    }
}

/// Whether a backend has processes, or may have.
fn is_up(backend: &BackendView) -> bool {
    backend.is_starting || !matches!(backend.state, State::Created | State::Exited)
}

fn of_others<'a>(view: &'a View, version: &'a str) -> impl Iterator<Item = (&'a BackendId, &'a BackendView)> {
    view.backends.iter().filter(move |(_, backend)| backend.version != version && is_up(backend))
}

fn names<'a>(backends: impl Iterator<Item = &'a BackendView>) -> String {
    backends.map(|backend| backend.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Number of backends that must be ready: as many as ran before.
fn wanted(view: &View, order: &DeployOrder) -> u32 {
    let others = of_others(view, &order.version).count().max(1);
    order.backends.unwrap_or(u32::try_from(others).unwrap_or(u32::MAX))
}

/// Holds clients, and lets the connections of the old version end.
pub(super) fn begin(
    operation: &mut Operation,
    order: &DeployOrder,
    view: &View,
    decision: &Decision,
    now: Now,
) -> Progress {
    let version = &order.version;
    let old: BTreeSet<BackendId> = of_others(view, version).map(|(id, _)| id.clone()).collect();
    let is_new = |backend: &BackendView| backend.version == *version && backend.can_start;
    let new = view.backends.iter().filter(|(_, backend)| is_new(backend)).map(|(id, _)| id.clone());
    operation.recreation = Some(Recreation {
        version: version.clone(),
        wanted: wanted(view, order),
        new: new.collect(),
        old: old.clone(),
        ports: view.coverage.iter().map(Coverage::title).collect(),
        timeout_ms: order.timeout_ms,
        since_ms: now.ms,
        phase_ms: now.ms,
        left: 0,
        reason: None,
    });
    operation.phase = drain::draining(old, order.drain_timeout_ms, view, now);
    let until_ms = order.max_hold_ms.map(|max_ms| now.ms.saturating_add(i64::try_from(max_ms).unwrap_or(i64::MAX)));
    let decision = decide(decision, |next| (next.paused, next.pause_until_ms) = (true, until_ms));
    Progress { decision, effects: Vec::new() }
}

/// After a restart of the daemon: its engine may not have heard that a version is to be started.
pub fn resume(operation: &mut Operation) {
    if let Phase::Starting { told, .. } = &mut operation.phase {
        *told = false;
    }
}

pub(super) fn step(operation: &mut Operation, view: &View, decision: &Decision, now: Now) -> Progress {
    let Some(recreation) = operation.recreation.clone() else { return Progress::default() };
    match operation.phase.clone() {
        Phase::Draining { old, .. } => {
            let Some(remaining) = drain::wait(operation, view, now) else { return Progress::default() };
            change(operation, now, |recreation| recreation.left = remaining.left);
            stop(operation, view, old, now)
        }
        Phase::Stopping { old, deadline_ms, again_ms: Some(again_ms) } => {
            if now.ms < again_ms {
                return Progress::default();
            }
            let up = up_of(view, &old);
            // It may run only after it was told to stop.
            let again_ms = is_any_starting(view, &old).then(|| now.ms.saturating_add(AGAIN_MS));
            operation.phase = Phase::Stopping { old, deadline_ms, again_ms };
            let effects = if up.is_empty() { Vec::new() } else { vec![Effect::Stop(up)] };
            Progress { effects, ..Progress::default() }
        }
        Phase::Stopping { old, deadline_ms, again_ms: None } => {
            let up = up_of(view, &old);
            if up.is_empty() {
                let took_ms = now.ms.saturating_sub(recreation.phase_ms);
                done(operation, "stopped", took_ms, words::count(old.len() as u64, "backend"));
                start(operation, now);
            } else if now.ms >= deadline_ms {
                let names = names(up.iter().filter_map(|id| view.backends.get(id)));
                if recreation.reason.is_none() {
                    return go_back(operation, view, decision, now, format!("{names} did not stop"));
                }
                let message =
                    format!("{}; {names} did not stop, so the old version was not started again", because(&recreation));
                return finish_back(operation, decision, now, message);
            }
            Progress::default()
        }
        Phase::Starting { since_ms, deadline_ms, told: false } => {
            operation.phase = Phase::Starting { since_ms, deadline_ms, told: true };
            let wanted = if recreation.reason.is_some() {
                recreation.old
            } else {
                let others: BTreeSet<BackendId> =
                    of_others(view, &recreation.version).map(|(id, _)| id.clone()).collect();
                // Something has started one of them again.
                if !others.is_empty() {
                    change(operation, now, |recreation| recreation.old.extend(others.iter().cloned()));
                    return stop(operation, view, others, now);
                }
                recreation.new
            };
            let is_down = |id: &BackendId| view.backends.get(id).is_some_and(|one| one.can_start && !is_up(one));
            let down: BTreeSet<BackendId> = wanted.into_iter().filter(is_down).collect();
            let effects = if down.is_empty() { Vec::new() } else { vec![Effect::Start(down)] };
            Progress { effects, ..Progress::default() }
        }
        Phase::Starting { since_ms, deadline_ms, told: true } => {
            let within = (since_ms, deadline_ms);
            match recreation.reason {
                None => started(operation, &recreation, view, decision, within, now),
                Some(_) => started_again(operation, &recreation, view, decision, deadline_ms, now),
            }
        }
        Phase::Waiting { .. } | Phase::Stepping { .. } | Phase::Ended => Progress::default(),
    }
}

fn change(operation: &mut Operation, now: Now, change: impl FnOnce(&mut Recreation)) {
    if let Some(recreation) = &mut operation.recreation {
        recreation.phase_ms = now.ms;
        change(recreation);
    }
}

fn up_of(view: &View, ids: &BTreeSet<BackendId>) -> BTreeSet<BackendId> {
    ids.iter().filter(|id| view.backends.get(*id).is_some_and(is_up)).cloned().collect()
}

fn is_any_starting(view: &View, ids: &BTreeSet<BackendId>) -> bool {
    ids.iter().filter_map(|id| view.backends.get(id)).any(|backend| backend.is_starting)
}

/// Tells backends to stop, also those that have ended: their engine may be restarting them.
fn stop(operation: &mut Operation, view: &View, ids: BTreeSet<BackendId>, now: Now) -> Progress {
    let has_exited = |id: &BackendId| view.backends.get(id).is_some_and(|backend| backend.state == State::Exited);
    let is_uncertain = ids.iter().any(has_exited) || is_any_starting(view, &ids);
    let again_ms = is_uncertain.then(|| now.ms.saturating_add(AGAIN_MS));
    let deadline_ms = now.ms.saturating_add(stop_max_ms(view, &ids));
    operation.phase = Phase::Stopping { old: ids.clone(), deadline_ms, again_ms };
    Progress { effects: vec![Effect::Stop(ids)], ..Progress::default() }
}

fn start(operation: &mut Operation, now: Now) {
    let timeout_ms = operation.recreation.as_ref().map_or(0, |recreation| recreation.timeout_ms);
    let deadline_ms = now.ms.saturating_add(i64::try_from(timeout_ms).unwrap_or(i64::MAX));
    operation.phase = Phase::Starting { since_ms: now.ms, deadline_ms, told: false };
    change(operation, now, |_| {});
}

/// The first place of those where clients were served before that no version of these serves.
fn unserved<'a>(recreation: &'a Recreation, view: &View, is_one: impl Fn(&str) -> bool) -> Option<&'a String> {
    let serves = |port: &&String| {
        let mut there = view.coverage.iter().filter(|coverage| coverage.title() == **port);
        there.any(|coverage| coverage.versions.iter().any(|version| is_one(version)))
    };
    recreation.ports.iter().find(|port| !serves(port))
}

/// The new version was started: it takes over at the instant when it can.
fn started(
    operation: &mut Operation,
    recreation: &Recreation,
    view: &View,
    decision: &Decision,
    (since_ms, deadline_ms): (i64, i64),
    now: Now,
) -> Progress {
    let version = &recreation.version;
    let failed = recreation.new.iter().find_map(|id| match view.backends.get(id) {
        None => Some(format!("a container of {version} was removed")),
        Some(backend) => backend.start_failure.as_ref().map(|failure| format!("{} {failure}", backend.name)),
    });
    if let Some(reason) = failed {
        return go_back(operation, view, decision, now, reason);
    }
    let ready = view.able(version).filter(|(_, backend)| backend.steered).count();
    let unserved = unserved(recreation, view, |other| other == version);
    let allows_drop = matches!(&operation.order, Order::Deploy(order) if order.allow_drop);
    let stranded = view.without_heir.as_ref().filter(|_| !allows_drop);
    if ready >= recreation.wanted as usize && unserved.is_none() && stranded.is_none() {
        let detail = format!("{ready} of {} backends of {version}", recreation.wanted);
        done(operation, "ready", now.ms.saturating_sub(since_ms), detail);
        return finish(operation, recreation, view, decision, now);
    }
    if now.ms < deadline_ms {
        return Progress::default();
    }
    let why = match (unserved, stranded) {
        _ if ready < recreation.wanted as usize => reasons(view, version),
        (Some(title), _) => format!("{version} does not listen for {title}, as the old version did"),
        (None, Some(place)) => format!("clients are held at {place}, and no listener of {version} could get them"),
        (None, None) => String::new(),
    };
    let after = words::time(now.ms.saturating_sub(since_ms));
    let reason = format!("{ready} of {} backends of {version} are ready after {after}: {why}", recreation.wanted);
    go_back(operation, view, decision, now, reason)
}

/// Gives the new version everything, and it gets the clients that were held.
fn finish(operation: &mut Operation, recreation: &Recreation, view: &View, decision: &Decision, now: Now) -> Progress {
    let version = &recreation.version;
    let next = take_over(operation, version, view, decision);
    let decision = decide(decision, |to| {
        if let Some(next) = &next {
            (to.traffic, to.drained) = (next.traffic.clone(), next.drained.clone());
        }
        (to.paused, to.pause_until_ms) = (false, None);
    });
    let mut message =
        format!("{version} has all connections of {}; {}", operation.service, held(recreation, view, now));
    let outcome = if recreation.left == 0 { Outcome::Done } else { Outcome::Left };
    if recreation.left > 0 {
        let left = words::count(recreation.left, "old connection");
        message.push_str(&format!("; {left} remained when the old version was told to stop"));
    }
    end(operation, outcome, now, message);
    Progress { decision, effects: Vec::new() }
}

fn held(recreation: &Recreation, view: &View, now: Now) -> String {
    let time = words::time(now.ms.saturating_sub(recreation.since_ms));
    format!("clients were held for {time}, {} at the end", view.held)
}
