//! A container engine for the guest, which has none: it tells of containers that the guest makes itself, and does nothing.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use pod_steer_tests::fake_engine::{FakeEngine, HEAD, send};
use serde_json::{Value, json};

/// A follower of events whose connection is closed is noticed so often.
const FOLLOWED_MAX: Duration = Duration::from_secs(1);

pub struct Engine {
    shared: Arc<Shared>,
    socket: PathBuf,
    _server: FakeEngine,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    containers: BTreeMap<String, Container>,
    /// Lines, from the first on.
    events: Vec<String>,
}

struct Container {
    name: String,
    labels: BTreeMap<String, String>,
    pid: Option<u32>,
}

impl Engine {
    /// Listens on a socket in this directory.
    pub fn start(dir: &Path) -> Result<Self> {
        let (shared, socket) = (Arc::new(Shared::default()), dir.join("engine.sock"));
        let answering = Arc::clone(&shared);
        let server = FakeEngine::start(&socket, move |path, stream| answering.answer(path, stream))?;
        Ok(Self { shared, socket, _server: server })
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Tells of a new container, and returns its id.
    pub fn create(&self, name: &str, labels: &[(&str, &str)]) -> String {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut state = self.shared.state();
        let id = format!("{:064x}", state.containers.len() + 1);
        state.containers.insert(id.clone(), Container { name: name.to_owned(), labels, pid: None });
        self.shared.tell(state, "create", &id);
        id
    }

    /// Tells that a container runs.
    pub fn started(&self, id: &str, pid: u32) {
        let mut state = self.shared.state();
        if let Some(container) = state.containers.get_mut(id) {
            container.pid = Some(pid);
        }
        self.shared.tell(state, "start", id);
    }

    /// Tells that a container has ended, and was removed.
    pub fn removed(&self, id: &str) {
        self.shared.tell(self.shared.state(), "die", id);
        let mut state = self.shared.state();
        let event = state.event("destroy", id);
        state.containers.remove(id);
        state.events.push(event);
        self.shared.news.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, mut state: MutexGuard<'_, State>, action: &str, id: &str) {
        let event = state.event(action, id);
        state.events.push(event);
        self.news.notify_all();
    }

    fn answer(&self, path: &str, stream: &UnixStream) {
        let path = path.split('?').next().unwrap_or_default();
        let details = path.strip_prefix("/containers/").and_then(|rest| rest.strip_suffix("/json"));
        let body = match (path, details) {
            ("/events", _) => return self.follow(stream),
            ("/version", _) => json!({ "ApiVersion": "1.41", "Components": [{ "Name": "Engine" }] }),
            ("/containers/json", _) => {
                let state = self.state();
                let all = state.containers.iter();
                all.map(|(id, container)| json!({ "Id": id, "Labels": container.labels })).collect()
            }
            (_, Some(id)) => self.state().details(id),
            _ => json!({}),
        };
        send(stream, &body.to_string());
    }

    /// Sends each event from now on.
    fn follow(&self, mut stream: &UnixStream) {
        let mut sent = self.state().events.len();
        let mut part = HEAD.to_vec();
        while stream.write_all(&part).is_ok() {
            let state = self.state();
            let waited = self.news.wait_timeout_while(state, FOLLOWED_MAX, |state| state.events.len() == sent);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            // Without news, an empty line, which the daemon skips.
            part = match state.events.get(sent..).unwrap_or_default() {
                [] => b"\n".to_vec(),
                new => new.concat().into_bytes(),
            };
            sent = state.events.len();
        }
    }
}

impl State {
    /// A line. The attributes of an event include the labels.
    fn event(&self, action: &str, id: &str) -> String {
        let container = self.containers.get(id);
        let mut attributes = container.map(|container| container.labels.clone()).unwrap_or_default();
        attributes.extend(container.map(|container| ("name".to_owned(), container.name.clone())));
        let actor = json!({ "ID": id, "Attributes": attributes });
        json!({ "Type": "container", "Action": action, "Actor": actor }).to_string() + "\n"
    }

    fn details(&self, id: &str) -> Value {
        let Some(Container { name, labels, pid }) = self.containers.get(id) else { return json!({}) };
        let (status, began) = match pid {
            Some(_) => ("running", "2026-01-01T00:00:01Z"),
            None => ("created", "0001-01-01T00:00:00Z"),
        };
        json!({
            "Id": id,
            "Name": format!("/{name}"),
            "Created": "2026-01-01T00:00:00Z",
            "Image": "none",
            "Config": { "Labels": labels, "Image": "none" },
            "State": { "Status": status, "Running": pid.is_some(), "Pid": pid.unwrap_or_default(), "StartedAt": began },
            "HostConfig": { "NetworkMode": "bridge" },
        })
    }
}
