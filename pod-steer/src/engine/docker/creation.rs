//! Finds a container's creation in the engine's event log. Podman polls that log, so its event may be half a second late, and it does
//! not answer an inspection while it starts the container. The log has the labels at once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::Method;
use tokio::time::timeout;

use super::{
    answers::Event,
    convert,
    http::{Client, Lines},
};
use crate::engine::{Change, Container, EngineError};

/// Maximum age of a creation. The event of an older one has arrived already.
const AGE_MAX_S: u64 = 60;
/// Time limit for the answer. After that it is too late for the container's first bind.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Maximum number of events of one container that are read.
const EVENTS_MAX: usize = 256;

/// The container as its creation describes it, if it has our labels and was created just now.
pub async fn created(client: &Client, engine: &str, id: &str) -> Option<Box<Container>> {
    timeout(ANSWER_MAX, find(client, engine, id)).await.ok()?.ok()?
}

async fn find(client: &Client, engine: &str, id: &str) -> Result<Option<Box<Container>>, EngineError> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // With `stream=false` Podman answers at once. `until` bounds the answer of an engine that ignores `stream`.
    let (since, until) = (now_s.saturating_sub(AGE_MAX_S), now_s + 1);
    let filters = crate::api::client::encoded(&format!(r#"{{"type":["container"],"container":["{id}"]}}"#));
    let path = format!("/events?stream=false&since={since}&until={until}&filters={filters}");
    let mut lines = Lines::new(client.stream(Method::GET, &path, Bytes::new()).await?);
    for _ in 0..EVENTS_MAX {
        let Some(line) = lines.next().await? else { break };
        let happened = serde_json::from_slice::<Event>(&line).ok().and_then(|event| convert::happened(engine, event));
        if let Some(created) = happened.filter(|seen| seen.change == Change::Created && seen.id == id) {
            return Ok(created.mine);
        }
    }
    Ok(None)
}
