//! Putting a decision of an operator in force: all tables of a service are built on the side that nobody uses, and then one
//! word is written.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use pod_steer_ebpf::{NONE, RuleKey, SWITCH_HAS_SOURCES, SWITCH_SIDE, switch, table_index};

use super::{
    Kernel, KernelError, Result, Settled,
    apply::{Published, rule_of},
};
use crate::{
    abort::{self, Point},
    world::{Plan, PlannedDecision, PlannedNetworks, PlannedRule, PlannedTable},
};

/// The table of a rule, those of its networks by version, and the tables that were left there.
type Built = (u32, BTreeMap<String, (u32, PlannedNetworks)>, BTreeSet<u32>);

impl Kernel {
    /// The switch of an index that was another service's.
    pub(super) fn reset_switch(&mut self, service: u32) -> Result<()> {
        self.switches.set(service, 0, 0).map_err(KernelError::map("reset", "SWITCHES"))
    }

    pub(super) fn switch(&self, service: u32) -> u32 {
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
    pub(super) fn switch_service(
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
        let (mut built, mut reserved) = (Vec::new(), Vec::new());
        let prepared = planned.into_iter().try_for_each(|(key, rule, table)| {
            let before = self.published.get(&key).cloned().unwrap_or_default();
            let tables = self.build(key, rule, table, new, &mut reserved)?;
            built.push((key, before, (rule, table), tables));
            Ok(())
        });
        if prepared.is_err() {
            self.publisher.discard();
        }
        let (mut settled, failed) = self.publisher.flush();
        if let Err(error) = prepared.and_then(|()| failed.map_or(Ok(()), |failed| Err(failed.error))) {
            // Nothing has changed for anybody; what was built for it is given back.
            for (_, _, _, (index, ..)) in built {
                self.sources.remove(table_index(index, new));
            }
            for table in reserved {
                self.publisher.clear(table);
            }
            self.publisher.flush();
            return Err(error);
        }

        abort::here(Point::Built);
        // >>> New connections move here, when an operator decides: one word.
        let word = switch(new, decision.has_networks, decision.revision);
        self.switches.set(service, word, 0).map_err(KernelError::map("write a switch to", "SWITCHES"))?;
        self.switched = Some(Instant::now());
        abort::here(Point::Switched);

        let mut failed = None;
        for (key, before, (planned, table), (index, networks, stale)) in built {
            let rule = rule_of(planned, index, service);
            let mut ours = before.ours && before.rule == rule;
            if !ours {
                match self.rules.write(key, rule) {
                    Ok(()) => ours = true,
                    // The next plan writes it.
                    Err(error) => failed = Some(error),
                }
            }
            self.name_heirs(index, service, table);
            self.published.insert(key, Published { rule, ours, table: Some(table.clone()), networks });
            let mut left = self.sources.remove(table_index(index, old));
            left.extend(before.networks.into_values().map(|(own, _)| own));
            left.extend(stale);
            for own in left {
                self.publisher.clear(own);
            }
            // The kernel's grace period for this begins after the switch: when it is over, nobody uses the old side. Until
            // then a lookup that has read the old word may come there, and finds the same as on the new side: an empty
            // table would refuse its client.
            if let Err(error) = self.publisher.prepare(table_index(index, old), table, false) {
                failed = Some(error);
            }
        }
        let (more, not) = self.publisher.flush();
        settled.extend(more);
        failed.or(not.map(|not| not.error)).map_or(Ok(settled), Err)
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
        self.publisher.prepare(table_index(index, side), table, false)?;
        let mut networks = BTreeMap::new();
        for (version, planned) in &rule.networks {
            let own = self.publisher.reserve()?;
            reserved.push(own);
            self.publisher.prepare(table_index(own, side), &planned.table, false)?;
            if let Err(error) = self.sources.add(table_index(index, side), &planned.networks, own) {
                self.sources.remove(table_index(index, side));
                return Err(error);
            }
            networks.insert(version.clone(), (own, planned.clone()));
        }
        Ok((index, networks, stale))
    }
}
