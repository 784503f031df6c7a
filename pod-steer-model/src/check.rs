//! Health checks, as plain values.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ports::{Port, PortMap};

/// Time between two probes, if nothing is said.
pub const INTERVAL_MS_DEFAULT: u64 = 5_000;
/// How long a probe may take, if nothing is said.
pub const TIMEOUT_MS_DEFAULT: u64 = 2_000;
/// Successes in a row that make a backend healthy, if nothing is said.
pub const HEALTHY_DEFAULT: u32 = 1;
/// Failures in a row that make it unhealthy, if nothing is said.
pub const UNHEALTHY_DEFAULT: u32 = 3;

/// A health check of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckSpec {
    /// What is done.
    #[serde(flatten)]
    pub kind: CheckKind,
    /// Port that the probe is for, as the server calls it; the container's own first one if not given.
    #[serde(default)]
    pub port: Option<u16>,
    /// Time from one probe to the next, in milliseconds.
    pub interval_ms: u64,
    /// How long a probe may take, in milliseconds.
    pub timeout_ms: u64,
    /// Successes in a row that make the backend healthy.
    pub healthy: u32,
    /// Failures in a row that make it unhealthy.
    pub unhealthy: u32,
}

/// The kind of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum CheckKind {
    /// No check, even if one is configured for the service.
    None,
    /// Connect.
    Tcp,
    /// Send an HTTP/1.1 request.
    Http {
        /// The path to request.
        path: String,
        /// The `Host` header; the address that is connected to if not given.
        host: Option<String>,
        /// Status codes that pass.
        status: StatusRange,
    },
    /// Run a command in the container; exit code 0 passes.
    Exec {
        /// The program and its arguments.
        command: Vec<String>,
    },
}

/// A range of HTTP status codes, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl Default for StatusRange {
    fn default() -> Self {
        Self { first: 200, last: 399 }
    }
}

impl StatusRange {
    /// Whether a status code passes.
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl CheckSpec {
    /// A check of this kind with defaults.
    pub fn new(kind: CheckKind) -> Self {
        Self {
            kind,
            port: None,
            interval_ms: INTERVAL_MS_DEFAULT,
            timeout_ms: TIMEOUT_MS_DEFAULT,
            healthy: HEALTHY_DEFAULT,
            unhealthy: UNHEALTHY_DEFAULT,
        }
    }

    /// The port that probes are for, with these ports of the container; none if no connection is made.
    pub fn port(&self, ports: &[PortMap]) -> Option<Port> {
        match self.kind {
            CheckKind::None | CheckKind::Exec { .. } => None,
            CheckKind::Tcp | CheckKind::Http { .. } => {
                self.port.map(Port::tcp).or_else(|| ports.first().map(PortMap::target_port))
            }
        }
    }
}
/// How one probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed, for this reason.
    Failed(String),
    /// The probe could not be made, so the backend's health is unknown.
    Unknown(String),
}
