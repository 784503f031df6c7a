//! Values that an engine reports: containers, sandboxes and their events. No I/O.

use std::collections::BTreeMap;

use super::images::ImageLabels;
use crate::world::{Health, Network, Phase};

/// A container with at least one pod-steer label.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// Its full id.
    pub id: String,
    /// Its name, without the slash.
    pub name: String,
    /// Address of its engine.
    pub engine: String,
    /// When it was made, in milliseconds since 1970; zero if the engine did not say.
    pub created_ms: i64,
    /// When it was started last, in nanoseconds since 1970; zero if it never was.
    pub started_ns: i64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What was done about labels of its image.
    pub image_labels: ImageLabels,
    /// The name of its image, as it was asked for.
    pub image: String,
    /// The id of its image, or nothing.
    pub image_id: String,
    /// Its lifecycle phase.
    pub phase: Phase,
    /// False if an event has arrived since: then phase and health here are out of date.
    pub phase_is_current: bool,
    /// Result of the engine's health check.
    pub health: Health,
    /// How its last check failed, if it is unhealthy.
    pub health_failure: Option<String>,
    /// Pid of its first process, if it runs.
    pub pid: Option<i32>,
    /// The network namespace that it uses.
    pub network: Network,
    /// The container whose network namespace it shares, if it does.
    pub joined: Option<String>,
    /// State of that container; `None` if unknown.
    pub sandbox: Option<Sandbox>,
    /// Parent of its cgroup; empty for the engine's default.
    pub cgroup_parent: String,
    /// Its own stop signal, if it has one.
    pub stop_signal: Option<i32>,
    /// Its stop time-out in seconds, if it has one; negative for no limit.
    pub stop_timeout_s: Option<i64>,
    /// Whether its engine removes it when it ends (`--rm`).
    pub is_transient: bool,
}

/// A container whose network namespace others share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Its full id.
    pub id: String,
    /// Its name, without the slash.
    pub name: String,
    /// Whether it runs.
    pub state: SandboxState,
}

/// Whether a sandbox runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxState {
    /// It runs, and this is its first process.
    Running(i32),
    /// It exists and does not run.
    Stopped,
    /// It no longer exists.
    Removed,
}

/// A change of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was created.
    Created,
    /// It was started.
    Started,
    /// A signal was sent to it.
    Signalled(i32),
    /// It ended.
    Died,
    /// It was paused.
    Paused,
    /// It was unpaused.
    Unpaused,
    /// Its health check has a new result.
    Health(Health),
    /// Its health check has a new result, which only the container's details say.
    HealthUnknown,
    /// It was connected to a network, or disconnected from one.
    NetworkChanged,
    /// It was renamed.
    Renamed,
    /// It was removed.
    Removed,
}

impl Change {
    /// True if it changes the phase or health, so that details asked for before are out of date.
    pub fn is_phase(&self) -> bool {
        !matches!(self, Self::Created | Self::NetworkChanged | Self::Renamed)
    }

    /// True if it says something of one run of the container, and nothing of the next one.
    pub fn is_of_one_run(&self) -> bool {
        self.is_phase() && *self != Self::Removed
    }
}

/// An event of a container.
#[derive(Debug)]
pub struct Happened {
    /// Its full id.
    pub id: String,
    /// The change.
    pub change: Change,
    /// When, in nanoseconds since 1970; `None` if the engine did not say.
    pub at_ns: Option<i64>,
    /// The container as far as the event describes it, if it has our labels.
    pub mine: Option<Box<Container>>,
}

/// Whether a signal stops a container: SIGTERM, SIGKILL, and its own stop signal. Servers use other signals for other purposes, such as
/// rereading their configuration.
pub fn ends(signal: i32, stop_signal: Option<i32>) -> bool {
    matches!(signal, libc::SIGTERM | libc::SIGKILL) || Some(signal) == stop_signal
}
