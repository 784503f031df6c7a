//! Falling asleep: a service without clients is held, and then its containers are stopped. `wake` is the way back.
//!
//! The phases are `Waiting` and `Stopping`. A service that sleeps is paused, so all that applies to a pause applies here.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    BackendView, Decision, Operation, Outcome, Phase, Refusal, View,
    check::refuse,
    recreate::{is_up, names, stop, tell_again, up_of},
    step::{Progress, can_serve, decide, done, end},
    words,
};
use crate::{ids::BackendId, state::Coverage, time::Now};

/// How long there must be no connection once new clients are held: the handshakes that servers have begun may take so long.
const QUIET_MS: i64 = 300;
/// How long the last connections may take to end.
const WAIT_MS: i64 = 1_000;

/// A service that sleeps: its containers are stopped, and its clients are held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Asleep {
    /// Since when, in milliseconds since 1970.
    pub since_ms: i64,
    /// Ids of the containers that were stopped.
    pub containers: BTreeSet<BackendId>,
    /// Ids of those of them that could not serve then: clients do not wait for them.
    pub unable: BTreeSet<BackendId>,
    /// Where clients were served before.
    pub ports: BTreeSet<String>,
}

/// Since when a service has had no connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quiet {
    /// Number of connections that its backends had ever got.
    pub opened: u64,
    /// A hash of the rest that it was left in: if that is another one, the time begins anew.
    #[serde(default)]
    pub condition: u64,
    /// Since when, in milliseconds since the machine booted.
    pub since_ms: i64,
}

impl Quiet {
    /// What is known now, by what was known before. So many connections are open.
    pub fn after(self, before: Option<Self>, live: u64) -> Self {
        let goes_on = |before: &Self| {
            live == 0 && Self { since_ms: self.since_ms, ..*before } == self && before.since_ms <= self.since_ms
        };
        before.filter(goes_on).unwrap_or(self)
    }

    /// Whether it has lasted for so long.
    pub fn has_lasted(&self, ms: u64, now_ms: i64) -> bool {
        u64::try_from(now_ms.saturating_sub(self.since_ms)).is_ok_and(|lasted_ms| lasted_ms >= ms)
    }
}

impl Operation {
    /// Whether it puts its service to sleep, or wakes it.
    pub fn is_of_sleep(&self) -> bool {
        matches!(self.order, super::Order::Idle | super::Order::Wake(_))
    }
}

pub(super) fn check(view: &View, decision: &Decision) -> Result<(), Refusal> {
    let service = &view.service;
    if decision.paused {
        return refuse(format!("{service} is paused; end the pause first: pod-steer unpause {service}"));
    }
    if !view.backends.values().any(|backend| backend.state.could_serve()) {
        return refuse(format!("no backend of {service} serves; see why: pod-steer status {service}"));
    }
    match open(view) {
        Some(open) => refuse(format!("{open}, so {service} is not put to sleep; wait until none is left")),
        None => Ok(()),
    }
}

/// Its open connections, or why their number is not known.
fn open(view: &View) -> Option<String> {
    let live: u64 = view.backends.values().map(|backend| backend.live).sum();
    let unknown = |backend: &BackendView| {
        let why = backend.uncounted.as_ref()?;
        Some(format!("the connections of {} are not known ({why})", backend.name))
    };
    match live {
        0 => view.backends.values().find_map(unknown),
        live => Some(format!("{} has {}", view.service, words::count(live, "open connection"))),
    }
}

/// Holds new clients.
pub(super) fn begin(operation: &mut Operation, decision: &Decision, now: Now) -> Progress {
    operation.phase = Phase::Waiting { since_ms: now.ms, deadline_ms: now.ms.saturating_add(WAIT_MS), backends: 0 };
    let decision = decide(decision, |next| (next.paused, next.pause_until_ms) = (true, None));
    Progress { decision, effects: Vec::new() }
}

pub(super) fn step(operation: &mut Operation, view: &View, decision: &Decision, now: Now) -> Progress {
    match operation.phase.clone() {
        Phase::Waiting { since_ms, deadline_ms, .. } => {
            if view.held > 0 {
                return stay_awake(operation, decision, now, "a client came");
            }
            if view.is_wanted {
                return stay_awake(operation, decision, now, "another order was given");
            }
            match open(view) {
                Some(open) if now.ms >= deadline_ms => stay_awake(operation, decision, now, &open),
                None if now.ms >= since_ms.saturating_add(QUIET_MS) => match &view.cannot_sleep {
                    // Another backend may have come since the order was checked.
                    Some(why) => stay_awake(operation, decision, now, why),
                    None => fall_asleep(operation, view, decision, now),
                },
                _ => Progress::default(),
            }
        }
        Phase::Stopping { old, deadline_ms, again_ms } => {
            let up = up_of(view, &old);
            if up.is_empty() && again_ms.is_none() {
                done(operation, "stopped", 0, words::count(old.len() as u64, "container"));
                let message = format!("{} sleeps until a client comes", operation.service);
                end(operation, Outcome::Done, now, message);
                return Progress::default();
            }
            if !up.is_empty() && now.ms >= deadline_ms {
                let names = names(up.iter().filter_map(|id| view.backends.get(id)));
                // It wakes at once, since one of its containers runs.
                end(operation, Outcome::Failed, now, format!("{names} did not stop, so {} wakes", operation.service));
                return Progress::default();
            }
            tell_again(operation, view, (old, deadline_ms, again_ms), now)
        }
        _ => Progress::default(),
    }
}

/// Nothing was stopped: clients are served as before.
fn stay_awake(operation: &mut Operation, decision: &Decision, now: Now, why: &str) -> Progress {
    let decision = decide(decision, |next| (next.paused, next.pause_until_ms) = (false, None));
    end(operation, Outcome::Failed, now, format!("{why}; {} does not sleep", operation.service));
    Progress { decision, effects: Vec::new() }
}

fn fall_asleep(operation: &mut Operation, view: &View, decision: &Decision, now: Now) -> Progress {
    let up: BTreeSet<BackendId> =
        view.backends.iter().filter(|(_, backend)| is_up(backend)).map(|(id, _)| id.clone()).collect();
    let asleep = Asleep {
        since_ms: now.ms,
        containers: up.clone(),
        unable: up.iter().filter(|id| !can_serve(view, id)).cloned().collect(),
        ports: view.coverage.iter().map(Coverage::title).collect(),
    };
    let decision = decide(decision, |next| next.asleep = Some(asleep));
    Progress { decision, ..stop(operation, view, up, now) }
}
