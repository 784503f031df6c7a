//! Starting the containers of a version that is to take over, or of one that is put back.

use std::collections::{BTreeSet, HashMap};

use tracing::{info, warn};

use super::control::Control;
use crate::{
    clock::boot_ms,
    engine::Undone,
    ids::BackendId,
    world::{Backend, Kind, Phase},
};

/// Time within which an engine reports a start that it has confirmed.
const REPORTED_MS: i64 = 2_000;

/// The containers that operations have had started, by id.
pub(super) type Starts = HashMap<BackendId, Start>;

/// A container that its engine was told to start.
#[derive(Clone, Debug)]
pub(super) struct Start {
    /// How often it had run before.
    runs: u32,
    answer: Answer,
}

/// What the engine has answered.
#[derive(Clone, Debug)]
enum Answer {
    /// Nothing yet.
    Awaited,
    /// It has started the container.
    Started {
        /// When, in milliseconds since the machine booted.
        at_ms: i64,
        /// Whether it has described the container since.
        is_described: bool,
    },
    /// It could not be reached, or the connection broke off.
    Missing,
    /// It cannot start the container, and why.
    Refused(String),
}

impl Start {
    fn new(runs: u32) -> Self {
        Self { runs, answer: Answer::Awaited }
    }

    fn answered(&mut self, started: Result<(), Undone>, now_ms: i64) {
        self.answer = match started {
            Ok(()) => Answer::Started { at_ms: now_ms, is_described: false },
            Err(error) if error.is_without_answer => Answer::Missing,
            Err(error) => Answer::Refused(error.message),
        };
    }

    /// The engine has described the container as it is now.
    pub(super) fn was_described(&mut self) {
        if let Answer::Started { is_described, .. } = &mut self.answer {
            *is_described = true;
        }
    }

    /// Whether the container, which has run so often, has been seen to run since, or will not be. Nothing is known of it while its engine is
    /// lost.
    fn is_over(&self, runs: u32, is_lost: bool, now_ms: i64) -> bool {
        runs != self.runs
            || match self.answer {
                Answer::Awaited => false,
                Answer::Started { at_ms, is_described } => !is_lost && is_described && now_ms - at_ms >= REPORTED_MS,
                Answer::Missing | Answer::Refused(_) => true,
            }
    }

    /// Whether the engine does not have to be told again.
    fn is_told(&self, runs: u32) -> bool {
        runs != self.runs || !matches!(self.answer, Answer::Missing)
    }

    /// Why the container does not run although its engine was told to start it. `has_exited` is what is known of it now.
    fn failure(&self, (runs, has_exited): (u32, bool), is_lost: bool, now_ms: i64) -> Option<String> {
        match &self.answer {
            Answer::Refused(error) => Some(format!("could not be started: {error}")),
            _ if !self.is_told(runs) => None,
            _ => (has_exited && self.is_over(runs, is_lost, now_ms)).then(|| "has exited".to_owned()),
        }
    }
}

impl Control {
    /// Has their engines start these containers.
    pub(super) fn start_backends(&mut self, ids: &BTreeSet<BackendId>) {
        for id in ids {
            let Some(backend) = self.world.backends.get(id) else { continue };
            if let Kind::Container { engine } = &backend.kind {
                info!(container = %backend.name, "is told to start");
                self.orders.starts.insert(id.clone(), Start::new(backend.runs));
                self.effects.start(engine.clone(), id.clone());
            }
        }
    }

    /// An engine has answered.
    pub(super) fn was_started(&mut self, id: &BackendId, started: Result<(), Undone>) {
        if let Err(error) = &started {
            let name = self.world.backends.get(id).map_or(id.as_str(), |backend| backend.name.as_str());
            warn!(container = %name, %error, "could not be started");
        }
        let is_started = started.is_ok();
        if let Some(start) = self.orders.starts.get_mut(id) {
            start.answered(started, boot_ms());
            if is_started {
                // Its events may be missed, if the engine is only just reached again.
                self.effects.describe(id.to_string());
            }
        }
    }

    /// Whether an engine was told to start a container, which has neither been seen to run nor failed.
    pub(super) fn is_starting(&self, backend: &Backend) -> bool {
        let start = self.orders.starts.get(&backend.id);
        start.is_some_and(|start| !start.is_over(backend.runs, self.is_engine_lost(backend), boot_ms()))
    }

    /// Whether an engine was told to start a container, and has not failed to answer.
    pub(super) fn told_to_start(&self, backend: &Backend) -> bool {
        self.orders.starts.get(&backend.id).is_some_and(|start| start.is_told(backend.runs))
    }

    /// Why a container does not run although its engine was told to start it.
    pub(super) fn start_failure(&self, backend: &Backend) -> Option<String> {
        let known = (backend.runs, backend.phase == Phase::Exited);
        self.orders.starts.get(&backend.id)?.failure(known, self.is_engine_lost(backend), boot_ms())
    }

    /// Whether the engine of a container cannot be reached.
    pub(super) fn is_engine_lost(&self, backend: &Backend) -> bool {
        matches!(&backend.kind, Kind::Container { engine } if self.engines.lost().contains_key(engine))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undone(is_without_answer: bool) -> Result<(), Undone> {
        Err(Undone { message: "why".to_owned(), is_without_answer })
    }

    #[test]
    fn an_engine_without_an_answer_is_told_again() {
        let mut start = Start::new(1);
        assert!(start.is_told(1) && !start.is_over(1, false, 0));
        start.answered(undone(true), 0);
        assert!(!start.is_told(1) && start.is_over(1, false, 0));
        assert_eq!(start.failure((1, true), false, 10_000), None);
        // It has done so all the same.
        assert!(start.is_told(2));
        assert_eq!(start.failure((2, true), false, 0).as_deref(), Some("has exited"));
        start.answered(undone(false), 0);
        assert_eq!(start.failure((1, true), false, 0).as_deref(), Some("could not be started: why"));
    }

    #[test]
    fn a_container_has_exited_only_if_its_engine_says_so() {
        let mut start = Start::new(1);
        start.was_described();
        start.answered(Ok(()), 0);
        let failure = |start: &Start, is_lost, now_ms| start.failure((1, true), is_lost, now_ms);
        assert_eq!(failure(&start, false, 10_000), None, "it is not described yet");
        start.was_described();
        assert_eq!(
            (failure(&start, true, 10_000), start.is_over(1, true, 10_000)),
            (None, false),
            "its engine is lost"
        );
        assert_eq!(failure(&start, false, REPORTED_MS - 1), None);
        assert_eq!(failure(&start, false, REPORTED_MS).as_deref(), Some("has exited"));
        assert_eq!(start.failure((1, false), false, REPORTED_MS), None, "it runs");
    }
}
