//! Equal slot tables are one value: ports of a service with the same sockets share a table, which is compared, built
//! and given to the kernel once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{PlannedNetworks, PlannedTable};
use crate::{ids::BackendIndex, ports::Port, rule::RuleKey};

/// Every planned table, each once.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables(HashSet<Arc<PlannedTable>>);

impl Tables {
    /// Returns the shared table that is equal to this one. A table that stays equal from one plan to the next stays the
    /// same value.
    pub fn one(&mut self, table: PlannedTable) -> Arc<PlannedTable> {
        if let Some(known) = self.0.get(&table) {
            return Arc::clone(known);
        }
        let one = Arc::new(table);
        self.0.insert(Arc::clone(&one));
        one
    }

    /// Drops the tables that no plan uses any more.
    pub fn forget_unused(&mut self) {
        self.0.retain(|table| Arc::strong_count(table) > 1);
    }
}

/// The inputs of a rule's tables besides the world: its destination without the port, its service, and the index of
/// each backend that serves there with the port that it listens on.
type Question<'a> = (RuleKey, &'a str, Vec<(BackendIndex, Port)>);

/// The tables of a rule.
#[derive(Clone, Default)]
pub(super) struct OfRule {
    /// The table for all clients without a table of their own.
    pub table: Arc<PlannedTable>,
    /// The tables for clients of some networks, by version.
    pub networks: BTreeMap<String, PlannedNetworks>,
    /// The versions with a backend that listens for it.
    pub versions: Arc<BTreeSet<String>>,
}

/// The tables of rules, made once for all ports with the same inputs.
#[derive(Default)]
pub(super) struct Answers<'a>(HashMap<Question<'a>, OfRule>);

impl<'a> Answers<'a> {
    /// The tables of a rule. `make` makes them if they are not known yet.
    pub fn of(
        &mut self,
        key: &RuleKey,
        service: &'a str,
        parts: impl Iterator<Item = (BackendIndex, Port)>,
        make: impl FnOnce() -> OfRule,
    ) -> OfRule {
        self.0.entry((key.without_port(), service, parts.collect())).or_insert_with(make).clone()
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
