//! A container's creation, from the engine's log of events. Podman follows that log by polling, so its event may come half a
//! second late, and it does not describe a container while it starts it. The log itself has the labels at once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::models::EventMessage;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};

use super::convert::{self, Change, Container};

/// How long before now a container may have been created. One that is older has had its event.
const AGE_MAX_S: u64 = 60;
/// Longest wait for the answer: after that it is too late for the first bind.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Longest answer.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// The container as its creation describes it, if it has our labels and was created just now.
pub async fn created(engine: &str, id: &str) -> Option<Box<Container>> {
    let events = timeout(ANSWER_MAX, events_of(engine, id)).await.ok()?.ok()?;
    let lines = events.split(|byte| *byte == b'\n');
    let events = lines.filter_map(|line| serde_json::from_slice::<EventMessage>(line).ok());
    let happened = events.filter_map(|event| convert::happened(engine, event));
    happened.filter(|happened| happened.change == Change::Created && happened.id == id).find_map(|created| created.mine)
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn events_of(engine: &str, id: &str) -> Result<Bytes, AnyError> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    // Podman answers at once if it is not to stream; `until` bounds the answer of an engine that does not know `stream`.
    let (since, until) = (now_s.saturating_sub(AGE_MAX_S), now_s + 1);
    let filters = crate::api::client::encoded(&format!(r#"{{"type":["container"],"container":["{id}"]}}"#));
    let stream = UnixStream::connect(engine.trim_start_matches("unix://")).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(format!("/events?stream=false&since={since}&until={until}&filters={filters}"))
        .header(header::HOST, "engine")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    Ok(Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes())
}
