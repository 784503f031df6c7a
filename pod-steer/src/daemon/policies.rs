//! What happens by itself when a new version appears: the policies `latest` and `manual`.

use std::collections::BTreeMap;

use tracing::warn;

use super::{control::Control, operations::GivenOrder, recorded::Asker};
use crate::{
    api::OrderError,
    ids::BackendId,
    rollout::{AtDeadline, Decision, DeployOrder, Operation, Order, Outcome, Policy, ShiftOrder},
    world::{Backend, Coverage, State},
};

/// Times of a deploy that the policy `latest` begins.
const TIMEOUT_MS: u64 = 60_000;
const DRAIN_TIMEOUT_MS: u64 = 30_000;

/// Who gives the order by which the first version gets everything, and the one by which the newest takes over.
const FIRST_VERSION: &str = "policy first version";
const LATEST: &str = "policy latest";

/// Everything that decides whether an order of a policy is accepted and succeeds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Situation {
    states: BTreeMap<BackendId, State>,
    coverage: Vec<Coverage>,
    decision: Decision,
}

/// By service: the situation in which an order of its policy was refused or may have failed. The same order is given again only
/// when something has changed.
#[derive(Debug, Default)]
pub(super) struct Attempts(BTreeMap<String, Situation>);

impl Attempts {
    fn may_order(&self, service: &str) -> bool {
        !self.0.contains_key(service)
    }

    fn forget_changed(&mut self, now: impl Fn(&str) -> Situation) {
        self.0.retain(|service, situation| *situation == now(service));
    }
}

impl Control {
    /// Lets every policy do what is due.
    pub(super) fn follow_policies(&mut self) {
        let mut attempts = std::mem::take(&mut self.orders.attempts);
        attempts.forget_changed(|service| self.situation(service));
        self.orders.attempts = attempts;
        let due: Vec<(String, Order)> = self
            .world
            .options
            .iter()
            .filter(|(service, options)| {
                let is_asleep = self.world.decisions.get(*service).is_some_and(|decision| decision.asleep.is_some());
                let is_free = !is_asleep && !self.orders.operations.contains_key(*service);
                let may_order = is_free && self.orders.attempts.may_order(service);
                options.rollout != Policy::Balance && may_order
            })
            .filter_map(|(service, options)| Some((service.clone(), self.due_by_policy(service, options.rollout)?)))
            .collect();
        for (service, order) in due {
            let who = if matches!(order, Order::Deploy(_)) { LATEST } else { FIRST_VERSION }.to_owned();
            let asker = Asker::Policy(Box::new(self.situation(&service)));
            self.orders.given.push_back(GivenOrder::new(service, order, who, asker));
        }
    }

    /// An order of a policy was carried out, or refused.
    pub(super) fn policy_answered(
        &mut self,
        service: String,
        situation: Situation,
        answer: Result<Operation, OrderError>,
    ) {
        match answer {
            Ok(Operation { end: Some(end), .. }) if end.outcome != Outcome::Failed => return,
            Ok(_) => {}
            Err(error) => warn!(%service, %error, "a policy could not be followed"),
        }
        self.orders.attempts.0.insert(service, situation);
    }

    fn situation(&self, service: &str) -> Situation {
        let own = self.world.backends.values().filter(|backend| backend.spec.service == service);
        Situation {
            states: own.map(|backend| (backend.id.clone(), self.state(backend))).collect(),
            coverage: self.plan.coverage.get(service).cloned().unwrap_or_default(),
            decision: self.decision(service),
        }
    }

    fn due_by_policy(&self, service: &str, policy: Policy) -> Option<Order> {
        let ages = self.ages(service);
        let weights = self.world.decisions.get(service).and_then(|decision| decision.traffic.weights.as_ref());
        let Some(weights) = weights.filter(|_| !self.awaits_first(service)) else {
            // The first version that is ready serves; from then on every other one waits.
            let first = ages.iter().find(|first| self.present_and_ready(service, &first.spec.version).1 > 0)?;
            let weights = BTreeMap::from([(first.spec.version.clone(), 1)]);
            return Some(Order::Shift(ShiftOrder { weights, ..ShiftOrder::default() }));
        };
        let first_of_newest = ages.last()?;
        let newest = &first_of_newest.spec.version;
        let serves_alone = weights.iter().all(|(version, weight)| version == newest || *weight == 0);
        if policy != Policy::Latest || serves_alone {
            return None;
        }
        let (present, ready) = self.present_and_ready(service, newest);
        let all_ready = present > 0 && ready == present;
        // Whatever was decided since it appeared was decided knowing it: a rollback is not undone. The first version got everything for
        // being the first, perhaps when the newest one brought the policy.
        let decided = |operation: &Operation| {
            let moved = operation.moves_traffic() || operation.order == Order::Rollback;
            let failed = operation.end.as_ref().is_some_and(|end| end.outcome == Outcome::Failed);
            moved && !failed && operation.who != FIRST_VERSION && is_after(operation, first_of_newest)
        };
        if !all_ready || self.orders.ledger.history(Some(service)).iter().any(decided) {
            return None;
        }
        Some(Order::Deploy(DeployOrder {
            version: newest.clone(),
            backends: None,
            timeout_ms: TIMEOUT_MS,
            drain_timeout_ms: DRAIN_TIMEOUT_MS,
            at_deadline: AtDeadline::Leave,
            close_idle_ms: None,
            max_age_ms: None,
            close_rate: None,
            stop_old: false,
            keep_old_ms: None,
            recreate: false,
            allow_drop: false,
            max_hold_ms: None,
            watch: None,
        }))
    }

    /// The first backend of each version that is there, the oldest first.
    fn ages(&self, service: &str) -> Vec<&Backend> {
        let mut first: BTreeMap<&str, &Backend> = BTreeMap::new();
        for backend in self.world.backends.values().filter(|backend| backend.spec.service == service) {
            let oldest = first.entry(&backend.spec.version).or_insert(backend);
            if backend.age() < oldest.age() {
                *oldest = backend;
            }
        }
        let mut ages: Vec<&Backend> = first.into_values().collect();
        ages.sort_by_key(|backend| backend.age());
        ages
    }
}

/// Whether an operation began after a backend had appeared. By their order, if the daemon saw it appear: the wall clock may
/// have been set back in between.
pub(super) fn is_after(operation: &Operation, backend: &Backend) -> bool {
    match backend.seen_after {
        Some(id) => operation.id > id,
        None => operation.begun_ms > backend.created_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_order_is_repeated_only_when_something_has_changed() {
        let situation = |state| Situation { states: BTreeMap::from([("v2".into(), state)]), ..Situation::default() };
        let mut attempts = Attempts::default();
        attempts.0.insert("web".to_owned(), situation(State::Standby));
        assert!(!attempts.may_order("web") && attempts.may_order("api"));
        attempts.forget_changed(|_| situation(State::Standby));
        assert!(!attempts.may_order("web"));
        // It counts that it has changed, also if it is as before afterwards.
        attempts.forget_changed(|_| situation(State::Unhealthy));
        attempts.forget_changed(|_| situation(State::Standby));
        assert!(attempts.may_order("web"));
    }
}
