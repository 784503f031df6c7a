//! Sandboxes: containers whose network namespace others share. A sandbox is inspected along with each container that joined it, and
//! those containers are inspected again when it starts, ends or is removed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use super::{Container, Engine, EngineError, Sandbox, SandboxState};

/// Bytes of an id that stand for the name of a container that is not known any more, as in `docker ps`.
const SHORT_ID: usize = 12;

/// One sandbox.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Its name when it was last inspected.
    name: String,
    /// The containers that joined it.
    joined: BTreeSet<String>,
}

/// The sandboxes, by full id.
#[derive(Clone, Debug, Default)]
pub(super) struct Sandboxes(Arc<Mutex<HashMap<String, Known>>>);

impl Sandboxes {
    /// Adds to a container's description that of its sandbox, if it has joined one.
    pub(super) async fn describe<E: Engine>(&self, engine: &E, container: &mut Container) {
        let Some(id) = container.joined.clone() else { return };
        container.sandbox = match engine.sandbox(&id).await {
            Ok(sandbox) => sandbox,
            Err(EngineError::NotFound(_)) => Some(Sandbox { name: self.name(&id), id, state: SandboxState::Removed }),
            Err(_) => None,
        };
        if let Some(sandbox) = &container.sandbox {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let known = all.entry(sandbox.id.clone()).or_default();
            known.name.clone_from(&sandbox.name);
            known.joined.insert(container.id.clone());
        }
    }

    /// The name that a sandbox had, or the beginning of its id.
    fn name(&self, id: &str) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(id).map_or_else(|| id.chars().take(SHORT_ID).collect(), |known| known.name.clone())
    }

    /// The containers that joined this one.
    pub(super) fn joined(&self, id: &str) -> BTreeSet<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(id).map(|known| known.joined.clone()).unwrap_or_default()
    }

    /// Forgets a container that is gone. A sandbox is forgotten with the last container that joined it.
    pub(super) fn forget(&self, id: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, known| {
            known.joined.remove(id);
            !known.joined.is_empty()
        });
    }
}
