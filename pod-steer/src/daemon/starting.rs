//! Starting the containers of a version that is to take over, or of one that is put back.

use std::collections::{BTreeSet, HashMap};

use tracing::{info, warn};

use super::control::Control;
use crate::{
    clock::boot_ms,
    ids::BackendId,
    world::{Backend, Kind, Phase},
};

/// Time within which an engine reports a start that it has confirmed.
const REPORTED_MS: i64 = 2_000;

/// The containers that operations have had started, by id.
pub(super) type Starts = HashMap<BackendId, Start>;

/// A container that its engine was told to start.
pub(super) struct Start {
    /// How often it had run before.
    runs: u32,
    /// When the engine answered, and why it could not.
    answered: Option<(i64, Result<(), String>)>,
}

impl Start {
    /// Whether the container has been seen to run since, or will not be.
    fn is_over(&self, backend: &Backend) -> bool {
        backend.runs != self.runs
            || match &self.answered {
                Some((at_ms, Ok(()))) => boot_ms() - at_ms >= REPORTED_MS,
                Some((_, Err(_))) => true,
                None => false,
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
                self.orders.starts.insert(id.clone(), Start { runs: backend.runs, answered: None });
                self.effects.start(engine.clone(), id.clone());
            }
        }
    }

    /// An engine has answered.
    pub(super) fn was_started(&mut self, id: &BackendId, started: Result<(), String>) {
        if let Err(error) = &started {
            let name = self.world.backends.get(id).map_or(id.as_str(), |backend| backend.name.as_str());
            warn!(container = %name, %error, "could not be started");
        }
        if let Some(start) = self.orders.starts.get_mut(id) {
            start.answered = Some((boot_ms(), started));
        }
    }

    /// Whether an engine was told to start a container, which has neither been seen to run nor failed.
    pub(super) fn is_starting(&self, backend: &Backend) -> bool {
        self.orders.starts.get(&backend.id).is_some_and(|start| !start.is_over(backend))
    }

    /// Why a container does not run although its engine was told to start it.
    pub(super) fn start_failure(&self, backend: &Backend) -> Option<String> {
        let start = self.orders.starts.get(&backend.id)?;
        if let Some((_, Err(error))) = &start.answered {
            return Some(format!("could not be started: {error}"));
        }
        (backend.phase == Phase::Exited && start.is_over(backend)).then(|| "has exited".to_owned())
    }
}
