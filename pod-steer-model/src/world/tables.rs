//! Slot tables that are equal are one value: ports of a service that lead to the same sockets have one table between them, which
//! is compared, built and given to the kernel once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use pod_steer_ebpf::RuleKey;

use super::{PlannedNetworks, PlannedTable};

/// Every table that is planned, each once.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables(HashSet<Arc<PlannedTable>>);

impl Tables {
    /// The one table that is equal to this: what stays equal from one plan to the next stays the same value.
    pub fn one(&mut self, table: PlannedTable) -> Arc<PlannedTable> {
        if let Some(known) = self.0.get(&table) {
            return Arc::clone(known);
        }
        let one = Arc::new(table);
        self.0.insert(Arc::clone(&one));
        one
    }

    /// Forgets those that no plan has any more.
    pub fn forget_unused(&mut self) {
        self.0.retain(|table| Arc::strong_count(table) > 1);
    }
}

/// What the tables of a rule depend on besides the world: its destination without the port, its service, and the index of each backend
/// that serves there with the port that it listens on.
type Question<'a> = (RuleKey, &'a str, Vec<(u32, u16)>);

/// What a rule leads to.
#[derive(Clone, Default)]
pub(super) struct OfRule {
    /// The table for all clients without one of their own.
    pub table: Arc<PlannedTable>,
    /// Those for clients of some networks, by version.
    pub networks: BTreeMap<String, PlannedNetworks>,
    /// The versions with a backend that listens for it.
    pub versions: Arc<BTreeSet<String>>,
}

/// What rules lead to, found once for all the ports for which it is the same.
#[derive(Default)]
pub(super) struct Answers<'a>(HashMap<Question<'a>, OfRule>);

impl<'a> Answers<'a> {
    /// What a rule leads to, by `make` if that is not known yet.
    pub fn of(
        &mut self,
        key: &RuleKey,
        service: &'a str,
        parts: impl Iterator<Item = (u32, u16)>,
        make: impl FnOnce() -> OfRule,
    ) -> OfRule {
        self.0.entry((RuleKey { port: 0, ..*key }, service, parts.collect())).or_insert_with(make).clone()
    }
}

#[cfg(test)]
mod tests {
    use pod_steer_ebpf::FAMILY_V4;

    use super::*;
    use crate::world::tests::{backend, key, socket, world};

    #[test]
    fn ports_that_lead_to_the_same_sockets_have_one_table() {
        let backends = [backend(0, "web", "80:8080,81:8080,82:8081"), backend(1, "api", "90:8080")];
        let sockets = [(0, 8080), (0, 8081), (1, 8080)].map(|(index, port)| socket(index, "0.0.0.0", port));
        let mut world = world(backends, sockets);
        let plan = world.plan();
        let table = |plan: &crate::world::Plan, port| plan.rules[&key(FAMILY_V4, port)].table.clone().unwrap();
        assert!(Arc::ptr_eq(&table(&plan, 80), &table(&plan, 81)));
        assert!(!Arc::ptr_eq(&table(&plan, 80), &table(&plan, 82)) && table(&plan, 80) != table(&plan, 90));
        let next = world.plan();
        assert!([80, 82, 90].into_iter().all(|port| Arc::ptr_eq(&table(&plan, port), &table(&next, port))));
    }
}
