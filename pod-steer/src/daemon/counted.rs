//! Connections that the kernel programs have not counted: of registered backends, of inherited listeners, and of backends that
//! listened before they were attached. They are counted beside the loop, and only while `status` or an operation asks.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, task::spawn_blocking};
use tracing::{debug, warn};

use super::{Input, control::Control};
use crate::{
    api::types::Status,
    connections,
    procs::FoundSocket,
    rollout::{self, Progress},
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
    /// Indices of the backends whose listeners are being looked for: it is not known yet whether the counters include all.
    sought: BTreeSet<u32>,
    /// Requests for the status that came since the last count began, and before.
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

    /// Connections of a backend whose kernel counters do not include all; nothing if they do.
    pub(super) fn counted(&self, backend: &Backend) -> Option<Result<u64, String>> {
        let not_yet = || Err("they have not been counted yet".to_owned());
        let count = || self.counted.by_index.get(&backend.index).cloned().unwrap_or_else(not_yet);
        backend.has_uncounted_connections().then(count)
    }

    /// Why a drain cannot rely on the number of connections of a backend, if it cannot.
    pub(super) fn not_counted(&self, backend: &Backend) -> Option<String> {
        let sought = || "its listeners are being looked for".to_owned();
        let count = self.counted(backend).and_then(Result::err);
        count.or_else(|| self.counted.sought.contains(&backend.index).then(sought))
    }

    /// The listeners of a backend are looked for, since it may have made them before it was attached.
    pub(super) fn begin_search(&mut self, index: u32) {
        self.counted.sought.insert(index);
    }

    /// They were found. The kernel programs report every listener that was made while they were attached.
    pub(super) fn end_search(&mut self, index: u32, found: &[FoundSocket]) {
        let reported = |cookie| self.kernel.socket(cookie).is_some_and(|socket| socket.backend == index);
        if found.iter().any(|socket| !reported(socket.cookie)) {
            self.note_incomplete_counts(index);
        }
        self.counted.sought.remove(&index);
    }

    /// The kernel programs have not counted all connections of a backend.
    pub(super) fn note_incomplete_counts(&mut self, index: u32) {
        let Some(backend) = self.world.by_index_mut(index).filter(|backend| !backend.counts_incomplete) else { return };
        backend.counts_incomplete = true;
        debug!(service = %backend.spec.service, backend = %backend.name, "had connections before it was attached");
        if let Err(error) = self.store.put(backend) {
            warn!(error = %crate::chain(&error), "a restart will not know that connections of this backend are not counted");
        }
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
        self.world.backends.values().filter(|backend| backend.has_uncounted_connections())
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
            let process = backend.process.filter(|process| !process.holds_only);
            let pid = process.map(|process| process.id.pid).or(registered);
            let cgroup = self.paths.get(&backend.index).cloned();
            let own = self.world.sockets.values().filter(|socket| socket.backend == backend.index);
            let hidden = own.filter_map(|socket| socket.hidden_port);
            let ports = backend.spec.ports.iter().flat_map(|map| [map.port, map.target]);
            let ports: BTreeSet<u16> = ports.chain(hidden).collect();
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

    /// A drain reports the most connections that were counted. It notes them at once, since its next step may come after this
    /// count was dropped: operations make no step while lookups may still use the former tables.
    fn note_drained_connections(&mut self) {
        let services: Vec<String> = self.orders.operations.keys().cloned().collect();
        for service in services {
            let Some(mut operation) = self.orders.operations.get(&service).cloned() else { continue };
            rollout::note_connections(&mut operation, &self.view(&service));
            if self.orders.operations.get(&service) != Some(&operation) {
                self.record(&service, vec![operation], Progress::default());
            }
        }
    }

    /// A count is there.
    pub(super) fn count_is_there(&mut self, generation: u64, counts: Counts) {
        let began = self.counted.under_way.take();
        if generation == self.counted.generation {
            let took = began.map_or(Duration::ZERO, |began| began.elapsed());
            self.counted.by_index = counts.into_iter().collect();
            self.counted.not_before = Some(Instant::now() + PAUSE_MIN.max(took * PAUSE_FACTOR));
            self.note_drained_connections();
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
