//! Inspects containers: one request at a time for each container, and answers that are out of date are not used.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::mpsc;

use super::{CONTAINERS_MAX, Container, Engine, EngineInput, ImageLabels, images::Images, sandbox::Sandboxes};

/// The generation of a removed container. Ids are never reused.
const REMOVED: u64 = u64::MAX;

/// The state of the inspections.
#[derive(Debug, Default)]
struct State {
    /// Generation of each container, incremented with each change of its phase. Details requested in an earlier generation are out of
    /// date. [`REMOVED`] for a removed container.
    generations: HashMap<String, u64>,
    /// When each container was started last, as its last description says.
    started_ns: HashMap<String, i64>,
    /// Containers that are being inspected, and whether to inspect them once more.
    under_way: HashMap<String, bool>,
}

impl State {
    fn generation(&self, id: &str) -> u64 {
        self.generations.get(id).copied().unwrap_or_default()
    }

    /// True if the container is to be inspected now. If a request is under way, another follows it.
    fn begin(&mut self, id: &str) -> bool {
        if let Some(again) = self.under_way.get_mut(id) {
            *again = true;
            return false;
        }
        self.under_way.insert(id.to_owned(), false);
        true
    }

    /// Ends a request. True if another is to follow.
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

/// Inspects containers of one engine during one session.
#[derive(Clone)]
pub(super) struct Inspector<E> {
    engine: E,
    inputs: mpsc::Sender<EngineInput>,
    sandboxes: Sandboxes,
    /// Which labels of images count.
    pub images: Images<E>,
    state: Arc<Mutex<State>>,
}

impl<E: Engine> Inspector<E> {
    pub fn new(engine: E, inputs: mpsc::Sender<EngineInput>, sandboxes: Sandboxes, images: Images<E>) -> Self {
        Self { engine, inputs, sandboxes, images, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a change of a container's phase, or its removal.
    pub fn changed(&self, id: &str, is_removed: bool) {
        let mut state = self.state();
        let generation = state.generations.entry(id.to_owned()).or_default();
        *generation = if is_removed { REMOVED } else { generation.saturating_add(1) };
        if is_removed {
            state.started_ns.remove(id);
        }
    }

    /// Records when a container was started last.
    pub fn described(&self, container: &Container) {
        let mut state = self.state();
        if state.generation(&container.id) != REMOVED {
            state.started_ns.insert(container.id.clone(), container.started_ns);
        }
    }

    /// Whether what happened at this time was before the container was started as it was described last: the description may be ahead of
    /// the events, and an engine repeats the events of the last second to a new session. False if the clock was set back after that start.
    pub fn is_of_former_run(&self, id: &str, at_ns: Option<i64>) -> bool {
        let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let state = self.state();
        at_ns.zip(state.started_ns.get(id)).is_some_and(|(at_ns, started_ns)| {
            at_ns < *started_ns && u128::try_from(*started_ns).is_ok_and(|started_ns| started_ns <= now_ns)
        })
    }

    /// Whether most of the known containers are gone, so that they should be forgotten now.
    pub fn is_full(&self) -> bool {
        self.state().generations.len() > 2 * CONTAINERS_MAX
    }

    /// Forgets removed containers. Call it only while no request is under way: its answer may be about one of them.
    pub fn forget_removed(&self) {
        self.state().generations.retain(|_, generation| *generation != REMOVED);
    }

    /// Reports a container whose event is late.
    pub async fn announce_late(self, id: String) {
        let engine = self.engine.address();
        tracing::debug!(%engine, container = %id, "the container's cgroup appeared before its event");
        let Some(container) = self.engine.creation(&id).await else { return };
        tracing::debug!(%engine, container = %id, "found the container in the engine's event log");
        self.announce(container).await;
    }

    /// Reports a container as its event describes it. The details follow.
    pub async fn announce(self, mut container: Box<Container>) {
        let before = self.state().generation(&container.id);
        if self.images.sift(&mut container).await.is_err() || container.image_labels == ImageLabels::Unknown {
            return;
        }
        let after = self.state().generation(&container.id);
        // Without pod-steer labels there is nothing to prepare.
        if after != REMOVED && !container.labels.is_empty() {
            container.phase_is_current = after == before;
            let _ = self.inputs.send(EngineInput::Container(container)).await;
        }
    }

    /// Inspects a container and reports it.
    pub async fn inspect(self, id: String) {
        if !self.state().begin(&id) {
            return;
        }
        loop {
            let is_current = self.inspect_once(&id).await;
            let mut state = self.state();
            // What an event did not tell is in the details only.
            if !is_current {
                state.begin(&id);
            }
            if !state.end(&id) {
                return;
            }
        }
    }

    /// False if the answer was out of date.
    async fn inspect_once(&self, id: &str) -> bool {
        let before = self.state().generation(id);
        // A container that has been removed meanwhile has an event of its own.
        let Ok(Some(mut container)) = self.engine.container(id).await else { return true };
        if self.images.sift(&mut container).await.is_err() {
            return true;
        }
        self.sandboxes.describe(&self.engine, &mut container).await;
        let after = self.state().generation(id);
        if after == REMOVED {
            // The answer is older than the removal, which has been reported.
            return true;
        }
        container.phase_is_current = after == before;
        self.described(&container);
        let _ = self.inputs.send(EngineInput::Container(Box::new(container))).await;
        after == before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inspections_of_a_container_do_not_overlap_and_repeat_once() {
        let mut state = State::default();
        assert!(state.begin("a") && state.begin("b"));
        assert!(!state.begin("a") && !state.begin("a"));
        assert!(state.end("a"), "the container has changed meanwhile");
        assert!(!state.end("a") && !state.end("b"));
        assert!(state.begin("a") && state.under_way.len() == 1);
    }
}
