//! What goes over the API, as JSON.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    rollout::{Decision, Operation},
    settings::{GivenOptions, ServiceOptions},
    world::State,
};

/// What a backend made by hand serves: the same words as the labels of a container.
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
    /// Name for people; made up if not given.
    #[serde(default)]
    pub name: Option<String>,
}

/// `POST /v1/exec`: make the process at the other end of this connection a backend.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ExecRequest {
    /// What it will serve.
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
    /// Sockets that were found.
    pub sockets: usize,
}

/// An error: one line for people.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What was wrong, and what to do.
    pub error: String,
}

/// Answer to `POST /v1/unload`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct UnloadedBody {
    /// Ingress namespaces that were left.
    pub namespaces: usize,
    /// Cgroups that were left.
    pub cgroups: usize,
    /// Maps that were unpinned.
    pub maps: usize,
}

/// `GET /v1/events`: one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventRecord {
    /// RFC 3339, UTC.
    pub time: String,
    /// The service, or nothing.
    pub service: String,
    /// Name of the backend, or nothing.
    pub backend: String,
    /// A state that it has now, `gone`, `problem`, `check-failed`, `mptcp-refused`.
    pub event: String,
    /// More about it, or nothing.
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
    /// What needs somebody's attention.
    pub problems: Vec<Problem>,
}

/// Something that needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What it is about.
    pub subject: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its ports with the container ports behind them.
    pub ports: Vec<String>,
    /// Where it is steered.
    pub namespaces: Vec<NamespaceStatus>,
    /// The options that are in effect.
    #[serde(flatten)]
    pub options: ServiceOptions,
    /// What the operator has decided.
    #[serde(default)]
    pub decision: Decision,
    /// What is going on.
    #[serde(default)]
    pub operation: Option<OperationStatus>,
    /// What somebody should look at now, one line each.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// Why lookups did not end, or not at once, at a socket.
    pub counters: ServiceCountersStatus,
    /// Oldest first.
    pub backends: Vec<BackendStatus>,
}

/// `GET /v1/operations/ID`, and part of the status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationStatus {
    /// The operation.
    #[serde(flatten)]
    pub operation: Operation,
    /// Backends of its version that are ready.
    pub ready: u32,
    /// How many are wanted.
    pub wanted: u32,
    /// Connections that the left backends have still.
    pub left: u64,
    /// What it is waiting for, for people.
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
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackendStatus {
    /// A container's full id, or what `exec` or `register` gave.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// `container`, `exec` or `registered`.
    pub kind: String,
    /// Address of its engine.
    pub engine: Option<String>,
    /// Its version.
    pub version: String,
    /// Its weight.
    pub weight: u32,
    /// What it does.
    pub state: State,
    /// Listening sockets that are known.
    pub sockets: usize,
    /// Lookups that chose one of its sockets.
    pub steered: u64,
    /// Connections that its listeners completed.
    pub opened: u64,
    /// Those of them that are gone.
    pub closed: u64,
    /// Connections that it holds now.
    pub live: u64,
    /// Connections that came from a closing listener.
    pub moved_in: u64,
    /// Connections that went to another backend when a listener closed.
    pub moved_out: u64,
    /// Half-open connections that did.
    pub moved_half_open: u64,
    /// Waiting connections for which there was nobody to go to.
    pub not_moved: u64,
    /// Its part of the service's new connections now, 0 to 1: the mean over the service's ports, without the clients of
    /// networks that have a version of their own.
    pub share: f64,
    /// Its part of the connections that the service's backends have opened so far, 0 to 1.
    #[serde(default)]
    pub served: f64,
    /// What hinders it, with the remedy.
    pub problems: Vec<String>,
    /// What it does without, one line each.
    #[serde(default)]
    pub notes: Vec<String>,
}
