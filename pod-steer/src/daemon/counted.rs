//! Connections that the kernel programs have not counted: of registered backends, of inherited listeners, and of backends that
//! listened before they were attached. They are counted beside the loop, and only while `status` or an operation asks.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::{Event, control::Control, deferred::Deferred, ledger::Change};
use crate::{
    api::types::Status,
    connections::{self, Question},
    ids::{BackendId, BackendIndex, CgroupId},
    process_set::ProcessSet,
    procs::FoundSocket,
    rollout,
    world::{Backend, Kind},
};

/// Shortest pause between two counts for an operation.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// A count goes through all that a process has open: the pause is so many times as long as the last one took.
const PAUSE_FACTOR: u32 = 4;

/// The connections of a backend, or why they are not known.
pub type Counts = Vec<(BackendId, Result<u64, String>)>;

/// What was counted last.
#[derive(Default)]
pub(super) struct Counted {
    by_id: HashMap<BackendId, Result<u64, String>>,
    /// Grows when traffic moves: what was counted before says nothing of what is left after.
    generation: u64,
    under_way: Option<Instant>,
    not_before: Option<Instant>,
    /// Backends whose listeners are being looked for, and in which cgroup: it is not known yet whether the counters include all.
    sought: BTreeMap<BackendId, Option<CgroupId>>,
    /// Requests for the status that came since the last count began, and before.
    asking: Vec<oneshot::Sender<Status>>,
    asked: Vec<oneshot::Sender<Status>>,
}

impl Counted {
    /// A count begins. Those that have asked are answered when it ends. Returns the generation that it is for.
    fn begin(&mut self, now: Instant) -> u64 {
        self.under_way = Some(now);
        self.asked = std::mem::take(&mut self.asking);
        self.generation
    }

    /// A count has ended. False if traffic has moved meanwhile: then it says nothing, and those that have asked wait for the next one.
    fn end(&mut self, generation: u64, counts: Counts, now: Instant) -> bool {
        let began = self.under_way.take();
        if generation != self.generation {
            self.asking.append(&mut self.asked);
            return false;
        }
        let took = began.map_or(Duration::ZERO, |began| now.saturating_duration_since(began));
        self.by_id.extend(counts);
        self.not_before = Some(now + PAUSE_MIN.max(took * PAUSE_FACTOR));
        true
    }

    /// Traffic has moved: what was counted of these backends says nothing any more.
    fn move_on(&mut self, moved: &BTreeSet<BackendId>) {
        self.generation += 1;
        self.by_id.retain(|id, _| !moved.contains(id));
        self.not_before = None;
    }

    /// The search in this cgroup says nothing any more. One that has begun in another cgroup does.
    fn void_search(&mut self, id: &str, cgroup: Option<CgroupId>) {
        if self.sought.get(id) == Some(&cgroup) {
            self.sought.remove(id);
        }
    }

    /// A backend has ended: a search that is under way says nothing any more.
    pub fn stop_search(&mut self, id: &str) {
        self.sought.remove(id);
    }

    /// A backend is gone.
    pub fn forget(&mut self, id: &str) {
        self.by_id.remove(id);
        self.sought.remove(id);
    }
}

impl Control {
    /// Answers with the status, after a count if there is something to count.
    pub(super) fn answer_status(&mut self, answer: oneshot::Sender<Status>) {
        if self.uncounted().next().is_none() {
            let _ = answer.send(self.status());
            return;
        }
        self.counted.asking.push(answer);
        self.count_connections();
    }

    /// Answers those that asked for the status before a count, or counts once more: since then the reconcile has moved traffic.
    pub(super) fn answer_statuses(&mut self, generation: u64, asked: Vec<oneshot::Sender<Status>>) {
        if generation != self.counted.generation {
            self.counted.asking.extend(asked);
            return self.count_connections();
        }
        for answer in asked {
            let _ = answer.send(self.status());
        }
    }

    /// Connections of a backend whose kernel counters do not include all; nothing if they do.
    pub(super) fn counted(&self, backend: &Backend) -> Option<Result<u64, String>> {
        let not_yet = || Err("they have not been counted yet".to_owned());
        let count = || self.counted.by_id.get(&backend.id).cloned().unwrap_or_else(not_yet);
        backend.has_uncounted_connections().then(count)
    }

    /// Why a drain cannot rely on the number of connections of a backend, if it cannot.
    pub(super) fn not_counted(&self, backend: &Backend) -> Option<String> {
        let sought = || "its listeners are being looked for".to_owned();
        let count = self.counted(backend).and_then(Result::err);
        count.or_else(|| self.counted.sought.contains_key(&backend.id).then(sought))
    }

    /// The listeners of a backend are looked for, since it may have made them before it was attached. Returns the cgroup that it is in,
    /// if that is known: see [`Self::is_void`].
    pub(super) fn begin_search(&mut self, id: &BackendId, index: BackendIndex) -> Option<CgroupId> {
        let cgroup = self.places.id(index);
        self.counted.sought.insert(id.clone(), cgroup);
        cgroup
    }

    /// Whether a backend has ended since a search in this cgroup began, and what was found with it. If it runs again, that is another
    /// cgroup, whose listeners are looked for if no kernel program reports them.
    pub(super) fn is_void(&mut self, id: &str, cgroup: Option<CgroupId>) -> bool {
        let Some(backend) = self.world.backends.get(id) else { return true };
        let is_void = cgroup.is_some() && self.places.id(backend.index) != cgroup;
        if is_void {
            self.counted.void_search(id, cgroup);
        }
        is_void
    }

    /// They were found. The kernel programs report every listener that was made while they were attached.
    pub(super) fn end_search(&mut self, id: &str, found: &[FoundSocket]) {
        self.counted.sought.remove(id);
        let Some(index) = self.world.backends.get(id).map(|backend| backend.index) else { return };
        let reported = |cookie| self.kernel.socket(cookie).is_some_and(|socket| socket.backend == index.0);
        if found.iter().any(|socket| !reported(socket.cookie)) {
            self.note_incomplete_counts(index);
        }
    }

    /// It is not known which listeners there are.
    pub(super) fn search_failed(&mut self, id: &str) {
        self.counted.sought.remove(id);
        if let Some(index) = self.world.backends.get(id).map(|backend| backend.index) {
            self.note_incomplete_counts(index);
        }
    }

    /// The kernel programs have not counted all connections of a backend.
    pub(super) fn note_incomplete_counts(&mut self, index: BackendIndex) {
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
        if due && self.uncounted().any(|backend| self.has_operation(backend)) {
            self.count_connections();
        }
    }

    /// New connections of a service go elsewhere from now on.
    pub(super) fn count_anew(&mut self, service: &str) {
        let own = self.uncounted().filter(|backend| backend.spec.service == service);
        let own: BTreeSet<BackendId> = own.map(|backend| backend.id.clone()).collect();
        if !own.is_empty() {
            self.counted.move_on(&own);
        }
    }

    fn uncounted(&self) -> impl Iterator<Item = &Backend> {
        self.world.backends.values().filter(|backend| backend.has_uncounted_connections())
    }

    fn has_operation(&self, backend: &Backend) -> bool {
        self.orders.operations.contains_key(&backend.spec.service)
    }

    /// What to ask about the connections of a backend; nothing if its namespace is not known.
    pub(super) fn question(&self, backend: &Backend) -> Option<Question> {
        let own = self.world.sockets.values().filter(|socket| socket.backend == backend.index);
        let hidden = own.filter_map(|socket| socket.hidden_port);
        let ports = backend.spec.ports.iter().flat_map(|map| [map.service_port(), map.target_port()]);
        let processes = self.processes_of(backend);
        // A process that only holds the listener serves none of its connections, and the children that do are not known. Those of a command of
        // `exec` have ended: connections are left in the listener's queue alone.
        let is_unknown = processes.alone && backend.kind != Kind::Exec;
        let processes = if is_unknown { ProcessSet::default() } else { processes };
        Some(Question {
            id: backend.id.clone(),
            netns: backend.netns?,
            processes,
            ports: ports.chain(hidden).collect(),
        })
    }

    /// Counts what is asked for: of all backends if `status` asks, and else of the services that have an operation.
    fn count_connections(&mut self) {
        if self.counted.under_way.is_some() {
            return;
        }
        let for_status = !self.counted.asking.is_empty();
        let asked_for = self.uncounted().filter(|backend| for_status || self.has_operation(backend));
        let questions: Vec<Question> = asked_for.filter_map(|backend| self.question(backend)).collect();
        let generation = self.counted.begin(Instant::now());
        let unknown = questions.iter().map(|question| (question.id.clone(), Err("the count failed".to_owned())));
        let failed = Event::Counted { generation, counts: unknown.collect() };
        self.effects.run(failed, move || {
            let counts = connections::count(questions).into_iter();
            let counts = counts.map(|(id, count)| (id, count.map_err(|error| error.to_string())));
            Event::Counted { generation, counts: counts.collect() }
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
                self.store_orders(Change { decisions: &[], operations: &[&operation], stops: None });
                self.orders.operations.insert(service, operation);
            }
        }
    }

    /// A count is there.
    pub(super) fn count_is_there(&mut self, generation: u64, mut counts: Counts) {
        counts.retain(|(id, _)| self.world.backends.contains_key(id));
        if self.counted.end(generation, counts, Instant::now()) {
            self.note_drained_connections();
        }
        let asked = std::mem::take(&mut self.counted.asked);
        if !asked.is_empty() {
            self.deferred.push_back(Deferred::Statuses { generation, asked });
        }
        if !self.counted.asking.is_empty() {
            self.count_connections();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_from_before_a_move_says_nothing() {
        let (mut counted, now) = (Counted::default(), Instant::now());
        let (sender, _status) = oneshot::channel();
        counted.asking.push(sender);
        let generation = counted.begin(now);
        assert_eq!((counted.asking.len(), counted.asked.len()), (0, 1));
        counted.move_on(&BTreeSet::from([BackendId::from("a")]));
        assert!(!counted.end(generation, vec![(BackendId::from("a"), Ok(7))], now));
        assert!(counted.by_id.is_empty() && counted.asking.len() == 1, "it is asked for again");
        let generation = counted.begin(now);
        assert!(counted.end(generation, vec![(BackendId::from("a"), Ok(3)), (BackendId::from("b"), Ok(4))], now));
        assert_eq!(counted.by_id["a"], Ok(3));
        counted.move_on(&BTreeSet::from([BackendId::from("a")]));
        assert_eq!((counted.by_id.get("a"), &counted.by_id["b"]), (None, &Ok(4)));
    }

    #[test]
    fn a_void_search_leaves_a_newer_one() {
        let mut counted = Counted::default();
        let (former, present) = (Some(CgroupId(1)), Some(CgroupId(2)));
        counted.sought.insert("a".into(), present);
        counted.void_search("a", former);
        assert_eq!(counted.sought.get("a"), Some(&present));
        counted.void_search("a", present);
        assert!(counted.sought.is_empty());
    }

    #[test]
    fn a_long_count_is_followed_by_a_long_pause() {
        let (mut counted, now) = (Counted::default(), Instant::now());
        let generation = counted.begin(now);
        counted.end(generation, Vec::new(), now);
        assert_eq!(counted.not_before, Some(now + PAUSE_MIN));
        let (generation, later) = (counted.begin(now), now + Duration::from_secs(1));
        counted.end(generation, Vec::new(), later);
        assert_eq!(counted.not_before, Some(later + Duration::from_secs(1) * PAUSE_FACTOR));
        counted.move_on(&BTreeSet::new());
        assert_eq!(counted.not_before, None, "after a move it is counted at once");
    }
}
