//! Each namespace's map of ports, and the writing of rules. A later daemon reads the map of rules; a lookup follows the
//! maps of ports and the rules by table.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use aya::maps::{Array, HashMap, Map, MapData};
use pod_steer_ebpf::{
    ASK_ADDRESSES, ASK_DEVICES, ASK_RULES, NONE, PORT_WORDS, RULE_HAS_ADDRESSES, RULE_HAS_DEVICES, Rule, TABLES_MAX,
    port_place,
};

use super::{KernelError, NO_SERVICE, Result, pins, tally::Tally};
use crate::{
    ids::{BackendIndex, NetnsCookie, ServiceIndex},
    ports::Port,
    rule::RuleKey,
    slots::slot_count,
    world::PlannedRule,
};

const BPF_MAP_TYPE_ARRAY: u32 = 2;

/// The maps that lead from a packet to its rule.
pub(super) struct Rules {
    rules: HashMap<MapData, pod_steer_ebpf::RuleKey, Rule>,
    /// The service of each rule that is written or about to be.
    owners: BTreeMap<RuleKey, ServiceIndex>,
    tally: Tally,
    by_table: Array<MapData, Rule>,
    /// Where the maps of ports are pinned, each under its namespace's cookie.
    dir: PathBuf,
}

/// Where the map of ports of a namespace is pinned.
pub(super) fn pin(dir: &Path, cookie: NetnsCookie) -> PathBuf {
    dir.join("ports").join(cookie.to_string())
}

/// The one backend that may serve a rule's clients and its port, as the kernel holds them.
pub(super) fn only_of(only: Option<(BackendIndex, Port)>) -> (u32, u16) {
    only.map_or((NONE, 0), |(backend, port)| (backend.0, port.number))
}

/// The rule in the form of the contract.
pub(super) fn rule_of(planned: &PlannedRule, table: u32, service: ServiceIndex) -> Rule {
    let members = planned.table.as_ref().map_or(0, |table| table.members.len());
    let (only, target) = only_of(planned.only);
    let (client_bits_v4, client_bits_v6) = planned.affinity.client_bits();
    let PlannedRule { fallback, flags, .. } = *planned;
    Rule {
        table,
        service: service.0,
        fallback,
        flags,
        slots: slot_count(members),
        only,
        target,
        client_bits_v4,
        client_bits_v6,
        #[cfg(feature = "test-layout")]
        later: 0,
    }
}

impl Rules {
    /// `dir` holds the directory of the maps of ports.
    pub fn new(
        rules: HashMap<MapData, pod_steer_ebpf::RuleKey, Rule>,
        by_table: Array<MapData, Rule>,
        dir: &Path,
    ) -> Self {
        let tally = Tally::new("RULES", TABLES_MAX, "rules (one for a single address or device counts twice)");
        let mut made = Self { rules, owners: BTreeMap::new(), tally, by_table, dir: dir.to_owned() };
        let written: Vec<(RuleKey, Rule)> = made.read().collect();
        written.into_iter().for_each(|(key, rule)| made.owns(key, ServiceIndex(rule.service)));
        made
    }

    /// Counts a rule that a service is about to get. A rule that the service has, or that another service had, is not
    /// refused.
    pub fn take(&mut self, key: RuleKey, service: ServiceIndex) -> Result<()> {
        if !self.owners.contains_key(&key) {
            self.tally.admit(service)?;
        }
        self.owns(key, service);
        Ok(())
    }

    /// Releases a service's rule.
    pub fn release(&mut self, key: &RuleKey) {
        if let Some(owner) = self.owners.remove(key) {
            self.tally.take_away(owner, weight(key));
        }
    }

    fn owns(&mut self, key: RuleKey, service: ServiceIndex) {
        if self.owners.get(&key) == Some(&service) {
            return;
        }
        self.release(&key);
        // A rule that only marks that others exist is counted with those.
        if service != NO_SERVICE {
            self.owners.insert(key, service);
            self.tally.add(service, weight(&key));
        }
    }

    /// The rules in the map, without those of protocols that this build does not steer.
    pub fn read(&self) -> impl Iterator<Item = (RuleKey, Rule)> {
        self.rules.iter().flatten().filter_map(|(key, rule)| Some((RuleKey::read(&key)?, rule)))
    }

    /// The tables that rules of any protocol lead to, and the service of each.
    pub fn tables(&self) -> BTreeMap<u32, ServiceIndex> {
        self.rules.iter().flatten().map(|(_, rule)| (rule.table, ServiceIndex(rule.service))).collect()
    }

    /// Writes a rule, whose table must exist. Lookups find it when all of it is written.
    pub fn write(&mut self, key: RuleKey, rule: Rule) -> Result<()> {
        let leads_to = leads_to(&rule);
        // Such a rule decides what the port's word says.
        let of_port = key.is_of_port();
        let by_table = of_port && leads_to != 0 && leads_to < ASK_RULES;
        if of_port && !by_table {
            // A port's word must not refer to a table that no rule names: the next daemon would give that table to
            // another rule.
            self.lead(&key, leads_to)?;
        }
        self.rules.insert(key.written(), rule, 0).map_err(KernelError::add("write a rule to", "RULES", TABLES_MAX))?;
        if by_table {
            // This write is not atomic and need not be: the table is always this one, and each slot confirms the hint.
            let written = self.by_table.set(rule.table, rule, 0);
            written.map_err(KernelError::map("write a rule to", "TABLE_RULES"))?;
            self.lead(&key, leads_to)?;
        }
        Ok(())
    }

    /// Removes a rule. Lookups stop finding it before anything else is removed.
    pub fn remove(&mut self, key: &RuleKey) -> Result<()> {
        if key.is_of_port() && pin(&self.dir, key.netns_cookie).exists() {
            self.lead(key, 0)?;
        }
        let _ = self.rules.remove(&key.written());
        self.release(key);
        Ok(())
    }

    fn lead(&self, key: &RuleKey, leads_to: u16) -> Result<()> {
        let failed = || KernelError::map("write a port to", "PORTS");
        let (place, shift) = port_place(key.port.number, key.family);
        let pinned = pin(&self.dir, key.netns_cookie);
        if !pinned.exists() {
            // The attached program has the map; no program would read a new one.
            let _ = pins::recover_ports(&self.dir, key.netns_cookie);
        }
        // Opened for each write. Writes are few, and one open file for each pod would be many.
        let mut ports: Array<MapData, u64> = Array::try_from(Map::Array(make(&pinned)?)).map_err(failed())?;
        // One word holds two ports and both families. Only this thread writes to it.
        let word = ports.get(&place, 0).map_err(failed())?;
        ports.set(place, with_port(word, shift, leads_to), 0).map_err(failed())
    }

    /// Removes the map of a namespace in which nothing is steered any more.
    pub fn forget(&self, cookie: NetnsCookie) {
        let _ = fs::remove_file(pin(&self.dir, cookie));
    }
}

/// Number of entries that a rule may need. One for a single address or device needs a second, which marks that such
/// rules exist.
fn weight(key: &RuleKey) -> u32 {
    if key.is_of_port() { 1 } else { 2 }
}

/// The value of a port's word for its rule.
fn leads_to(rule: &Rule) -> u16 {
    let mut asks = 0;
    for (flag, ask) in [(RULE_HAS_ADDRESSES, ASK_ADDRESSES), (RULE_HAS_DEVICES, ASK_DEVICES)] {
        if rule.flags & flag != 0 {
            asks |= ask;
        }
    }
    match rule.table {
        _ if asks != 0 => ASK_RULES | asks,
        NONE => 0,
        // The contract asserts that every table fits.
        table => table as u16 + 1,
    }
}

/// The word with one port's 16 bits replaced.
fn with_port(word: u64, shift: u32, leads_to: u16) -> u64 {
    word & !(u64::from(u16::MAX) << shift) | u64::from(leads_to) << shift
}

/// Opens a map of ports; creates and pins it if it is missing. The loop and a helper thread that attaches a program may
/// do so at the same time: the later one takes the earlier one's map.
pub(super) fn make(path: &Path) -> Result<MapData> {
    let open = || MapData::from_pin(path).map_err(KernelError::map("open", "PORTS"));
    if path.exists() {
        return open();
    }
    let (key, value) = (size_of::<u32>() as u32, size_of::<u64>() as u32);
    let definition = aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY, key, value, PORT_WORDS, 0);
    let map = MapData::create(definition, "PORTS", None).map_err(KernelError::map("create", "PORTS"))?;
    match map.pin(path) {
        Ok(()) => Ok(map),
        Err(_) if path.exists() => open(),
        Err(source) => Err(KernelError::Pin { path: path.to_owned(), source: Box::new(source) }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pod_steer_ebpf::{FAMILY_V4, FAMILY_V6};

    use super::*;

    #[test]
    fn each_port_and_family_has_bits_of_its_own() {
        let mut words = BTreeMap::new();
        let ports = [0u16, 1, 79, 80, 81, 65_534, 65_535];
        let all = || ports.into_iter().flat_map(|port| [(port, FAMILY_V4), (port, FAMILY_V6)]);
        for (number, (port, family)) in (1..).zip(all()) {
            let (place, shift) = port_place(port, family);
            assert!(place < PORT_WORDS);
            let word: &mut u64 = words.entry(place).or_default();
            *word = with_port(*word, shift, number);
        }
        let read = |(port, family)| {
            let (place, shift) = port_place(port, family);
            (words[&place] >> shift) as u16
        };
        assert_eq!(all().map(read).collect::<Vec<_>>(), (1..=14).collect::<Vec<_>>());
        assert_eq!(with_port(with_port(u64::MAX, 16, 7), 16, u16::MAX), u64::MAX);
    }
}
