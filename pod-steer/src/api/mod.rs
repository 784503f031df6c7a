//! The API: HTTP/JSON on a unix socket. It decides who may ask, and passes questions and orders to the daemon's loop.

mod alive;
pub mod client;
mod events;
pub mod openapi;
mod orders;
mod peer;
#[cfg(test)]
pub(crate) mod tests;
pub mod types;

use std::sync::Arc;

use axum::{
    Json,
    extract::{ConnectInfo, Request, State, rejection::JsonRejection},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tokio::{
    net::UnixListener,
    sync::{broadcast, mpsc, oneshot},
};
use tracing::{error, warn};
use utoipa::OpenApi as _;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::daemon::{Ask, Input};
use peer::ConnectedPeer;
use types::{ErrorBody, EventRecord, ExecRequest, RegisterRequest, Registered, Status, UnloadedBody};

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
    let (routes, _) = router().split_for_parts();
    let app = routes
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is no such endpoint; see GET /v1/openapi.json") })
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), allowed))
        .with_state(shared);
    let service = app.into_make_service_with_connect_info::<ConnectedPeer>();
    let end = async { ended.await.unwrap_or_default() };
    if let Err(error) = axum::serve(listener, service).with_graceful_shutdown(end).await {
        error!(%error, "the API has ended; traffic goes on");
    }
}

/// Every endpoint, with its description.
fn router() -> OpenApiRouter<Arc<Shared>> {
    OpenApiRouter::with_openapi(openapi::Frame::openapi())
        .routes(routes!(status))
        .routes(routes!(events::events))
        .routes(routes!(orders::order))
        .routes(routes!(orders::operation))
        .routes(routes!(orders::history))
        .routes(routes!(exec))
        .routes(routes!(register))
        .routes(routes!(unload))
        .routes(routes!(openapi::openapi))
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

/// Services, their backends, what they do and what was decided about them
#[utoipa::path(get, path = "/v1/status", responses((status = 200, description = "Now", body = Status)))]
async fn status(State(shared): App) -> Response {
    answer(ask(&shared, Ask::Status).await.map(Ok))
}

/// Make the process at the other end of this connection a backend
#[utoipa::path(
    post, path = "/v1/exec", request_body = ExecRequest,
    responses(
        (status = 200, description = "It is in its cgroup", body = Registered),
        (status = 400, description = "It is not understood", body = ErrorBody),
        (status = 403, description = "This user may not", body = ErrorBody),
        (status = 422, description = "It makes no sense; nothing was changed", body = ErrorBody),
    ),
)]
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

/// Adopt a process that listens
#[utoipa::path(
    post, path = "/v1/register", request_body = RegisterRequest,
    responses(
        (status = 200, description = "It is a backend", body = Registered),
        (status = 400, description = "It is not understood", body = ErrorBody),
        (status = 403, description = "This user may not", body = ErrorBody),
        (status = 422, description = "It makes no sense; nothing was changed", body = ErrorBody),
    ),
)]
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

/// End all steering and leave nothing behind; for root alone
#[utoipa::path(
    post, path = "/v1/unload",
    responses(
        (status = 200, description = "It is done, and the daemon ends", body = UnloadedBody),
        (status = 403, description = "This user may not", body = ErrorBody),
        (status = 422, description = "It failed", body = ErrorBody),
    ),
)]
async fn unload(State(shared): App, ConnectInfo(peer): ConnectInfo<ConnectedPeer>) -> Response {
    if !peer.may_use(None) {
        return refuse(StatusCode::FORBIDDEN, "only root may unload");
    }
    let done = ask(&shared, Ask::Unload).await;
    answer(done.map(|done| done.map(|d| UnloadedBody { namespaces: d.namespaces, cgroups: d.cgroups, maps: d.maps })))
}
