//! The answer for a packet. Its JSON has these fields.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::Serialize;
use serde_json::Value;

use super::names::Backend;
use crate::explain::{Declined, Role, Standing};

/// Why a packet gets the socket that it gets.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// Address of the client, and its port if one was given.
    pub source: String,
    /// Where it connects to.
    pub destination: SocketAddr,
    /// The device by which it comes.
    pub device: String,
    /// Whether a program forwards packets that come by it.
    pub device_forwards: bool,
    /// How many lookup programs of others run before ours, and may choose a socket first.
    pub programs_before: usize,
    /// The programs' choice. Without a port of the client, for the first of those that were tried.
    pub choice: Chosen,
    /// How many of the client's ports lead to each choice, if no port was given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Ports>,
    /// The service that has claimed the destination.
    pub service: Option<String>,
    /// What its rule is for.
    pub rule: Option<RuleText>,
    /// The tables that were walked, in order.
    pub tables: Vec<Table>,
    /// The backends of the service that were not chosen.
    pub others: Vec<Other>,
    /// What the programs would have counted for the service.
    pub counters: BTreeMap<String, Value>,
    /// What the tables say, if they lead to another choice than the programs'.
    pub difference: Option<String>,
}

/// A choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Chosen {
    /// The socket of a backend.
    Socket {
        /// Its backend.
        backend: Backend,
        /// Its cookie.
        socket: u64,
    },
    /// The packet is rewritten, and forwarded to the container of a backend.
    Forwarded {
        /// The backend.
        backend: Backend,
        /// The cookie of its listener.
        socket: u64,
        /// Where its packets go.
        to: SocketAddr,
    },
    /// The service is paused: a listener of pod-steer's holds the client until a server gets it.
    Held {
        /// It sleeps: the client has its containers started.
        asleep: bool,
    },
    /// The service is paused: the packet is discarded, and the client repeats it.
    Paused,
    /// The client is refused.
    Refused,
    /// The packet is dropped, and the client repeats it.
    Dropped,
    /// The kernel's own lookup decides.
    Passed {
        /// Why.
        reason: &'static str,
    },
}

/// Ports of the client that lead to one choice.
#[derive(Clone, Debug, Serialize)]
pub struct Ports {
    /// The choice.
    pub choice: Chosen,
    /// Their number.
    pub count: u32,
}

/// What a rule is for.
#[derive(Clone, Debug, Serialize)]
pub struct RuleText {
    /// The destination port.
    pub port: u16,
    /// The destination address, if the rule is for a single one.
    pub address: Option<String>,
    /// Index of the device, if the rule is for a single one.
    pub device: Option<u32>,
    /// Number of leading bits of the client's address that alone select its slot; 0 if both addresses and ports do.
    pub client_bits: u8,
    /// Revision of the decision that the tables follow.
    pub revision: u32,
}

/// A table that was walked.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Its index.
    pub table: u32,
    /// Its side.
    pub side: u32,
    /// The network of the client that it is for.
    pub network: Option<String>,
    /// Number of its slots.
    pub slots: u32,
    /// Numbers of the sockets that serve, that serve while none of those does, and that never do.
    pub members: u32,
    /// The same.
    pub reserve: u32,
    /// The same.
    pub withheld: u32,
    /// The entries that were tried, in order.
    pub tries: Vec<Tried>,
}

/// An entry that was tried.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// Its number in the table.
    pub entry: u32,
    /// Its part of the table.
    pub role: Role,
    /// The backend; `None` for a listener of a pause.
    pub backend: Option<Backend>,
    /// The socket's cookie.
    pub socket: u64,
    /// Why it was declined.
    pub declined: Option<Declined>,
}

/// A backend that was not chosen.
#[derive(Clone, Debug, Serialize)]
pub struct Other {
    /// The backend.
    #[serde(flatten)]
    pub backend: Backend,
    /// Why.
    #[serde(flatten)]
    pub standing: Standing,
}
