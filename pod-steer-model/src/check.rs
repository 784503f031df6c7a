//! What a health check is, as plain values.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ports::PortMap;

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

/// What a check does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum CheckKind {
    /// Nothing, whatever is configured for the service.
    None,
    /// It connects.
    Tcp,
    /// It asks by HTTP/1.1.
    Http {
        /// What for.
        path: String,
        /// The `Host` header; the address that is connected to if not given.
        host: Option<String>,
        /// Answers that are good.
        status: StatusRange,
    },
    /// It runs a command in the container; the exit code must be 0.
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
    /// Whether an answer is good.
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
    /// A check that says no more than its kind.
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
    pub fn port(&self, ports: &[PortMap]) -> Option<u16> {
        match self.kind {
            CheckKind::None | CheckKind::Exec { .. } => None,
            CheckKind::Tcp | CheckKind::Http { .. } => self.port.or_else(|| ports.first().map(|map| map.target)),
        }
    }
}
/// How one probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// Otherwise: what it met with.
    Failed(String),
    /// It could not be made, which says nothing of the backend.
    Unknown(String),
}
