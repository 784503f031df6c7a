//! The Docker API, which Docker and Podman speak, as an [`Engine`]: requests over a unix socket (`http`), the parts of answers that are used
//! (`answers`), and their conversion to values (`convert`). No state and no decisions here.

pub(crate) mod answers;
mod cgroup;
pub(crate) mod convert;
mod creation;
mod failure;
mod http;
mod output;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use bytes::Bytes;
use hyper::Method;
use serde_json::json;
use tracing::debug;

use super::{ANSWER_MAX, CONTAINERS_MAX, CommandState, Container, Engine, EngineError, Events, Happened, Sandbox};
use crate::api::client::encoded;
use answers::{Details, Event, ExecMade, ExecState, ImageDetails, Info, Listed, Version};
use http::{ANSWER_BYTES_MAX, Client, Lines};

/// Maximum size of the list of all containers.
const LIST_BYTES_MAX: usize = 32 << 20;

/// An engine that speaks the Docker API.
#[derive(Clone, Debug)]
pub struct Docker {
    address: String,
    client: Client,
}

impl Docker {
    /// The engine with this address.
    pub fn at(address: &str) -> Self {
        Self { address: address.to_owned(), client: Client::new(address) }
    }

    async fn details(&self, id: &str) -> Result<Details, EngineError> {
        self.client.get(&format!("/containers/{}/json", encoded(id)), ANSWER_BYTES_MAX).await
    }
}

impl Engine for Docker {
    type Events = DockerEvents;

    fn address(&self) -> &str {
        &self.address
    }

    async fn events(&self) -> Result<DockerEvents, EngineError> {
        let (info, version) = tokio::join!(
            self.client.get::<Info>("/info", ANSWER_BYTES_MAX),
            self.client.get::<Version>("/version", ANSWER_BYTES_MAX)
        );
        let are_late = are_late(version)?;
        // From the engine's clock on, so that nothing between this answer and the next one is missed.
        let since = info.ok().and_then(|info| info.system_time).as_deref().and_then(convert::unix_seconds);
        let since = since.map(|since| format!("&since={since}")).unwrap_or_default();
        let path = format!("/events?filters={}{since}", encoded(r#"{"type":["container","network"]}"#));
        let lines = Lines::new(self.client.stream(Method::GET, &path, Bytes::new()).await?);
        Ok(DockerEvents { address: self.address.clone(), lines, are_late })
    }

    async fn containers(&self) -> Result<Vec<String>, EngineError> {
        let listed: Listed = self.client.get("/containers/json?all=true", LIST_BYTES_MAX).await?;
        if listed.too_many { Err(EngineError::TooMany(CONTAINERS_MAX)) } else { Ok(listed.ids) }
    }

    async fn container(&self, id: &str) -> Result<Option<Container>, EngineError> {
        Ok(convert::container(&self.address, self.details(id).await?))
    }

    async fn sandbox(&self, id: &str) -> Result<Option<Sandbox>, EngineError> {
        Ok(convert::sandbox(self.details(id).await?))
    }

    async fn image_labels(&self, image: &str) -> Result<BTreeMap<String, String>, EngineError> {
        let path = format!("/images/{}/json", encoded(image));
        let details: ImageDetails = self.client.get(&path, ANSWER_BYTES_MAX).await?;
        Ok(details.config.and_then(|config| config.labels).unwrap_or_default().0)
    }

    async fn creation(&self, id: &str) -> Option<Box<Container>> {
        creation::created(&self.client, &self.address, id).await
    }

    async fn stop(&self, id: &str, max: Duration) -> Result<(), EngineError> {
        self.client.post(&format!("/containers/{}/stop", encoded(id)), Bytes::new(), max).await
    }

    async fn start(&self, id: &str, max: Duration) -> Result<(), EngineError> {
        self.client.post(&format!("/containers/{}/start", encoded(id)), Bytes::new(), max).await
    }

    async fn prepare(&self, id: &str, command: &[String]) -> Result<String, EngineError> {
        let body = json!({ "AttachStdout": true, "AttachStderr": true, "Cmd": command }).to_string();
        let path = format!("/containers/{}/exec", encoded(id));
        Ok(self.client.post::<ExecMade>(&path, body.into(), ANSWER_MAX).await?.id)
    }

    async fn run(&self, command: &str) -> Result<Vec<u8>, EngineError> {
        let body = json!({ "Detach": false, "Tty": false }).to_string();
        let path = format!("/exec/{}/start", encoded(command));
        output::last_output(self.client.stream(Method::POST, &path, body.into()).await?).await
    }

    async fn command(&self, command: &str) -> Result<CommandState, EngineError> {
        let path = format!("/exec/{}/json", encoded(command));
        let state: ExecState = self.client.get(&path, ANSWER_BYTES_MAX).await?;
        Ok(CommandState { is_running: state.running == Some(true), exit_code: state.exit_code })
    }

    fn cgroup_parents(given: &str) -> Vec<PathBuf> {
        cgroup::parents(given)
    }

    fn container_of(cgroup: &str) -> Option<&str> {
        cgroup::container_of(cgroup)
    }
}

/// The answer to `GET /events`.
pub struct DockerEvents {
    address: String,
    lines: Lines,
    are_late: bool,
}

impl Events for DockerEvents {
    fn are_late(&self) -> bool {
        self.are_late
    }

    async fn next(&mut self) -> Result<Option<Happened>, EngineError> {
        while let Some(line) = self.lines.next().await? {
            // Skip a line that cannot be parsed or is of no interest.
            let event = serde_json::from_slice::<Event>(&line).ok();
            if let Some(happened) = event.and_then(|event| convert::happened(&self.address, event)) {
                return Ok(Some(happened));
            }
        }
        Ok(None)
    }
}

/// Docker reports a container before it creates the cgroup, Podman only afterwards. If `/version` is refused, as a proxy may do, assume
/// Podman.
fn are_late(version: Result<Version, EngineError>) -> Result<bool, EngineError> {
    match version {
        Ok(version) => {
            let mut components = version.components.unwrap_or_default().into_iter();
            Ok(components.any(|component| component.name.starts_with("Podman")))
        }
        Err(error) if error.is_of_one_answer() || error.is_refusal() => {
            debug!(%error, "the engine refuses /version; assuming Podman");
            Ok(true)
        }
        Err(error) => Err(error),
    }
}
