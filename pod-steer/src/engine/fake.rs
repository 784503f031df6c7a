//! An engine on values, for tests of the code that needs an [`Engine`].

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::sync::{Semaphore, mpsc};

use super::{Change, CommandState, Container, Engine, EngineError, Events, Happened, ImageLabels, Sandbox};
use crate::world::{Health, Network, Phase};

/// The address of the engine.
pub const ADDRESS: &str = "unix:///run/fake.sock";

/// What the engine answers, and what it was asked.
#[derive(Default)]
pub struct State {
    /// The requests so far, as `container a`.
    pub asked: Vec<String>,
    /// Ids that the list of containers has.
    pub listed: Vec<String>,
    /// The containers that exist, by id.
    pub containers: BTreeMap<String, Container>,
    /// Ids of containers whose description cannot be parsed.
    pub unreadable: Vec<String>,
    /// Inspections of these containers wait for a permit.
    pub held: HashMap<String, Arc<Semaphore>>,
    /// The sandboxes that exist, by id.
    pub sandboxes: BTreeMap<String, Sandbox>,
    /// The labels of images, by id.
    pub images: BTreeMap<String, BTreeMap<String, String>>,
    /// Creations in the engine's log, by id.
    pub creations: BTreeMap<String, Container>,
    /// Whether events are late.
    pub are_late: bool,
    /// The events of the next session.
    pub events: Option<mpsc::Receiver<Happened>>,
    /// The state of every command, and its output.
    pub command: CommandState,
    pub output: Vec<u8>,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<State>>);

impl Fake {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn ask(&self, request: &str) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.asked.push(request.to_owned());
        state
    }
}

/// A container of this service that runs.
pub fn container(id: &str) -> Container {
    Container {
        id: id.to_owned(),
        name: format!("name-of-{id}"),
        engine: ADDRESS.to_owned(),
        created_ms: 0,
        started_ns: 0,
        labels: [("pod-steer.service".to_owned(), "web".to_owned())].into(),
        image_labels: ImageLabels::default(),
        image: "web:v1".to_owned(),
        image_id: "image".to_owned(),
        phase: Phase::Running,
        phase_is_current: true,
        health: Health::Unchecked,
        health_failure: None,
        pid: None,
        network: Network::Host,
        joined: None,
        sandbox: None,
        cgroup_parent: String::new(),
        stop_signal: None,
        stop_timeout_s: None,
        is_transient: false,
    }
}

/// An event of a container without a description.
pub fn event(id: &str, change: Change) -> Happened {
    Happened { id: id.to_owned(), change, at_ns: None, mine: None }
}

fn not_found(id: &str) -> EngineError {
    EngineError::NotFound(format!("no such container: {id}"))
}

impl Engine for Fake {
    type Events = FakeEvents;

    fn address(&self) -> &str {
        ADDRESS
    }

    async fn events(&self) -> Result<FakeEvents, EngineError> {
        let mut state = self.ask("events");
        let are_late = state.are_late;
        let events = state.events.take().ok_or_else(|| EngineError::Timeout(Duration::from_secs(30)))?;
        Ok(FakeEvents { events, are_late })
    }

    async fn containers(&self) -> Result<Vec<String>, EngineError> {
        Ok(self.ask("containers").listed.clone())
    }

    async fn container(&self, id: &str) -> Result<Option<Container>, EngineError> {
        let (answer, held) = {
            let state = self.ask(&format!("container {id}"));
            let answer = match state.containers.get(id) {
                _ if state.unreadable.iter().any(|unreadable| unreadable == id) => {
                    Err(EngineError::Unreadable { what: id.to_owned(), reason: "not JSON".to_owned() })
                }
                None => Err(not_found(id)),
                Some(container) => Ok(Some(container.clone())),
            };
            (answer, state.held.get(id).cloned())
        };
        if let Some(held) = held {
            held.acquire().await.unwrap().forget();
        }
        answer
    }

    async fn sandbox(&self, id: &str) -> Result<Option<Sandbox>, EngineError> {
        let state = self.ask(&format!("sandbox {id}"));
        state.sandboxes.get(id).cloned().map(Some).ok_or_else(|| not_found(id))
    }

    async fn image_labels(&self, image: &str) -> Result<BTreeMap<String, String>, EngineError> {
        let state = self.ask(&format!("image {image}"));
        state.images.get(image).cloned().ok_or_else(|| not_found(image))
    }

    async fn creation(&self, id: &str) -> Option<Box<Container>> {
        self.ask(&format!("creation {id}")).creations.get(id).cloned().map(Box::new)
    }

    async fn stop(&self, id: &str, _: Duration) -> Result<(), EngineError> {
        drop(self.ask(&format!("stop {id}")));
        Ok(())
    }

    async fn start(&self, id: &str, _: Duration) -> Result<(), EngineError> {
        drop(self.ask(&format!("start {id}")));
        Ok(())
    }

    async fn prepare(&self, id: &str, command: &[String]) -> Result<String, EngineError> {
        drop(self.ask(&format!("prepare {id} {}", command.join(" "))));
        Ok("command".to_owned())
    }

    async fn run(&self, command: &str) -> Result<Vec<u8>, EngineError> {
        Ok(self.ask(&format!("run {command}")).output.clone())
    }

    async fn command(&self, command: &str) -> Result<CommandState, EngineError> {
        Ok(self.ask(&format!("state of {command}")).command)
    }

    fn cgroup_parents(given: &str) -> Vec<PathBuf> {
        vec![given.into()]
    }

    fn container_of(cgroup: &str) -> Option<&str> {
        cgroup.strip_prefix("fake-")
    }
}

/// Events that a test sends.
pub struct FakeEvents {
    events: mpsc::Receiver<Happened>,
    are_late: bool,
}

impl Events for FakeEvents {
    fn are_late(&self) -> bool {
        self.are_late
    }

    async fn next(&mut self) -> Result<Option<Happened>, EngineError> {
        Ok(self.events.recv().await)
    }
}
