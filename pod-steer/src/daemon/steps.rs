//! What goes on by itself: steps of operations that are due, weights that grow, old backends that are kept for a while, and
//! taking all of it up again after a restart.

use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::{
    control::Control,
    ledger::{Change, PlannedStop},
};
use crate::{
    clock::{boot_ms, now},
    ids::BackendId,
    rollout::{self, Phase},
    world::State,
};

/// How often operations that go on are looked at, besides whenever something happens.
const STEP_EVERY: Duration = Duration::from_millis(50);
/// Shortest sleep: what is due and cannot be done yet is not tried without a pause.
const DUE_MS_MIN: i64 = 20;
/// Longest sleep when nothing is due.
const IDLE_MS_MAX: i64 = 3_600_000;

impl Control {
    /// Every operation may have a step that is due in this turn.
    pub(super) fn begin_steps(&mut self) {
        if self.has_heard_all() {
            self.count_for_operations();
            // Clients wait: a listener that opens counts at once.
            for operation in self.orders.operations.values().filter(|operation| operation.holds_clients()) {
                self.dirty.hurry(&operation.service);
            }
            self.follow_judgings();
            self.note_ages();
            self.close_connections();
            self.reset_old_connections();
            self.orders.to_step = self.orders.operations.keys().cloned().collect();
        }
    }

    /// Takes the next step that is due. False if there is none.
    pub(super) fn step_next(&mut self) -> bool {
        while let Some(service) = self.orders.to_step.pop_front() {
            if self.step_operation(&service) {
                return true;
            }
        }
        false
    }

    fn step_operation(&mut self, service: &str) -> bool {
        // A change that the kernel has not accepted is not in effect.
        if !self.is_in_force(service) || self.orders.settling.contains(service) {
            return false;
        }
        let Some(operation) = self.orders.operations.get(service) else { return false };
        if self.orders.resets.is_under_way(operation) {
            return false;
        }
        let mut next = operation.clone();
        let (mut view, decision) = (self.view(service), self.decision(service));
        view.compared = self.compared(service).map(Box::new);
        let progress = rollout::step(&mut next, &view, &decision, now());
        let is_further = next != *operation;
        if is_further {
            self.record(service, vec![next], progress);
        }
        is_further
    }

    /// Gives the orders that follow from time and policies rather than from operators.
    pub(super) fn give_due_orders(&mut self) {
        if self.has_heard_all() {
            self.stop_kept();
            self.follow_sleep();
            self.note_vacancies();
            self.follow_policies();
            self.forget_empty();
        }
    }

    /// How long nothing is due: weights that grow, steps of operations, backends that are kept until then.
    pub(super) fn due_in(&self) -> Duration {
        if !self.orders.operations.is_empty() {
            return STEP_EVERY;
        }
        let now_ms = boot_ms();
        let vacancies = self.orders.vacancies.next_ms(now_ms);
        let stop = next_stop_ms(&self.orders.stops, now_ms);
        let soonest = self.plan.next_ms().into_iter().chain(stop).chain(vacancies).min();
        let wait_ms = soonest.map_or(i64::MAX, |at_ms| at_ms - now_ms).clamp(DUE_MS_MIN, IDLE_MS_MAX);
        let now = Instant::now();
        let paced = [self.dirty.due(), self.inspections.due(now), self.orders.ages.due()].into_iter().flatten().min();
        let paced = paced.map(|at| at.saturating_duration_since(now));
        paced.into_iter().fold(Duration::from_millis(wait_ms.unsigned_abs()), Duration::min)
    }

    /// Whether there is something that only a look can tell: queues of a canary, the listener of a paused service.
    pub(super) fn has_to_look(&self) -> bool {
        !self.orders.operations.is_empty() || self.is_pausing() || self.elsewhere.is_due
    }

    pub(super) fn touch_if_due(&mut self) {
        self.dirty.mark_due(Instant::now());
        let due: Vec<String> = self.plan.due(boot_ms()).map(str::to_owned).collect();
        due.iter().for_each(|service| self.touch_service(service));
    }

    /// When a backend became ready outlives the daemon: its slow start goes on, and a canary does not start over.
    pub(super) fn store_ready_times(&mut self) {
        for backend in self.world.backends.values() {
            let stored = self.orders.ready_stored.get(&backend.index);
            if stored != Some(&backend.ready_since_ms) {
                if let Err(error) = self.store.put(backend) {
                    warn!(error = %crate::chain(&error), "a restart will not know since when a backend is ready");
                }
                self.orders.ready_stored.insert(backend.index, backend.ready_since_ms);
            }
        }
    }

    /// Takes up what an earlier daemon left in the midst.
    pub(super) fn resume_operations(&mut self) {
        self.world.decisions = self.orders.ledger.decisions();
        self.orders.stops = self.orders.ledger.stops();
        let running = self.orders.ledger.running();
        for mut operation in running {
            rollout::resume(&mut operation);
            info!(service = %operation.service, id = operation.id, "{} goes on", operation.title());
            // It was told to stop them, or was about to: telling twice does no harm.
            if let Phase::Stopping { old, .. } = &operation.phase {
                self.stop_backends(&old.clone());
            }
            self.orders.operations.insert(operation.service.clone(), operation);
        }
        let ready = self.world.backends.values().filter(|backend| backend.ready_since_ms.is_some());
        for backend in ready {
            let service = backend.spec.service.clone();
            self.world.last_serving.entry(service).or_default().insert(backend.id.clone());
        }
        self.begin_vacancies();
        if self.world.decisions.values().any(|decision| decision.paused)
            && let Err(error) = self.ensure_pause()
        {
            error!(%error, "a paused service cannot be kept paused");
        }
    }

    /// Stops old backends whose time is over, and forgets those that are gone.
    fn stop_kept(&mut self) {
        let now_ms = boot_ms();
        // They may be needed again if no backend is left of the version that replaced them, or if an operation moves the traffic.
        let replaced = |stop: &PlannedStop| {
            !self.orders.operations.contains_key(&stop.service)
                && self.present_and_ready(&stop.service, &stop.version).1 > 0
        };
        let are_known = self.engines.are_all_known();
        let exists = |id: &BackendId| !are_known || self.world.backends.contains_key(id);
        let (due, kept) = sort_stops(self.orders.stops.clone(), now_ms, exists, replaced);
        if kept == self.orders.stops {
            return;
        }
        self.store_orders(Change { decisions: &[], operations: &[], stops: Some(&kept) });
        self.orders.stops = kept;
        for stop in due {
            info!(service = %stop.service, "the old backends have been kept as long as {} asked for", stop.version);
            let serves = |id: &BackendId| self.world.backends.get(id).is_some_and(|b| self.state(b) == State::Ready);
            let idle = stop.backends.iter().filter(|id| !serves(id)).cloned().collect();
            self.stop_backends(&idle);
        }
    }
}

/// The stops that are due and those that are not. Those of which no backend exists are in neither.
fn sort_stops(
    stops: Vec<PlannedStop>,
    now_ms: i64,
    exists: impl Fn(&BackendId) -> bool,
    is_replaced: impl Fn(&PlannedStop) -> bool,
) -> (Vec<PlannedStop>, Vec<PlannedStop>) {
    let existing = stops.into_iter().filter(|stop| stop.backends.iter().any(&exists));
    existing.partition(|stop| stop.at_ms <= now_ms && is_replaced(stop))
}

/// When the next of these stops is due. One that is due already waits for something else than time.
fn next_stop_ms(stops: &[PlannedStop], now_ms: i64) -> Option<i64> {
    stops.iter().map(|stop| stop.at_ms).filter(|at_ms| *at_ms > now_ms).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(at_ms: i64, backends: &[&str]) -> PlannedStop {
        let backends = backends.iter().copied().map(BackendId::from).collect();
        PlannedStop { service: "web".to_owned(), version: "v2".to_owned(), backends, at_ms }
    }

    #[test]
    fn a_stop_that_is_due_and_has_to_wait_wakes_nothing() {
        assert_eq!(next_stop_ms(&[stop(10, &[]), stop(30, &[]), stop(20, &[])], 10), Some(20));
        assert_eq!(next_stop_ms(&[stop(10, &[])], 10), None);
    }

    #[test]
    fn a_stop_is_forgotten_with_its_last_backend() {
        let stops = vec![stop(10, &["a"]), stop(10, &["gone", "a"]), stop(10, &["gone"]), stop(20, &["a"])];
        let sort = |is_replaced: bool| sort_stops(stops.clone(), 10, |id| id == "a", |_| is_replaced);
        assert_eq!(sort(true), (stops[..2].to_vec(), stops[3..].to_vec()));
        assert_eq!(sort(false), (vec![], [&stops[..2], &stops[3..]].concat()));
    }
}
