//! Bringing the kernel to a plan: first all tables, which are published together, and then what leads to them. A decision of
//! an operator is put in force by `switch`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use pod_steer_ebpf::{NONE, Rule, RuleKey, SERVICES_MAX, SWITCH_SIDE, table_index};

use super::{Kernel, KernelError, Result, Settled, limits::limit, ports::rule_of};
use crate::world::{Plan, PlannedNetworks, PlannedRule, PlannedTable, Refused, RefusedRule};

/// A rule as it stands in the map, and what the tables that it leads to were built from.
#[derive(Clone, Debug, Default)]
pub(super) struct Published {
    pub rule: Rule,
    /// Whether we have written it; an earlier daemon may have ended before all of it was.
    pub ours: bool,
    /// Not known of a rule that an earlier daemon wrote.
    pub table: Option<Arc<PlannedTable>>,
    /// The table in use; not known of a rule that an earlier daemon wrote.
    pub serving: Option<Arc<PlannedTable>>,
    /// By version: the table's index, and what it was built from.
    pub networks: BTreeMap<String, (u32, PlannedNetworks)>,
}

impl Published {
    /// Whether this is just what is planned.
    fn is(&self, planned: &PlannedRule, service: u32) -> bool {
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

/// Who takes over the queue of a socket that closes: the members of the table of this rule.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Heirs {
    pub rule: RuleKey,
    pub table: u32,
    pub service: u32,
}

/// What came of bringing the kernel to a plan.
pub struct Applied {
    /// What tells when nobody uses the former tables any more.
    pub settled: Vec<Settled>,
    /// The first error that is not for a quota alone; everything else is in effect.
    pub error: Option<KernelError>,
    /// Something is to be tried again.
    pub is_behind: bool,
    /// A rule that is in force may not be as planned.
    pub is_stale: bool,
    /// The changes that the kernel refused.
    pub refused: Refused,
}

/// Tables of one rule that are made.
#[derive(Default)]
struct Changes {
    /// Tables that it did not have before.
    reserved: BTreeSet<u32>,
    /// Where its new tables are to be.
    indices: BTreeSet<u32>,
}

/// A rule whose tables are made, and what is to follow when they are published.
struct Prepared {
    key: RuleKey,
    rule: Rule,
    /// It is not written so yet.
    changed: bool,
    networks: BTreeMap<String, (u32, PlannedNetworks)>,
    /// Networks whose tables are new: the scope, the table and the version.
    sources: Vec<(u32, u32, String)>,
    /// Tables that nothing leads to afterwards.
    freed: Vec<u32>,
}

impl Kernel {
    /// Brings the kernel to the plan. Tables come before the rules that lead to them, and rules go before their tables.
    /// `owners` gives the index of each backend's service.
    pub fn apply(
        &mut self,
        plan: &Plan,
        services: &BTreeMap<String, u32>,
        owners: impl FnOnce() -> BTreeMap<u32, u32>,
    ) -> Applied {
        // What the kernel does not take of one service keeps it from nothing of another.
        let mut failed: BTreeMap<&str, KernelError> = BTreeMap::new();
        let mut refused = Refused::default();
        self.heirs_named.clear();
        let mut gone_wrong = None;
        for (backend, error) in self.apply_ports(plan, services, owners) {
            refused.ports.insert(backend, crate::chain(&error));
            gone_wrong = gone_wrong.or(Some(error).filter(|error| !error.is_quota()));
        }
        gone_wrong = self.drop_rules(plan).or(gone_wrong);
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
                // It would have no counters, and no decision could be put in force.
                None if planned.service.is_some() => {
                    let limit = limit("SERVICES", SERVICES_MAX);
                    failed.insert(name, KernelError::Full { what: "the list of services", limit });
                    continue;
                }
                None => NONE,
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
                        // What the service has is kept as planned.
                        refused.rules.insert(*key, self.refused(key, crate::chain(&error)));
                    } else {
                        failed.insert(name, error);
                    }
                }
            }
        }
        let (more, not) = self.publisher.flush();
        settled.extend(more);
        for (name, planned, rule, changes) in prepared {
            let key = rule.key;
            if not.as_ref().is_some_and(|not| !not.indices.is_disjoint(&changes.indices)) {
                self.give_up(&key, changes);
                let reason = not.as_ref().map(|not| crate::chain(&not.error)).unwrap_or_default();
                refused.rules.insert(key, self.refused(&key, reason));
            } else if let Err(error) = self.finish_rule(planned, rule, changes) {
                failed.insert(name, error);
            }
        }
        self.forgotten.clear();
        for (key, planned) in &plan.rules {
            let name = planned.service.as_deref().unwrap_or_default();
            let (Some(error), service) = (failed.get(name), services.get(name).copied().unwrap_or(NONE)) else {
                continue;
            };
            if !self.published.get(key).is_some_and(|published| published.is(planned, service)) {
                refused.rules.insert(*key, self.refused(key, crate::chain(error)));
            }
        }
        let went_wrong = gone_wrong.is_some() || not.is_some() || !failed.is_empty();
        let is_stale = went_wrong || refused.rules.keys().any(|key| self.published.contains_key(key));
        let is_behind = went_wrong || !refused.is_empty();
        let failed = failed.into_values().find(|error| !error.is_quota());
        let error = gone_wrong.or(not.map(|not| not.error)).or(failed);
        Applied { settled, error, is_behind, is_stale, refused }
    }

    /// A rule that is not in effect as planned; what was there before is.
    fn refused(&self, key: &RuleKey, reason: String) -> RefusedRule {
        let before = self.published.get(key);
        let serving = before.map_or_else(|| Some(Arc::default()), |before| before.serving.clone());
        RefusedRule { reason, serving: serving.map(|table| table.cookies()) }
    }

    /// A rule's new tables are not used: they are given back, and what is published is looked at anew next time.
    fn give_up(&mut self, key: &RuleKey, changes: Changes) {
        for table in changes.reserved {
            self.publisher.clear(table);
        }
        match self.published.get_mut(key) {
            Some(published) => (published.ours, published.table) = (false, None),
            None => self.rules.release(key),
        }
    }

    /// When the last decision that was put in force since this was last asked took effect; what is cleared up behind it
    /// takes longer.
    pub fn take_switched(&mut self) -> Option<Instant> {
        self.switched.take()
    }

    /// The rules that are in force.
    pub fn rules(&self) -> impl Iterator<Item = (RuleKey, Rule)> {
        self.published.iter().map(|(key, published)| (*key, published.rule))
    }

    /// Makes the tables of one rule as planned, for the side in use. Whatever leads to them comes after they are published.
    fn prepare_rule(
        &mut self,
        key: RuleKey,
        planned: &PlannedRule,
        service: u32,
        changes: &mut Changes,
    ) -> Result<Prepared> {
        self.rules.take(key, service)?;
        let before = self.published.get(&key).cloned().unwrap_or_default();
        let known = self.published.contains_key(&key);
        let side = if service == NONE { 0 } else { self.switch(service) & SWITCH_SIDE };
        let mut table = if known { before.rule.table } else { NONE };
        let mut networks = before.networks;
        let (mut freed, mut sources) = (Vec::new(), Vec::new());
        if known && before.rule.table != NONE && (before.rule.service != service || planned.table.is_none()) {
            self.name_other_heirs(&[key]);
        }
        if known && before.rule.service != service {
            // The port has changed hands.
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
            // Another service may use the other side, which lacks the table.
            if fresh || before.table.as_ref() != Some(wanted) || before.rule.service != service {
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

    /// Lets lookups come to tables that are published, and then empties those that nothing leads to any more.
    fn finish_rule(&mut self, planned: &PlannedRule, prepared: Prepared, changes: Changes) -> Result<()> {
        let Prepared { key, rule, changed, networks, sources, freed } = prepared;
        if let Some(table) = &planned.table {
            self.name_heirs(Heirs { rule: key, table: rule.table, service: rule.service }, table);
        }
        for (scope, own, version) in sources {
            if let Some(wanted) = planned.networks.get(&version)
                && let Err(error) = self.sources.add(scope, rule.service, &wanted.networks, own)
            {
                // What leads to the new tables goes before they do; networks that are in force stay so.
                self.sources.withdraw(scope, &changes.reserved);
                self.give_up(&key, changes);
                return Err(error);
            }
        }
        // Known before it is written: where that fails, it may lead to its table already, or still to the former one.
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

    /// Removes the rules that are not planned, and then their tables. Returns what went wrong; it is tried again.
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
        self.name_other_heirs(&gone);
        for table in tables {
            self.publisher.clear(table);
        }
        failed
    }

    /// Tells the migrate program which table's members take over when one of these sockets closes. A socket may be in the
    /// tables of several rules, those of both families say: it keeps the first of them as long as it is there.
    pub(super) fn name_heirs(&mut self, heirs: Heirs, planned: &Arc<PlannedTable>) {
        // Of rules that share a table, the first one has been told.
        if !self.heirs_named.insert((heirs.service, Arc::as_ptr(planned).addr())) {
            return;
        }
        for member in &planned.members {
            let told = self.heirs.get(&member.cookie);
            if told.is_some_and(|told| *told == heirs || self.inherits(told, member.cookie)) {
                continue;
            }
            if let Ok(mut info) = self.sockets.get(&member.cookie, 0) {
                (info.table, info.service) = (heirs.table, heirs.service);
                if self.sockets.insert(member.cookie, info, 0).is_ok() {
                    self.heirs.insert(member.cookie, heirs);
                }
            }
        }
    }

    /// The tables of these rules go, or become another service's: sockets that had one of them for their heirs get another one that they are
    /// in. One that is in none keeps its service, so that its queue is not left to the kernel.
    fn name_other_heirs(&mut self, gone: &[RuleKey]) {
        let told: Vec<u64> =
            self.heirs.iter().filter(|(_, heirs)| gone.contains(&heirs.rule)).map(|(cookie, _)| *cookie).collect();
        for cookie in told {
            self.heirs.remove(&cookie);
            let Ok(mut info) = self.sockets.get(&cookie, 0) else { continue };
            let other = self.published.iter().filter(|(key, _)| !gone.contains(key)).find_map(|(key, published)| {
                let Rule { table, service, .. } = published.rule;
                Some(Heirs { rule: *key, table, service }).filter(|heirs| self.inherits(heirs, cookie))
            });
            info.table = NONE;
            if let Some(heirs) = other {
                (info.table, info.service) = (heirs.table, heirs.service);
            }
            if self.sockets.insert(cookie, info, 0).is_ok()
                && let Some(heirs) = other
            {
                self.heirs.insert(cookie, heirs);
            }
        }
    }

    /// Whether a rule is published so, with this socket in its table.
    fn inherits(&self, heirs: &Heirs, cookie: u64) -> bool {
        let Some(Published { rule, table: Some(table), .. }) = self.published.get(&heirs.rule) else { return false };
        (rule.table, rule.service) == (heirs.table, heirs.service)
            && table.members.binary_search_by_key(&cookie, |member| member.cookie).is_ok()
    }
}
