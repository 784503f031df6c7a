//! Changes of a plan that the kernel refused: a backend that depends on one is not ready, whatever was planned.

use std::collections::{BTreeMap, BTreeSet};

use super::{Plan, State, World, listed};
use crate::{
    condition::{Condition, Reason},
    ids::{BackendIndex, SocketCookie},
    ports::Port,
    rule::RuleKey,
};

/// The changes that the kernel refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// By rule.
    pub rules: BTreeMap<RuleKey, RefusedRule>,
    /// By the index of a backend: why one of its ports could not be written.
    pub ports: BTreeMap<BackendIndex, String>,
}

/// A rule that is not in effect as planned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusedRule {
    /// Why.
    pub reason: String,
    /// Cookies of the sockets that get the clients meanwhile; `None` if that is not known.
    pub serving: Option<BTreeSet<SocketCookie>>,
}

impl Refused {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.ports.is_empty()
    }
}

/// The corrections of a plan, because the kernel has refused a part of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Unmet {
    /// By index: the state of each backend without them.
    states: BTreeMap<BackendIndex, State>,
    conditions: BTreeMap<BackendIndex, BTreeSet<Condition>>,
    service_conditions: BTreeMap<String, BTreeSet<Condition>>,
}

impl World {
    /// Undoes the corrections of a plan.
    pub(super) fn meet(&mut self, plan: &mut Plan) {
        let Unmet { states, conditions, service_conditions } = std::mem::take(&mut plan.unmet);
        for (index, state) in states {
            plan.states.insert(index, state);
            let now_ms = self.now_ms;
            if let Some(backend) = self.by_index_mut(index).filter(|_| state.could_serve()) {
                backend.ready_since_ms.get_or_insert(now_ms);
            }
        }
        take_out(&mut plan.conditions, &conditions);
        take_out(&mut plan.service_conditions, &service_conditions);
    }

    /// Corrects a plan by the changes that the kernel refused.
    pub fn refuse(&mut self, plan: &mut Plan, refused: &Refused) {
        // Grouped by reason: there may be thousands of ports.
        let mut of_backends: BTreeMap<(BackendIndex, &str), BTreeSet<Port>> = BTreeMap::new();
        let mut of_services: BTreeMap<(&str, &str), BTreeSet<Port>> = BTreeMap::new();
        for (key, RefusedRule { reason, serving }) in &refused.rules {
            let Some(rule) = plan.rules.get(key) else { continue };
            let members = rule.table.iter().flat_map(|table| &table.members);
            let left_out =
                members.filter(|member| serving.as_ref().is_some_and(|serving| !serving.contains(&member.cookie)));
            for member in left_out {
                of_backends.entry((member.backend, reason)).or_default().insert(key.port);
            }
            let service = rule.service.as_deref().unwrap_or_default();
            of_services.entry((service, reason)).or_default().insert(key.port);
        }
        let of_ports = |ports, reason| {
            let ports = listed(ports, "and");
            let message = format!("a change of port {ports} is not in effect, and is tried again: {reason}");
            Condition::without_remedy(Reason::ChangeRefused, message)
        };
        for ((service, reason), ports) in &of_services {
            let (service, condition) = ((*service).to_owned(), of_ports(ports, *reason));
            plan.unmet.service_conditions.entry(service.clone()).or_default().insert(condition.clone());
            plan.service_conditions.entry(service).or_default().push(condition);
        }
        let mut conditions: BTreeMap<BackendIndex, BTreeSet<Condition>> = BTreeMap::new();
        for ((backend, reason), ports) in &of_backends {
            conditions.entry(*backend).or_default().insert(of_ports(ports, *reason));
        }
        for (index, reason) in &refused.ports {
            let message = format!("the kernel does not know its ports, which is tried again: {reason}");
            let condition = Condition::without_remedy(Reason::ChangeRefused, message);
            conditions.entry(*index).or_default().insert(condition);
        }
        for (index, own) in conditions {
            plan.conditions.entry(index).or_default().extend(own.iter().cloned());
            plan.unmet.conditions.insert(index, own);
            if let Some(state) =
                plan.states.get_mut(&index).filter(|state| state.could_serve() || **state == State::Starting)
            {
                plan.unmet.states.insert(index, std::mem::replace(state, State::NotSteered));
            }
            if let Some(backend) = self.by_index_mut(index) {
                backend.ready_since_ms = None;
            }
        }
    }
}

/// Removes conditions from lists.
fn take_out<K: Ord>(lists: &mut BTreeMap<K, Vec<Condition>>, conditions: &BTreeMap<K, BTreeSet<Condition>>) {
    for (key, conditions) in conditions {
        let Some(list) = lists.get_mut(key) else { continue };
        list.retain(|condition| !conditions.contains(condition));
        if list.is_empty() {
            lists.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use pod_steer_ebpf::FAMILY_V4;

    use super::*;
    use crate::world::{
        Changed,
        tests::{backend, key, reasons, socket, world},
    };

    #[test]
    fn only_backends_that_are_left_out_are_not_ready() {
        let backends = [backend(0, "web", "80:8080"), backend(1, "web", "80:8080"), backend(2, "api", "81:8081")];
        let sockets = [socket(0, "0.0.0.0", 8080), socket(1, "0.0.0.0", 8080), socket(2, "0.0.0.0", 8081)];
        let mut world = world(backends, sockets);
        let mut plan = world.plan();
        let serving = Some(BTreeSet::from([SocketCookie(100)]));
        let rule = RefusedRule { reason: "all 4 are in use".to_owned(), serving };
        let refused = Refused { rules: BTreeMap::from([(key(FAMILY_V4, 80), rule)]), ..Refused::default() };
        world.refuse(&mut plan, &refused);
        assert_eq!(
            [0, 1, 2].map(|index| plan.states[&BackendIndex(index)]),
            [State::Ready, State::NotSteered, State::Ready]
        );
        assert!(plan.conditions[&BackendIndex(1)][0].message.contains("all 4 are in use"), "{:?}", plan.conditions);
        assert_eq!(reasons(&plan, 1), [Reason::ChangeRefused]);
        assert_eq!(plan.conditions.len(), 1);
        assert_eq!(plan.service_conditions.keys().collect::<Vec<_>>(), ["web"]);
        assert_eq!(world.by_index(BackendIndex(1)).unwrap().ready_since_ms, None);
    }

    #[test]
    fn a_backend_without_its_ports_is_not_steered() {
        let mut world =
            world([backend(0, "web", "80:8080"), backend(1, "web", "80:8080")], [socket(0, "0.0.0.0", 8080)]);
        let mut plan = world.plan();
        let refused =
            Refused { ports: BTreeMap::from([(BackendIndex(1), "all 2 are in use".to_owned())]), ..Refused::default() };
        world.refuse(&mut plan, &refused);
        assert_eq!([0, 1].map(|index| plan.states[&BackendIndex(index)]), [State::Ready, State::NotSteered]);
    }

    #[test]
    fn what_is_no_longer_refused_is_as_planned_again() {
        let mut world =
            world([backend(0, "web", "80:8080"), backend(1, "api", "81:8081")], [socket(0, "0.0.0.0", 8080)]);
        let mut plan = world.plan();
        let planned = plan.clone();
        let rule = RefusedRule { reason: "all 4 are in use".to_owned(), serving: Some(BTreeSet::new()) };
        let refused = Refused { rules: BTreeMap::from([(key(FAMILY_V4, 80), rule)]), ..Refused::default() };
        for _ in 0..2 {
            world.refuse(&mut plan, &refused);
            assert_eq!(
                (
                    plan.states[&BackendIndex(0)],
                    plan.conditions[&BackendIndex(0)].len(),
                    plan.service_conditions["web"].len()
                ),
                (State::NotSteered, 1, 1)
            );
            // Whatever is planned anew.
            world.replan(&Changed::Services(BTreeSet::from(["api".to_owned()])), &mut plan);
            assert_eq!(plan, planned);
            assert!(world.by_index(BackendIndex(0)).unwrap().ready_since_ms.is_some());
        }
    }
}
