//! Applies a plan to the kernel: first publishes all tables together, then writes the entries that refer to them.
//! `switch` puts an operator's decision in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use pod_steer_ebpf::{NONE, Rule, SERVICES_MAX, SWITCH_SIDE, table_index};

use super::{Kernel, KernelError, NO_SERVICE, Result, Settled, limits::limit, ports::rule_of};
use crate::{
    ids::{BackendIndex, ServiceIndex, SocketCookie},
    rule::RuleKey,
    world::{Plan, PlannedNetworks, PlannedRule, PlannedTable, Refused, RefusedRule},
};

/// A rule as it is written, and what the tables that it refers to were built from.
#[derive(Clone, Debug, Default)]
pub(super) struct Published {
    pub rule: Rule,
    /// Whether this daemon has written it; an earlier one may have ended before it had written everything.
    pub ours: bool,
    /// `None` for a rule that an earlier daemon wrote.
    pub table: Option<Arc<PlannedTable>>,
    /// The table in use; `None` for a rule that an earlier daemon wrote.
    pub serving: Option<Arc<PlannedTable>>,
    /// By version: the table's index, and what it was built from.
    pub networks: BTreeMap<String, (u32, PlannedNetworks)>,
}

impl Published {
    /// Whether this is exactly what is planned.
    fn is(&self, planned: &PlannedRule, service: ServiceIndex) -> bool {
        self.ours
            && self.rule == rule_of(planned, self.rule.table, service)
            && self.table == planned.table
            && self.networks.len() == planned.networks.len()
            && planned
                .networks
                .iter()
                .all(|(version, planned)| self.networks.get(version).is_some_and(|(_, networks)| networks == planned))
    }
}

/// The migration targets for the queue of a closing socket: the members of this rule's table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct MigrationTargets {
    pub rule: RuleKey,
    pub table: u32,
    pub service: ServiceIndex,
}

/// The result of applying a plan.
pub struct Applied {
    /// Resolve when no lookup uses the former tables any more.
    pub settled: Vec<Settled>,
    /// The first error other than an exceeded quota. Everything else is in effect.
    pub error: Option<KernelError>,
    /// Whether something has to be tried again.
    pub is_behind: bool,
    /// Whether a rule in force may differ from the plan.
    pub is_stale: bool,
    /// The changes that the kernel refused.
    pub refused: Refused,
}

/// The tables that were built for one rule.
#[derive(Default)]
struct Changes {
    /// Tables that the rule did not have before.
    reserved: BTreeSet<u32>,
    /// Indices of its new tables.
    indices: BTreeSet<u32>,
}

/// A rule whose tables are built, and the steps that follow when they are published.
struct Prepared {
    key: RuleKey,
    rule: Rule,
    /// Whether it still has to be written.
    changed: bool,
    networks: BTreeMap<String, (u32, PlannedNetworks)>,
    /// Networks whose tables are new: the scope, the table and the version.
    sources: Vec<(u32, u32, String)>,
    /// Tables that nothing refers to afterwards.
    freed: Vec<u32>,
}

impl Kernel {
    /// Applies a plan. Tables are published before the rules that refer to them, and rules are removed before their
    /// tables. `owners` returns the index of each backend's service.
    pub fn apply(
        &mut self,
        plan: &Plan,
        services: &BTreeMap<String, ServiceIndex>,
        owners: impl FnOnce() -> BTreeMap<BackendIndex, ServiceIndex>,
    ) -> Applied {
        // A failed update affects only its own service.
        let mut failed: BTreeMap<&str, KernelError> = BTreeMap::new();
        let mut refused = Refused::default();
        self.targets_written.clear();
        let mut first_error = None;
        for (backend, error) in self.apply_ports(plan, services, owners) {
            refused.ports.insert(backend, crate::chain(&error));
            first_error = first_error.or(Some(error).filter(|error| !error.is_quota()));
        }
        first_error = self.drop_rules(plan).or(first_error);
        first_error = self.destinations.add(&plan.destinations, services).err().or(first_error);
        let mut settled = Vec::new();
        for (service, decision) in &plan.decisions {
            if let Some(index) = services.get(service)
                && !self.follows(*index, *decision)
            {
                match self.switch_service(plan, service, *index, *decision) {
                    Ok(more) => settled.extend(more),
                    Err(error) => drop(failed.insert(service, error)),
                }
            }
        }
        let mut prepared = Vec::new();
        for (key, planned) in &plan.rules {
            let name = planned.service.as_deref().unwrap_or_default();
            if failed.contains_key(name) {
                continue;
            }
            let service = match services.get(name) {
                Some(service) => *service,
                // Without an index it would have no counters, and no decision could be put in force.
                None if planned.service.is_some() => {
                    let limit = limit("SERVICES", SERVICES_MAX);
                    failed.insert(name, KernelError::Full { what: "the list of services", limit });
                    continue;
                }
                None => NO_SERVICE,
            };
            if self.published.get(key).is_some_and(|published| published.is(planned, service)) {
                continue;
            }
            let mut changes = Changes::default();
            match self.prepare_rule(*key, planned, service, &mut changes) {
                Ok(rule) => prepared.push((name, planned, rule, changes)),
                Err(error) => {
                    self.give_up(key, changes);
                    if error.is_quota() {
                        // The rules that the service has stay as planned.
                        refused.rules.insert(*key, self.refused(key, crate::chain(&error)));
                    } else {
                        failed.insert(name, error);
                    }
                }
            }
        }
        let (more, unpublished) = self.publisher.flush();
        settled.extend(more);
        for (name, planned, rule, changes) in prepared {
            let key = rule.key;
            if unpublished.as_ref().is_some_and(|unpublished| !unpublished.indices.is_disjoint(&changes.indices)) {
                self.give_up(&key, changes);
                let reason =
                    unpublished.as_ref().map(|unpublished| crate::chain(&unpublished.error)).unwrap_or_default();
                refused.rules.insert(key, self.refused(&key, reason));
            } else if let Err(error) = self.finish_rule(planned, rule, changes) {
                failed.insert(name, error);
            }
        }
        first_error = self.destinations.remove(&plan.destinations, services).err().or(first_error);
        self.forgotten.clear();
        for (key, planned) in &plan.rules {
            let name = planned.service.as_deref().unwrap_or_default();
            let (Some(error), service) = (failed.get(name), services.get(name).copied().unwrap_or(NO_SERVICE)) else {
                continue;
            };
            if !self.published.get(key).is_some_and(|published| published.is(planned, service)) {
                refused.rules.insert(*key, self.refused(key, crate::chain(error)));
            }
        }
        let has_failed = first_error.is_some() || unpublished.is_some() || !failed.is_empty();
        let is_stale = has_failed || refused.rules.keys().any(|key| self.published.contains_key(key));
        let is_behind = has_failed || !refused.is_empty();
        let failed = failed.into_values().find(|error| !error.is_quota());
        let error = first_error.or(unpublished.map(|unpublished| unpublished.error)).or(failed);
        Applied { settled, error, is_behind, is_stale, refused }
    }

    /// Whether a table of a service that is in use may have this socket.
    pub fn may_lead_to(&self, service: ServiceIndex, cookie: SocketCookie) -> bool {
        let has =
            |table: &Arc<PlannedTable>| table.members.iter().chain(&table.reserve).any(|own| own.cookie == cookie);
        let mut rules = self.published.values().filter(|published| published.rule.service == service.0);
        rules.any(|published| published.serving.as_ref().is_none_or(has))
    }

    /// A rule that is not in effect as planned, with the sockets that serve instead.
    fn refused(&self, key: &RuleKey, reason: String) -> RefusedRule {
        let before = self.published.get(key);
        let serving = before.map_or_else(|| Some(Arc::default()), |before| before.serving.clone());
        RefusedRule { reason, serving: serving.map(|table| table.cookies()) }
    }

    /// Releases a rule's new tables, which are not used. The next plan examines the published rule anew.
    fn give_up(&mut self, key: &RuleKey, changes: Changes) {
        for table in changes.reserved {
            self.publisher.clear(table);
        }
        match self.published.get_mut(key) {
            Some(published) => (published.ours, published.table) = (false, None),
            None => self.rules.release(key),
        }
    }

    /// The rules in force.
    pub fn rules(&self) -> impl Iterator<Item = (RuleKey, Rule)> {
        self.published.iter().map(|(key, published)| (*key, published.rule))
    }

    /// Builds the tables of one rule as planned, on the side in use. Entries that refer to them are written after they
    /// are published.
    fn prepare_rule(
        &mut self,
        key: RuleKey,
        planned: &PlannedRule,
        service: ServiceIndex,
        changes: &mut Changes,
    ) -> Result<Prepared> {
        self.rules.take(key, service)?;
        let before = self.published.get(&key).cloned().unwrap_or_default();
        let known = self.published.contains_key(&key);
        let side = if service == NO_SERVICE { 0 } else { self.switch(service) & SWITCH_SIDE };
        let mut table = if known { before.rule.table } else { NONE };
        let mut networks = before.networks;
        let (mut freed, mut sources) = (Vec::new(), Vec::new());
        if known
            && before.rule.table != NONE
            && (ServiceIndex(before.rule.service) != service || planned.table.is_none())
        {
            self.reassign_migration_targets(&[key]);
        }
        if known && ServiceIndex(before.rule.service) != service {
            // The port belongs to another service now.
            freed.extend(std::mem::take(&mut networks).into_values().map(|(own, _)| own));
            freed.extend((0..=SWITCH_SIDE).flat_map(|side| self.sources.remove(table_index(table, side))));
            freed.sort_unstable();
            freed.dedup();
            self.publisher.hand_over(table, service);
        }
        if planned.table.is_none() && table != NONE {
            freed.push(std::mem::replace(&mut table, NONE));
        }
        if let Some(wanted) = &planned.table {
            let fresh = table == NONE;
            if fresh {
                table = self.publisher.reserve(service, false)?;
                changes.reserved.insert(table);
            }
            // Another service may use the other side, on which the table is missing.
            if fresh || before.table.as_ref() != Some(wanted) || ServiceIndex(before.rule.service) != service {
                let compare = !fresh && before.table.is_none();
                changes.indices.insert(table_index(table, side));
                self.publisher.prepare(table_index(table, side), wanted, compare)?;
            }
            for (version, wanted) in &planned.networks {
                match networks.get_mut(version) {
                    Some((_, current)) if current == wanted => {}
                    Some((own, current)) => {
                        changes.indices.insert(table_index(*own, side));
                        self.publisher.prepare(table_index(*own, side), &wanted.table, false)?;
                        current.clone_from(wanted);
                    }
                    None => {
                        let own = self.publisher.reserve(service, false)?;
                        changes.reserved.insert(own);
                        changes.indices.insert(table_index(own, side));
                        self.publisher.prepare(table_index(own, side), &wanted.table, false)?;
                        sources.push((table_index(table, side), own, version.clone()));
                        networks.insert(version.clone(), (own, wanted.clone()));
                    }
                }
            }
        }
        let rule = rule_of(planned, table, service);
        let changed = !known || !before.ours || before.rule != rule;
        Ok(Prepared { key, rule, changed, networks, sources, freed })
    }

    /// Lets lookups reach published tables, and then empties those that nothing refers to any more.
    fn finish_rule(&mut self, planned: &PlannedRule, prepared: Prepared, changes: Changes) -> Result<()> {
        let Prepared { key, rule, changed, networks, sources, freed } = prepared;
        if let Some(table) = &planned.table {
            self.write_migration_targets(
                MigrationTargets { rule: key, table: rule.table, service: ServiceIndex(rule.service) },
                table,
            );
        }
        for (scope, own, version) in sources {
            if let Some(wanted) = planned.networks.get(&version)
                && let Err(error) = self.sources.add(scope, ServiceIndex(rule.service), &wanted.networks, own)
            {
                // Remove the entries that refer to the new tables before the tables. Networks in force stay in force.
                self.sources.withdraw(scope, &changes.reserved);
                self.give_up(&key, changes);
                return Err(error);
            }
        }
        // Recorded before it is written: if that fails, the rule may refer to its table already, or still to the former
        // one.
        let before = self.published.get(&key).map_or_else(|| Some(Arc::default()), |before| before.serving.clone());
        let published = Published { rule, ours: !changed, table: planned.table.clone(), serving: before, networks };
        self.published.insert(key, published);
        if changed {
            self.rules.write(key, rule)?;
        }
        self.published
            .entry(key)
            .and_modify(|published| (published.ours, published.serving) = (true, published.table.clone()));
        freed.into_iter().for_each(|table| self.publisher.clear(table));
        Ok(())
    }

    /// Removes rules that are not planned, and then their tables. Returns the last error; the removal is tried again.
    fn drop_rules(&mut self, plan: &Plan) -> Option<KernelError> {
        let gone: Vec<RuleKey> = self.published.keys().filter(|key| !plan.rules.contains_key(key)).copied().collect();
        let (mut failed, mut tables) = (None, BTreeSet::new());
        for key in &gone {
            let key = *key;
            if let Err(error) = self.rules.remove(&key) {
                failed = Some(error);
                continue;
            }
            let Some(published) = self.published.remove(&key) else { continue };
            if published.rule.table == NONE {
                continue;
            }
            tables.extend(published.networks.into_values().map(|(own, _)| own));
            for side in 0..=SWITCH_SIDE {
                tables.extend(self.sources.remove(table_index(published.rule.table, side)));
            }
            tables.insert(published.rule.table);
        }
        self.reassign_migration_targets(&gone);
        for table in tables {
            self.publisher.clear(table);
        }
        failed
    }

    /// Tells the migrate program the migration targets of these sockets: the members of this table. A socket may be in
    /// the tables of several rules, for example of both families. It keeps the first one as long as it is in that
    /// table.
    pub(super) fn write_migration_targets(&mut self, targets: MigrationTargets, planned: &Arc<PlannedTable>) {
        // Of rules that share a table, only the first one is written.
        if !self.targets_written.insert((targets.service, Arc::as_ptr(planned).addr())) {
            return;
        }
        for member in &planned.members {
            let written = self.migration_targets.get(&member.cookie);
            if written.is_some_and(|written| *written == targets || self.is_target_of(written, member.cookie)) {
                continue;
            }
            if let Ok(mut info) = self.sockets.get(&member.cookie.0, 0) {
                (info.table, info.service) = (targets.table, targets.service.0);
                if self.sockets.insert(member.cookie.0, info, 0).is_ok() {
                    self.migration_targets.insert(member.cookie, targets);
                }
            }
        }
    }

    /// The tables of these rules go, or become another service's. Sockets whose migration targets are in one of them
    /// get another table that they are in. A socket that is in none keeps its service, so that its queue is not left to
    /// the kernel.
    fn reassign_migration_targets(&mut self, gone: &[RuleKey]) {
        let written = self.migration_targets.iter().filter(|(_, targets)| gone.contains(&targets.rule));
        for cookie in written.map(|(cookie, _)| *cookie).collect::<Vec<_>>() {
            self.migration_targets.remove(&cookie);
            let Ok(mut info) = self.sockets.get(&cookie.0, 0) else { continue };
            let other = self.published.iter().filter(|(key, _)| !gone.contains(key)).find_map(|(key, published)| {
                let Rule { table, service, .. } = published.rule;
                Some(MigrationTargets { rule: *key, table, service: ServiceIndex(service) })
                    .filter(|targets| self.is_target_of(targets, cookie))
            });
            info.table = NONE;
            if let Some(targets) = other {
                (info.table, info.service) = (targets.table, targets.service.0);
            }
            if self.sockets.insert(cookie.0, info, 0).is_ok()
                && let Some(targets) = other
            {
                self.migration_targets.insert(cookie, targets);
            }
        }
    }

    /// Whether a rule is published with this table and service, and its table has this socket.
    fn is_target_of(&self, targets: &MigrationTargets, cookie: SocketCookie) -> bool {
        let Some(Published { rule, table: Some(table), .. }) = self.published.get(&targets.rule) else { return false };
        (rule.table, rule.service) == (targets.table, targets.service.0)
            && table.members.binary_search_by_key(&cookie, |member| member.cookie).is_ok()
    }
}
