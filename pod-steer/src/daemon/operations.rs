//! Carrying out what operators order: each order is checked, stored, and then acted on. `rollout` says what comes next.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use pod_steer_ebpf::SOURCES_MAX;
use tracing::info;

use super::{
    ages::Noted,
    closings::Closings,
    control::Control,
    empty::Vacancies,
    holds::Holds,
    judging::Judgings,
    ledger::{Ledger, PlannedStop},
    pause::Holder,
    policies::Attempts,
    recorded::{Asker, Begun, Recorded},
    resets::Resets,
    sleep::Sleepers,
    starting::Starts,
};
use crate::{
    api::OrderError,
    clock::{Now, now},
    ids::{BackendId, BackendIndex},
    kernel::Settled,
    rollout::{self, Decision, OfService, Operation, Order, Outcome, Phase, Policy, Refusal, Step},
};

/// An order that has been given and waits for its turn.
pub(super) struct GivenOrder {
    pub service: String,
    pub order: Order,
    /// Who gave it, for people.
    pub who: String,
    pub asker: Asker,
    /// It needs listeners that hold clients, and has waited for them.
    pub has_waited: bool,
    /// Its service slept, and it has waited for the wake.
    pub has_awaited_wake: bool,
}

impl GivenOrder {
    pub fn new(service: String, order: Order, who: String, asker: Asker) -> Self {
        Self { service, order, who, asker, has_waited: false, has_awaited_wake: false }
    }
}

/// What operators have ordered, and what it needs.
pub(super) struct Orders {
    pub ledger: Ledger,
    /// Orders that wait for their turn.
    pub given: VecDeque<GivenOrder>,
    /// Stored, and to be continued once the kernel has the decision.
    pub recorded: Option<Recorded>,
    /// Orders that have begun and are not answered yet.
    pub begun: Vec<Begun>,
    /// Services whose operations may have a step that is due in this turn.
    pub to_step: VecDeque<String>,
    /// Operations in progress, by service.
    pub operations: BTreeMap<String, Operation>,
    /// The tables that the last change replaced, until no lookup can use them.
    pub settled: Vec<Settled>,
    /// Services whose operations wait for that.
    pub settling: BTreeSet<String>,
    /// Old backends that are kept for a while.
    pub stops: Vec<PlannedStop>,
    /// By backend, packets that the listeners of a watched backend had dropped at first, and now.
    pub overflows: HashMap<BackendId, (u64, u64)>,
    pub pause_holder: Option<Holder>,
    pub holds: Holds,
    pub vacancies: Vacancies,
    pub resets: Resets,
    pub closings: Closings,
    pub ages: Noted,
    pub judgings: Judgings,
    pub attempts: Attempts,
    pub starts: Starts,
    pub sleepers: Sleepers,
    /// Containers that their engine was told to stop, without an answer.
    pub unstopped: HashSet<BackendId>,
    /// When each backend became ready, as it is stored.
    pub ready_stored: HashMap<BackendIndex, Option<i64>>,
}

impl Orders {
    pub fn new(ledger: Ledger, vacancies: Vacancies) -> Self {
        Self {
            ledger,
            given: VecDeque::new(),
            recorded: None,
            begun: Vec::new(),
            to_step: VecDeque::new(),
            operations: BTreeMap::new(),
            settled: Vec::new(),
            settling: BTreeSet::new(),
            stops: Vec::new(),
            overflows: HashMap::new(),
            pause_holder: None,
            holds: Holds::default(),
            vacancies,
            resets: Resets::default(),
            closings: Closings::default(),
            ages: Noted::default(),
            judgings: Judgings::default(),
            attempts: Attempts::default(),
            starts: Starts::default(),
            sleepers: Sleepers::default(),
            unstopped: HashSet::new(),
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
        recreation: None,
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
    /// Carries out an order. Its asker is answered when no operation has a further step to make in this turn.
    pub(super) fn carry_out(&mut self, mut given: GivenOrder) {
        if self.waits_for_wake(&given) {
            let service = &given.service;
            let Some(why) = self.wake_hindrance(service) else { return self.await_wake(given) };
            let text = format!(
                "{service} sleeps and cannot wake: {why}; give the order again when that has ended, see pod-steer status {service}"
            );
            return self.answer_unbegun(given, Err(OrderError::Held(text)));
        }
        let options = self.world.options(&given.service);
        given.order.complete(OfService {
            close_idle_ms: options.drain_close_idle_ms,
            max_age_ms: options.drain_max_age_ms,
            wake_max_hold_ms: options.idle_max_hold_ms,
        });
        if let Some(answer) = self.checked(&given).transpose() {
            return self.answer_unbegun(given, answer);
        }
        let waits = given.order.needs_hold() && !given.has_waited;
        let Some(given) = (if waits { self.await_holds(given) } else { Some(given) }) else { return };
        match self.begin(&given.service, given.order.clone(), given.who.clone()) {
            Ok(()) => {
                if let Some(recorded) = &mut self.orders.recorded {
                    recorded.asker = Some(given.asker);
                }
            }
            Err(refused) => self.answer_unbegun(given, Err(refused)),
        }
    }

    /// Answers an order that changes nothing.
    fn answer_unbegun(&mut self, given: GivenOrder, answer: Result<Operation, OrderError>) {
        let GivenOrder { service, asker, has_waited, .. } = given;
        if has_waited {
            // Listeners that were opened for it are not wanted any more.
            self.touch_service(&service);
        }
        self.answer_order(Begun { service, id: 0, settled: Vec::new(), asker }, answer);
    }

    /// Checks an order, before anything is changed. Returns the answer if it was in force already.
    fn checked(&self, given: &GivenOrder) -> Result<Option<Operation>, OrderError> {
        let GivenOrder { service, order, who, .. } = given;
        let view = self.view(service);
        let decision = self.decision(service);
        let (running, last) = self.running_and_last(service);
        let history = self.orders.ledger.history(Some(service));
        let services: BTreeSet<&str> = self.world.backends.values().map(|b| b.spec.service.as_str()).collect();
        let services: Vec<&str> = services.into_iter().collect();
        if self.world.options(service).rollout != Policy::Balance
            && matches!(order, Order::Shift(shift) if shift.balance)
        {
            let policy = "its policy lets one version serve at a time; give weights instead, as in v1=1 v2=1";
            return Err(OrderError::Input(format!("{service} cannot be balanced: {policy}")));
        }
        let is_same = |running: &&Operation| {
            matches!((&running.order, order), (Order::Idle, Order::Idle) | (Order::Wake(_), Order::Wake(_)))
        };
        if let Some(running) = running.as_ref().filter(is_same) {
            return Ok(Some(running.clone()));
        }
        if let Some(message) = rollout::already(order, &view, &decision, running.as_ref(), &history)
            && self.is_in_force(service)
        {
            info!(%service, %who, "{message}");
            return Ok(Some(unchanged(service, order.clone(), who.clone(), &decision, message)));
        }
        if *order == Order::Idle
            && let Some(why) = self.cannot_sleep(service)
        {
            return Err(OrderError::Input(format!("{service} cannot be put to sleep: {why}")));
        }
        rollout::check(order, &view, &services, &decision, running.as_ref(), last.as_ref()).map_err(|refusal| {
            match refusal {
                Refusal::Input(text) => OrderError::Input(text),
                Refusal::Held(text) => OrderError::Held(text),
            }
        })?;
        Ok(None)
    }

    /// The operation of a service that is running, and the one that a rollback undoes.
    fn running_and_last(&self, service: &str) -> (Option<Operation>, Option<Operation>) {
        let running = self.orders.operations.get(service).cloned();
        let history = self.orders.ledger.history(Some(service));
        let last = running.clone().or_else(|| rollout::behind(&history).cloned());
        (running, last)
    }

    /// Records an order that was checked.
    fn begin(&mut self, service: &str, order: Order, who: String) -> Result<(), OrderError> {
        if let Order::Deploy(deploy) = &order
            && deploy.recreate
            && !deploy.allow_drop
            && let Some(unheld) = self.unheld(service)
        {
            return Err(OrderError::Input(format!(
                "not all clients of {service} can be held while no version runs: {unheld}; with --allow-drop their SYNs are discarded                  meanwhile, and clients repeat them after a second or more"
            )));
        }
        if order == Order::Idle {
            self.check_idle(service)?;
        }
        if order.needs_hold() {
            self.ensure_pause().map_err(OrderError::Failed)?;
        }
        let view = self.view(service);
        let decision = self.decision(service);
        let (running, last) = self.running_and_last(service);
        let clients = self.told_of_clients(service, &order, self.held_clients(service));
        let now = now();
        let mut ended = Vec::new();
        if let Some(mut running) = running {
            let order = if order == Order::Rollback { "rollback" } else { "resume" };
            rollout::end(&mut running, Outcome::Aborted, now, format!("ended by a {order} of {who}"));
            ended.push(running);
        }
        let id = self.orders.ledger.next_operation();
        let mut operation = new_operation(id, service, order, who, &decision, now);
        let progress = rollout::begin(&mut operation, &view, &decision, last.as_ref(), now);
        match (operation.end.as_mut(), clients) {
            (Some(end), Some(clients)) => end.message.push_str(&format!("; {clients}")),
            (None, Some(detail)) => operation.steps.push(Step { name: "held".to_owned(), took_us: 0, detail }),
            (_, None) => {}
        }
        info!(%service, who = %operation.who, id = operation.id, "{} begins", operation.title());
        ended.push(operation);
        let wanted = self.networks_wanted(service, progress.decision.as_ref());
        if wanted > SOURCES_MAX as usize {
            return Err(OrderError::Input(format!(
                "so many networks on so many ports need {wanted} entries, and there are {SOURCES_MAX}; name fewer networks"
            )));
        }
        self.record(service, ended, progress);
        Ok(())
    }

    /// Whether all clients of a service can be held.
    fn check_idle(&self, service: &str) -> Result<(), OrderError> {
        match self.unheld(service) {
            Some(unheld) => Err(OrderError::Input(format!("not all clients of {service} can be held: {unheld}"))),
            None => Ok(()),
        }
    }

    /// Entries of the map of networks that a decision needs while it takes the place of the one before.
    fn networks_wanted(&self, service: &str, decision: Option<&Decision>) -> usize {
        let rules = |name: &str| self.plan.rules.values().filter(|r| r.service.as_deref() == Some(name)).count();
        let of = |name: &str, decision: &Decision| decision.traffic.from.len() * rules(name);
        let held: usize = self.world.decisions.iter().map(|(name, decision)| of(name, decision)).sum();
        held + decision.map_or(0, |next| of(service, next))
    }

    pub(super) fn decision(&self, service: &str) -> Decision {
        self.world.decisions.get(service).cloned().unwrap_or_default()
    }
}
