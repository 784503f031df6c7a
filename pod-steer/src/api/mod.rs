//! The API: HTTP/JSON on a unix socket. It decides who may ask, and passes questions and orders to the daemon's loop.

pub mod client;
mod peer;
pub mod types;

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, Request, State, rejection::JsonRejection},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::stream;
use tokio::{
    net::UnixListener,
    sync::{broadcast, mpsc, oneshot},
};
use tracing::{error, warn};

use crate::daemon::{Ask, Input};
use peer::ConnectedPeer;
use types::{ErrorBody, EventRecord, ExecRequest, RegisterRequest, UnloadedBody};

/// What every request needs.
#[derive(Clone, Debug)]
pub struct Shared {
    /// To the daemon's loop.
    pub inputs: mpsc::Sender<Input>,
    /// Where events are told.
    pub events: broadcast::Sender<EventRecord>,
    /// The group whose members may use the API, besides root and the daemon's own user.
    pub group: Option<u32>,
}

/// Serves until `ended` resolves.
pub async fn serve(listener: UnixListener, shared: Shared, ended: oneshot::Receiver<()>) {
    let shared = Arc::new(shared);
    let app = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/events", get(events))
        .route("/v1/exec", post(exec))
        .route("/v1/register", post(register))
        .route("/v1/unload", post(unload))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), allowed))
        .with_state(shared);
    let service = app.into_make_service_with_connect_info::<ConnectedPeer>();
    let end = async { ended.await.unwrap_or_default() };
    if let Err(error) = axum::serve(listener, service).with_graceful_shutdown(end).await {
        error!(%error, "the API has ended; traffic goes on");
    }
}

type App = State<Arc<Shared>>;

/// The socket's mode says who may connect; this says it again where a wrong mode would be fatal.
async fn allowed(
    State(shared): App,
    ConnectInfo(peer): ConnectInfo<ConnectedPeer>,
    request: Request,
    next: Next,
) -> Response {
    if peer.may_use(shared.group) {
        return next.run(request).await;
    }
    warn!(peer = %peer, "refused a client of the API");
    refuse(StatusCode::FORBIDDEN, "only root and members of the configured group may use this socket")
}

fn refuse(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(ErrorBody { error: error.into() })).into_response()
}

async fn ask<T>(shared: &Shared, make: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Response> {
    let (sender, answer) = oneshot::channel();
    let ended = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending");
    shared.inputs.send(Input::Ask(make(sender))).await.map_err(|_| ended())?;
    answer.await.map_err(|_| ended())
}

fn answer<T: serde::Serialize>(asked: Result<Result<T, String>, Response>) -> Response {
    match asked {
        Ok(Ok(value)) => Json(value).into_response(),
        Ok(Err(error)) => refuse(StatusCode::UNPROCESSABLE_ENTITY, error),
        Err(response) => response,
    }
}

async fn status(State(shared): App) -> Response {
    answer(ask(&shared, Ask::Status).await.map(Ok))
}

async fn exec(
    State(shared): App,
    ConnectInfo(peer): ConnectInfo<ConnectedPeer>,
    body: Result<Json<ExecRequest>, JsonRejection>,
) -> Response {
    let Json(request) = match body {
        Ok(body) => body,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error.body_text()),
    };
    match peer.process() {
        Ok(peer) => answer(ask(&shared, |sender| Ask::Exec(request, peer, sender)).await),
        Err(error) => refuse(StatusCode::FORBIDDEN, format!("who asks cannot be known: {error}")),
    }
}

async fn register(
    State(shared): App,
    ConnectInfo(peer): ConnectInfo<ConnectedPeer>,
    body: Result<Json<RegisterRequest>, JsonRejection>,
) -> Response {
    let Json(request) = match body {
        Ok(body) => body,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error.body_text()),
    };
    match peer.process() {
        Ok(peer) => answer(ask(&shared, |sender| Ask::Register(request, peer, sender)).await),
        Err(error) => refuse(StatusCode::FORBIDDEN, format!("who asks cannot be known: {error}")),
    }
}

async fn unload(State(shared): App, ConnectInfo(peer): ConnectInfo<ConnectedPeer>) -> Response {
    if !peer.may_use(None) {
        return refuse(StatusCode::FORBIDDEN, "only root may unload");
    }
    let done = ask(&shared, Ask::Unload).await;
    answer(done.map(|done| done.map(|d| UnloadedBody { namespaces: d.namespaces, cgroups: d.cgroups, maps: d.maps })))
}

/// Events from now on, one JSON object a line, until the client goes.
async fn events(State(shared): App) -> Response {
    let receiver = shared.events.subscribe();
    let lines = stream::unfold(receiver, |mut receiver| async move {
        let record = match receiver.recv().await {
            Ok(record) => record,
            Err(broadcast::error::RecvError::Lagged(missed)) => EventRecord {
                time: jiff::Timestamp::now().to_string(),
                service: String::new(),
                backend: String::new(),
                event: "missed".to_owned(),
                detail: format!("{missed} events; this follower is too slow"),
            },
            Err(broadcast::error::RecvError::Closed) => return None,
        };
        let mut line = serde_json::to_vec(&record).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), receiver))
    });
    ([("content-type", "application/x-ndjson")], Body::from_stream(lines)).into_response()
}
