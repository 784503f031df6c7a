//! A service with two versions, and what its orders lead to.

use pod_steer::{
    clock::{Now, by_wall_clock},
    labels,
    rollout::{self, BackendView, Decision, Operation, Order, Outcome, Phase, View},
    settings::GivenOptions,
    world::{Kind, Plan, World},
};

use crate::{assert_one_line, plan};

const SERVICE: &str = "web";
/// Milliseconds from one look at an operation to the next.
const PAUSES_MS: [i64; 5] = [0, 600, 60_000, 86_400_000, i64::MAX / 4];
/// Steps after each of them.
const STEPS_EACH: usize = 3;

/// See the module.
pub struct Service {
    world: World,
    plan: Plan,
    history: Vec<Operation>,
}

impl Service {
    pub fn new() -> Self {
        let spec = |version| labels::spec_from_flags(SERVICE, "80:8080,443", version, 1, GivenOptions::default());
        let specs = ["v1", "v1", "v2"].map(|version| spec(version).expect("it is written here"));
        let mut world = plan::world(specs);
        let plan = plan::check(&mut world);
        Self { world, plan, history: Vec::new() }
    }

    /// Decides what was decided before.
    pub fn decide(&mut self, service: &str, decision: Decision) {
        self.world.decisions.insert(service.to_owned(), decision);
        self.plan = plan::check(&mut self.world);
    }

    /// Checks an order, carries it out, and follows it to its end.
    pub fn order(&mut self, order: Order) {
        let (view, decision) = (self.view(), self.decision());
        if let Some(message) = rollout::already(&order, &view, &decision, None, &self.history) {
            return assert_one_line(&message);
        }
        let last = rollout::behind(&self.history).cloned();
        if let Err(refusal) = rollout::check(&order, &view, &[SERVICE], &decision, None, last.as_ref()) {
            return assert_one_line(&refusal.to_string());
        }
        let mut operation = Operation {
            id: self.history.len() as u64 + 1,
            service: SERVICE.to_owned(),
            who: "root".to_owned(),
            begun_ms: self.now().wall_ms,
            order,
            before: decision.traffic.clone(),
            undrained: Default::default(),
            recreation: None,
            phase: Phase::Ended,
            steps: Vec::new(),
            end: None,
            not_stored: None,
        };
        let progress = rollout::begin(&mut operation, &view, &decision, last.as_ref(), self.now());
        self.decided(&decision, progress.decision);
        self.follow(operation);
    }

    /// Goes on with an operation that was read.
    pub fn resume(&mut self, operation: Operation) {
        let shown = operation.waiting_for(1, 1, 1, self.now().ms);
        assert!(!shown.contains('\n') || operation.title().contains('\n'));
        self.follow(by_wall_clock(operation));
    }

    fn follow(&mut self, mut operation: Operation) {
        for pause_ms in PAUSES_MS {
            self.world.now_ms = self.world.now_ms.saturating_add(pause_ms);
            for _ in 0..STEPS_EACH {
                if operation.end.is_some() {
                    break;
                }
                let (view, decision) = (self.view(), self.decision());
                let progress = rollout::step(&mut operation, &view, &decision, self.now());
                self.decided(&decision, progress.decision);
                let _ = operation.waiting_for(1, 2, 3, self.now().ms);
            }
        }
        if operation.end.is_none() {
            rollout::end(&mut operation, Outcome::Aborted, self.now(), "by the next one");
        }
        self.world.now_ms = plan::NOW_MS;
        self.history.push(operation);
    }

    fn decided(&mut self, before: &Decision, decision: Option<Decision>) {
        let Some(decision) = decision else { return };
        assert_ne!(decision.revision, before.revision, "another decision has another number");
        self.decide(SERVICE, decision);
    }

    fn decision(&self) -> Decision {
        self.world.decisions.get(SERVICE).cloned().unwrap_or_default()
    }

    fn now(&self) -> Now {
        Now { ms: self.world.now_ms, wall_ms: 1_700_000_000_000 }
    }

    fn view(&self) -> View {
        let backends = self.world.backends.values().map(|backend| {
            let view = BackendView {
                name: backend.name.clone(),
                version: backend.spec.version.clone(),
                state: self.plan.states[&backend.index],
                ready_since_ms: backend.ready_since_ms,
                live: 1,
                uncounted: None,
                steered: true,
                overflows: 0,
                weight: backend.spec.weight,
                has_served: true,
                can_stop: true,
                stop_ms: Some(12_000),
                can_start: matches!(backend.kind, Kind::Container { .. }),
                is_transient: false,
                stop_unanswered: false,
                told_to_start: false,
                is_starting: false,
                start_failure: None,
                condition: None,
            };
            (backend.id.clone(), view)
        });
        let coverage = self.plan.coverage.get(SERVICE).cloned().unwrap_or_default();
        View { service: SERVICE.to_owned(), backends: backends.collect(), coverage, ..View::default() }
    }
}
