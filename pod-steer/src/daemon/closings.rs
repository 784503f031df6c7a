//! Drains that close idle and old connections: beside the loop, a pass after the other, at the pace that was ordered.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use super::{Event, control::Control, ledger::Change};
use crate::{
    clock::boot_ms,
    connections::Question,
    idle::{self, Closed, Memory, Pace, Pass, ages::Ages, unsteady},
    rollout::{self, Closing},
};

/// The time of a pass, over which its connections are spread.
const WITHIN: Duration = Duration::from_millis(250);
/// Without a rate, all that are idle are closed in this part of the time that is left, in tenths: some become idle later.
const TENTHS: u32 = 8;

/// The drains of services that close connections.
#[derive(Default)]
pub(super) struct Closings {
    by_service: BTreeMap<String, Drain>,
}

/// One of them.
struct Drain {
    operation: u64,
    since: Instant,
    closed: u64,
    under_way: bool,
    not_before: Instant,
    /// What was told of a failure.
    told: Option<String>,
    /// What passes keep; only one is under way.
    memory: Arc<Mutex<Memory>>,
    ages: Arc<Mutex<Ages>>,
    /// Closed connections that are not recorded yet. Each is added before it ends: a drain that has no connection left has counted all.
    unrecorded: Arc<AtomicI64>,
}

impl Drain {
    fn new(operation: u64, ages: Arc<Mutex<Ages>>, now: Instant) -> Self {
        Self {
            operation,
            since: now,
            closed: 0,
            under_way: false,
            not_before: now,
            told: None,
            memory: Arc::default(),
            ages,
            unrecorded: Arc::default(),
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        !self.under_way && self.not_before <= now
    }

    /// How many may be closed in a pass that begins now.
    fn pace(&self, closing: &Closing, now: Instant, now_ms: i64) -> Pace {
        match closing.which.rate {
            Some(rate) => {
                let elapsed = now.saturating_duration_since(self.since) + WITHIN;
                let of = |time: Duration| (time.as_secs_f64() * f64::from(rate)).ceil() as u64;
                // A pass that began late makes up for it; a time in which nothing was idle does not count.
                Pace::Number(of(elapsed).saturating_sub(self.closed).min(of(2 * WITHIN)))
            }
            None => {
                let left_ms = u64::try_from(closing.deadline_ms - now_ms).unwrap_or(0);
                Pace::Until(Duration::from_millis(left_ms) * TENTHS / 10)
            }
        }
    }
}

impl Control {
    /// Begins the passes that are due.
    pub(super) fn close_connections(&mut self) {
        let (now, now_ms) = (Instant::now(), boot_ms());
        let operations = self.orders.operations.values();
        let closing: Vec<(String, u64, Closing)> = operations
            .filter_map(|operation| Some((operation.service.clone(), operation.id, rollout::closing(operation)?)))
            .collect();
        let is_drained = |service: &String, drain: &Drain| {
            closing.iter().any(|(name, id, _)| name == service && *id == drain.operation)
        };
        self.record_closed();
        self.orders.closings.by_service.retain(|service, drain| is_drained(service, drain));
        for (service, operation, closing) in closing {
            let drains = &mut self.orders.closings.by_service;
            let ages = || self.orders.ages.of(&service);
            let drain = drains.entry(service.clone()).or_insert_with(|| Drain::new(operation, ages(), now));
            if !drain.is_due(now) {
                continue;
            }
            let pace = drain.pace(&closing, now, now_ms);
            let (memory, unrecorded) = (Arc::clone(&drain.memory), Arc::clone(&drain.unrecorded));
            drain.under_way = true;
            let ages = Arc::clone(&drain.ages);
            let backends = closing.backends.iter().filter_map(|id| self.world.backends.get(id));
            let backends: Vec<Question> = backends.filter_map(|backend| self.question(backend)).collect();
            let pass = Pass { backends, which: closing.which, ages, pace, within: WITHIN };
            let event = move |closed| Event::Closed { service, operation, closed };
            self.effects.run_then(
                move || idle::close(pass, &mut memory.lock().unwrap_or_else(PoisonError::into_inner), &unrecorded),
                move |done| {
                    let failed = || Closed { failure: Some("the pass failed".to_owned()), ..Closed::default() };
                    event(done.unwrap_or_else(failed))
                },
            );
        }
    }

    /// A pass has ended.
    pub(super) fn were_closed(&mut self, service: &str, id: u64, closed: Closed) {
        let Some(drain) = self.orders.closings.by_service.get_mut(service).filter(|drain| drain.operation == id) else {
            return;
        };
        drain.under_way = false;
        drain.closed += closed.closed;
        drain.not_before = drain.not_before.max(Instant::now());
        if closed.failure != drain.told {
            if let Some(error) = &closed.failure {
                warn!(%service, %error, "not all connections could be closed");
            }
            drain.told.clone_from(&closed.failure);
        }
        debug!(%service, ?closed, "closed connections");
        if closed.closed == 0 {
            // Nothing was spread over the time of the pass.
            drain.not_before += unsteady(WITHIN);
            return;
        }
        self.record_closed();
        let Some(noted) = self.orders.operations.get(service).filter(|operation| operation.id == id).cloned() else {
            return;
        };
        self.store_orders(Change { decisions: &[], operations: &[&noted], stops: None });
    }

    /// Notes in operations what was closed. It is stored with their next step, or at the end of a pass.
    fn record_closed(&mut self) {
        for (service, drain) in &self.orders.closings.by_service {
            let number = drain.unrecorded.swap(0, Relaxed);
            let operation = self.orders.operations.get_mut(service);
            if let Some(operation) = operation.filter(|operation| operation.id == drain.operation) {
                rollout::note_closed(operation, number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::rollout::Closes;

    #[test]
    fn a_rate_holds_over_the_whole_drain() {
        let begun = Instant::now();
        let mut drain = Drain::new(1, Arc::default(), begun);
        let which = Closes { idle: None, old: None, rate: Some(200) };
        let mut closing = Closing { backends: BTreeSet::new(), which, deadline_ms: 10_000 };
        assert_eq!(drain.pace(&closing, begun, 0), Pace::Number(50));
        drain.closed = 50;
        assert_eq!(drain.pace(&closing, begun, 0), Pace::Number(0));
        assert_eq!(drain.pace(&closing, begun + Duration::from_millis(250), 0), Pace::Number(50));
        // A pass that began late makes up for it, and not for hours in which nothing was idle.
        for late in [Duration::from_millis(750), Duration::from_secs(3_600)] {
            assert_eq!(drain.pace(&closing, begun + late, 0), Pace::Number(100));
        }
        closing.which.rate = None;
        assert_eq!(drain.pace(&closing, begun, 0), Pace::Until(Duration::from_secs(8)));
        assert_eq!(drain.pace(&closing, begun, 12_000), Pace::Until(Duration::ZERO));
    }
}
