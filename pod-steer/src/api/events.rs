//! The stream of events: one JSON object a line, or Server-Sent Events if the client accepts them.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderMap, header},
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::broadcast;

use super::{Shared, answers::Follows, types::EventRecord};

/// Follow events from now on, until the client disconnects
///
/// With `Accept: text/event-stream`, Server-Sent Events; their ids count from 1 in each answer. Otherwise one JSON
/// object a line.
#[utoipa::path(
    get, path = "/v1/events",
    responses((
        status = 200, description = "One record for each event",
        content((EventRecord = "application/x-ndjson"), (EventRecord = "text/event-stream")),
    )),
)]
pub(super) async fn events(
    State(shared): State<Arc<Shared>>,
    Extension(follows): Extension<Follows>,
    headers: HeaderMap,
) -> Response {
    follows.begin();
    let records = follow(shared.events.subscribe());
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.contains("text/event-stream") {
        let events = records.enumerate().map(|(number, record)| {
            let event = Event::default().id((number + 1).to_string()).event(&record.event);
            event.json_data(&record)
        });
        return Sse::new(events).keep_alive(KeepAlive::default()).into_response();
    }
    let lines = records.map(|record| {
        let mut line = serde_json::to_vec(&record).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn follow(receiver: broadcast::Receiver<EventRecord>) -> impl Stream<Item = EventRecord> + Send {
    stream::unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Ok(record) => Some((record, receiver)),
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                let record = EventRecord {
                    time: jiff::Timestamp::now().to_string(),
                    service: String::new(),
                    backend: String::new(),
                    event: "missed".to_owned(),
                    reason: None,
                    detail: format!("{missed} events missed, because this client reads too slowly"),
                };
                Some((record, receiver))
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    })
}
