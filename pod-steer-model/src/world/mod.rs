//! Backends and their sockets as plain values, and the plan that follows from them. Nothing here does I/O: the daemon
//! supplies facts, asks for a [`Plan`], and applies it to the kernel.

mod allowed;
mod backend;
mod blocks;
mod bridge;
mod claims;
mod counting;
mod destinations;
mod foreign;
mod forwarded;
mod hidden;
mod hold;
mod holders;
mod on_demand;
mod options;
mod others;
mod plan;
mod planned;
mod pods;
mod port_history;
mod refused;
mod scope;
pub mod score;
mod serving;
mod shares;
mod silent;
mod sleep;
mod sockets;
mod stopping;
mod tables;
#[cfg(test)]
mod tests;
mod withheld;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use crate::{
    condition::Condition,
    ids::{BackendId, BackendIndex, NetnsCookie, SocketCookie},
    labels::Spec,
    listener::Listener,
    ports::Port,
    rollout::{Decision, Part},
    rule::RuleKey,
    settings::{PortPolicy, ServiceOptions, ServiceTables},
};
use plan::Planned;
use scope::{Facts, Footprint, Scope};

pub use crate::state::{Coverage, State};
pub use backend::{Backend, Health, Kind, Network, Phase, Socket};
pub use bridge::{Bridge, Unreached, via_ignored};
pub use claims::Claimed;
pub use foreign::{Left, without_clients};
pub use forwarded::{Destination, handed_over};
pub use hold::{Form, Group, Hold};
pub use holders::Followed;
pub use others::addresses_of_others;
pub use planned::{Plan, PlannedDecision, PlannedNetworks, PlannedRule, PlannedTable};
pub use pods::Pods;
pub use port_history::PortHistory;
pub use refused::{Refused, RefusedRule};
pub use scope::Changed;
pub use silent::{Listening, listed, missing_ports};
pub use sockets::Sockets;

/// Maximum number of times that a part of the plan is made. It is made again if it changes what is claimed.
const PASSES_MAX: usize = 3;

/// All known facts.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug, Default)]
pub struct World {
    /// By id.
    pub backends: BTreeMap<BackendId, Backend>,
    /// By cookie.
    pub sockets: BTreeMap<SocketCookie, Socket>,
    /// By cookie: when a socket began to listen, in milliseconds since the machine booted, if an event reported it.
    pub opened_ms: BTreeMap<SocketCookie, i64>,
    /// Containers with our labels that cannot be backends, by id: what is wrong with each.
    pub misfits: BTreeMap<BackendId, Misfit>,
    /// By index: ports of backends that have ended. Connections that moved away from them are still counted there.
    pub lingering: BTreeMap<BackendIndex, Lingering>,
    /// Ports that may be claimed.
    pub policy: PortPolicy,
    /// The configuration of services.
    pub configured: ServiceTables,
    /// Rules that have had a socket, and the service of each. A service takes a port over when its first backend
    /// listens, not before: a backend that never listens takes nothing from other services. The service keeps the port
    /// as long as it has a backend.
    pub claimed: BTreeMap<RuleKey, Claimed>,
    /// Cookies of the namespaces in which the lookup program is attached.
    pub steered: BTreeSet<NetnsCookie>,
    /// Cookies of the namespaces from which packets are forwarded.
    pub forwarding: BTreeSet<NetnsCookie>,
    /// Why no packet is handed over to the other end of a pair, if the kernel is not fit for it.
    pub peer_refused: Option<String>,
    /// Cookies of the namespaces whose link was lost and is being attached again. Until then their backends keep their
    /// states.
    pub repairing: BTreeSet<NetnsCookie>,
    /// The options in effect, by service. They are resolved again whenever the service is planned.
    pub options: BTreeMap<String, ServiceOptions>,
    /// The operators' decisions, by service.
    pub decisions: BTreeMap<String, Decision>,
    /// Cookie of the socket that discards SYNs, while there is one.
    pub pause_cookie: Option<SocketCookie>,
    /// The listeners that hold the clients of paused services, by the index of their process in the kernel.
    pub holds: BTreeMap<BackendIndex, Hold>,
    /// The current time, in milliseconds since the machine booted: weights grow with it.
    pub now_ms: i64,
    /// By service: ids of the backends that served when the service's checks were last trusted.
    pub last_serving: BTreeMap<String, BTreeSet<BackendId>>,
    /// By the cookie of a namespace: its unmanaged listeners when it was last enumerated.
    pub foreign: BTreeMap<NetnsCookie, Vec<Listener>>,
    /// The rules that leave clients to unmanaged listeners.
    pub left: Left,
    /// By index: what is known of where a backend listens that has no serving socket.
    pub listening: BTreeMap<BackendIndex, Listening>,
    /// A cache by index: the id of the backend that was last found there. It may be out of date.
    found: RefCell<HashMap<BackendIndex, BackendId>>,
    /// The tables of the last plan.
    tables: tables::Tables,
    /// By service: the footprint of its last plan.
    footprints: BTreeMap<String, Footprint>,
    /// The conditions of backends whose network namespace has lost its sandbox, so that no client arrives there.
    pub abandoned: BTreeMap<BackendId, Condition>,
}

/// What remains of a backend that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lingering {
    /// Its service.
    pub service: String,
    /// Its ports.
    pub ports: BTreeSet<Port>,
}

/// A container whose labels do not make a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Its display name.
    pub name: String,
    /// Address of its engine's API.
    pub engine: String,
    /// What is wrong.
    pub conditions: Vec<Condition>,
}

impl World {
    /// An empty world with these settings.
    pub fn new(policy: PortPolicy, configured: ServiceTables) -> Self {
        Self { policy, configured, ..Self::default() }
    }

    /// The options of a service that are in effect.
    pub fn options(&self, service: &str) -> ServiceOptions {
        self.options.get(service).copied().unwrap_or_default()
    }

    /// Whether the operator has drained a backend, its version, or all of its service.
    pub fn is_drained(&self, backend: &Backend) -> bool {
        self.decisions.get(&backend.spec.service).is_some_and(|decision| {
            decision.drained.iter().any(|part| match part {
                Part::Service => true,
                Part::Version(version) => *version == backend.spec.version,
                Part::Backend(id) => *id == backend.id,
            })
        })
    }

    /// The backend with this index in the kernel.
    pub fn by_index(&self, index: BackendIndex) -> Option<&Backend> {
        let found = self.found.borrow().get(&index).and_then(|id| self.backends.get(id));
        if let Some(backend) = found.filter(|backend| backend.index == index) {
            return Some(backend);
        }
        let backend = self.backends.values().find(|backend| backend.index == index)?;
        self.found.borrow_mut().insert(index, backend.id.clone());
        Some(backend)
    }

    /// The same, mutable.
    pub fn by_index_mut(&mut self, index: BackendIndex) -> Option<&mut Backend> {
        let id = self.by_index(index)?.id.clone();
        self.backends.get_mut(&id)
    }

    /// The smallest index that no backend has and that is not among `taken`.
    pub fn free_index(&self, limit: u32, taken: &BTreeSet<BackendIndex>) -> Option<BackendIndex> {
        let used: BTreeSet<BackendIndex> = self.backends.values().map(|backend| backend.index).collect();
        (0..limit).map(BackendIndex).find(|index| !used.contains(index) && !taken.contains(index))
    }

    /// The [`Backend::seen`] of a backend that is seen for the first time.
    pub fn next_seen(&self) -> u64 {
        self.backends.values().map(|backend| backend.seen).max().unwrap_or(0) + 1
    }

    /// Plans everything.
    pub fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        self.replan(&Changed::All, &mut plan);
        plan
    }

    /// Updates the last plan after a change.
    pub fn replan(&mut self, changed: &Changed, plan: &mut Plan) {
        self.meet(plan);
        let scope = Scope::of(self, changed);
        self.end_stopping(&scope);
        self.note_listening(&scope);
        self.note_ports(&scope);
        self.abandoned.retain(|id, _| self.backends.contains_key(id));
        let disagreements = self.resolve_options(&scope);
        let mut part = self.plan_part(&scope);
        // The claims of this pass decide what others may claim.
        for _ in 1..PASSES_MAX {
            match part {
                (_, false) => break,
                (_, true) => part = self.plan_part(&scope),
            }
        }
        part.0.add_service_conditions(disagreements);
        plan.replace(&scope, part.0);
        self.tables.forget_unused();
        self.note_footprints(&scope);
    }

    /// The part of the plan for a scope, and whether it claims other rules than before.
    fn plan_part(&mut self, scope: &Scope) -> (Plan, bool) {
        let mut tables = std::mem::take(&mut self.tables);
        let facts = Facts::new(self, scope);
        let Planned { plan: mut part, serving, claimed, left } = plan::plan(&facts, &mut tables);
        let before = facts.claimed.iter().map(|(key, claimed)| (*key, &claimed.service));
        let news = !before.eq(claimed.iter().map(|(key, claimed)| (key, &claimed.service)));
        drop(facts);
        for backend in self.backends.values_mut().filter(|backend| scope.has_index(backend.index)) {
            let could = part.states.get(&backend.index).is_some_and(|state| state.could_serve());
            backend.ready_since_ms = could.then_some(backend.ready_since_ms.unwrap_or(self.now_ms));
            backend.port_history.has_served |= could;
        }
        let Self { last_serving, options, .. } = self;
        last_serving.retain(|service, _| options.contains_key(service));
        last_serving.extend(serving);
        self.claimed.retain(|key, _| !scope.has_rule(key));
        self.claimed.extend(claimed);
        self.left.retain(|key, _| !scope.has_rule(key));
        self.left.extend(left);
        let facts = Facts::new(self, scope);
        // This depends on when each backend became ready.
        port_history::note_changes(&facts, &mut part);
        hidden::hide(&facts, &mut part);
        withheld::withhold(&facts, &mut part, &mut tables);
        plan::announce(&mut part);
        drop(facts);
        self.tables = tables;
        (part, news)
    }

    /// Whether the listeners of a namespace matter: a backend has a port that no service has claimed yet.
    pub fn asks_who_listens(&self, netns_cookie: NetnsCookie, spec: &Spec) -> bool {
        claims::some_are_free(self, netns_cookie, &spec.ports)
    }

    /// Removes a listener that is managed now from the unmanaged ones. Returns whether it was among them.
    pub fn no_longer_foreign(&mut self, netns_cookie: NetnsCookie, cookie: SocketCookie) -> bool {
        let Some(listeners) = self.foreign.get_mut(&netns_cookie) else { return false };
        let before = listeners.len();
        listeners.retain(|listener| listener.cookie != Some(cookie));
        listeners.len() != before
    }

    /// Records the unmanaged listeners of a namespace. Returns whether they have changed.
    pub fn note_foreign(&mut self, netns_cookie: NetnsCookie, listeners: Vec<Listener>) -> bool {
        // The number of connections that wait to be accepted does not matter.
        let steady = |listener: &Listener| Listener { waiting: 0, backlog: 0, drops: 0, ..*listener };
        let listeners: Vec<Listener> = listeners.iter().map(steady).collect();
        let before = self.foreign.insert(netns_cookie, listeners);
        before.as_ref() != self.foreign.get(&netns_cookie)
    }
}
