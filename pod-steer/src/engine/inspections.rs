//! Asks an engine for the details of a container: one request at a time for each container, and what an answer says only if it
//! is not out of date.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc;

use super::{
    Container, EngineInput, ImageLabels, answers::CONTAINERS_MAX, convert, creation, details, http::Client,
    images::Images, sandbox::Sandboxes,
};

/// The generation of a container that is gone; its id is never used again.
const REMOVED: u64 = u64::MAX;

/// What is known of the containers that were asked for.
#[derive(Debug, Default)]
struct State {
    /// How often each container's phase has changed: details that were asked for before the last change are out of date.
    /// [`REMOVED`] for one that is gone.
    generations: HashMap<String, u64>,
    /// Containers that are being asked for, and whether they are to be asked for once more.
    under_way: HashMap<String, bool>,
}

impl State {
    fn generation(&self, id: &str) -> u64 {
        self.generations.get(id).copied().unwrap_or_default()
    }

    /// True if the container is to be asked for now. If it is being asked for, that is repeated.
    fn begin(&mut self, id: &str) -> bool {
        if let Some(again) = self.under_way.get_mut(id) {
            *again = true;
            return false;
        }
        self.under_way.insert(id.to_owned(), false);
        true
    }

    /// True if the container is to be asked for once more.
    fn end(&mut self, id: &str) -> bool {
        match self.under_way.get_mut(id) {
            Some(again) if *again => {
                *again = false;
                true
            }
            _ => {
                self.under_way.remove(id);
                false
            }
        }
    }
}

/// Asks one engine, as long as a session with it goes on.
#[derive(Clone)]
pub(super) struct Inspector {
    client: Client,
    engine: String,
    inputs: mpsc::Sender<EngineInput>,
    sandboxes: Sandboxes,
    /// Which labels of images count.
    pub images: Images,
    state: Arc<Mutex<State>>,
}

impl Inspector {
    pub fn new(
        client: Client,
        engine: &str,
        inputs: mpsc::Sender<EngineInput>,
        sandboxes: Sandboxes,
        images: Images,
    ) -> Self {
        Self { client, engine: engine.to_owned(), inputs, sandboxes, images, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The phase of a container has changed, or the container is gone.
    pub fn changed(&self, id: &str, is_removed: bool) {
        let mut state = self.state();
        let generation = state.generations.entry(id.to_owned()).or_default();
        *generation = if is_removed { REMOVED } else { generation.saturating_add(1) };
    }

    /// Whether there are so many containers, most of which are gone, that those are to be forgotten now.
    pub fn is_full(&self) -> bool {
        self.state().generations.len() > 2 * CONTAINERS_MAX
    }

    /// Forgets the containers that are gone. Only while no request is under way, whose answer may be about one of them.
    pub fn forget_removed(&self) {
        self.state().generations.retain(|_, generation| *generation != REMOVED);
    }

    /// Announces a container whose event is late.
    pub async fn announce_late(self, id: String) {
        tracing::debug!(engine = %self.engine, container = %id, "its cgroup came before its announcement");
        let Some(container) = creation::created(&self.client, &self.engine, &id).await else { return };
        tracing::debug!(engine = %self.engine, container = %id, "found in the engine's log of events");
        self.announce(container).await;
    }

    /// Announces a container by what an event says of it. Its details follow.
    pub async fn announce(self, mut container: Box<Container>) {
        let before = self.state().generation(&container.id);
        if self.images.sift(&mut container).await.is_err() || container.image_labels == ImageLabels::Unknown {
            return;
        }
        let after = self.state().generation(&container.id);
        // Without labels of its own there is nothing to prepare.
        if after != REMOVED && !container.labels.is_empty() {
            container.phase_is_current = after == before;
            let _ = self.inputs.send(EngineInput::Container(container)).await;
        }
    }

    /// Asks for a container, and tells what it is.
    pub async fn inspect(self, id: String) {
        if !self.state().begin(&id) {
            return;
        }
        loop {
            self.inspect_once(&id).await;
            if !self.state().end(&id) {
                return;
            }
        }
    }

    async fn inspect_once(&self, id: &str) {
        let before = self.state().generation(id);
        // A container that is gone meanwhile has had its event, or will have it.
        let Ok(details) = details(&self.client, id).await else { return };
        let Some(mut container) = convert::container(&self.engine, details) else { return };
        if self.images.sift(&mut container).await.is_err() {
            return;
        }
        self.sandboxes.describe(&self.client, &mut container).await;
        let after = self.state().generation(id);
        if after == REMOVED {
            // The answer is older than its removal, which has been told.
            return;
        }
        container.phase_is_current = after == before;
        let _ = self.inputs.send(EngineInput::Container(Box::new(container))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_asked_for_once_at_a_time_and_then_once_more() {
        let mut state = State::default();
        assert!(state.begin("a") && state.begin("b"));
        assert!(!state.begin("a") && !state.begin("a"));
        assert!(state.end("a"), "it has changed meanwhile");
        assert!(!state.end("a") && !state.end("b"));
        assert!(state.begin("a") && state.under_way.len() == 1);
    }
}
