//! Connections that are open at the deadline of a drain: they are reset beside the loop, if that was ordered, until none is left or their
//! operation ends.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{Event, control::Control, ledger::Change};
use crate::{
    connections::{self, Question},
    rollout::{self, Operation},
};

/// Pause between two attempts: a server may accept another connection from its queue meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// The resets of services and their operations: when the next one may begin; nothing while one is under way.
#[derive(Default)]
pub(super) struct Resets(BTreeMap<(String, u64), Option<Instant>>);

impl Resets {
    /// Whether an attempt is under way. How many connections it has reset is known when it ends, later than that none is left.
    pub fn is_under_way(&self, operation: &Operation) -> bool {
        // Only an operation that resets has an entry.
        !self.0.is_empty() && self.0.get(&(operation.service.clone(), operation.id)).is_some_and(Option::is_none)
    }
}

/// The number of connections that were reset, and the first failure.
pub type Reset = (u64, Option<String>);

impl Control {
    /// Begins what is due.
    pub(super) fn reset_old_connections(&mut self) {
        let now = Instant::now();
        let operations = self.orders.operations.values();
        let resetting: Vec<_> = operations
            .filter_map(|operation| {
                Some((operation.service.clone(), operation.id, rollout::resetting(operation)?.clone()))
            })
            .collect();
        self.orders
            .resets
            .0
            .retain(|(service, id), _| resetting.iter().any(|(name, other, _)| name == service && other == id));
        for (service, operation, old) in resetting {
            let key = (service.clone(), operation);
            if self.orders.resets.0.get(&key).is_some_and(|at| at.is_none_or(|at| at > now)) {
                continue;
            }
            let backends = old.iter().filter_map(|id| self.world.backends.get(id));
            let questions: Vec<Question> = backends.filter_map(|backend| self.question(backend)).collect();
            self.orders.resets.0.insert(key, None);
            let ended = move |reset: Reset| Event::Reset { service, operation, reset };
            self.effects.run_then(
                move || connections::reset(questions),
                move |done| ended(done.unwrap_or_else(|| (0, Some("the attempt failed".to_owned())))),
            );
        }
    }

    /// An attempt has ended.
    pub(super) fn was_reset(&mut self, service: String, id: u64, (number, failure): Reset) {
        if let Some(error) = failure {
            warn!(%service, %error, "connections could not be reset");
        }
        let Some(operation) = self.orders.operations.get_mut(&service).filter(|operation| operation.id == id) else {
            return;
        };
        if number > 0 {
            info!(%service, number, "connections that were open at the deadline were reset");
            rollout::note_reset(operation, number);
            let noted = operation.clone();
            self.store_orders(Change { decisions: &[], operations: &[&noted], stops: None });
        }
        self.orders.resets.0.insert((service, id), Some(Instant::now() + PAUSE));
    }
}
