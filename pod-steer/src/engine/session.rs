//! Follows one engine: a snapshot of its containers, and the events since, for as long as the engine answers; then again. A description
//! may be ahead of the events: what happened in a run of a container before the described one is not told. Generic over the engine's
//! protocol.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinSet,
    time::sleep,
};
use tracing::{debug, info};

use super::{
    CONTAINERS_MAX, Change, Container, Engine, EngineError, EngineInput, Events as _, Happened, images::Images,
    inspections::Inspector, reach, rechecks::Rechecks, sandbox::Sandboxes,
};
use crate::world::Health;

/// Number of containers that may wait for inspection before the next event is read.
const WAITING_MAX: usize = 256;
/// Number of inspections at a time.
const INSPECTIONS: usize = 8;
/// First and longest pause between attempts to reach an engine. Each is twice the one before.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// Follows one engine forever, and inspects the containers whose ids arrive by `wanted`. Labels of images are ignored unless they are
/// trusted. Whenever `trust_image_labels` is sent, all containers are inspected again.
pub async fn follow<E: Engine>(
    engine: E,
    mut trust_image_labels: watch::Receiver<bool>,
    inputs: mpsc::Sender<EngineInput>,
    mut wanted: broadcast::Receiver<String>,
) {
    let mut pause = RETRY_FIRST;
    let mut told = String::new();
    loop {
        let (mut connected, begun) = (false, Instant::now());
        let address = engine.address();
        let error = match session(&engine, &mut trust_image_labels, &inputs, &mut wanted, &mut connected).await {
            Ok(()) => "the engine closed its event stream".to_owned(),
            Err(error) => reach::describe(address, &error),
        };
        if inputs.is_closed() {
            return;
        }
        let retry_ms = pause.as_millis() as u64;
        if connected || error != told {
            // The condition `engine-unreachable` has the same error as a warning.
            info!(engine = %address, %error, retry_ms, "cannot reach a container engine; traffic goes on as it is");
            told.clone_from(&error);
        } else {
            debug!(engine = %address, %error, retry_ms, "still cannot reach a container engine");
        }
        // A session that ends at once is retried at growing intervals.
        if connected && begun.elapsed() > RETRY_LAST {
            pause = RETRY_FIRST;
        }
        let _ = inputs.send(EngineInput::Lost { engine: address.to_owned(), error }).await;
        sleep(pause).await;
        pause = (pause * 2).min(RETRY_LAST);
    }
}

async fn session<E: Engine>(
    engine: &E,
    trust_image_labels: &mut watch::Receiver<bool>,
    inputs: &mpsc::Sender<EngineInput>,
    wanted: &mut broadcast::Receiver<String>,
    connected: &mut bool,
) -> Result<(), EngineError> {
    let address = engine.address();
    // Events are requested before the snapshot, so a change in between is in both, and none is missed.
    let mut events = engine.events().await?;
    let (sandboxes, images) =
        (Sandboxes::default(), Images::new(engine.clone(), *trust_image_labels.borrow_and_update()));
    let (containers, unread) = snapshot(engine, &sandboxes, &images).await?;
    info!(engine = %address, containers = containers.len(), "container engine connected");
    *connected = true;
    let mut ours: HashSet<String> = containers.iter().map(|container| container.id.clone()).collect();
    let mut inspector = Inspector::new(engine.clone(), inputs.clone(), sandboxes.clone(), images);
    containers.iter().for_each(|container| inspector.described(container));
    let _ = inputs.send(EngineInput::Snapshot { engine: address.to_owned(), containers, unread }).await;

    let (mut inspections, mut rechecks) = (JoinSet::new(), Rechecks::default());
    loop {
        while inspections.try_join_next().is_some() {}
        while inspector.is_full() && inspections.join_next().await.is_some() {}
        if inspections.is_empty() {
            inspector.forget_removed();
        }
        let Happened { id, change, at_ns, mine } = tokio::select! {
            event = events.next(), if inspections.len() < WAITING_MAX => match event? {
                Some(event) => event,
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
                let images = Images::new(engine.clone(), *trust_image_labels.borrow_and_update());
                let (containers, unread) = snapshot(engine, &sandboxes, &images).await?;
                inspector.images = images;
                containers.iter().for_each(|container| inspector.described(container));
                ours.extend(containers.iter().map(|container| container.id.clone()));
                let _ = inputs.send(EngineInput::Snapshot { engine: address.to_owned(), containers, unread }).await;
                continue;
            }
            // A cgroup has appeared. Some engines report a container only when it is running already.
            Ok(id) = wanted.recv() => {
                if events.are_late() {
                    inspections.spawn(inspector.clone().announce_late(id.clone()));
                }
                inspections.spawn(inspector.clone().inspect(id));
                continue;
            }
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
        if change.is_of_one_run() && inspector.is_of_former_run(&id, at_ns) {
            debug!(engine = %address, container = %id, ?change, "event of a former run");
            inspections.spawn(inspector.clone().inspect(id));
            continue;
        }
        debug!(engine = %address, container = %id, ?change, "event");
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
        let _ = inputs.send(EngineInput::Happened { engine: address.to_owned(), id: id.clone(), change, at_ns }).await;
        if details {
            inspections.spawn(inspector.clone().inspect(id));
        }
    }
}

async fn snapshot<E: Engine>(
    engine: &E,
    sandboxes: &Sandboxes,
    images: &Images<E>,
) -> Result<(Vec<Container>, Vec<(String, String)>), EngineError> {
    let ids = engine.containers().await?;
    // A container that is removed meanwhile is left out. Any other error fails the snapshot: an incomplete list would take
    // backends away that still run.
    let described = stream::iter(ids).map(|id| async move {
        let described = async {
            let mut container = engine.container(&id).await?;
            if let Some(container) = &mut container {
                images.sift(container).await?;
            }
            Ok(container)
        };
        match described.await {
            Err(EngineError::NotFound(_)) => Ok(Ok(None)),
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
        sandboxes.describe(engine, container).await;
    }
    Ok((containers, unread))
}

#[cfg(test)]
mod tests;
