//! The state of a backend, and the ports that clients of a service use. Pure.
#![forbid(unsafe_code)]

use std::{collections::BTreeSet, sync::Arc};

use pod_steer_ebpf::FAMILY_V4;
use serde::{Deserialize, Serialize};

use crate::{
    address::{ANY_ADDRESS, address_from_bytes},
    rule::RuleKey,
};

/// The state of a backend, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its sockets get new connections.
    Ready,
    /// They could, but its version has no share of them, or the service is paused.
    Standby,
    /// They could, but the operator has drained it.
    Drained,
    /// It runs, but does not listen yet, or its health is not known yet.
    Starting,
    /// It runs, but listens on other ports than its own, or no longer listens; its conditions tell where.
    NotListening,
    /// Its health check fails.
    Unhealthy,
    /// It is frozen.
    Paused,
    /// It was told to stop.
    Stopping,
    /// It has ended.
    Exited,
    /// It exists and has not been started.
    Created,
    /// It listens, or would, but cannot be steered to; its conditions tell why.
    NotSteered,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Ready,
        Self::Standby,
        Self::Drained,
        Self::Starting,
        Self::NotListening,
        Self::Unhealthy,
        Self::Paused,
        Self::Stopping,
        Self::Exited,
        Self::Created,
        Self::NotSteered,
    ];

    /// Its written form.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Standby => "standby",
            Self::Drained => "drained",
            Self::Starting => "starting",
            Self::NotListening => "not-listening",
            Self::Unhealthy => "unhealthy",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Exited => "exited",
            Self::Created => "created",
            Self::NotSteered => "not-steered",
        }
    }

    /// Whether it could get new connections.
    pub fn could_serve(self) -> bool {
        matches!(self, Self::Ready | Self::Standby | Self::Drained)
    }

    /// Whether the backend is there: it runs, or is to.
    pub fn is_present(self) -> bool {
        !matches!(self, Self::Exited | Self::Stopping)
    }

    /// Whether new connections could go there and no operator has drained it.
    pub fn is_ready(self) -> bool {
        self.could_serve() && self != Self::Drained
    }
}

/// A port, an address and a family that clients of a service are served on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The rule.
    pub key: RuleKey,
    /// Versions with a backend that listens for it.
    pub versions: Arc<BTreeSet<String>>,
}

impl Coverage {
    /// The port and address that clients connect to, for messages.
    pub fn title(&self) -> String {
        let key = &self.key;
        let mut title = format!("port {}", key.port);
        match (key.addr, key.family) {
            (ANY_ADDRESS, FAMILY_V4) => title.push_str(" by IPv4"),
            (ANY_ADDRESS, _) => title.push_str(" by IPv6"),
            (addr, family) => title.push_str(&format!(" at {}", address_from_bytes(family, addr))),
        }
        if key.ifindex != 0 {
            title.push_str(&format!(" on interface {}", key.ifindex));
        }
        title
    }
}
