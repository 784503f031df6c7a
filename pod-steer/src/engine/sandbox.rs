//! Containers whose network namespace others share: each is asked about with every container that joins it, and those that
//! joined it are asked about again when it is started.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use bollard::Docker;

use super::convert::{self, Container};

/// By the full id of a sandbox, the containers that joined it.
#[derive(Clone, Debug, Default)]
pub(super) struct Sandboxes(Arc<Mutex<HashMap<String, BTreeSet<String>>>>);

impl Sandboxes {
    /// Adds to a container's description that of its sandbox, if it has joined one.
    pub(super) async fn describe(&self, docker: &Docker, container: &mut Container) {
        let Some(joined) = &container.joined else { return };
        // One that is gone has no namespace to compare with.
        let Ok(details) = docker.inspect_container(joined, None).await else { return };
        container.sandbox = convert::sandbox(details);
        if let Some(sandbox) = &container.sandbox {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry(sandbox.id.clone()).or_default().insert(container.id.clone());
        }
    }

    /// The containers that joined this one.
    pub(super) fn joined(&self, id: &str) -> BTreeSet<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned().unwrap_or_default()
    }

    /// Forgets a container that is gone.
    pub(super) fn forget(&self, id: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(id);
        all.retain(|_, joined| {
            joined.remove(id);
            !joined.is_empty()
        });
    }
}
