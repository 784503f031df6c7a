//! Container engines. The trait [`Engine`] is what the daemon needs of one; a folder here implements it for each protocol, and only this
//! file names the implementation. `session` follows an engine by that trait: a snapshot, then its events, and inspections. An
//! implementation asks its engine and converts the answers to [`values`]; it keeps nothing and decides nothing.

mod commands;
mod docker;
mod error;
#[cfg(test)]
mod fake;
mod images;
mod inspections;
mod reach;
mod rechecks;
mod sandbox;
mod session;
pub mod values;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use tokio::sync::{broadcast, mpsc, watch};

pub(crate) use docker::{answers, convert};
pub use error::{EngineError, Undone};
pub use images::ImageLabels;
pub use reach::{is_there, name, owner, reach, unreachable};
pub use values::{Change, Container, Happened, Sandbox, SandboxState, ends};

use docker::Docker;

/// Maximum number of containers with pod-steer labels.
pub(crate) const CONTAINERS_MAX: usize = 16_384;
/// Time limit for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Time limit of a request to start a container. An engine may have to mount volumes first.
const START_MAX: Duration = Duration::from_secs(300);
/// Minimum time limit of a request to stop a container. An engine answers when the container has ended.
const STOP_REQUEST_MIN: Duration = Duration::from_secs(300);

/// A container engine, as the daemon needs it.
pub trait Engine: Clone + Send + Sync + 'static {
    /// The events of its containers.
    type Events: Events;

    /// Its address, which identifies it.
    fn address(&self) -> &str;

    /// Follows the events of all containers from now on.
    fn events(&self) -> impl Future<Output = Result<Self::Events, EngineError>> + Send;

    /// The ids of all containers with pod-steer labels.
    fn containers(&self) -> impl Future<Output = Result<Vec<String>, EngineError>> + Send;

    /// Describes a container; `None` if it has no pod-steer label.
    fn container(&self, id: &str) -> impl Future<Output = Result<Option<Container>, EngineError>> + Send;

    /// Describes a container whose network namespace others share; `None` if the answer does not show whether it runs.
    fn sandbox(&self, id: &str) -> impl Future<Output = Result<Option<Sandbox>, EngineError>> + Send;

    /// The pod-steer labels of an image, which is given by its name or id.
    fn image_labels(&self, image: &str) -> impl Future<Output = Result<BTreeMap<String, String>, EngineError>> + Send;

    /// A container that was created just now, from the engine's log. For engines whose events are late.
    fn creation(&self, id: &str) -> impl Future<Output = Option<Box<Container>>> + Send;

    /// Stops a container by its stop signal, and by SIGKILL after its stop time-out. Waits until it has ended, for `max` at most.
    fn stop(&self, id: &str, max: Duration) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Starts a container that does not run. Waits until its process runs, for `max` at most.
    fn start(&self, id: &str, max: Duration) -> impl Future<Output = Result<(), EngineError>> + Send;

    /// Prepares to run a command in a container. Returns an id of it.
    fn prepare(&self, id: &str, command: &[String]) -> impl Future<Output = Result<String, EngineError>> + Send;

    /// Runs a prepared command until it exits. Returns the end of its output.
    fn run(&self, command: &str) -> impl Future<Output = Result<Vec<u8>, EngineError>> + Send;

    /// The state of a prepared command.
    fn command(&self, command: &str) -> impl Future<Output = Result<CommandState, EngineError>> + Send;

    /// The directories, relative to the cgroup v2 mount, in which the engine may create a container's cgroup. `given` is the parent that
    /// the container has, or empty for the engine's default.
    fn cgroup_parents(given: &str) -> Vec<PathBuf>;

    /// The id of the container whose cgroup has this name.
    fn container_of(cgroup: &str) -> Option<&str>;
}

/// Events of an engine's containers.
pub trait Events: Send + 'static {
    /// True if the event of a creation may come only after the container's cgroup exists.
    fn are_late(&self) -> bool;

    /// The next event; `None` at the end of the stream. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Result<Option<Happened>, EngineError>> + Send;
}

/// The state of a command in a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandState {
    /// It is running.
    pub is_running: bool,
    /// Its exit code, if it has exited.
    pub exit_code: Option<i64>,
}

/// Commands in a container.
pub type Commands = commands::Commands<Docker>;

/// Commands in this container of the engine with this address.
pub fn commands(engine: &str, id: &str) -> Commands {
    Commands::new(Docker::at(engine), id)
}

/// Follows the engine with this address forever, and inspects the containers whose ids arrive by `wanted`. Labels of images are ignored
/// unless they are trusted. Whenever `trust_image_labels` is sent, all containers are inspected again.
pub async fn follow(
    engine: String,
    trust_image_labels: watch::Receiver<bool>,
    inputs: mpsc::Sender<EngineInput>,
    wanted: broadcast::Receiver<String>,
) {
    session::follow(Docker::at(&engine), trust_image_labels, inputs, wanted).await;
}

/// Stops a container. `stop_ms` is its stop time-out, if that is known.
pub async fn stop(engine: &str, id: &str, stop_ms: Option<i64>) -> Result<(), Undone> {
    let stop = Duration::from_millis(stop_ms.unwrap_or(0).unsigned_abs());
    let max = stop.saturating_add(ANSWER_MAX).max(STOP_REQUEST_MIN);
    Docker::at(engine).stop(id, max).await.map_err(|error| undone(engine, &error))
}

/// Starts a container that does not run.
pub async fn start(engine: &str, id: &str) -> Result<(), Undone> {
    Docker::at(engine).start(id, START_MAX).await.map_err(|error| undone(engine, &error))
}

fn undone(engine: &str, error: &EngineError) -> Undone {
    Undone { message: reach::describe(engine, error), is_without_answer: error.is_without_answer() }
}

/// See [`Engine::cgroup_parents`].
pub fn cgroup_parents(given: &str) -> Vec<PathBuf> {
    Docker::cgroup_parents(given)
}

/// See [`Engine::container_of`].
pub fn container_of(cgroup: &str) -> Option<&str> {
    Docker::container_of(cgroup)
}

/// A message from an engine to the daemon.
#[derive(Debug)]
pub enum EngineInput {
    /// All containers with pod-steer labels. Containers that are not listed are gone.
    Snapshot {
        /// Address of the engine.
        engine: String,
        /// The containers.
        containers: Vec<Container>,
        /// Ids of containers that could not be inspected, and why.
        unread: Vec<(String, String)>,
    },
    /// The current state of one container.
    Container(Box<Container>),
    /// An event of a container.
    Happened {
        /// Address of the engine.
        engine: String,
        /// Its full id.
        id: String,
        /// The event.
        change: Change,
        /// When, in nanoseconds since 1970; `None` if the engine did not say.
        at_ns: Option<i64>,
    },
    /// The engine cannot be reached. Steering continues unchanged.
    Lost {
        /// Address of the engine.
        engine: String,
        /// Why.
        error: String,
    },
}
