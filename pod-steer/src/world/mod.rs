//! What is known of backends and their sockets, as plain values, and what follows from it. Nothing here does I/O: the
//! daemon brings facts in, asks for a [`Plan`], and gives that to the kernel.

mod allowed;
mod backend;
mod blocks;
mod claims;
mod counting;
mod destinations;
mod foreign;
mod hidden;
mod holders;
mod on_demand;
mod options;
mod others;
mod plan;
mod planned;
mod port_history;
mod refused;
pub mod score;
mod serving;
mod shares;
mod silent;
mod sockets;
mod stopping;
mod tables;
#[cfg(test)]
mod tests;
mod withheld;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
};

use plan::Planned;
use pod_steer_ebpf::RuleKey;
use serde::{Deserialize, Serialize};

use crate::{
    clock::Timed,
    labels::Spec,
    listening::Listener,
    netns::Netns,
    rollout::{Decision, Part},
    settings::{Image, PortPolicy, ServiceOptions, ServiceTables},
};

pub use claims::Claimed;
pub use foreign::{Left, without_clients};
pub use holders::Followed;
pub use others::addresses_of_others;
pub use planned::{Coverage, Plan, PlannedDecision, PlannedNetworks, PlannedRule, PlannedTable, State};
pub use port_history::PortHistory;
pub use refused::{Refused, RefusedRule};
pub use silent::{Listening, listed, missing_ports};
pub use sockets::Sockets;

/// A backend's name for ever: a container's full id, or what `exec` and `register` were given.
pub type BackendId = String;

/// What a backend is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Kind {
    /// A container of the engine with this address.
    Container {
        /// Address of the engine's API.
        engine: String,
    },
    /// A command started by `pod-steer exec`, in a cgroup of its own.
    Exec,
    /// A process adopted by `pod-steer register`.
    Registered {
        /// Its pid when it was adopted.
        pid: i32,
    },
}

/// Where a backend is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It exists and has not started.
    Created,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// It was told to stop.
    Stopping,
    /// It has ended.
    Exited,
}

/// What the engine's health check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// There is no health check.
    Unchecked,
    /// The first result is awaited.
    Starting,
    /// It passes.
    Healthy,
    /// It fails.
    Unhealthy,
}

impl Health {
    fn unchecked() -> Self {
        Self::Unchecked
    }

    /// Whether it hinders nothing.
    pub fn passes(self) -> bool {
        matches!(self, Self::Unchecked | Self::Healthy)
    }
}

/// Whose network namespace a backend lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Not known yet.
    Unknown,
    /// The host's, or that of the process that started it.
    Host,
    /// Another container's: a pod.
    Joined,
    /// One of its own, behind a bridge: its sockets cannot be reached by steering.
    Own,
}

/// A container or process that serves, or should.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// Its id.
    pub id: BackendId,
    /// Its name for people.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub kind: Kind,
    /// Its index in the kernel's counters.
    pub index: u32,
    /// When it was made, in milliseconds since 1970; for people, and for backends that were first seen together.
    pub created_ms: i64,
    /// Its place in the order in which backends were first seen: of two claims on a port the earlier one holds it. The wall
    /// clock, which may be set back, has no say in that.
    #[serde(default)]
    pub seen: u64,
    /// Number of the last operation before it was first seen; nothing if it may have been there before.
    #[serde(default)]
    pub seen_after: Option<u64>,
    /// What it serves.
    pub spec: Spec,
    /// Its image, if it is a container; nothing if an earlier version has stored it.
    #[serde(default)]
    pub image: Option<Image>,
    /// Where it is in its life.
    pub phase: Phase,
    /// What the engine's health check says.
    pub health: Health,
    /// What our own checks say.
    #[serde(default = "Health::unchecked")]
    pub probed: Health,
    /// When it last became ready, in milliseconds since the machine booted; nothing while it is not.
    #[serde(default)]
    pub ready_since_ms: Option<i64>,
    /// Whose namespace it lives in.
    pub network: Network,
    /// That namespace, once it is known.
    pub netns: Option<Netns>,
    /// The signal that asks it to stop, besides the usual ones.
    #[serde(default)]
    pub stop_signal: Option<i32>,
    /// Seconds that its engine gives it to stop, if it has a time-out of its own; negative for no limit.
    #[serde(default)]
    pub stop_timeout_s: Option<i64>,
    /// It was told to stop: when its time for that is over, in milliseconds since the machine booted.
    #[serde(default)]
    pub stop_by_ms: Option<i64>,
    /// The process that it is, of one without an engine.
    #[serde(default)]
    pub process: Option<Followed>,
    /// The cgroup of an `exec` below that of the process which started it, as a path below the mount; nothing if it is in pod-steer's
    /// own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_cgroup: Option<PathBuf>,
    /// Cookies of its listeners that were made outside of its cgroup: no kernel program counts their connections.
    #[serde(default)]
    pub inherited: BTreeSet<u64>,
    /// It listened before its kernel programs were attached, or they were detached for a while: they have not counted all of its
    /// connections.
    #[serde(default)]
    pub counts_incomplete: bool,
    /// How long it has listened on its ports.
    #[serde(skip)]
    pub port_history: PortHistory,
    /// What went wrong with it, by topic; each a sentence with the remedy.
    #[serde(skip)]
    pub troubles: BTreeMap<&'static str, String>,
}

impl Timed for Backend {
    fn times(&mut self) -> impl Iterator<Item = &mut i64> {
        self.ready_since_ms.iter_mut().chain(&mut self.stop_by_ms)
    }
}

/// A listening socket of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Index of its backend.
    pub backend: u32,
    /// Cookie of the namespace that it lives in.
    pub netns_cookie: u64,
    /// Address that it is bound to.
    pub ip: IpAddr,
    /// Port that it asked to be bound to.
    pub port: u16,
    /// Port that it is really bound to, if that is another: clients that come to it are refused.
    pub hidden_port: Option<u16>,
    /// It takes IPv6 clients only; not known before it has been looked at.
    pub v6only: Option<bool>,
    /// Index of the device that it is bound to, or zero.
    pub ifindex: u32,
    /// The user that it belongs to, as the host numbers users; not known before it has been looked at.
    pub uid: Option<u32>,
}

/// All that is known.
#[derive(Debug, Default)]
pub struct World {
    /// By id.
    pub backends: BTreeMap<BackendId, Backend>,
    /// By cookie.
    pub sockets: BTreeMap<u64, Socket>,
    /// By cookie: when a socket began to listen, in milliseconds since the machine booted, if we were told of it then.
    pub opened_ms: BTreeMap<u64, i64>,
    /// Things that carry our labels and cannot be backends, by id: what is wrong with each.
    pub misfits: BTreeMap<BackendId, Misfit>,
    /// By index: ports of backends that are gone while connections that moved away from them are counted there still.
    pub lingering: BTreeMap<u32, BTreeSet<u16>>,
    /// Ports that may be claimed.
    pub policy: PortPolicy,
    /// What is configured for services.
    pub configured: ServiceTables,
    /// Rules that have had a socket, and the service of each. A service takes a port over when its first backend
    /// listens, not before: one that never does takes nothing from anybody. It keeps it as long as it has a backend.
    pub claimed: BTreeMap<RuleKey, Claimed>,
    /// Cookies of the namespaces in which the lookup program is attached.
    pub steered: BTreeSet<u64>,
    /// Cookies of the namespaces whose link was lost and is being attached again. Their backends keep their states meanwhile.
    pub repairing: BTreeSet<u64>,
    /// The options in effect, by service; resolved again with every plan.
    pub options: BTreeMap<String, ServiceOptions>,
    /// What operators have decided, by service.
    pub decisions: BTreeMap<String, Decision>,
    /// Cookie of the socket that makes SYNs vanish, while there is one.
    pub pause_cookie: Option<u64>,
    /// Now, in milliseconds since the machine booted: weights grow with it.
    pub now_ms: i64,
    /// By service: ids of the backends that served when their checks were last trusted.
    pub last_serving: BTreeMap<String, BTreeSet<BackendId>>,
    /// By the cookie of a namespace: the listeners there, when it was last looked at, but for those that were managed.
    pub foreign: BTreeMap<u64, Vec<Listener>>,
    /// The rules that leave clients to listeners that are not managed.
    pub left: Left,
    /// By index: what is known of the listening of backends without a socket that serves.
    pub listening: BTreeMap<u32, Listening>,
    /// By index: where a backend was found last, which may be out of date.
    found: RefCell<HashMap<u32, BackendId>>,
    /// The tables of the last plan.
    tables: tables::Tables,
    /// Backends whose network namespace has lost its sandbox, so that no client arrives there: why, and the remedy.
    pub abandoned: BTreeMap<BackendId, String>,
}

/// A container whose labels do not make a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Its name for people.
    pub name: String,
    /// Address of its engine's API.
    pub engine: String,
    /// What is wrong, a line each.
    pub errors: Vec<String>,
}

impl World {
    /// Nothing yet, with these settings.
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
    pub fn by_index(&self, index: u32) -> Option<&Backend> {
        let found = self.found.borrow().get(&index).and_then(|id| self.backends.get(id));
        if let Some(backend) = found.filter(|backend| backend.index == index) {
            return Some(backend);
        }
        let backend = self.backends.values().find(|backend| backend.index == index)?;
        self.found.borrow_mut().insert(index, backend.id.clone());
        Some(backend)
    }

    /// The same, to be changed.
    pub fn by_index_mut(&mut self, index: u32) -> Option<&mut Backend> {
        let id = self.by_index(index)?.id.clone();
        self.backends.get_mut(&id)
    }

    /// The smallest index that no backend has and that is not among `taken`.
    pub fn free_index(&self, limit: u32, taken: &BTreeSet<u32>) -> Option<u32> {
        let used: BTreeSet<u32> = self.backends.values().map(|backend| backend.index).collect();
        (0..limit).find(|index| !used.contains(index) && !taken.contains(index))
    }

    /// The place of a backend that is seen for the first time.
    pub fn next_seen(&self) -> u64 {
        self.backends.values().map(|backend| backend.seen).max().unwrap_or(0) + 1
    }

    /// What follows from all this.
    pub fn plan(&mut self) -> Plan {
        self.end_stopping();
        self.note_listening();
        self.note_ports();
        self.abandoned.retain(|id, _| self.backends.contains_key(id));
        let disagreements = self.resolve_options();
        let mut tables = std::mem::take(&mut self.tables).next();
        let Planned { mut plan, serving, claimed, left } = plan::plan(self, &mut tables);
        for backend in self.backends.values_mut() {
            let could = plan.states.get(&backend.index).is_some_and(|state| state.could_serve());
            backend.ready_since_ms = could.then_some(backend.ready_since_ms.unwrap_or(self.now_ms));
        }
        let named: BTreeSet<&String> = self.backends.values().map(|backend| &backend.spec.service).collect();
        self.last_serving.retain(|service, _| named.contains(service));
        self.last_serving.extend(serving);
        (self.claimed, self.left) = (claimed, left);
        // It depends on when each became ready.
        plan.next_ms = plan.next_ms.into_iter().chain(port_history::next_ms(self)).min();
        hidden::hide(self, &mut plan);
        withheld::withhold(self, &mut plan, &mut tables);
        plan.alarm(disagreements);
        self.tables = tables;
        plan::announce(&mut plan);
        plan
    }

    /// Whether it matters who listens in a namespace: a backend has a port that nobody has claimed yet.
    pub fn asks_who_listens(&self, netns_cookie: u64, spec: &Spec) -> bool {
        claims::some_are_free(self, netns_cookie, &spec.ports)
    }

    /// Notes which listeners of a namespace are not managed. True if that has changed.
    pub fn note_foreign(&mut self, netns_cookie: u64, listeners: Vec<Listener>) -> bool {
        // How many wait to be accepted is no change.
        let steady = |listener: &Listener| Listener { waiting: 0, backlog: 0, ..*listener };
        let listeners: Vec<Listener> = listeners.iter().map(steady).collect();
        let before = self.foreign.insert(netns_cookie, listeners);
        before.as_ref() != self.foreign.get(&netns_cookie)
    }
}
