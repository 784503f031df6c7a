//! Puts an operator's decision in force: builds all tables of the service on the side that is not in use, and then
//! writes one word.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use aya::maps::{Array, MapData};
use pod_steer_ebpf::{NONE, Rule, SERVICES_MAX, SWITCH_HAS_SOURCES, SWITCH_SIDE, switch, table_index};

use super::{
    Kernel, KernelError, Result, Settled,
    apply::{MigrationTargets, Published},
    ports::{only_of, rule_of},
};
use crate::{
    abort::{self, Point},
    ids::{BackendIndex, ServiceIndex},
    ports::Port,
    rule::RuleKey,
    world::{Plan, PlannedDecision, PlannedNetworks, PlannedRule, PlannedTable},
};

/// The table of a rule, and the tables of its networks by version.
type Built = (u32, BTreeMap<String, (u32, PlannedNetworks)>);

/// Tables that a switch needs in addition to those that the service has.
#[derive(Default)]
struct NewTables {
    reserved: Vec<u32>,
    /// How many of them are for networks.
    of_networks: usize,
    /// How many tables of networks the service has, which are freed after the switch.
    replaced: usize,
}

/// The switches of all services, cached because they are read often. Only this process writes them.
pub(super) struct Switches {
    map: Array<MapData, u32>,
    /// The contents of the map.
    words: Vec<u32>,
}

impl Switches {
    /// Takes over the contents of the map.
    pub fn new(map: Array<MapData, u32>) -> Self {
        let words = (0..SERVICES_MAX).map(|service| map.get(&service, 0).unwrap_or(0)).collect();
        Self { map, words }
    }

    fn word(&self, service: ServiceIndex) -> u32 {
        self.words.get(service.0 as usize).copied().unwrap_or(0)
    }

    fn write(&mut self, service: ServiceIndex, word: u32) -> Result<()> {
        self.map.set(service.0, word, 0).map_err(KernelError::map("write a switch to", "SWITCHES"))?;
        if let Some(known) = self.words.get_mut(service.0 as usize) {
            *known = word;
        }
        Ok(())
    }
}

impl Kernel {
    /// Resets the switch of an index that was another service's.
    pub(super) fn reset_switch(&mut self, service: ServiceIndex) -> Result<()> {
        self.switches.write(service, 0)
    }

    pub(super) fn switch(&self, service: ServiceIndex) -> u32 {
        self.switches.word(service)
    }

    /// Whether the kernel already follows this decision. The networks of an earlier daemon's decision are not known: it
    /// is put in force once more.
    pub fn follows(&self, service: ServiceIndex, decision: PlannedDecision) -> bool {
        let now = self.switch(service);
        let unknown = || {
            let mut rules = self.published.values().filter(|published| published.rule.service == service.0);
            rules.any(|published| published.table.is_none() && published.rule.table != NONE)
        };
        now == switch(now & SWITCH_SIDE, decision.has_networks, decision.revision)
            && (now & SWITCH_HAS_SOURCES == 0 || !unknown())
    }

    /// Returns when the latest decision took effect since the last call. Cleaning up after it takes longer.
    pub fn take_switched(&mut self) -> Option<Instant> {
        self.switched.take()
    }

    /// Whether a decision has taken effect since that was last asked for.
    pub fn has_switched(&self) -> bool {
        self.switched.is_some()
    }

    /// How many tables were published since the last call.
    pub fn take_published(&mut self) -> u64 {
        self.publisher.take_published()
    }

    /// Puts a decision in force: builds all tables of the service anew on the other side, and then writes the switch.
    pub(super) fn switch_service(
        &mut self,
        plan: &Plan,
        name: &str,
        service: ServiceIndex,
        decision: PlannedDecision,
    ) -> Result<Vec<Settled>> {
        let old = self.switch(service) & SWITCH_SIDE;
        let new = old ^ SWITCH_SIDE;
        let planned: Vec<(RuleKey, &PlannedRule, &Arc<PlannedTable>)> = plan
            .rules
            .iter()
            .filter(|(_, rule)| rule.service.as_deref() == Some(name))
            .filter_map(|(key, rule)| Some((*key, rule, rule.table.as_ref()?)))
            .collect();
        let (mut built, mut new_tables, mut stale) = (Vec::new(), NewTables::default(), BTreeSet::new());
        // Counted in the map: nothing else is known of rules that an earlier daemon wrote.
        new_tables.replaced = self.sources.tables_of(service, old);
        let prepared = planned.into_iter().try_for_each(|(key, rule, table)| {
            let before = self.published.get(&key).cloned().unwrap_or_default();
            // Tables above the service's quota are left out; the next plan reports them.
            let Some(tables) = self.build(key, service, (rule, table), new, &mut new_tables, &mut stale)? else {
                return Ok(());
            };
            built.push((key, before, (rule, table), tables));
            Ok(())
        });
        if prepared.is_err() {
            self.publisher.discard();
        }
        let (mut settled, failed) = self.publisher.flush();
        let prepared = prepared.and_then(|()| failed.map_or(Ok(()), |failed| Err(failed.error)));
        let prepared = prepared.and_then(|()| {
            abort::here(Point::Built);
            built.iter().try_for_each(|(key, before, (rule, _), _)| self.withdraw_only(*key, before, rule.only))
        });
        if let Err(error) = prepared {
            // Clients are still steered as before. Release what was built.
            for (_, _, _, (index, _)) in built {
                self.sources.remove(table_index(index, new));
            }
            for table in new_tables.reserved.into_iter().chain(stale) {
                self.publisher.clear(table);
            }
            for key in plan.rules.keys().filter(|key| !self.published.contains_key(key)) {
                self.rules.release(key);
            }
            return Err(error);
        }

        // >>> New connections move here, when an operator decides: one word.
        let word = switch(new, decision.has_networks, decision.revision);
        self.switches.write(service, word)?;
        self.switched = Some(Instant::now());
        abort::here(Point::Switched);

        let mut failed = None;
        stale.into_iter().for_each(|table| self.publisher.clear(table));
        for (key, before, (planned, table), (index, networks)) in built {
            let rule = rule_of(planned, index, service);
            let mut ours = before.ours && before.rule == rule;
            if !ours {
                match self.rules.write(key, rule) {
                    Ok(()) => ours = true,
                    // The next plan writes it.
                    Err(error) => failed = Some(error),
                }
            }
            self.write_migration_targets(MigrationTargets { rule: key, table: index, service }, table);
            let table = Arc::clone(table);
            let serving = if ours { Some(Arc::clone(&table)) } else { before.serving };
            self.published.insert(key, Published { rule, ours, table: Some(Arc::clone(&table)), serving, networks });
            let mut left = self.sources.remove(table_index(index, old));
            left.extend(before.networks.into_values().map(|(own, _)| own));
            for own in left {
                self.publisher.clear(own);
            }
            // The kernel's grace period for this begins after the switch: when it is over, no lookup uses the old side.
            // Until then a lookup that has read the old word may come there, and finds the same as on the new side. An
            // empty table would refuse its client.
            if let Err(error) = self.publisher.prepare(table_index(index, old), &table, false) {
                failed = Some(error);
            }
        }
        let (more, unpublished) = self.publisher.flush();
        settled.extend(more);
        failed.or(unpublished.map(|unpublished| unpublished.error)).map_or(Ok(settled), Err)
    }

    /// Removes the only backend (`Rule::only`) from a rule before a switch. The rule names this backend, whose newest
    /// listener gets clients, and the tables do not, so the switch does not change it. Before the switch no rule may
    /// name a backend that the decision excludes. Until the rule is written again, a client for which no table has a
    /// socket is refused, also if the daemon dies before that.
    fn withdraw_only(&mut self, key: RuleKey, before: &Published, only: Option<(BackendIndex, Port)>) -> Result<()> {
        let rule = before.rule;
        let is_same = before.ours && (rule.only, rule.target) == only_of(only);
        if rule.table == NONE || is_same || before.ours && rule.only == NONE {
            return Ok(());
        }
        let without = Rule { only: NONE, target: 0, ..rule };
        if let Some(published) = self.published.get_mut(&key) {
            // The rule is written as planned after the switch, or by the next plan.
            (published.rule, published.ours) = (without, false);
        }
        self.rules.write(key, without)
    }

    /// Builds the tables of one rule on the side that is not in use. Returns the rule's table and those of its
    /// networks, or `None` for a new rule above the service's quota. Adds to `new_tables`, and adds to `stale` the
    /// tables that left-over entries refer to, also if it fails.
    fn build(
        &mut self,
        key: RuleKey,
        service: ServiceIndex,
        (rule, table): (&PlannedRule, &Arc<PlannedTable>),
        side: u32,
        new_tables: &mut NewTables,
        stale: &mut BTreeSet<u32>,
    ) -> Result<Option<Built>> {
        let known = self.published.get(&key).map(|published| published.rule.table).filter(|table| *table != NONE);
        let index = match known {
            Some(index) => index,
            None => match self.rules.take(key, service).and_then(|()| self.publisher.reserve(service, false)) {
                Ok(index) => {
                    new_tables.reserved.push(index);
                    index
                }
                Err(error) if error.is_quota() => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        // A daemon that ended between here and the switch has left entries on this side.
        stale.extend(self.sources.remove(table_index(index, side)));
        self.publisher.prepare(table_index(index, side), table, false)?;
        let networks = rule.networks.iter().map(|(version, planned)| {
            let own = self.publisher.reserve(service, new_tables.of_networks < new_tables.replaced)?;
            new_tables.reserved.push(own);
            new_tables.of_networks += 1;
            self.publisher.prepare(table_index(own, side), &planned.table, false)?;
            self.sources.add(table_index(index, side), service, &planned.networks, own)?;
            Ok((version.clone(), (own, planned.clone())))
        });
        match networks.collect::<Result<_>>() {
            Ok(networks) => Ok(Some((index, networks))),
            Err(error) => {
                self.sources.remove(table_index(index, side));
                Err(error)
            }
        }
    }
}
