//! A decision on its way: it is stored, then the kernel gets it with the next reconcile, and only then its operation goes on
//! and its asker is answered.

use std::time::Instant;

use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::{
    Event,
    control::Control,
    ledger::{Change, PlannedStop},
    policies::Situation,
};
use crate::{
    abort::{self, Point},
    api::OrderError,
    clock::by_wall_clock,
    kernel::Settled,
    rollout::{Decision, Effect, Operation, Progress, Step},
    world::Backend,
};

/// Who gave an order, and hears how it went.
pub(super) enum Asker {
    /// A client of the API. It is answered when the order has taken effect for every client, or, if that takes its time, when the
    /// operation has begun.
    Client(oneshot::Sender<Result<Operation, OrderError>>),
    /// The policy of the service, in this situation.
    Policy(Box<Situation>),
    /// The option `idle` of the service.
    Idle,
    /// The daemon itself.
    Daemon,
}

impl Asker {
    /// Whether it has gone before it was answered.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Client(answer) if answer.is_closed())
    }
}

/// What has been stored of a service and is to be continued.
pub(super) struct Recorded {
    service: String,
    /// The last one is the current one.
    operations: Vec<Operation>,
    effects: Vec<Effect>,
    /// When its decision was made, if it has one.
    decided: Option<Instant>,
    pub asker: Option<Asker>,
}

/// An order that has begun and is not answered yet.
pub(super) struct Begun {
    pub service: String,
    /// The number of its operation.
    pub id: u64,
    /// The tables that it replaced, until no lookup can use them.
    pub settled: Vec<Settled>,
    pub asker: Asker,
}

impl Control {
    /// Stores what has been decided in one transaction, and only then acts on it. `operations` are of one service; the
    /// last is the current one.
    pub(super) fn record(&mut self, service: &str, operations: Vec<Operation>, progress: Progress) {
        let stops = self.stops_after(service, &progress.effects);
        let decision = progress.decision.as_ref();
        let decisions: Vec<(&str, Option<&Decision>)> = decision.iter().map(|next| (service, Some(*next))).collect();
        let stored: Vec<&Operation> = operations.iter().collect();
        let change = Change { decisions: &decisions, operations: &stored, stops: stops.as_deref() };
        self.store_orders(change);
        if let Some(stops) = stops {
            self.orders.stops = stops;
        }
        let decided = progress.decision.map(|next| {
            abort::here(Point::Stored);
            let _ = self.kernel.take_switched();
            self.world.decisions.insert(service.to_owned(), next);
            self.touch_service(service);
            if self.holds_clients(service) {
                // Other servers may get what is held from now on.
                self.ensure_holds(service);
            }
            Instant::now()
        });
        let service = service.to_owned();
        self.orders.recorded = Some(Recorded { service, operations, effects: progress.effects, decided, asker: None });
    }

    /// Goes on with what was recorded, now that the kernel has been given it.
    pub(super) fn continue_recorded(&mut self, recorded: Recorded) {
        let Recorded { service, mut operations, effects, decided, asker } = recorded;
        let settled = decided.map(|_| std::mem::take(&mut self.orders.settled)).unwrap_or_default();
        if let Some(decided) = decided {
            self.count_anew(&service);
            self.note_switch(&service, decided, operations.last_mut());
        }
        for operation in &operations {
            self.totals.count_operation(operation, decided);
            self.tell_operation(operation);
        }
        if operations.iter().any(|operation| !operation.is_of_sleep()) {
            self.orders.sleepers.end_starts(&service);
        }
        let id = operations.last().map_or(0, |operation| operation.id);
        let goes_on = operations.last().is_some_and(|operation| operation.end.is_none());
        match operations.pop().filter(|_| goes_on) {
            Some(operation) => drop(self.orders.operations.insert(service.clone(), operation)),
            None => self.forget_operation(&service),
        }
        for effect in effects {
            match effect {
                Effect::StartLater(failed) => self.start_later(&service, failed),
                Effect::Stop(old) => self.stop_backends(&old),
                Effect::Start(new) => self.start_backends(&new),
                Effect::StopLater { .. } | Effect::KeepAll => {}
            }
        }
        let mut settled = Some(settled);
        if goes_on {
            self.orders.to_step.push_front(service.clone());
            self.settle(&service, settled.take().unwrap_or_default());
        }
        let Some(asker) = asker else { return };
        let begun = Begun { service, id, settled: settled.unwrap_or_default(), asker };
        if self.is_in_force(&begun.service) {
            self.orders.begun.push(begun);
        } else {
            let text = "the order is stored, but the kernel has not accepted the change yet; the daemon tries again, and its \
                        log says why";
            self.answer_order(begun, Err(OrderError::Failed(text.to_owned())));
        }
    }

    /// Notes how long the kernel took to follow a decision.
    fn note_switch(&mut self, service: &str, decided: Instant, operation: Option<&mut Operation>) {
        let switched = self.kernel.take_switched();
        let took = switched.map(|switched| switched.saturating_duration_since(decided));
        self.totals.count_decision(service, took);
        let Some(took) = took else { return };
        // One that only holds clients so far has moved nothing.
        let moves = |operation: &&mut Operation| operation.moves_traffic() && !operation.is_recreating();
        let Some(operation) = operation.filter(moves) else { return };
        let took_us = took.as_micros() as u64;
        operation.steps.push(Step { name: "switched".to_owned(), took_us, detail: String::new() });
        let operation = operation.clone();
        self.store_orders(Change { decisions: &[], operations: &[&operation], stops: None });
    }

    fn forget_operation(&mut self, service: &str) {
        self.orders.operations.remove(service);
        let of_service = |backend: &&Backend| backend.spec.service == service;
        for backend in self.world.backends.values().filter(of_service) {
            self.orders.overflows.remove(&backend.id);
            self.orders.starts.remove(&backend.id);
            self.orders.unstopped.remove(&backend.id);
        }
    }

    /// Answers every order that has begun. False if there is none.
    pub(super) fn answer_begun(&mut self) -> bool {
        let begun = std::mem::take(&mut self.orders.begun);
        let any = !begun.is_empty();
        for begun in begun {
            let running = self.orders.operations.get(&begun.service).filter(|running| running.id == begun.id).cloned();
            let latest = running.or_else(|| self.orders.ledger.operation(begun.id).cloned());
            let latest = latest.map(|operation| self.orders.ledger.told(operation));
            let missing = || OrderError::Failed("the order is not in the history".to_owned());
            self.answer_order(begun, latest.ok_or_else(missing));
        }
        any
    }

    pub(super) fn answer_order(&mut self, begun: Begun, result: Result<Operation, OrderError>) {
        let Begun { service, settled, asker, .. } = begun;
        match asker {
            Asker::Client(answer) => {
                let result = result.map(by_wall_clock);
                if settled.is_empty() {
                    return drop(answer.send(result));
                }
                tokio::spawn(async move {
                    for table in settled {
                        table.wait().await;
                    }
                    let _ = answer.send(result);
                });
            }
            Asker::Policy(situation) => self.policy_answered(service, *situation, result),
            Asker::Idle => self.idle_answered(&service, result.err()),
            Asker::Daemon => {
                if let Err(error) = result {
                    warn!(%service, %error, "an order of the daemon could not be carried out");
                }
            }
        }
    }

    /// An operation waits until no lookup can be using the tables that were replaced.
    fn settle(&mut self, service: &str, settled: Vec<Settled>) {
        if settled.is_empty() {
            return;
        }
        self.orders.settling.insert(service.to_owned());
        let service = service.to_owned();
        self.effects.send_later(async move {
            for table in settled {
                table.wait().await;
            }
            Event::Settled(service)
        });
    }

    pub(super) fn settled(&mut self, service: &str) {
        self.orders.settling.remove(service);
        self.count_anew(service);
    }

    /// A disk that is full must not keep an operator from rolling back: the ledger holds in memory what it could not store,
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
                Effect::Stop(_) | Effect::Start(_) | Effect::StartLater(_) => {}
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
