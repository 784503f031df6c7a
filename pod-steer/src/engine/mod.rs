//! Container engines, through the Docker API that Docker and Podman speak: a snapshot and the events since, for as
//! long as the engine answers, and again when it comes back. What an answer means is decided in `convert`.

mod commands;
mod convert;
mod creation;
mod failure;
mod inspections;
mod reach;
mod sandbox;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    query_parameters::{EventsOptionsBuilder, ListContainersOptionsBuilder},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    sync::{broadcast, mpsc},
    task::JoinSet,
    time::sleep,
};
use tracing::{debug, info, warn};

pub use commands::Commands;
pub use convert::{Change, Container, Happened, Sandbox, SandboxState, ends};
pub use reach::{is_there, name, owner, reach, unreachable};

use crate::{labels, world::Health};
use inspections::Inspector;
use sandbox::Sandboxes;

/// Seconds that a request to the engine may take.
const REQUEST_TIMEOUT_S: u64 = 30;
/// Least time of a request to stop a container, in seconds. An engine answers when the container has ended.
const STOP_REQUEST_S_MIN: u64 = 300;
/// Requests for details that are under way at a time.
const INSPECTIONS: usize = 8;
/// Pauses between attempts to reach an engine: doubled from the first up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// Pauses before a container is inspected again of whose health check an event gives no result.
const HEALTH_PAUSES: &[Duration] = &[Duration::from_millis(200), Duration::from_millis(800)];

/// What an engine tells the daemon.
#[derive(Debug)]
pub enum EngineInput {
    /// All containers with our labels, as they are now; those not in it are gone.
    Snapshot {
        /// Address of the engine.
        engine: String,
        /// The containers.
        containers: Vec<Container>,
    },
    /// One container, as it is now.
    Container(Box<Container>),
    /// Something happened to a container.
    Happened {
        /// Its full id.
        id: String,
        /// What.
        change: Change,
    },
    /// The engine cannot be reached; traffic goes on as it is.
    Lost {
        /// Address of the engine.
        engine: String,
        /// Why.
        error: String,
    },
}

/// Follows one engine for ever, and describes the containers whose ids come in by `wanted`.
pub async fn follow(engine: String, inputs: mpsc::Sender<EngineInput>, mut wanted: broadcast::Receiver<String>) {
    let mut pause = RETRY_FIRST;
    let mut told = String::new();
    loop {
        let mut connected = false;
        let error = match session(&engine, &inputs, &mut wanted, &mut connected).await {
            Ok(()) => "the engine closed the stream of events".to_owned(),
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
        if connected {
            pause = RETRY_FIRST;
        }
        let _ = inputs.send(EngineInput::Lost { engine: engine.clone(), error }).await;
        sleep(pause).await;
        pause = (pause * 2).min(RETRY_LAST);
    }
}

/// Stops a container: its stop signal, and SIGKILL when the time is over that it, or the engine, has set.
/// `stop_ms` is how long that may take.
pub async fn stop(engine: &str, id: &str, stop_ms: Option<i64>) -> Result<(), String> {
    let stop_s = stop_ms.unwrap_or(0).unsigned_abs().div_ceil(1000);
    let timeout_s = stop_s.saturating_add(REQUEST_TIMEOUT_S).max(STOP_REQUEST_S_MIN);
    let stopped = async {
        let docker = Docker::connect_with_unix(engine, timeout_s, API_DEFAULT_VERSION)?;
        docker.negotiate_version().await?.stop_container(id, None).await
    };
    stopped.await.map_err(|error| reach::describe(engine, &error))
}

async fn session(
    engine: &str,
    inputs: &mpsc::Sender<EngineInput>,
    wanted: &mut broadcast::Receiver<String>,
    connected: &mut bool,
) -> Result<(), bollard::errors::Error> {
    let docker = Docker::connect_with_unix(engine, REQUEST_TIMEOUT_S, API_DEFAULT_VERSION)?.negotiate_version().await?;
    // First the events, then the snapshot: what happens in between is in both, and nothing is in neither.
    let (info, version) = tokio::join!(docker.info(), docker.version());
    let since = info.ok().and_then(|info| info.system_time);
    // Docker announces a container before it makes its cgroup.
    let components = version.into_iter().flat_map(|version| version.components).flatten();
    let announces_late = components.into_iter().any(|component| component.name.starts_with("Podman"));
    let filters = HashMap::from([("type", vec!["container"])]);
    let mut options = EventsOptionsBuilder::new().filters(&filters);
    if let Some(time) = since.as_deref().and_then(convert::unix_seconds) {
        options = options.since(&time.to_string());
    }
    let mut events = Box::pin(docker.events(Some(options.build())));

    let sandboxes = Sandboxes::default();
    let containers = snapshot(&docker, engine, &sandboxes).await?;
    info!(%engine, containers = containers.len(), "container engine connected");
    *connected = true;
    let mut ours: HashSet<String> = containers.iter().map(|container| container.id.clone()).collect();
    let _ = inputs.send(EngineInput::Snapshot { engine: engine.to_owned(), containers }).await;

    let inspector = Inspector::new(docker, engine, inputs.clone(), sandboxes.clone());
    let mut inspections = JoinSet::new();
    loop {
        while inspections.try_join_next().is_some() {}
        if inspections.is_empty() {
            inspector.forget_removed();
        }
        let event = tokio::select! {
            event = events.next() => match event {
                Some(event) => event?,
                None => return Ok(()),
            },
            // A cgroup has appeared: some engines announce a container only when it runs already.
            Ok(id) = wanted.recv() => {
                if announces_late {
                    inspections.spawn(inspector.clone().announce(id.clone()));
                }
                inspections.spawn(inspector.clone().inspect(id));
                continue;
            }
        };
        let Some(Happened { id, change, mine }) = convert::happened(engine, event) else { continue };
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
        if change.is_phase() {
            inspector.changed(&id, change == Change::Removed);
        }
        if matches!(change, Change::Created)
            && let Some(container) = mine
        {
            // The labels are in the event: enough to prepare for its first bind while the details are fetched.
            let _ = inputs.send(EngineInput::Container(container)).await;
        }
        let asks_again = matches!(change, Change::HealthUnknown);
        let details = matches!(
            change,
            // The reason why a check fails is in the details.
            Change::Created
                | Change::Started
                | Change::Renamed
                | Change::HealthUnknown
                | Change::Health(Health::Unhealthy)
        );
        if matches!(change, Change::Removed) {
            ours.remove(&id);
        }
        let _ = inputs.send(EngineInput::Happened { id: id.clone(), change }).await;
        if details {
            // Podman 4.3 announces a result before its details have it.
            let pauses = if asks_again { HEALTH_PAUSES } else { &[] };
            let inspector = inspector.clone();
            inspections.spawn(async move {
                inspector.clone().inspect(id.clone()).await;
                for pause in pauses {
                    sleep(*pause).await;
                    inspector.clone().inspect(id.clone()).await;
                }
            });
        }
    }
}

async fn snapshot(
    docker: &Docker,
    engine: &str,
    sandboxes: &Sandboxes,
) -> Result<Vec<Container>, bollard::errors::Error> {
    let options = ListContainersOptionsBuilder::new().all(true).build();
    let listed = docker.list_containers(Some(options)).await?;
    let ours = listed
        .into_iter()
        .filter(|container| container.labels.iter().flatten().any(|(key, _)| key.starts_with(labels::PREFIX)));
    let ids = ours.filter_map(|container| container.id);
    // One that is removed while we ask is not there. Any other error is the engine's: a list with holes in it would take
    // backends away that still run.
    let details = stream::iter(ids).map(|id| async move {
        match docker.inspect_container(&id, None).await {
            Ok(details) => Ok(Some(details)),
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    });
    let details: Vec<_> = details.buffer_unordered(INSPECTIONS).try_collect().await?;
    let mut containers: Vec<Container> =
        details.into_iter().flatten().filter_map(|details| convert::container(engine, details)).collect();
    for container in &mut containers {
        sandboxes.describe(docker, container).await;
    }
    Ok(containers)
}
