//! The answer of `GET /v1/sockets`, and the query.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::world::State as BackendState;

/// The listening sockets of backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sockets {
    /// By service, version, backend and address.
    pub sockets: Vec<SocketStatus>,
    /// Listeners on a port of these services that are registered as no backend's, so no client is steered to them.
    pub others: Vec<OtherSocket>,
    /// The network namespaces that were looked at.
    pub namespaces: Vec<SocketNamespace>,
    /// The connections of each backend; only if they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Vec<BackendConnections>>,
    /// Why a part of the answer is missing, a line each.
    pub unseen: Vec<String>,
}

/// Selects sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketsQuery {
    /// Only those of this service.
    #[serde(default)]
    pub service: Option<String>,
    /// Only those of this backend: its name or its id.
    #[serde(default)]
    pub backend: Option<String>,
    /// Whether to list connections too.
    #[serde(default)]
    pub live: bool,
}

/// A listening socket of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SocketStatus {
    /// Name of its service.
    pub service: String,
    /// Version of its backend.
    pub version: String,
    /// Name of its backend.
    pub backend: String,
    /// Id of its backend.
    pub backend_id: String,
    /// State of its backend; null without a daemon.
    pub state: Option<BackendState>,
    /// Its cookie (`SO_COOKIE`).
    pub cookie: u64,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Address and port that its server asked for.
    pub listens: String,
    /// The port that it is bound to, if pod-steer chose another one than its server asked for.
    pub hidden_port: Option<u16>,
    /// Whether it takes IPv6 clients only; null for an IPv4 socket, or if it is unknown.
    pub v6only: Option<bool>,
    /// Index of the network device that it is bound to, or zero.
    pub ifindex: u32,
    /// Its user, as the host numbers users; null if it is unknown, and for viewers.
    pub uid: Option<u32>,
    /// What the tables use it for.
    pub role: SocketRole,
    /// Why it gets no new connections now; null if it does, and without a daemon.
    pub why: Option<String>,
    /// The ports whose tables name it: its clients connect to them.
    pub clients: Vec<u16>,
    /// Whether its clients come to another network namespace, and their packets are forwarded.
    pub forwarded: bool,
    /// Connections that wait to be accepted; null if the socket was not seen.
    pub waiting: Option<u32>,
    /// The limit of that number; null if the socket was not seen, zero if the kernel does not tell.
    pub backlog: Option<u32>,
    /// Packets that it has dropped since it was made, mostly because a queue was full; null if it was not seen.
    pub drops: Option<u32>,
    /// The processes that hold it, at most 16.
    pub processes: Vec<SocketProcess>,
    /// The number of processes that hold it; null if the socket was not seen, and for viewers.
    pub holders: Option<u32>,
}

/// A listener on a port of a service that is registered as no backend's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OtherSocket {
    /// The services that use its port.
    pub services: Vec<String>,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Its address and port.
    pub listens: String,
    /// Index of the network device that it is bound to, or zero.
    pub ifindex: u32,
    /// Its user, as the host numbers users; null for viewers.
    pub uid: Option<u32>,
    /// Why no client is steered to it.
    pub why: String,
    /// Connections that wait to be accepted.
    pub waiting: u32,
    /// The limit of that number; zero if the kernel does not tell.
    pub backlog: u32,
    /// Packets that it has dropped since it was made, mostly because a queue was full.
    pub drops: u32,
    /// The processes that hold it, at most 16.
    pub processes: Vec<SocketProcess>,
    /// The number of processes that hold it; null for viewers.
    pub holders: Option<u32>,
}

/// How the tables use a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SocketRole {
    /// No table names it: no client is steered to it.
    #[default]
    None,
    /// Clients must not reach it.
    Withheld,
    /// It serves only while no member of its table is alive.
    Reserve,
    /// It is a member of a table.
    Table,
}

impl SocketRole {
    /// Its written form.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Withheld => "withheld",
            Self::Reserve => "reserve",
            Self::Table => "table",
        }
    }
}

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct SocketProcess {
    /// Its pid, as the daemon sees it.
    pub pid: i32,
    /// The name of its program, cut to 15 bytes by the kernel.
    pub name: String,
}

/// A network namespace, and how many clients its listeners have turned away, managed or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SocketNamespace {
    /// Device and inode of its `ns/net` file.
    pub id: String,
    /// Its cookie.
    pub cookie: u64,
    /// SYNs and completed handshakes for which an accept queue had no room (`ListenOverflows`).
    pub overflows: u64,
    /// The same, with those that were dropped for other reasons, such as lack of memory (`ListenDrops`).
    pub drops: u64,
    /// SYNs for which a queue of half-open connections had no room (`TCPReqQFullDrop`).
    pub syn_drops: u64,
}

/// The connections of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackendConnections {
    /// Its service.
    pub service: String,
    /// Its version.
    pub version: String,
    /// Its name.
    pub backend: String,
    /// Its id.
    pub backend_id: String,
    /// Connections on which data has moved within the last second, or is queued.
    pub active: u32,
    /// All other connections.
    pub idle: u32,
    /// The connections; if there are very many, only some of them, and `unseen` tells how many are missing.
    pub list: Vec<ConnectionStatus>,
}

/// An established connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectionStatus {
    /// Address and port of the client.
    pub client: String,
    /// Address and port of the server's end.
    pub local: String,
    /// `established`, or `close-wait` if the client has closed its side and the server has not.
    pub state: String,
    /// Whether data has moved within the last second, or is queued.
    pub active: bool,
    /// Milliseconds since data last moved in either direction; null if the kernel does not tell.
    pub idle_ms: Option<u64>,
    /// Whether no process has accepted it yet.
    pub waiting: bool,
}
