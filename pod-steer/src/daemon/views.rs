//! Services and operations as they are now: what `rollout` decides by, and what operators see.

use std::collections::BTreeSet;

use super::{control::Control, policies::is_after};
use crate::{
    api::types::OperationStatus,
    clock::{boot_ms, by_wall_clock},
    ids::BackendId,
    near,
    rollout::{self, Operation, Order, Phase, Policy, View},
    world::{Kind, State},
};

impl Control {
    /// A service as it is now.
    pub(super) fn view(&self, service: &str) -> View {
        let backends = self.world.backends.values().filter(|backend| backend.spec.service == service);
        let of = |backend: &crate::world::Backend| rollout::BackendView {
            name: backend.name.clone(),
            version: backend.spec.version.clone(),
            state: self.state(backend),
            ready_since_ms: backend.ready_since_ms,
            live: self.live_of(backend),
            uncounted: self.not_counted(backend),
            steered: backend.ingress().is_none_or(|netns| self.world.steered.contains(&netns.cookie)),
            overflows: self.orders.overflows.get(&backend.id).map_or(0, |(first, now)| now.saturating_sub(*first)),
            weight: backend.spec.weight,
            has_served: self.has_served(backend),
            can_stop: !matches!(backend.kind, Kind::Registered { .. }),
            stop_ms: backend.stop_ms(),
            can_start: matches!(backend.kind, Kind::Container { .. })
                && (!backend.is_transient || backend.phase == crate::world::Phase::Created),
            is_transient: backend.is_transient,
            stop_unanswered: self.orders.unstopped.contains(&backend.id),
            told_to_start: self.told_to_start(backend),
            is_starting: self.is_starting(backend),
            start_failure: self.start_failure(backend),
            condition: self.backend_warnings(backend).into_iter().next(),
        };
        View {
            coverage: self.plan.coverage.get(service).cloned().unwrap_or_default(),
            service: service.to_owned(),
            held: self.held_clients(service),
            without_heir: self.without_heir(service),
            is_wanted: self.orders.sleepers.is_wanted(service),
            is_partial: !self.engines.are_all_known(),
            cannot_sleep: self.is_falling_asleep(service).then(|| self.cannot_sleep(service)).flatten(),
            // Only a step asks for it.
            compared: None,
            backends: backends.map(|backend| (backend.id.clone(), of(backend))).collect(),
        }
    }

    /// Whether it has ever got a connection, or could have got one before an order moved the traffic: the kernel does not count connections
    /// from before its programs were attached.
    fn has_served(&self, backend: &crate::world::Backend) -> bool {
        let (service, version) = (&backend.spec.service, &backend.spec.version);
        // Until a policy has chosen the first version, the others wait.
        let all_shared = self.world.options(service).rollout == Policy::Balance;
        let had_share = |operation: &&Operation| {
            let is_known = operation.before.weights.is_some() || all_shared;
            operation.moves_traffic() && is_known && operation.before.has_share(version) && is_after(operation, backend)
        };
        self.kernel.counters().backend(backend.index).opened > 0
            || self.live_of(backend) > 0
            || self.orders.ledger.history(Some(service)).iter().any(|operation| had_share(&operation))
    }

    /// How many backends of a version are there, and how many of them new connections could go to. No counter is read for it.
    pub(super) fn present_and_ready(&self, service: &str, version: &str) -> (usize, usize) {
        let own = self.world.backends.values();
        let own = own.filter(|backend| backend.spec.service == service && backend.spec.version == version);
        let states: Vec<State> = own.map(|backend| self.state(backend)).collect();
        let count = |is: fn(State) -> bool| states.iter().filter(|state| is(**state)).count();
        (count(State::is_present), count(State::is_ready))
    }

    pub(super) fn operation(&self, id: u64) -> Option<OperationStatus> {
        let running = self.orders.operations.values().find(|operation| operation.id == id).cloned();
        let operation = running.or_else(|| self.orders.ledger.operation(id).cloned())?;
        Some(self.operation_status(operation))
    }

    pub(super) fn operation_status(&self, operation: Operation) -> OperationStatus {
        let view = self.view(&operation.service);
        let (version, wanted) = match &operation.order {
            Order::Deploy(order) => (order.version.as_str(), order.backends),
            Order::Canary(order) => (order.version.as_str(), None),
            _ => ("", None),
        };
        let present = view.present(version).count() as u32;
        // A stopping backend is not present, but is waited for.
        let least = u32::from(!version.is_empty());
        let (ready, wanted) = (view.ready(version).count() as u32, wanted.unwrap_or(present.max(least)));
        let left_backends = match &operation.phase {
            Phase::Draining { old, .. } => old.clone(),
            _ => BTreeSet::new(),
        };
        let live = |id: &BackendId| view.backends.get(id).map_or(0, |backend| backend.live);
        let left: u64 = left_backends.iter().map(live).sum();
        let waiting_for = operation.waiting_for(ready, wanted, left, boot_ms());
        let held = if operation.holds_clients() { view.held } else { 0 };
        let operation = by_wall_clock(self.orders.ledger.told(operation));
        OperationStatus { operation, ready, wanted, left, held, waiting_for }
    }

    /// What was ordered, oldest first; an error if nothing is known of the service.
    pub(super) fn history(&self, service: Option<&str>) -> Result<Vec<Operation>, String> {
        let history = self.orders.ledger.history(service);
        if let Some(service) = service.filter(|_| history.is_empty()) {
            let known = self.world.backends.values().map(|backend| backend.spec.service.as_str());
            let all = self.orders.ledger.history(None);
            let known: BTreeSet<&str> = known.chain(all.iter().map(|operation| operation.service.as_str())).collect();
            if !known.contains(service) && !self.world.decisions.contains_key(service) {
                return Err(near::no_service(service, &known.into_iter().collect::<Vec<_>>()));
            }
        }
        Ok(history.into_iter().map(|operation| by_wall_clock(self.orders.ledger.told(operation))).collect())
    }
}
