//! Services that have lost their backends: when what was decided about them ends, and which version serves next.
//!
//! A decision outlives its last backend by [`EMPTY_MS`], so that a restart does not lose it; then its shares, networks and
//! drains end by a recorded order. Until then a version that appears while no backend can serve, and no version with a share
//! is left, is the first one again: the policies `latest` and `manual` give it everything.

use std::collections::{BTreeMap, BTreeSet};

use super::{control::Control, operations::GivenOrder, recorded::Asker};
use crate::{
    clock::boot_ms,
    rollout::{Decision, Order, Traffic},
};

/// How long a service may be without any backend before its decision ends.
const EMPTY_MS: i64 = 15_000;
/// The same after a boot, when backends start in any order.
const BOOT_MS: i64 = 300_000;

/// State of services without backends.
#[derive(Debug, Default)]
pub(super) struct Vacancies {
    /// No daemon has run before in this boot.
    is_first: bool,
    /// Services that had a decision when the machine booted, until a version with a share is back: when they are given up.
    returning: BTreeMap<String, i64>,
    /// Since when each service with a decision has had no backend.
    empty_since_ms: BTreeMap<String, i64>,
    /// Services in which no backend could serve and no backend of a version with a share was left.
    vacant: BTreeSet<String>,
}

/// A service that has a decision.
#[derive(Clone, Copy, Debug)]
struct Facts {
    /// It has a backend, in whatever state.
    has_backend: bool,
    /// It has a backend of a version with a share, in whatever state.
    has_share: bool,
    /// It has a backend that could serve.
    could_serve: bool,
}

impl Vacancies {
    /// For a daemon that starts, the first one in this boot or not.
    pub fn new(is_first: bool) -> Self {
        Self { is_first, ..Self::default() }
    }

    /// Takes the services that have a decision when the daemon starts.
    fn begin(&mut self, services: &BTreeMap<String, Facts>, now_ms: i64) {
        if self.is_first {
            self.returning = services.keys().map(|name| (name.clone(), now_ms + BOOT_MS)).collect();
        }
        self.observe(services, true, now_ms);
    }

    /// Takes all services that have a decision. If not every backend `is_known`, none is missed.
    fn observe(&mut self, services: &BTreeMap<String, Facts>, is_known: bool, now_ms: i64) {
        self.empty_since_ms.retain(|name, _| services.get(name).is_some_and(|facts| !facts.has_backend));
        self.vacant.retain(|name| services.get(name).is_some_and(|facts| !facts.has_share));
        self.returning.retain(|name, _| services.get(name).is_some_and(|facts| !facts.has_share));
        if !is_known {
            self.empty_since_ms.values_mut().for_each(|since_ms| *since_ms = now_ms);
            return;
        }
        for (name, facts) in services {
            if !facts.has_backend {
                self.empty_since_ms.entry(name.clone()).or_insert(now_ms);
            }
            if !facts.has_share && !facts.could_serve {
                self.vacant.insert(name.clone());
            }
        }
    }

    /// Services whose decisions end now.
    fn due(&self, now_ms: i64) -> Vec<String> {
        let due = self.empty_since_ms.iter().filter(|(name, since_ms)| self.end_ms(name, **since_ms) <= now_ms);
        due.map(|(name, _)| name.clone()).collect()
    }

    fn end_ms(&self, service: &str, since_ms: i64) -> i64 {
        (since_ms + EMPTY_MS).max(self.returning.get(service).copied().unwrap_or(0))
    }

    /// Whether the next version of a service that is ready is its first one again.
    fn awaits_first(&self, service: &str, now_ms: i64) -> bool {
        self.vacant.contains(service) && self.returning.get(service).is_none_or(|until_ms| *until_ms <= now_ms)
    }

    /// When something is due next, after `now_ms`.
    pub fn next_ms(&self, now_ms: i64) -> Option<i64> {
        let ends = self.empty_since_ms.iter().map(|(name, since_ms)| self.end_ms(name, *since_ms));
        ends.chain(self.returning.values().copied()).filter(|at_ms| *at_ms > now_ms).min()
    }
}

impl Control {
    /// Notes which services have lost their backends.
    pub(super) fn note_vacancies(&mut self) {
        let (services, is_known) = (self.decided(), self.engines.are_all_known());
        self.orders.vacancies.observe(&services, is_known, boot_ms());
    }

    /// The same when the daemon starts, by what the one before it knew.
    pub(super) fn begin_vacancies(&mut self) {
        let services = self.decided();
        self.orders.vacancies.begin(&services, boot_ms());
    }

    fn decided(&self) -> BTreeMap<String, Facts> {
        let facts = |name: &String, decision: &Decision| {
            let own = || self.world.backends.values().filter(|backend| backend.spec.service == *name);
            let share = |version: &String| decision.traffic.weights.as_ref().is_none_or(|w| w.get(version) > Some(&0));
            Facts {
                has_backend: own().next().is_some(),
                has_share: own().any(|backend| share(&backend.spec.version)),
                could_serve: own().any(|backend| backend.ready_since_ms.is_some()),
            }
        };
        let decided = self.world.decisions.iter().filter(|(_, decision)| can_be_forgotten(decision));
        decided.map(|(name, decision)| (name.clone(), facts(name, decision))).collect()
    }

    /// Whether the next version that is ready is the first one of its service.
    pub(super) fn awaits_first(&self, service: &str) -> bool {
        self.orders.vacancies.awaits_first(service, boot_ms())
    }

    /// Ends the decisions of services that have had no backend for long enough. A pause stays: it applies to the next backend.
    pub(super) fn forget_empty(&mut self) {
        for service in self.orders.vacancies.due(boot_ms()) {
            if self.orders.operations.contains_key(&service) {
                continue;
            }
            let (order, who, asker) = (Order::Forget, "pod-steer".to_owned(), Asker::Daemon);
            self.orders.given.push_back(GivenOrder::new(service, order, who, asker));
        }
    }
}

/// Whether there is something to end.
fn can_be_forgotten(decision: &Decision) -> bool {
    decision.traffic != Traffic::default() || !decision.drained.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn web(has_backend: bool, has_share: bool, could_serve: bool) -> BTreeMap<String, Facts> {
        BTreeMap::from([("web".to_owned(), Facts { has_backend, has_share, could_serve })])
    }

    #[test]
    fn a_decision_outlives_its_last_backend_for_a_while() {
        let mut vacancies = Vacancies::new(false);
        vacancies.observe(&web(true, true, true), true, NOW);
        assert_eq!(vacancies.next_ms(NOW), None);
        vacancies.observe(&web(false, false, false), true, NOW + 1);
        vacancies.observe(&web(false, false, false), true, NOW + EMPTY_MS);
        assert!(vacancies.due(NOW + EMPTY_MS).is_empty());
        assert_eq!(vacancies.due(NOW + EMPTY_MS + 1), ["web"]);
        // A restart in between.
        vacancies.observe(&web(true, true, false), true, NOW + 2);
        vacancies.observe(&web(false, false, false), true, NOW + 3);
        assert!(vacancies.due(NOW + EMPTY_MS + 1).is_empty());
        // The decision is gone.
        vacancies.observe(&BTreeMap::new(), true, NOW + 4);
        assert!(vacancies.due(i64::MAX).is_empty() && vacancies.next_ms(NOW).is_none());
    }

    #[test]
    fn nothing_is_missed_while_an_engine_is_silent() {
        let mut vacancies = Vacancies::new(false);
        vacancies.observe(&web(false, false, false), false, NOW);
        assert!(vacancies.due(NOW + 10 * EMPTY_MS).is_empty() && !vacancies.awaits_first("web", NOW));
        vacancies.observe(&web(false, false, false), true, NOW);
        vacancies.observe(&web(false, false, false), false, NOW + EMPTY_MS);
        assert!(vacancies.due(NOW + EMPTY_MS).is_empty(), "its time begins anew");
    }

    #[test]
    fn after_a_boot_services_may_take_their_time() {
        let mut vacancies = Vacancies::new(true);
        vacancies.begin(&web(false, false, false), NOW);
        assert!(vacancies.due(NOW + EMPTY_MS).is_empty() && !vacancies.awaits_first("web", NOW + EMPTY_MS));
        assert_eq!(vacancies.next_ms(NOW), Some(NOW + BOOT_MS));
        assert_eq!(vacancies.due(NOW + BOOT_MS), ["web"]);
        assert!(vacancies.awaits_first("web", NOW + BOOT_MS));
        // Once it is back, it is a service like any other.
        vacancies.observe(&web(true, true, true), true, NOW);
        vacancies.observe(&web(false, false, false), true, NOW);
        assert!(vacancies.awaits_first("web", NOW));
        assert_eq!(vacancies.due(NOW + EMPTY_MS), ["web"]);
    }

    #[test]
    fn a_version_that_waits_is_not_the_first_one() {
        let mut vacancies = Vacancies::new(false);
        // Another version could serve, and was told to wait.
        vacancies.observe(&web(true, false, true), true, NOW);
        assert!(!vacancies.awaits_first("web", NOW));
        // No backend could serve; then one appears.
        vacancies.observe(&web(true, false, false), true, NOW);
        vacancies.observe(&web(true, false, true), true, NOW);
        assert!(vacancies.awaits_first("web", NOW));
        // It was given its share.
        vacancies.observe(&web(true, true, true), true, NOW);
        assert!(!vacancies.awaits_first("web", NOW));
        // One that restarts is still there, and keeps its share.
        vacancies.observe(&web(true, true, false), true, NOW);
        assert!(!vacancies.awaits_first("web", NOW));
    }
}
