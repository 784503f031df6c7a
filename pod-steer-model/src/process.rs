//! Which process is meant. Pure.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Names a process for ever: a pid is used again, but not with the same start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since the machine did (proc_pid_stat(5)).
    pub start: u64,
}
