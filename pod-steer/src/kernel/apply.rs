//! Bringing the kernel to a plan. Ordinary changes replace one table each. A decision of an operator changes all tables of
//! a service at once: they are built on the side that nobody uses, and then one word is written.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use pod_steer_ebpf::{ManagedPort, NONE, Rule, RuleKey, SWITCH_HAS_SOURCES, SWITCH_SIDE, switch, table_index};

use super::{Kernel, KernelError, Result, Settled};
use crate::{
    abort::{self, Point},
    slots::slot_count,
    world::{Plan, PlannedDecision, PlannedNetworks, PlannedRule, PlannedTable},
};

/// A rule as it stands in the map, and what the tables that it leads to were built from.
#[derive(Clone, Debug, Default)]
pub(super) struct Published {
    pub rule: Rule,
    /// Whether we have written it; an earlier daemon may have ended before all of it was.
    pub ours: bool,
    /// Not known of a rule that an earlier daemon wrote.
    pub table: Option<PlannedTable>,
    /// By version: the table's index, and what it was built from.
    pub networks: BTreeMap<String, (u32, PlannedNetworks)>,
}

/// The table of a rule, those of its networks by version, and the tables that were left there.
type Built = (u32, BTreeMap<String, (u32, PlannedNetworks)>, BTreeSet<u32>);

impl Kernel {
    /// Brings the kernel to the plan, and returns what tells when nobody uses the former tables any more. Tables come
    /// before the rules that lead to them, and rules go before their tables.
    pub fn apply(&mut self, plan: &Plan, services: &BTreeMap<String, u32>) -> Result<Vec<Settled>> {
        self.apply_managed_ports(&plan.managed_ports)?;
        let mut settled = self.drop_rules(plan)?;
        // What the kernel does not take of one service keeps it from nothing of another.
        let mut failed: BTreeMap<&str, KernelError> = BTreeMap::new();
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
        for (key, planned) in &plan.rules {
            let name = planned.service.as_deref().unwrap_or_default();
            if failed.contains_key(name) {
                continue;
            }
            let service = services.get(name).copied().unwrap_or(NONE);
            match self.apply_rule(*key, planned, service) {
                Ok(more) => settled.extend(more),
                Err(error) => drop(failed.insert(name, error)),
            }
        }
        failed.into_values().next().map_or(Ok(settled), Err)
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

    /// The switch of an index that was another service's.
    pub(super) fn reset_switch(&mut self, service: u32) -> Result<()> {
        self.switches.set(service, 0, 0).map_err(KernelError::map("reset", "SWITCHES"))
    }

    fn switch(&self, service: u32) -> u32 {
        self.switches.get(&service, 0).unwrap_or(0)
    }

    /// Whether the kernel follows this decision already. Which networks an earlier daemon told apart is not known: its
    /// decision is put in force once more.
    pub fn follows(&self, service: u32, decision: PlannedDecision) -> bool {
        let now = self.switch(service);
        let unknown = || {
            let mut rules = self.published.values().filter(|published| published.rule.service == service);
            rules.any(|published| published.table.is_none() && published.rule.table != NONE)
        };
        now == switch(now & SWITCH_SIDE, decision.has_networks, decision.revision)
            && (now & SWITCH_HAS_SOURCES == 0 || !unknown())
    }

    /// Puts a decision in force: all tables of the service anew, on the other side, and then the switch.
    fn switch_service(
        &mut self,
        plan: &Plan,
        name: &str,
        service: u32,
        decision: PlannedDecision,
    ) -> Result<Vec<Settled>> {
        let old = self.switch(service) & SWITCH_SIDE;
        let new = old ^ SWITCH_SIDE;
        let planned: Vec<(RuleKey, &PlannedRule, &PlannedTable)> = plan
            .rules
            .iter()
            .filter(|(_, rule)| rule.service.as_deref() == Some(name))
            .filter_map(|(key, rule)| Some((*key, rule, rule.table.as_ref()?)))
            .collect();
        let mut built = Vec::new();
        for (key, rule, table) in planned {
            let before = self.published.get(&key).cloned().unwrap_or_default();
            let mut reserved = Vec::new();
            match self.build(key, rule, table, new, &mut reserved) {
                Ok((index, networks, stale)) => {
                    built.push((key, index, before, (rule, table), networks, stale, reserved));
                }
                Err(error) => {
                    // Nothing has changed for anybody; what was built for it is given back.
                    for (_, index, _, _, _, _, also) in built {
                        self.sources.remove(table_index(index, new));
                        reserved.extend(also);
                    }
                    for table in reserved {
                        let _ = self.publisher.clear(table);
                    }
                    return Err(error);
                }
            }
        }

        abort::here(Point::Built);
        // >>> New connections move here, when an operator decides: one word.
        let word = switch(new, decision.has_networks, decision.revision);
        self.switches.set(service, word, 0).map_err(KernelError::map("write a switch to", "SWITCHES"))?;
        self.switched = Some(Instant::now());
        abort::here(Point::Switched);

        let mut settled = Vec::new();
        for (key, index, before, (planned, table), networks, stale, _) in built {
            let rule = rule_of(planned, index, service);
            if !before.ours || before.rule != rule {
                self.rules.write(key, rule)?;
            }
            self.name_heirs(index, service, table);
            self.published.insert(key, Published { rule, ours: true, table: Some(table.clone()), networks });
            let mut left = self.sources.remove(table_index(index, old));
            left.extend(before.networks.into_values().map(|(own, _)| own));
            left.extend(stale);
            for own in left {
                settled.extend(self.publisher.clear(own)?);
            }
            // The kernel's grace period for this begins after the switch: when it is over, nobody uses the old side. Until
            // then a lookup that has read the old word may come there, and finds the same as on the new side: an empty
            // table would refuse its client.
            settled.extend(self.publisher.publish(table_index(index, old), table, false)?);
        }
        Ok(settled)
    }

    /// Builds the tables of one rule on the side that nobody uses. Returns the rule's table, those of networks, and the
    /// tables to which something left there led; `reserved` are those that are new, also when it fails.
    fn build(
        &mut self,
        key: RuleKey,
        rule: &PlannedRule,
        table: &PlannedTable,
        side: u32,
        reserved: &mut Vec<u32>,
    ) -> Result<Built> {
        let known = self.published.get(&key).map(|published| published.rule.table).filter(|table| *table != NONE);
        let index = match known {
            Some(index) => index,
            None => {
                let index = self.publisher.reserve()?;
                reserved.push(index);
                index
            }
        };
        // A daemon that ended between here and the switch has left something on this side.
        let stale = self.sources.remove(table_index(index, side));
        self.publisher.publish(table_index(index, side), table, false)?;
        let mut networks = BTreeMap::new();
        for (version, planned) in &rule.networks {
            let own = self.publisher.reserve()?;
            reserved.push(own);
            self.publisher.publish(table_index(own, side), &planned.table, false)?;
            if let Err(error) = self.sources.add(table_index(index, side), &planned.networks, own) {
                self.sources.remove(table_index(index, side));
                return Err(error);
            }
            networks.insert(version.clone(), (own, planned.clone()));
        }
        Ok((index, networks, stale))
    }

    /// Brings one rule and its tables to the plan, on the side in use.
    fn apply_rule(&mut self, key: RuleKey, planned: &PlannedRule, service: u32) -> Result<Vec<Settled>> {
        let mut settled = Vec::new();
        let before = self.published.get(&key).cloned();
        let side = if service == NONE { 0 } else { self.switch(service) & SWITCH_SIDE };
        let mut table = before.as_ref().map_or(NONE, |before| before.rule.table);
        let mut networks = before.as_ref().map(|before| before.networks.clone()).unwrap_or_default();
        let mut freed = Vec::new();
        if before.as_ref().is_some_and(|before| before.rule.service != service) {
            // The port has changed hands.
            freed.extend(std::mem::take(&mut networks).into_values().map(|(own, _)| own));
            freed.extend((0..=SWITCH_SIDE).flat_map(|side| self.sources.remove(table_index(table, side))));
            freed.sort_unstable();
            freed.dedup();
        }
        if planned.table.is_none() && table != NONE {
            freed.push(std::mem::replace(&mut table, NONE));
        }
        if let Some(wanted) = &planned.table {
            let fresh = table == NONE;
            if fresh {
                table = self.publisher.reserve()?;
            }
            let current = before.as_ref().and_then(|before| before.table.as_ref());
            if fresh || current != Some(wanted) {
                let compare = !fresh && current.is_none();
                settled.extend(self.publisher.publish(table_index(table, side), wanted, compare)?);
                self.name_heirs(table, service, wanted);
            }
            for (version, wanted) in &planned.networks {
                match networks.get_mut(version) {
                    Some((_, current)) if current == wanted => {}
                    Some((own, current)) => {
                        settled.extend(self.publisher.publish(table_index(*own, side), &wanted.table, false)?);
                        current.clone_from(wanted);
                    }
                    None => {
                        let own = self.publisher.reserve()?;
                        settled.extend(self.publisher.publish(table_index(own, side), &wanted.table, false)?);
                        self.sources.add(table_index(table, side), &wanted.networks, own)?;
                        networks.insert(version.clone(), (own, wanted.clone()));
                    }
                }
            }
        }
        let rule = rule_of(planned, table, service);
        if before.as_ref().is_none_or(|before| !before.ours || before.rule != rule) {
            self.rules.write(key, rule)?;
        }
        self.published.insert(key, Published { rule, ours: true, table: planned.table.clone(), networks });
        for table in freed {
            settled.extend(self.publisher.clear(table)?);
        }
        Ok(settled)
    }

    /// Removes the rules that are not planned, and then their tables.
    fn drop_rules(&mut self, plan: &Plan) -> Result<Vec<Settled>> {
        let gone: Vec<RuleKey> = self.published.keys().filter(|key| !plan.rules.contains_key(key)).copied().collect();
        let mut settled = Vec::new();
        for key in gone {
            self.rules.remove(&key)?;
            let Some(published) = self.published.remove(&key) else { continue };
            if published.rule.table == NONE {
                continue;
            }
            let mut tables: BTreeSet<u32> = published.networks.into_values().map(|(own, _)| own).collect();
            for side in 0..=SWITCH_SIDE {
                tables.extend(self.sources.remove(table_index(published.rule.table, side)));
            }
            tables.insert(published.rule.table);
            for table in tables {
                settled.extend(self.publisher.clear(table)?);
            }
        }
        Ok(settled)
    }

    /// Tells the migrate program which table's members take over when one of these sockets closes.
    fn name_heirs(&mut self, table: u32, service: u32, planned: &PlannedTable) {
        for member in &planned.members {
            if let Ok(mut info) = self.sockets.get(&member.cookie, 0)
                && (info.table, info.service) != (table, service)
            {
                (info.table, info.service) = (table, service);
                let _ = self.sockets.insert(member.cookie, info, 0);
            }
        }
    }

    fn apply_managed_ports(&mut self, wanted: &BTreeMap<ManagedPort, u32>) -> Result<()> {
        for port in self.ports_written.keys().filter(|port| !wanted.contains_key(port)) {
            let _ = self.managed_ports.remove(port);
        }
        for (port, purpose) in wanted.iter().filter(|(port, purpose)| self.ports_written.get(port) != Some(purpose)) {
            let written = self.managed_ports.insert(port, purpose, 0);
            written.map_err(KernelError::map("write a port to", "MANAGED_PORTS"))?;
        }
        self.ports_written.clone_from(wanted);
        Ok(())
    }
}

/// The rule as the kernel holds it.
fn rule_of(planned: &PlannedRule, table: u32, service: u32) -> Rule {
    let members = planned.table.as_ref().map_or(0, |table| table.members.len());
    Rule { table, service, fallback: planned.fallback, flags: planned.flags, slots: slot_count(members) }
}
