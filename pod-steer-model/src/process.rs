//! The identity of a process. Pure.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Identifies a process for ever: a pid is reused, but not with the same start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since the machine booted (proc_pid_stat(5)).
    pub start: u64,
}
