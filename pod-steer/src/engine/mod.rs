//! Container engines, through the Docker API that Docker and Podman speak. A session takes a snapshot and then follows events; when it
//! ends, a new one is started. `convert` interprets the answers.

pub(crate) mod answers;
mod commands;
pub(crate) mod convert;
mod creation;
mod failure;
mod http;
mod images;
mod inspections;
mod reach;
mod rechecks;
mod sandbox;

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hyper::Method;
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinSet,
    time::sleep,
};
use tracing::{debug, info, warn};

pub use commands::Commands;
pub use convert::{Change, Container, Happened, Sandbox, SandboxState, ends};
pub use images::ImageLabels;
pub use reach::{is_there, name, owner, reach, unreachable};

use crate::{api::client::encoded, world::Health};
use answers::{CONTAINERS_MAX, Details, Event, Info, Listed, Version};
use http::{ANSWER_BYTES_MAX, Client, EngineError, Lines, REQUEST_MAX};
use images::Images;
use inspections::Inspector;
use rechecks::Rechecks;
use sandbox::Sandboxes;

/// Minimum time limit of a request to stop a container. An engine answers when the container has ended.
const STOP_REQUEST_MIN: Duration = Duration::from_secs(300);
/// Maximum size of the list of all containers.
const LIST_BYTES_MAX: usize = 32 << 20;
/// Number of containers that may wait for inspection before the next event is read.
const WAITING_MAX: usize = 256;
/// Number of inspections at a time.
const INSPECTIONS: usize = 8;
/// First and longest pause between attempts to reach an engine. Each is twice the one before.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);

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
    },
    /// The engine cannot be reached. Steering continues unchanged.
    Lost {
        /// Address of the engine.
        engine: String,
        /// Why.
        error: String,
    },
}

/// Follows one engine forever, and inspects the containers whose ids arrive by `wanted`. Labels of images are ignored unless they are
/// trusted. Whenever `trust_image_labels` is sent, all containers are inspected again.
pub async fn follow(
    engine: String,
    mut trust_image_labels: watch::Receiver<bool>,
    inputs: mpsc::Sender<EngineInput>,
    mut wanted: broadcast::Receiver<String>,
) {
    let mut pause = RETRY_FIRST;
    let mut told = String::new();
    loop {
        let (mut connected, begun) = (false, Instant::now());
        let error = match session(&engine, &mut trust_image_labels, &inputs, &mut wanted, &mut connected).await {
            Ok(()) => "the engine closed its event stream".to_owned(),
            Err(error) => reach::describe(&engine, &error),
        };
        if inputs.is_closed() {
            return;
        }
        let retry_ms = pause.as_millis() as u64;
        if connected || error != told {
            warn!(%engine, %error, retry_ms, "cannot reach a container engine; traffic goes on as it is");
            told.clone_from(&error);
        } else {
            debug!(%engine, %error, retry_ms, "still cannot reach a container engine");
        }
        // A session that ends at once is retried at growing intervals.
        if connected && begun.elapsed() > RETRY_LAST {
            pause = RETRY_FIRST;
        }
        let _ = inputs.send(EngineInput::Lost { engine: engine.clone(), error }).await;
        sleep(pause).await;
        pause = (pause * 2).min(RETRY_LAST);
    }
}

/// Stops a container by its stop signal, followed by SIGKILL after the stop time-out of the container or engine. `stop_ms` is that
/// time-out.
pub async fn stop(engine: &str, id: &str, stop_ms: Option<i64>) -> Result<(), String> {
    let stop = Duration::from_millis(stop_ms.unwrap_or(0).unsigned_abs());
    let max = stop.saturating_add(REQUEST_MAX).max(STOP_REQUEST_MIN);
    let path = format!("/containers/{}/stop", encoded(id));
    let stopped = Client::new(engine).post::<()>(&path, Bytes::new(), max).await;
    stopped.map_err(|error| reach::describe(engine, &error))
}

/// Inspects a container.
async fn details(client: &Client, id: &str) -> Result<Details, EngineError> {
    client.get(&format!("/containers/{}/json", encoded(id)), ANSWER_BYTES_MAX).await
}

async fn session(
    engine: &str,
    trust_image_labels: &mut watch::Receiver<bool>,
    inputs: &mpsc::Sender<EngineInput>,
    wanted: &mut broadcast::Receiver<String>,
    connected: &mut bool,
) -> Result<(), EngineError> {
    let client = Client::new(engine);
    // Events are requested before the snapshot, so a change in between is in both, and none is missed.
    let (info, version) = tokio::join!(
        client.get::<Info>("/info", ANSWER_BYTES_MAX),
        client.get::<Version>("/version", ANSWER_BYTES_MAX)
    );
    let announces_late = announces_late(version)?;
    let since = info.ok().and_then(|info| info.system_time).as_deref().and_then(convert::unix_seconds);
    let since = since.map(|since| format!("&since={since}")).unwrap_or_default();
    let path = format!("/events?filters={}{since}", encoded(r#"{"type":["container"]}"#));
    let mut events = Lines::new(client.stream(Method::GET, &path, Bytes::new()).await?);

    let (sandboxes, images) =
        (Sandboxes::default(), Images::new(client.clone(), *trust_image_labels.borrow_and_update()));
    let (containers, unread) = snapshot(&client, engine, &sandboxes, &images).await?;
    info!(%engine, containers = containers.len(), "container engine connected");
    *connected = true;
    let mut ours: HashSet<String> = containers.iter().map(|container| container.id.clone()).collect();
    let _ = inputs.send(EngineInput::Snapshot { engine: engine.to_owned(), containers, unread }).await;

    let mut inspector = Inspector::new(client.clone(), engine, inputs.clone(), sandboxes.clone(), images);
    let (mut inspections, mut rechecks) = (JoinSet::new(), Rechecks::default());
    loop {
        while inspections.try_join_next().is_some() {}
        while inspector.is_full() && inspections.join_next().await.is_some() {}
        if inspections.is_empty() {
            inspector.forget_removed();
        }
        let event = tokio::select! {
            line = events.next(), if inspections.len() < WAITING_MAX => match line? {
                Some(line) => serde_json::from_slice::<Event>(&line),
                None => return Ok(()),
            },
            Some(_) = inspections.join_next() => continue,
            id = rechecks.next(), if inspections.len() < WAITING_MAX => {
                inspections.spawn(inspector.clone().inspect(id));
                continue;
            }
            Ok(()) = trust_image_labels.changed() => {
                // Requests under way were made with the former settings, so wait for them first.
                while inspections.join_next().await.is_some() {}
                let images = Images::new(client.clone(), *trust_image_labels.borrow_and_update());
                let (containers, unread) = snapshot(&client, engine, &sandboxes, &images).await?;
                inspector.images = images;
                ours.extend(containers.iter().map(|container| container.id.clone()));
                let _ = inputs.send(EngineInput::Snapshot { engine: engine.to_owned(), containers, unread }).await;
                continue;
            }
            // A cgroup has appeared. Some engines report a container only when it is running already.
            Ok(id) = wanted.recv() => {
                if announces_late {
                    inspections.spawn(inspector.clone().announce_late(id.clone()));
                }
                inspections.spawn(inspector.clone().inspect(id));
                continue;
            }
        };
        // Skip a line that cannot be parsed.
        let Some(Happened { id, change, mine }) = event.ok().and_then(|event| convert::happened(engine, event)) else {
            continue;
        };
        if matches!(change, Change::Started | Change::Died | Change::Removed) {
            for joined in sandboxes.joined(&id) {
                inspections.spawn(inspector.clone().inspect(joined));
            }
        }
        if change == Change::Removed {
            sandboxes.forget(&id);
        }
        if mine.is_none() && !ours.contains(&id) {
            continue;
        }
        debug!(%engine, container = %id, ?change, "event");
        ours.insert(id.clone());
        if ours.len() > CONTAINERS_MAX {
            return Err(EngineError::TooMany(CONTAINERS_MAX));
        }
        if change.is_phase() {
            inspector.changed(&id, change == Change::Removed);
        }
        if matches!(change, Change::Created)
            && let Some(container) = mine
        {
            // The event has the labels, which is enough to prepare for the first bind while the container is inspected.
            inspections.spawn(inspector.clone().announce(container));
        }
        if change == Change::HealthUnknown {
            rechecks.begin(&id, Instant::now().into());
        }
        let details = matches!(
            change,
            // The reason of the failure is in the details only.
            Change::Created
                | Change::Started
                | Change::Renamed
                | Change::HealthUnknown
                | Change::Health(Health::Unhealthy)
        );
        if matches!(change, Change::Removed) {
            ours.remove(&id);
            rechecks.forget(&id);
        }
        let _ = inputs.send(EngineInput::Happened { engine: engine.to_owned(), id: id.clone(), change }).await;
        if details {
            inspections.spawn(inspector.clone().inspect(id));
        }
    }
}

/// Whether the engine reports a container only after it has created the cgroup, as Podman does. If `/version` is refused, as a proxy may
/// do, assume so.
fn announces_late(version: Result<Version, EngineError>) -> Result<bool, EngineError> {
    match version {
        Ok(version) => {
            let mut components = version.components.unwrap_or_default().into_iter();
            Ok(components.any(|component| component.name.starts_with("Podman")))
        }
        Err(error) if error.is_of_one_answer() || matches!(error, EngineError::Refused { .. }) => {
            debug!(%error, "the engine refuses /version; assuming Podman");
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

async fn snapshot(
    client: &Client,
    engine: &str,
    sandboxes: &Sandboxes,
    images: &Images,
) -> Result<(Vec<Container>, Vec<(String, String)>), EngineError> {
    let listed: Listed = client.get("/containers/json?all=true", LIST_BYTES_MAX).await?;
    if listed.too_many {
        return Err(EngineError::TooMany(CONTAINERS_MAX));
    }
    // A container that is removed meanwhile is left out. Any other error fails the snapshot: an incomplete list would take
    // backends away that still run.
    let described = stream::iter(listed.ids).map(|id| async move {
        let described = async {
            let mut container = convert::container(engine, details(client, &id).await?);
            if let Some(container) = &mut container {
                images.sift(container).await?;
            }
            Ok(container)
        };
        match described.await {
            Err(EngineError::Refused { status: 404, .. }) => Ok(Ok(None)),
            // The container exists, so no other one waits for it.
            Err(error) if error.is_of_one_answer() => Ok(Err((id, error.to_string()))),
            described => described.map(Ok),
        }
    });
    let described: Vec<_> = described.buffer_unordered(INSPECTIONS).try_collect().await?;
    let (mut containers, mut unread) = (Vec::new(), Vec::new());
    for one in described {
        match one {
            Ok(container) => containers.extend(container),
            Err(fault) => unread.push(fault),
        }
    }
    for container in &mut containers {
        sandboxes.describe(client, container).await;
    }
    Ok((containers, unread))
}
