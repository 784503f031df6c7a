//! Connections that no kernel program counts, of registered backends and of inherited listeners: counted beside the loop, and only when somebody wants to know.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, task::spawn_blocking};

use super::{Input, control::Control};
use crate::{
    api::types::Status,
    connections,
    world::{Backend, Kind},
};

/// Shortest pause between two counts for an operation.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// A count goes through all that a process has open: the pause is so many times as long as the last one took.
const PAUSE_FACTOR: u32 = 4;

/// The connections of a backend, or why they are not known.
pub type Counts = Vec<(u32, Result<u64, String>)>;

/// What was counted last.
#[derive(Default)]
pub(super) struct Counted {
    by_index: HashMap<u32, Result<u64, String>>,
    /// Grows when traffic moves: what was counted before says nothing of what is left after.
    generation: u64,
    under_way: Option<Instant>,
    not_before: Option<Instant>,
    /// Those who asked for the status since the last count began, and before.
    asking: Vec<oneshot::Sender<Status>>,
    asked: Vec<oneshot::Sender<Status>>,
}

impl Control {
    /// Answers with the status, after a count if there is something to count.
    pub(super) fn answer_status(&mut self, answer: oneshot::Sender<Status>) {
        if self.uncounted().next().is_none() {
            self.converge();
            let _ = answer.send(self.status());
            return;
        }
        self.counted.asking.push(answer);
        self.count_connections();
    }

    /// Connections of a backend that no kernel program counts; nothing if it is not one of those.
    pub(super) fn counted(&self, backend: &Backend) -> Option<Result<u64, String>> {
        let is_one = is_uncounted(backend);
        let not_yet = || Err("they have not been counted yet".to_owned());
        is_one.then(|| self.counted.by_index.get(&backend.index).cloned().unwrap_or_else(not_yet))
    }

    /// Counts from time to time while an operation may wait for it.
    pub(super) fn count_for_operations(&mut self) {
        let due = self.counted.not_before.is_none_or(|at| at <= Instant::now());
        let concerned = |backend: &Backend| self.orders.operations.contains_key(&backend.spec.service);
        if due && self.uncounted().any(concerned) {
            self.count_connections();
        }
    }

    /// New connections of a service go elsewhere from now on.
    pub(super) fn count_anew(&mut self, service: &str) {
        let own: BTreeSet<u32> = self.uncounted().filter(|b| b.spec.service == service).map(|b| b.index).collect();
        if !own.is_empty() {
            self.counted.generation += 1;
            self.counted.by_index.retain(|index, _| !own.contains(index));
            self.counted.not_before = None;
        }
    }

    fn uncounted(&self) -> impl Iterator<Item = &Backend> {
        self.world.backends.values().filter(|backend| is_uncounted(backend))
    }

    fn count_connections(&mut self) {
        if self.counted.under_way.is_some() {
            return;
        }
        let question = |backend: &Backend| {
            let registered = match backend.kind {
                Kind::Registered { pid } => Some(pid),
                _ => None,
            };
            let pid = backend.process.map(|process| process.id.pid).or(registered);
            let cgroup = self.paths.get(&backend.index).cloned();
            let ports: BTreeSet<u16> = backend.spec.ports.iter().flat_map(|map| [map.port, map.target]).collect();
            Some((backend.index, cgroup, pid, backend.netns?, ports))
        };
        let questions: Vec<_> = self.uncounted().filter_map(question).collect();
        self.counted.under_way = Some(Instant::now());
        self.counted.asked = std::mem::take(&mut self.counted.asking);
        let (inputs, generation) = (self.inputs.clone(), self.counted.generation);
        spawn_blocking(move || {
            let count = |(index, cgroup, pid, netns, ports): (u32, Option<PathBuf>, _, _, _)| {
                let counted = connections::count(cgroup.as_deref(), pid, netns, &ports);
                (index, counted.map_err(|error| error.to_string()))
            };
            let counts: Counts = questions.into_iter().map(count).collect();
            let _ = inputs.blocking_send(Input::Counted { generation, counts });
        });
    }

    /// A count is there.
    pub(super) fn count_is_there(&mut self, generation: u64, counts: Counts) {
        let began = self.counted.under_way.take();
        if generation == self.counted.generation {
            let took = began.map_or(Duration::ZERO, |began| began.elapsed());
            self.counted.by_index = counts.into_iter().collect();
            self.counted.not_before = Some(Instant::now() + PAUSE_MIN.max(took * PAUSE_FACTOR));
        } else {
            // Traffic has moved meanwhile.
            let asked = std::mem::take(&mut self.counted.asked);
            self.counted.asking.extend(asked);
        }
        self.converge();
        for answer in std::mem::take(&mut self.counted.asked) {
            let _ = answer.send(self.status());
        }
        if !self.counted.asking.is_empty() {
            self.count_connections();
        }
    }
}

/// Whether a backend has connections that no kernel program sees.
fn is_uncounted(backend: &Backend) -> bool {
    matches!(backend.kind, Kind::Registered { .. }) || !backend.inherited.is_empty()
}
