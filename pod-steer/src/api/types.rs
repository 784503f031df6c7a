//! The JSON types of the API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    api::metrics::totals::ColdStarts,
    condition::{Condition, Reason},
    kernel::Unloaded,
    rollout::{Decision, Operation},
    settings::{GivenOptions, ServiceOptions},
    world::State,
};

/// What a backend of `exec` or `register` serves; the fields have the names of the labels.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BackendRequest {
    /// Name of the service.
    pub service: String,
    /// Ports, as in `docker -p`.
    pub ports: String,
    /// Version; `unversioned` if not given.
    #[serde(default)]
    pub version: Option<String>,
    /// Weight; 1 if not given.
    #[serde(default)]
    pub weight: Option<u32>,
    /// Options of the service, as labels give them.
    #[serde(flatten)]
    pub options: GivenOptions,
    /// Name shown in `status`; generated if not given.
    #[serde(default)]
    pub name: Option<String>,
}

/// `POST /v1/exec`: make the process at the other end of this connection a backend.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ExecRequest {
    /// What it serves.
    #[serde(flatten)]
    pub backend: BackendRequest,
}

/// `POST /v1/register`: adopt a process that listens.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct RegisterRequest {
    /// Its pid, as the daemon sees it.
    pub pid: i32,
    /// What it serves.
    #[serde(flatten)]
    pub backend: BackendRequest,
}

/// Answer to `exec` and `register`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Registered {
    /// Id of the backend.
    pub id: String,
    /// Number of listening sockets found.
    pub sockets: usize,
}

/// An error.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// One line: what failed, why, and what to do.
    pub error: String,
}

/// Answer to `POST /v1/unload`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UnloadedBody {
    /// Number of ingress namespaces detached from.
    pub namespaces: usize,
    /// Number of cgroups detached from.
    pub cgroups: usize,
    /// Number of programs of network devices detached.
    pub devices: usize,
    /// Number of maps unpinned.
    pub maps: usize,
    /// Names of the containers of services that slept: they stay stopped.
    #[serde(default)]
    pub asleep: Vec<String>,
}

impl From<Unloaded> for UnloadedBody {
    fn from(done: Unloaded) -> Self {
        let Unloaded { namespaces, cgroups, devices, maps } = done;
        Self { namespaces, cgroups, devices, maps, asleep: Vec::new() }
    }
}

/// `GET /v1/events`: one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventRecord {
    /// RFC 3339, UTC.
    pub time: String,
    /// The service, or empty.
    pub service: String,
    /// Name of the backend, or empty.
    pub backend: String,
    /// Name of the event: the new state of a backend, `gone`, `condition`, `condition-ended`, `repaired`, `mptcp-refused` and others.
    pub event: String,
    /// The reason of the condition that has appeared, ended or been repaired; absent in other events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Details, or empty.
    pub detail: String,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Pid of the daemon.
    pub pid: u32,
    /// By name.
    pub services: Vec<ServiceStatus>,
    /// Every condition: of the daemon, the engines, the services and the backends.
    #[serde(default)]
    pub conditions: Vec<SubjectCondition>,
}

/// A condition and its subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SubjectCondition {
    /// Its subject.
    pub subject: String,
    /// The condition.
    #[serde(flatten)]
    pub condition: Condition,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its ports with the container ports behind them.
    pub ports: Vec<String>,
    /// The ingress namespaces in which it is steered.
    pub namespaces: Vec<NamespaceStatus>,
    /// The options that are in effect.
    #[serde(flatten)]
    pub options: ServiceOptions,
    /// The decisions about it.
    #[serde(default)]
    pub decision: Decision,
    /// How its clients wait, if it is paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<PauseStatus>,
    /// How often it was woken, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_starts: Option<ColdStarts>,
    /// The operation that is running, if any.
    #[serde(default)]
    pub operation: Option<OperationStatus>,
    /// Its conditions, without those of its backends.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Lookups that did not find a socket at once, counted by reason.
    pub counters: ServiceCountersStatus,
    /// Oldest first.
    pub backends: Vec<BackendStatus>,
}

/// How the clients of a paused service wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PauseStatus {
    /// Connections that a listener of pod-steer's has accepted for the service's servers, and that wait.
    pub held: u64,
    /// How many may wait at one such listener; null if an earlier daemon has opened them.
    #[serde(default)]
    pub backlog: Option<u32>,
    /// The pause has lasted as long as its order allowed: clients are refused.
    pub over: bool,
    /// Each port that clients come to.
    pub ports: Vec<PausedPort>,
}

/// A port of a paused service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PausedPort {
    /// The port.
    pub port: String,
    /// Clients are held. Otherwise their SYNs are discarded, and they repeat them.
    pub held: bool,
    /// Why not, or why not all.
    #[serde(default)]
    pub reason: Option<String>,
}

/// `GET /v1/operations/ID`, and part of the status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationStatus {
    /// The operation.
    #[serde(flatten)]
    pub operation: Operation,
    /// Backends of its version that are ready.
    pub ready: u32,
    /// Number of backends that must be ready.
    pub wanted: u32,
    /// Connections that the old backends still have.
    pub left: u64,
    /// Number of clients that it holds.
    #[serde(default)]
    pub held: u64,
    /// What it waits for, as text.
    pub waiting_for: String,
}

/// An ingress namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NamespaceStatus {
    /// Device and inode of its `ns/net` file.
    pub id: String,
    /// Its cookie.
    pub cookie: u64,
}

/// The bridge that connects a backend's own network namespace to pod-steer's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BridgeStatus {
    /// Its name; that of the device which leads to the backend if no bridge has it.
    pub name: String,
    /// The backend's addresses there: at most one of each family.
    pub addresses: Vec<String>,
}

/// See [`pod_steer_ebpf::ServiceCounters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the fields of the contract, which describes them")]
pub struct ServiceCountersStatus {
    pub stale_slots: u64,
    pub refused_no_backend: u64,
    pub passed_no_backend: u64,
    pub passed_no_daemon: u64,
    pub assign_eafnosupport: u64,
    pub assign_esocktnosupport: u64,
    pub assign_eprototype: u64,
    pub assign_eexist: u64,
    pub assign_other: u64,
    pub paused: u64,
    pub by_network: u64,
    pub network_no_backend: u64,
    pub not_forwarded: u64,
    pub no_destination: u64,
    pub flows_full: u64,
    pub not_rewritten: u64,
    pub adopted: u64,
    pub ports_exhausted: u64,
    pub adopt_limited: u64,
}

impl From<pod_steer_ebpf::ServiceCounters> for ServiceCountersStatus {
    fn from(counters: pod_steer_ebpf::ServiceCounters) -> Self {
        Self {
            stale_slots: counters.stale_slots,
            refused_no_backend: counters.refused_no_backend,
            passed_no_backend: counters.passed_no_backend,
            passed_no_daemon: counters.passed_no_daemon,
            assign_eafnosupport: counters.assign_eafnosupport,
            assign_esocktnosupport: counters.assign_esocktnosupport,
            assign_eprototype: counters.assign_eprototype,
            assign_eexist: counters.assign_eexist,
            assign_other: counters.assign_other,
            paused: counters.paused,
            by_network: counters.by_network,
            network_no_backend: counters.network_no_backend,
            not_forwarded: counters.not_forwarded,
            no_destination: counters.no_destination,
            flows_full: counters.flows_full,
            not_rewritten: counters.not_rewritten,
            adopted: counters.adopted,
            ports_exhausted: counters.ports_exhausted,
            adopt_limited: counters.adopt_limited,
        }
    }
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackendStatus {
    /// A container's full id, or the id that `exec` or `register` returned.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `container`, `exec` or `registered`.
    pub kind: String,
    /// Address of its engine.
    pub engine: Option<String>,
    /// Its version.
    pub version: String,
    /// The bridge behind which it is, if it has a network namespace of its own. Null if that is unknown, or if no bridge leads there; its
    /// conditions say why.
    #[serde(default)]
    pub bridge: Option<BridgeStatus>,
    /// Its weight.
    pub weight: u32,
    /// Its state.
    pub state: State,
    /// Number of its listening sockets.
    pub sockets: usize,
    /// Number of lookups that chose one of its sockets.
    pub steered: u64,
    /// Connections that its listeners completed.
    pub opened: u64,
    /// Number of those connections that have closed.
    pub closed: u64,
    /// Connections that it holds now.
    pub live: u64,
    /// Connections that came from a closing listener.
    pub moved_in: u64,
    /// Connections that went to another backend when a listener closed.
    pub moved_out: u64,
    /// Moves of half-open connections.
    pub moved_half_open: u64,
    /// Waiting connections that were reset because no other listener could take them.
    pub not_moved: u64,
    /// Its current share of new connections, 0 to 1: the mean over the service's ports, not counting clients of networks that are
    /// assigned to a version.
    pub share: f64,
    /// Its share of all connections that the service's backends have opened so far, 0 to 1.
    #[serde(default)]
    pub served: f64,
    /// Its conditions.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}
