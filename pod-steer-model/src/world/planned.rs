//! The plan that is applied to the kernel, and the state of each backend.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use pod_steer_ebpf::{FALLBACK_PASS, FALLBACK_REFUSE, ManagedBlock, ManagedPorts, OwnBlock, OwnPorts};

use super::{Coverage, Destination, State, refused::Unmet, scope::Scope};
use crate::{
    condition::Condition,
    ids::{BackendIndex, NetnsCookie, SocketCookie},
    ports::Port,
    rule::RuleKey,
    settings::{Fallback, ServiceOptions, options::Affinity},
    slots::Member,
};

/// The complete desired state of steering.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The rules, as the kernel's map holds them.
    pub rules: BTreeMap<RuleKey, PlannedRule>,
    /// The ports of the backends, and the purposes of each.
    pub managed_ports: BTreeMap<ManagedBlock, ManagedPorts>,
    /// The ports that each backend serves of those that its service has claimed: the service, whose index is filled in
    /// when they are written, and the port on which the backend listens for each.
    pub own_ports: BTreeMap<OwnBlock, (String, OwnPorts)>,
    /// The decisions that the rules follow: by service, the revision and whether networks are told apart.
    pub decisions: BTreeMap<String, PlannedDecision>,
    /// Where packets are forwarded to, by the index of the backend.
    pub destinations: BTreeMap<BackendIndex, Destination>,
    /// By service: cookies of the namespaces to steer in.
    pub namespaces: BTreeMap<String, BTreeSet<NetnsCookie>>,
    /// The state of each backend, by index.
    pub states: BTreeMap<BackendIndex, State>,
    /// The conditions of each backend, by index.
    pub conditions: BTreeMap<BackendIndex, Vec<Condition>>,
    /// The conditions of each service.
    pub service_conditions: BTreeMap<String, Vec<Condition>>,
    /// The ports that clients use, by service, and the versions that serve each.
    pub coverage: BTreeMap<String, Vec<Coverage>>,
    /// By service: when its part of the plan next changes with time alone, in milliseconds since the machine booted.
    pub next_ms: BTreeMap<String, i64>,
    /// What the kernel has refused of it.
    pub(super) unmet: Unmet,
}

impl Plan {
    /// Cookies of the namespaces to steer in.
    pub fn namespaces(&self) -> BTreeSet<NetnsCookie> {
        self.namespaces.values().flatten().copied().collect()
    }

    /// Cookies of the namespaces from which packets are forwarded.
    pub fn forwarding(&self) -> BTreeSet<NetnsCookie> {
        self.destinations.values().map(|destination| destination.ingress).collect()
    }

    /// The devices of the ingress namespaces to whose other ends packets are handed over.
    pub fn peers(&self) -> BTreeSet<u32> {
        self.destinations.values().filter_map(|destination| destination.peer).collect()
    }

    /// Whether a service is steered in this namespace.
    pub fn steers_in(&self, netns_cookie: NetnsCookie) -> bool {
        self.namespaces.values().any(|cookies| cookies.contains(&netns_cookie))
    }

    /// Steers a service in this namespace.
    pub(super) fn steer_in(&mut self, service: &str, netns_cookie: NetnsCookie) {
        match self.namespaces.get_mut(service) {
            Some(cookies) => drop(cookies.insert(netns_cookie)),
            None => drop(self.namespaces.insert(service.to_owned(), BTreeSet::from([netns_cookie]))),
        }
    }

    /// When the plan next changes with time alone, in milliseconds since the machine booted.
    pub fn next_ms(&self) -> Option<i64> {
        self.next_ms.values().min().copied()
    }

    /// Services whose part of the plan has changed with time.
    pub fn due(&self, now_ms: i64) -> impl Iterator<Item = &str> {
        self.next_ms.iter().filter(move |(_, at_ms)| **at_ms <= now_ms).map(|(service, _)| service.as_str())
    }

    /// Schedules a change of a service's part for this time at the latest.
    pub(super) fn changes_at(&mut self, service: &str, at_ms: Option<i64>) {
        let Some(at_ms) = at_ms else { return };
        let next_ms = self.next_ms.get(service).map_or(at_ms, |next_ms| at_ms.min(*next_ms));
        self.next_ms.insert(service.to_owned(), next_ms);
    }

    /// Replaces the part of the plan for a scope.
    pub(super) fn replace(&mut self, scope: &Scope, part: Self) {
        fn put<K: Ord, V>(all: &mut BTreeMap<K, V>, mut part: BTreeMap<K, V>, is_in: impl Fn(&K) -> bool) {
            all.retain(|key, _| !is_in(key));
            if all.is_empty() {
                all.append(&mut part);
            } else {
                all.extend(part);
            }
        }
        let of_service = |service: &String| scope.has_service(service);
        let of_index = |index: &BackendIndex| scope.has_index(*index);
        put(&mut self.rules, part.rules, |key| scope.has_rule(key));
        put(&mut self.managed_ports, part.managed_ports, |block| scope.has_index(BackendIndex(block.backend)));
        put(&mut self.own_ports, part.own_ports, |block| scope.has_index(BackendIndex(block.backend)));
        put(&mut self.decisions, part.decisions, of_service);
        put(&mut self.destinations, part.destinations, of_index);
        put(&mut self.namespaces, part.namespaces, of_service);
        put(&mut self.states, part.states, of_index);
        put(&mut self.conditions, part.conditions, of_index);
        put(&mut self.service_conditions, part.service_conditions, of_service);
        put(&mut self.coverage, part.coverage, of_service);
        put(&mut self.next_ms, part.next_ms, of_service);
    }

    /// Adds a condition of a backend, once.
    pub fn add_condition(&mut self, backend: BackendIndex, condition: Condition) {
        let conditions = self.conditions.entry(backend).or_default();
        if !conditions.contains(&condition) {
            conditions.push(condition);
        }
    }

    /// Adds conditions of services.
    pub fn add_service_conditions(&mut self, conditions: impl IntoIterator<Item = (String, Condition)>) {
        for (service, condition) in conditions {
            self.service_conditions.entry(service).or_default().push(condition);
        }
    }
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlannedRule {
    /// The service whose counters it uses; `None` if it only marks that rules with addresses exist.
    pub service: Option<String>,
    /// `FALLBACK_REFUSE` or `FALLBACK_PASS`.
    pub fallback: u16,
    /// What selects a slot of its table.
    pub affinity: Affinity,
    /// Some of the `RULE_` flags.
    pub flags: u16,
    /// Its slot table; without one, clients are left to the kernel's own lookup. Rules with equal tables share one, also from one
    /// plan to the next.
    pub table: Option<Arc<PlannedTable>>,
    /// The index of the only backend that may serve its clients, and the port that it listens on; `None` if there are
    /// several or none. The kernel program finds its newest listener if that is in no table yet.
    pub only: Option<(BackendIndex, Port)>,
    /// Tables for clients of some networks, by version.
    pub networks: BTreeMap<String, PlannedNetworks>,
}

impl PlannedRule {
    /// The part of a rule that the options of its service determine.
    pub(super) fn of_options(options: &ServiceOptions) -> Self {
        let fallback = match options.fallback {
            Fallback::Refuse => FALLBACK_REFUSE,
            Fallback::Pass => FALLBACK_PASS,
        };
        Self { fallback, affinity: options.affinity, ..Self::default() }
    }
}

/// The decision of a service, as far as the kernel needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlannedDecision {
    /// [`crate::rollout::Decision::revision`].
    pub revision: u32,
    /// Whether clients of some networks have tables of their own.
    pub has_networks: bool,
}

/// A table for clients of some networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlannedNetworks {
    /// The networks; of the rule's family.
    pub networks: BTreeSet<IpNet>,
    /// The table.
    pub table: Arc<PlannedTable>,
}

/// The contents of a slot table: sockets in the order of their cookies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PlannedTable {
    /// Its members with their weights.
    pub members: Vec<Member>,
    /// Sockets without a share. They serve from the moment when every member is gone until the daemon publishes another
    /// table.
    pub reserve: Vec<Member>,
    /// Sockets that never serve here, and that clients must not reach by the kernel's own lookup either.
    pub withheld: Vec<Member>,
}

impl PlannedTable {
    /// Those of its members and of its reserve that packets are forwarded to.
    pub fn forwarded(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().chain(&self.reserve).filter(|member| member.is_forwarded)
    }

    /// Cookies of its members and of its reserve.
    pub fn cookies(&self) -> BTreeSet<SocketCookie> {
        self.members.iter().chain(&self.reserve).map(|member| member.cookie).collect()
    }
}
