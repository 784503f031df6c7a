//! A deploy of an application that must never run twice: its clients are held, the old version ends, the new one is started, and gets
//! the held clients as soon as it listens. If it fails, it is stopped, the old version is started again, and gets them.
//!
//! The phases are `Draining`, `Stopping` and `Starting`; on the way back `Stopping` and `Starting` again. A service is paused from the
//! first of them until it is served again, so a killed daemon leaves its clients held.

mod back;
mod check;
mod start;
mod stop;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub(super) use back::roll_back;
pub(super) use check::{check, is_alone, no_rollback};
pub(super) use stop::{stop, tell_again, up_of};

use super::{
    BackendView, Decision, DeployOrder, Operation, Outcome, Phase, View,
    deploy::take_over,
    drain,
    step::{Progress, can_serve, decide, end},
    words,
};
use crate::{
    ids::BackendId,
    state::{Coverage, State},
    time::Now,
};
use start::starting;
use stop::stopping;

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
    /// Ids of those of them that could not serve then: clients do not wait for them on the way back.
    #[serde(default)]
    pub idle: BTreeSet<BackendId>,
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

    /// Whether clients are held until it has ended.
    pub fn holds_clients(&self) -> bool {
        self.is_recreating() || self.is_of_sleep() && self.phase != Phase::Ended
    }
}

/// Whether a backend has processes, or may have.
pub(super) fn is_up(backend: &BackendView) -> bool {
    backend.is_starting || !matches!(backend.state, State::Created | State::Exited)
}

fn of_others<'a>(view: &'a View, version: &'a str) -> impl Iterator<Item = (&'a BackendId, &'a BackendView)> {
    view.backends.iter().filter(move |(_, backend)| backend.version != version && is_up(backend))
}

pub(super) fn names<'a>(backends: impl Iterator<Item = &'a BackendView>) -> String {
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
    let idle = old.iter().filter(|id| !can_serve(view, id)).cloned().collect();
    let is_new = |backend: &BackendView| backend.version == *version && backend.can_start;
    let new = view.backends.iter().filter(|(_, backend)| is_new(backend)).map(|(id, _)| id.clone());
    operation.recreation = Some(Recreation {
        version: version.clone(),
        wanted: wanted(view, order),
        new: new.collect(),
        old: old.clone(),
        idle,
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
        Phase::Stopping { old, deadline_ms, again_ms } => {
            stopping(operation, &recreation, view, decision, (old, deadline_ms, again_ms), now)
        }
        Phase::Starting { .. } => starting(operation, &recreation, view, decision, now),
        Phase::Waiting { .. } | Phase::Stepping { .. } | Phase::Ended => Progress::default(),
    }
}

fn change(operation: &mut Operation, now: Now, change: impl FnOnce(&mut Recreation)) {
    if let Some(recreation) = &mut operation.recreation {
        recreation.phase_ms = now.ms;
        change(recreation);
    }
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
