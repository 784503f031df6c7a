//! Backends and their sockets, and questions about a single one that need nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{Bridge, Followed, PortHistory, Unreached};
use crate::{
    condition::{Condition, Reason},
    ids::{BackendId, BackendIndex, NetnsCookie, SocketCookie},
    labels::Spec,
    namespace::Netns,
    ports::Port,
    settings::Image,
    time::Timed,
};

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

/// The phase of a backend's life.
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

/// The result of the engine's health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// There is no health check.
    Unchecked,
    /// The first result is pending.
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

    /// Whether it lets the backend serve.
    pub fn passes(self) -> bool {
        matches!(self, Self::Unchecked | Self::Healthy)
    }
}

/// Which network namespace a backend lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Not known yet.
    Unknown,
    /// The host's, or that of the process that started it.
    Host,
    /// Another container's: a pod.
    Joined,
    /// One of its own, whose sockets take only clients that arrive there; see [`Backend::bridge`].
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
    pub index: BackendIndex,
    /// When it was made, in milliseconds since 1970; for people, and for backends that were first seen together.
    pub created_ms: i64,
    /// When its engine has started it last, in nanoseconds since 1970; zero if that is not known.
    #[serde(default)]
    pub started_ns: i64,
    /// Its place in the order in which backends were first seen: of two claims on a port, the earlier backend's holds.
    /// The order does not depend on the wall clock, which may be set back.
    #[serde(default)]
    pub seen: u64,
    /// Number of the last operation before it was first seen; `None` if it may have existed before that.
    #[serde(default)]
    pub seen_after: Option<u64>,
    /// What it serves.
    pub spec: Spec,
    /// Its image, if it is a container; `None` if an earlier version stored it.
    #[serde(default)]
    pub image: Option<Image>,
    /// The phase of its life.
    pub phase: Phase,
    /// What the engine's health check says.
    pub health: Health,
    /// The result of our own checks.
    #[serde(default = "Health::unchecked")]
    pub probed: Health,
    /// When it last became ready, in milliseconds since the machine booted; `None` while it is not.
    #[serde(default)]
    pub ready_since_ms: Option<i64>,
    /// Whose namespace it lives in.
    pub network: Network,
    /// That namespace, once it is known.
    pub netns: Option<Netns>,
    /// Its connection to an ingress namespace, if it has a namespace of its own and the connection is known.
    #[serde(default)]
    pub bridge: Option<Bridge>,
    /// Why there is no such connection; `None` while that is not known.
    #[serde(default)]
    pub unreached: Option<Unreached>,
    /// The ingress namespace of the connection that it had before, if it has none now: its service keeps the ports that it has there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_before: Option<Netns>,
    /// The signal that asks it to stop, besides the usual ones.
    #[serde(default)]
    pub stop_signal: Option<i32>,
    /// Seconds that its engine gives it to stop, if it has a time-out of its own; negative for no limit.
    #[serde(default)]
    pub stop_timeout_s: Option<i64>,
    /// Whether its engine removes it when it ends (`--rm`), so that it can never be started again.
    #[serde(default)]
    pub is_transient: bool,
    /// If it was told to stop: when its stop time-out ends, in milliseconds since the machine booted.
    #[serde(default)]
    pub stop_by_ms: Option<i64>,
    /// For a backend without an engine: its process.
    #[serde(default)]
    pub process: Option<Followed>,
    /// The cgroup of an `exec` below that of the process which started it, as a path below the mount; nothing if it is in pod-steer's
    /// own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_cgroup: Option<PathBuf>,
    /// Cookies of its listeners that were made outside of its cgroup: no kernel program counts their connections.
    #[serde(default)]
    pub inherited: BTreeSet<SocketCookie>,
    /// It listened before its kernel programs were attached, or they were detached for a while: they have not counted all of its
    /// connections.
    #[serde(default)]
    pub counts_incomplete: bool,
    /// How often it was seen to begin to run.
    #[serde(skip)]
    pub runs: u32,
    /// How long it has listened on its ports.
    #[serde(skip)]
    pub port_history: PortHistory,
    /// Its conditions, without those that the plan and its health check have; the daemon that finds a condition keeps it in memory.
    #[serde(skip)]
    pub conditions: BTreeMap<Reason, Condition>,
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
    pub backend: BackendIndex,
    /// Cookie of the namespace that it lives in.
    pub netns_cookie: NetnsCookie,
    /// Address that it is bound to.
    pub ip: IpAddr,
    /// Port that it asked to be bound to.
    pub port: Port,
    /// Port that it is really bound to, if that is another: clients that come to it are refused.
    pub hidden_port: Option<Port>,
    /// It takes IPv6 clients only; not known before it has been looked at.
    pub v6only: Option<bool>,
    /// Index of the device that it is bound to, or zero.
    pub ifindex: u32,
    /// The user that it belongs to, as the host numbers users; not known before it has been looked at.
    pub uid: Option<u32>,
}

impl Backend {
    /// A backend of which nothing else is known. Its name is its id until it gets another.
    pub fn new(id: impl Into<BackendId>, kind: Kind, index: BackendIndex, spec: Spec) -> Self {
        let id = id.into();
        Self {
            name: id.to_string(),
            id,
            kind,
            index,
            created_ms: 0,
            started_ns: 0,
            seen: 0,
            seen_after: None,
            spec,
            phase: Phase::Created,
            health: Health::Unchecked,
            probed: Health::Unchecked,
            ready_since_ms: None,
            network: Network::Unknown,
            netns: None,
            bridge: None,
            unreached: None,
            ingress_before: None,
            stop_signal: None,
            stop_timeout_s: None,
            is_transient: false,
            stop_by_ms: None,
            process: None,
            exec_cgroup: None,
            inherited: Default::default(),
            counts_incomplete: false,
            image: None,
            runs: 0,
            port_history: Default::default(),
            conditions: Default::default(),
        }
    }

    /// From now on it has this condition, instead of another one of the same reason.
    pub fn set_condition(&mut self, condition: Condition) {
        self.conditions.insert(condition.reason, condition);
    }

    /// It no longer has a condition of this reason. True if it had one.
    pub fn end_condition(&mut self, reason: Reason) -> bool {
        self.conditions.remove(&reason).is_some()
    }

    /// Sort key by age, the oldest first.
    pub fn age(&self) -> (u64, i64, &str) {
        (self.seen, self.created_ms, &self.id)
    }

    /// Whether this socket of the backend can serve clients of its service. One for health checks alone cannot.
    pub fn serves_by(&self, socket: &Socket) -> bool {
        self.spec.ports.iter().any(|map| map.target_port() == socket.port)
    }
}
