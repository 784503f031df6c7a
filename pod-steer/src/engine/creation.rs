//! A container's creation, from the engine's log of events. Podman follows that log by polling, so its event may come half a
//! second late, and it does not describe a container while it starts it. The log itself has the labels at once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::Method;
use tokio::time::timeout;

use super::{
    answers::Event,
    convert::{self, Change, Container},
    http::{Client, EngineError, Lines},
};

/// How long before now a container may have been created. One that is older has had its event.
const AGE_MAX_S: u64 = 60;
/// Longest wait for the answer: after that it is too late for the first bind.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Most events of one container that are looked at.
const EVENTS_MAX: usize = 256;

/// The container as its creation describes it, if it has our labels and was created just now.
pub async fn created(client: &Client, engine: &str, id: &str) -> Option<Box<Container>> {
    timeout(ANSWER_MAX, find(client, engine, id)).await.ok()?.ok()?
}

async fn find(client: &Client, engine: &str, id: &str) -> Result<Option<Box<Container>>, EngineError> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Podman answers at once if it is not to stream; `until` bounds the answer of an engine that does not know `stream`.
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
