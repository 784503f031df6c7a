//! Carrying out what operators order: each order is checked, stored, and then acted on. `rollout` says what comes next.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Instant,
};

use pod_steer_ebpf::SOURCES_MAX;
use tokio::sync::oneshot;
use tracing::{error, info};

use super::{
    Input,
    control::Control,
    empty::Vacancies,
    ledger::{Change, Ledger, PlannedStop},
    pause::Holder,
    policies::Attempts,
};
use crate::{
    abort::{self, Point},
    api::{OrderAsk, OrderError},
    clock::{Now, by_wall_clock, now},
    kernel::Settled,
    rollout::{self, Decision, Effect, Operation, Order, Outcome, Phase, Policy, Progress, Refusal, Step},
    world::{Backend, BackendId},
};

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
    /// By backend, packets that the listeners of a watched backend had dropped at first, and now.
    pub overflows: HashMap<BackendId, (u64, u64)>,
    pub pause_holder: Option<Holder>,
    pub vacancies: Vacancies,
    pub attempts: Attempts,
    /// When each backend became ready, as it is stored.
    pub ready_stored: HashMap<u32, Option<i64>>,
}

impl Orders {
    pub fn new(ledger: Ledger, vacancies: Vacancies) -> Self {
        Self {
            ledger,
            operations: BTreeMap::new(),
            settled: Vec::new(),
            settling: BTreeSet::new(),
            stops: Vec::new(),
            overflows: HashMap::new(),
            pause_holder: None,
            vacancies,
            attempts: Attempts::default(),
            ready_stored: HashMap::new(),
        }
    }
}

/// An operation that has not begun.
fn new_operation(id: u64, service: &str, order: Order, who: String, decision: &Decision, now: Now) -> Operation {
    Operation {
        id,
        service: service.to_owned(),
        who,
        begun_ms: now.wall_ms,
        order,
        before: decision.traffic.clone(),
        undrained: BTreeSet::new(),
        phase: Phase::Ended,
        steps: Vec::new(),
        end: None,
        not_stored: None,
    }
}

/// The answer to an order that was in force already.
fn unchanged(service: &str, order: Order, who: String, decision: &Decision, message: String) -> Operation {
    let now = now();
    let mut operation = new_operation(0, service, order, who, decision, now);
    rollout::end(&mut operation, Outcome::Done, now, message);
    operation
}

impl Control {
    pub(super) fn order(&mut self, ask: OrderAsk) {
        // What has happened until now counts, also what waits for its turn.
        if self.pace.hurry(&ask.service) {
            self.touch_service(&ask.service);
        }
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
            let _ = answer.send(Ok(by_wall_clock(operation)));
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
    pub(super) fn settle(&mut self, service: &str, settled: Vec<Settled>) {
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
        self.count_anew(service);
    }

    pub(super) fn carry_out(&mut self, service: &str, order: Order, who: String) -> Result<Operation, OrderError> {
        let view = self.view(service);
        let decision = self.decision(service);
        let running = self.orders.operations.get(service).cloned();
        let history = self.orders.ledger.history(Some(service));
        let last = running.clone().or_else(|| rollout::behind(&history).cloned());
        let services: BTreeSet<&str> = self.world.backends.values().map(|b| b.spec.service.as_str()).collect();
        let services: Vec<&str> = services.into_iter().collect();
        if self.world.options(service).rollout != Policy::Balance
            && matches!(&order, Order::Shift(shift) if shift.balance)
        {
            let policy = "its policy lets one version serve at a time; give weights instead, as in v1=1 v2=1";
            return Err(OrderError::Input(format!("{service} cannot be balanced: {policy}")));
        }
        if let Some(message) = rollout::already(&order, &view, &decision, running.as_ref(), &history)
            && self.is_in_force(service)
        {
            info!(%service, %who, "{message}");
            return Ok(unchanged(service, order, who, &decision, message));
        }
        rollout::check(&order, &view, &services, &decision, running.as_ref(), last.as_ref()).map_err(|refusal| {
            match refusal {
                Refusal::Input(text) => OrderError::Input(text),
                Refusal::Held(text) => OrderError::Held(text),
            }
        })?;
        if order == Order::Pause {
            self.ensure_pause().map_err(OrderError::Failed)?;
        }
        let now = now();
        let mut ended = Vec::new();
        if let Some(mut running) = running {
            rollout::end(&mut running, Outcome::Aborted, now, format!("ended by a rollback of {who}"));
            ended.push(running);
        }
        let id = self.orders.ledger.next_operation();
        let mut operation = new_operation(id, service, order, who, &decision, now);
        let progress = rollout::begin(&mut operation, &view, &decision, last.as_ref(), now);
        info!(%service, who = %operation.who, id = operation.id, "{} begins", operation.title());
        ended.push(operation);
        let wanted = self.networks_wanted(service, progress.decision.as_ref());
        if wanted > SOURCES_MAX as usize {
            return Err(OrderError::Input(format!(
                "so many networks on so many ports need {wanted} entries, and there are {SOURCES_MAX}; name fewer networks"
            )));
        }
        self.record(service, ended, progress);
        if !self.is_in_force(service) {
            let text = "the order is stored, but the kernel has not accepted the change yet; the daemon tries again, and its \
                        log says why";
            return Err(OrderError::Failed(text.to_owned()));
        }
        self.step_operation(service);
        let begun = self.orders.operations.get(service).cloned();
        let latest = begun.or_else(|| self.orders.ledger.history(Some(service)).pop());
        let latest = latest.map(|operation| self.orders.ledger.told(operation));
        latest.ok_or_else(|| OrderError::Failed("the order is not in the history".to_owned()))
    }

    /// Entries of the map of networks that a decision needs while it takes the place of the one before.
    fn networks_wanted(&self, service: &str, decision: Option<&Decision>) -> usize {
        let rules = |name: &str| self.plan.rules.values().filter(|r| r.service.as_deref() == Some(name)).count();
        let of = |name: &str, decision: &Decision| decision.traffic.from.len() * rules(name);
        let held: usize = self.world.decisions.iter().map(|(name, decision)| of(name, decision)).sum();
        held + decision.map_or(0, |next| of(service, next))
    }

    /// Stores what has been decided in one transaction, and only then acts on it. `operations` are of one service; the
    /// last is the current one.
    pub(super) fn record(&mut self, service: &str, mut operations: Vec<Operation>, progress: Progress) {
        let stops = self.stops_after(service, &progress.effects);
        let decision = progress.decision.as_ref();
        let decisions: Vec<(&str, Option<&Decision>)> = decision.iter().map(|next| (service, Some(*next))).collect();
        let stored: Vec<&Operation> = operations.iter().collect();
        let change = Change { decisions: &decisions, operations: &stored, stops: stops.as_deref() };
        self.store_orders(change);
        if let Some(stops) = stops {
            self.orders.stops = stops;
        }
        if let Some(next) = progress.decision {
            abort::here(Point::Stored);
            // From the decision to its being in force.
            let began = Instant::now();
            let _ = self.kernel.take_switched();
            self.world.decisions.insert(service.to_owned(), next);
            self.touch_service(service);
            self.converge();
            self.count_anew(service);
            if let Some(switched) = self.kernel.take_switched()
                && let Some(operation) = operations.last_mut().filter(|operation| operation.moves_traffic())
            {
                let took_us = switched.saturating_duration_since(began).as_micros() as u64;
                operation.steps.push(Step { name: "switched".to_owned(), took_us, detail: String::new() });
                let operation = operation.clone();
                self.store_orders(Change { decisions: &[], operations: &[&operation], stops: None });
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
                let of_service = |backend: &&Backend| backend.spec.service == service;
                for backend in self.world.backends.values().filter(of_service) {
                    self.orders.overflows.remove(&backend.id);
                }
            }
        }
        for effect in progress.effects {
            if let Effect::Stop(old) = effect {
                self.stop_backends(&old);
            }
        }
    }

    /// A disk that is full must not keep an operator from going back: the ledger holds in memory what it could not store,
    /// and stores it with the next change.
    pub(super) fn store_orders(&mut self, change: Change<'_>) {
        if let Err(error) = self.orders.ledger.commit(change) {
            error!(error = %crate::chain(&error), "an order is in force but not stored");
        }
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

    pub(super) fn decision(&self, service: &str) -> Decision {
        self.world.decisions.get(service).cloned().unwrap_or_default()
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
}
