//! Carrying out what operators order: each order is checked, stored, and then acted on. `rollout` says what comes next.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::{
    Input, OrderAsk, OrderError,
    control::Control,
    ledger::{Change, Ledger, PlannedStop},
    pause::Holder,
};
use crate::{
    api::types::OperationStatus,
    kernel::Settled,
    rollout::{self, Decision, Effect, Operation, Order, Outcome, Phase, Progress, Refusal, Step, View},
};

/// How often operations that go on are looked at, besides whenever something happens.
const STEP_EVERY: Duration = Duration::from_millis(50);
/// Longest sleep when nothing is due.
const IDLE_MS_MAX: i64 = 3_600_000;

/// Milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// What operators have ordered, and what it needs.
pub(super) struct Orders {
    pub ledger: Ledger,
    /// Going on, by service.
    pub operations: BTreeMap<String, Operation>,
    /// What the last change replaced, until nobody uses it.
    pub settled: Vec<Settled>,
    /// Services whose operations wait for that.
    pub settling: BTreeSet<String>,
    /// Old backends that are kept for a while.
    pub stops: Vec<PlannedStop>,
    /// By index, packets that the listeners of a watched backend had dropped at first, and now.
    pub overflows: HashMap<u32, (u64, u64)>,
    pub pause_holder: Option<Holder>,
    /// When each backend became ready, as it is stored.
    pub ready_stored: HashMap<u32, Option<i64>>,
}

impl Orders {
    pub fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            operations: BTreeMap::new(),
            settled: Vec::new(),
            settling: BTreeSet::new(),
            stops: Vec::new(),
            overflows: HashMap::new(),
            pause_holder: None,
            ready_stored: HashMap::new(),
        }
    }
}

impl Control {
    pub(super) fn order(&mut self, ask: OrderAsk) {
        // What has happened until now counts.
        self.converge();
        match self.carry_out(&ask.service, ask.order, ask.who) {
            Ok(operation) => self.answer_order(operation, ask.answer),
            Err(refused) => drop(ask.answer.send(Err(refused))),
        }
    }

    /// Answers at once if it goes on, and else when it has taken effect for every client.
    fn answer_order(&mut self, operation: Operation, answer: oneshot::Sender<Result<Operation, OrderError>>) {
        let settled = std::mem::take(&mut self.orders.settled);
        if operation.end.is_none() || settled.is_empty() {
            self.settle(&operation.service, settled);
            let _ = answer.send(Ok(operation));
            return;
        }
        tokio::spawn(async move {
            for table in settled {
                table.wait().await;
            }
            let _ = answer.send(Ok(operation));
        });
    }

    /// An operation waits until nobody can be using the tables that were replaced.
    fn settle(&mut self, service: &str, settled: Vec<Settled>) {
        if settled.is_empty() || !self.orders.operations.contains_key(service) {
            return;
        }
        self.orders.settling.insert(service.to_owned());
        let (service, inputs) = (service.to_owned(), self.inputs.clone());
        tokio::spawn(async move {
            for table in settled {
                table.wait().await;
            }
            let _ = inputs.send(Input::Settled(service)).await;
        });
    }

    pub(super) fn settled(&mut self, service: &str) {
        self.orders.settling.remove(service);
    }

    pub(super) fn carry_out(&mut self, service: &str, order: Order, who: String) -> Result<Operation, OrderError> {
        let view = self.view(service);
        let decision = self.decision(service);
        let running = self.orders.operations.get(service).cloned();
        let last = running.clone().or_else(|| rollout::behind(&self.orders.ledger.history(Some(service))).cloned());
        let services: BTreeSet<&str> = self.world.backends.values().map(|b| b.spec.service.as_str()).collect();
        let services: Vec<&str> = services.into_iter().collect();
        rollout::check(&order, &view, &services, &decision, running.as_ref(), last.as_ref()).map_err(|refusal| {
            match refusal {
                Refusal::Input(text) => OrderError::Input(text),
                Refusal::Held(text) => OrderError::Held(text),
            }
        })?;
        if order == Order::Pause {
            self.ensure_pause().map_err(OrderError::Failed)?;
        }
        let now_ms = now_ms();
        let mut ended = Vec::new();
        if let Some(mut running) = running {
            rollout::end(&mut running, Outcome::Aborted, now_ms, format!("ended by a rollback of {who}"));
            ended.push(running);
        }
        let mut operation = Operation {
            id: self.orders.ledger.next_operation(),
            service: service.to_owned(),
            who,
            begun_ms: now_ms,
            order,
            before: decision.traffic.clone(),
            phase: Phase::Ended,
            steps: Vec::new(),
            end: None,
        };
        let progress = rollout::begin(&mut operation, &view, &decision, last.as_ref(), now_ms);
        info!(%service, who = %operation.who, id = operation.id, "{} begins", operation.title());
        ended.push(operation);
        self.record(service, ended, progress).map_err(OrderError::Failed)?;
        self.step_operation(service);
        let begun = self.orders.operations.get(service).cloned();
        let latest = begun.or_else(|| self.orders.ledger.history(Some(service)).pop());
        latest.ok_or_else(|| OrderError::Failed("the order is not in the history".to_owned()))
    }

    /// Stores what has been decided in one transaction, and only then acts on it. `operations` are of one service; the
    /// last is the current one.
    fn record(&mut self, service: &str, mut operations: Vec<Operation>, progress: Progress) -> Result<(), String> {
        let stops = self.stops_after(service, &progress.effects);
        let decision = progress.decision.as_ref();
        let decisions: Vec<(&str, Option<&Decision>)> = decision.iter().map(|next| (service, Some(*next))).collect();
        let stored: Vec<&Operation> = operations.iter().collect();
        let change = Change { decisions: &decisions, operations: &stored, stops: stops.as_deref() };
        self.orders
            .ledger
            .commit(change)
            .map_err(|e| format!("the decision cannot be stored: {}", crate::chain(&e)))?;
        if let Some(stops) = stops {
            self.orders.stops = stops;
        }
        if let Some(next) = progress.decision {
            // From the decision to its being in force.
            let began = Instant::now();
            self.world.decisions.insert(service.to_owned(), next);
            self.touch();
            self.converge();
            let took = began.elapsed();
            if let Some(operation) = operations.last_mut().filter(|operation| operation.moves_traffic()) {
                let took_us = took.as_micros() as u64;
                operation.steps.push(Step { name: "switched".to_owned(), took_us, detail: String::new() });
                let change = Change { decisions: &[], operations: &[operation], stops: None };
                if let Err(error) = self.orders.ledger.commit(change) {
                    warn!(error = %crate::chain(&error), "the history lacks how long a switch took");
                }
            }
        }
        for operation in &operations {
            self.tell_operation(operation);
        }
        match operations.pop() {
            Some(operation) if operation.end.is_none() => {
                self.orders.operations.insert(service.to_owned(), operation);
            }
            _ => {
                self.orders.operations.remove(service);
                self.orders.overflows.clear();
            }
        }
        for effect in progress.effects {
            if let Effect::Stop(old) = effect {
                self.stop_backends(&old);
            }
        }
        self.leave_pause();
        Ok(())
    }

    /// The old backends that are kept for a while, after these effects; nothing if they stay the same.
    fn stops_after(&self, service: &str, effects: &[Effect]) -> Option<Vec<PlannedStop>> {
        let mut stops = self.orders.stops.clone();
        for effect in effects {
            match effect {
                Effect::Stop(_) => {}
                Effect::KeepAll => stops.retain(|stop| stop.service != service),
                Effect::StopLater { version, old, at_ms } => stops.push(PlannedStop {
                    service: service.to_owned(),
                    version: version.clone(),
                    backends: old.clone(),
                    at_ms: *at_ms,
                }),
            }
        }
        (stops != self.orders.stops).then_some(stops)
    }

    /// Takes every step that is due.
    pub(super) fn step_operations(&mut self) {
        let services: Vec<String> = self.orders.operations.keys().cloned().collect();
        for service in services {
            self.step_operation(&service);
        }
        self.stop_kept();
        self.follow_policies();
    }

    fn step_operation(&mut self, service: &str) {
        while !self.orders.settling.contains(service)
            && let Some(operation) = self.orders.operations.get(service)
        {
            let mut next = operation.clone();
            let (view, decision) = (self.view(service), self.decision(service));
            let progress = rollout::step(&mut next, &view, &decision, now_ms());
            if next == *operation {
                return;
            }
            if let Err(error) = self.record(service, vec![next], progress) {
                error!(%error, %service, "an operation stands still");
                return;
            }
            let settled = std::mem::take(&mut self.orders.settled);
            self.settle(service, settled);
        }
    }

    /// How long nothing is due: weights that grow, steps of operations, backends that are kept until then.
    pub(super) fn due_in(&self) -> Duration {
        if !self.orders.operations.is_empty() {
            return STEP_EVERY;
        }
        let soonest = self.plan.next_ms.into_iter().chain(self.orders.stops.iter().map(|stop| stop.at_ms)).min();
        let wait_ms = soonest.map_or(i64::MAX, |at_ms| at_ms - now_ms()).clamp(0, IDLE_MS_MAX);
        Duration::from_millis(wait_ms.unsigned_abs())
    }

    pub(super) fn touch_if_due(&mut self) {
        if self.plan.next_ms.is_some_and(|at_ms| at_ms <= now_ms()) {
            self.touch();
        }
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

    fn decision(&self, service: &str) -> Decision {
        self.world.decisions.get(service).cloned().unwrap_or_default()
    }

    /// A service as it is now.
    pub(super) fn view(&self, service: &str) -> View {
        let backends = self.world.backends.values().filter(|backend| backend.spec.service == service);
        let of = |backend: &crate::world::Backend| rollout::BackendView {
            name: backend.name.clone(),
            version: backend.spec.version.clone(),
            state: self.state(backend),
            ready_since_ms: backend.ready_since_ms,
            created_ms: backend.created_ms,
            live: self.live(backend.index),
            overflows: self.orders.overflows.get(&backend.index).map_or(0, |(first, now)| now.saturating_sub(*first)),
            weight: backend.spec.weight,
            problem: self.backend_problems(backend).into_iter().next(),
        };
        View {
            service: service.to_owned(),
            backends: backends.map(|backend| (backend.id.clone(), of(backend))).collect(),
        }
    }

    pub(super) fn operation(&self, id: u64) -> Option<OperationStatus> {
        let running = self.orders.operations.values().find(|operation| operation.id == id).cloned();
        let operation =
            running.or_else(|| self.orders.ledger.history(None).into_iter().find(|operation| operation.id == id))?;
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
        let (ready, wanted) = (view.ready(version).count() as u32, wanted.unwrap_or(present));
        let left_backends = match &operation.phase {
            Phase::Draining { old, .. } => old.clone(),
            _ => BTreeSet::new(),
        };
        let live = |id: &String| view.backends.get(id).map_or(0, |backend| backend.live);
        let left: u64 = left_backends.iter().map(live).sum();
        let waiting_for = operation.waiting_for(ready, wanted, left, now_ms());
        OperationStatus { operation, ready, wanted, left, waiting_for }
    }

    pub(super) fn history(&self, service: Option<&str>) -> Vec<Operation> {
        self.orders.ledger.history(service)
    }

    fn tell_operation(&self, operation: &Operation) {
        let step = operation.steps.last().map(|step| format!("{} {}", step.name, step.detail)).unwrap_or_default();
        match &operation.end {
            Some(end) => {
                info!(service = %operation.service, id = operation.id, outcome = ?end.outcome, "{}", end.message);
                self.tell(&operation.service, "", end.outcome.word(), &end.message);
            }
            None => self.tell(&operation.service, "", "step", &format!("{}: {step}", operation.title())),
        }
    }

    /// Takes up what an earlier daemon left in the midst.
    pub(super) fn resume_operations(&mut self) {
        self.world.decisions = self.orders.ledger.decisions();
        self.orders.stops = self.orders.ledger.stops();
        let running = self.orders.ledger.running();
        for operation in running {
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
        if self.world.decisions.values().any(|decision| decision.paused)
            && let Err(error) = self.ensure_pause()
        {
            error!(%error, "a paused service cannot be kept paused");
        }
    }

    /// Old backends whose time is over.
    fn stop_kept(&mut self) {
        let now_ms = now_ms();
        let (due, kept): (Vec<_>, Vec<_>) =
            self.orders.stops.clone().into_iter().partition(|stop| stop.at_ms <= now_ms);
        if due.is_empty() {
            return;
        }
        let change = Change { decisions: &[], operations: &[], stops: Some(&kept) };
        if let Err(error) = self.orders.ledger.commit(change) {
            warn!(error = %crate::chain(&error), "old backends are kept longer than asked for");
            return;
        }
        self.orders.stops = kept;
        for stop in due {
            info!(service = %stop.service, "the old backends have been kept as long as {} asked for", stop.version);
            self.stop_backends(&stop.backends);
        }
    }
}
