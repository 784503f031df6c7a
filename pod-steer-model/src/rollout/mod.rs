//! An operator's decisions about a service, and the steps in which they are carried out. Pure: facts and the time come
//! in, the next state goes out. The daemon stores it, then acts on it.

mod already;
mod canary;
mod check;
mod decision;
mod deploy;
mod drain;
mod idle;
mod judged;
mod pause;
mod recreate;
mod step;
#[cfg(test)]
mod tests;
mod types;
mod wake;
mod words;

use std::collections::BTreeMap;

pub use already::already;
pub use canary::CanaryOrder;
pub use check::{Refusal, check};
pub use decision::{Decision, Part, Policy, Traffic};
pub use drain::{
    AtDeadline, Closes, Closing, DrainOrder, OfService, closing, note_closed, note_connections, note_reset, resetting,
};
pub use idle::{Asleep, Quiet};
pub use judged::Watch;
pub use pause::PauseOrder;
pub use recreate::{Recreation, resume};
pub use step::{Effect, Progress, begin, end, step};
pub use types::*;
pub use wake::{WakeOrder, failures as wake_failures};

use crate::{
    condition::Condition,
    ids::BackendId,
    judge::Compared,
    state::{Coverage, State},
};

/// A service as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Its name.
    pub service: String,
    /// Its backends, by id.
    pub backends: BTreeMap<BackendId, BackendView>,
    /// The ports that its clients use, and the versions that serve each.
    pub coverage: Vec<Coverage>,
    /// Number of clients that are held.
    pub held: u64,
    /// Where clients are held that no server could get.
    pub without_heir: Option<String>,
    /// Another order waits until it does not sleep.
    pub is_wanted: bool,
    /// Not all of its containers may be known: an engine cannot be reached.
    pub is_partial: bool,
    /// Why it cannot be put to sleep, if it is about to be.
    pub cannot_sleep: Option<String>,
    /// How a version that is tried treats its clients in its present step, beside the others; nothing if it is not observed.
    pub compared: Option<Box<Compared>>,
}

/// A backend as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendView {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its state.
    pub state: State,
    /// Since when it could get new connections, in milliseconds since the machine booted.
    pub ready_since_ms: Option<i64>,
    /// Connections that it holds.
    pub live: u64,
    /// Why its connections are not known, if they are not.
    pub uncounted: Option<String>,
    /// Whether its network namespace is steered; false while a lost link is being attached again.
    pub steered: bool,
    /// Number of clients that its full accept queue has turned away since the queue was first inspected.
    pub overflows: u64,
    /// Its weight; with zero it gets no new connections.
    pub weight: u32,
    /// Whether it has ever got a connection.
    pub has_served: bool,
    /// Whether it can be told to stop; false for a process that was only adopted.
    pub can_stop: bool,
    /// How long it may take to stop, in milliseconds; `None` if it is never killed.
    pub stop_ms: Option<i64>,
    /// Whether its engine can start it; false for a process.
    pub can_start: bool,
    /// Whether its engine removes it when it ends.
    pub is_transient: bool,
    /// Its engine was told to stop it, and could not be reached.
    pub stop_unanswered: bool,
    /// Its engine was told to start it, and could be reached.
    pub told_to_start: bool,
    /// Its engine was told to start it, and it has neither been seen to run nor failed.
    pub is_starting: bool,
    /// Why it does not run although its engine was told to start it.
    pub start_failure: Option<String>,
    /// The condition that keeps it from serving.
    pub condition: Option<Condition>,
}

impl BackendView {
    fn condition_in_brackets(&self) -> String {
        self.condition.as_ref().map(|condition| format!(" ({condition})")).unwrap_or_default()
    }
}

impl View {
    /// Backends of a version that run, or are about to.
    pub fn present<'a>(&'a self, version: &'a str) -> impl Iterator<Item = (&'a BackendId, &'a BackendView)> {
        self.backends.iter().filter(move |(_, backend)| backend.version == version && backend.state.is_present())
    }

    /// Backends of a version that could get new connections if they were not drained.
    pub fn able<'a>(&'a self, version: &'a str) -> impl Iterator<Item = (&'a BackendId, &'a BackendView)> {
        self.present(version).filter(|(_, backend)| backend.state.could_serve())
    }

    /// Backends of a version that could get new connections.
    pub fn ready<'a>(&'a self, version: &'a str) -> impl Iterator<Item = (&'a BackendId, &'a BackendView)> {
        self.able(version).filter(|(_, backend)| backend.state.is_ready())
    }

    /// Whether a version has a backend that new connections would go to. One of the weight 0 gets none.
    pub fn would_serve(&self, version: &str) -> bool {
        self.ready(version).any(|(_, backend)| backend.weight > 0)
    }

    /// A port on which clients are served and none of these versions listens.
    pub fn uncovered(&self, versions: &[&str]) -> Option<String> {
        let covered = |coverage: &&Coverage| versions.iter().any(|version| coverage.versions.contains(*version));
        self.coverage.iter().find(|coverage| !covered(coverage)).map(Coverage::title)
    }

    /// The name of a part in messages.
    pub fn title(&self, part: &Part) -> String {
        match part {
            Part::Service => self.service.clone(),
            Part::Version(version) => format!("version {version} of {}", self.service),
            Part::Backend(id) => {
                let name = self.backends.get(id).map_or(id.as_str(), |backend| &backend.name);
                format!("backend {name} of {}", self.service)
            }
        }
    }

    /// The existing versions, for messages.
    pub fn versions(&self) -> Vec<&str> {
        let mut versions: Vec<&str> = self.backends.values().map(|backend| backend.version.as_str()).collect();
        versions.sort_unstable();
        versions.dedup();
        versions
    }
}

/// The operation that a rollback undoes, of the operations of a service, oldest first: the last one that moved traffic
/// and has not been rolled back.
pub fn behind(history: &[Operation]) -> Option<&Operation> {
    let mut rolled_back = 0;
    let mut later: Option<&Operation> = None;
    for operation in history.iter().rev() {
        let is_ended_by_rollback = later.replace(operation).is_some_and(|later| later.order == Order::Rollback);
        let outcome = operation.end.as_ref().map(|end| end.outcome);
        match (&operation.order, outcome) {
            (Order::Rollback, Some(Outcome::Done)) => rolled_back += 1,
            // The traffic before it belongs to backends that are gone.
            (Order::Forget, _) => return None,
            (_, Some(Outcome::Done | Outcome::Left | Outcome::Aborted)) if operation.can_be_undone() => {
                if rolled_back == 0 {
                    return Some(operation);
                }
                rolled_back -= 1;
            }
            // That rollback had nothing else to undo: a drain, or a deploy of what served already.
            (_, Some(Outcome::Aborted)) if is_ended_by_rollback && rolled_back > 0 => rolled_back -= 1,
            _ => {}
        }
    }
    None
}
