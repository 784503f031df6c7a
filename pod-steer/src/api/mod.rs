//! The API: HTTP/JSON on a unix socket. It decides who may ask (`gate`, `peer`), and passes questions and orders to the
//! daemon's loop.

mod alive;
mod answers;
mod asks;
mod caller;
pub mod client;
mod events;
mod gate;
pub mod openapi;
pub(crate) mod orders;
mod peer;
mod slots;
#[cfg(test)]
pub(crate) mod tests;
pub mod types;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::{Request, State, rejection::JsonRejection},
    http::{Method, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tokio::{
    net::UnixListener,
    sync::{Semaphore, broadcast, mpsc, oneshot},
    time::timeout,
};
use utoipa::OpenApi as _;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    bounded::{self, Unread},
    text::{shown, visible},
};
pub use asks::{Answer, Ask, OrderAsk, OrderError};
pub use caller::Peer;
use gate::Gate;
pub use peer::Access;
use peer::{ConnectedPeer, Role};
use types::{ErrorBody, EventRecord, ExecRequest, RegisterRequest, Registered, Status, UnloadedBody};

/// How long the body of a request may take to arrive.
const BODY_MAX: Duration = Duration::from_secs(10);
/// Most bytes of a body: an order that names thousands of networks is shorter.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Most characters of an error that repeats a part of a body.
const ERROR_CHARS_MAX: usize = 300;

/// What every request needs.
#[derive(Debug)]
pub struct Shared {
    /// To the daemon's loop.
    pub asks: mpsc::Sender<Ask>,
    /// Where events are told.
    pub events: broadcast::Sender<EventRecord>,
    /// Who may use the API.
    pub access: Access,
    /// Held while a viewer's question is answered.
    viewing: Semaphore,
}

impl Shared {
    /// With a way to the daemon's loop, one to its events, and who may use them.
    pub fn new(asks: mpsc::Sender<Ask>, events: broadcast::Sender<EventRecord>, access: Access) -> Self {
        Self { asks, events, access, viewing: Semaphore::new(1) }
    }
}

/// Serves until `ended` resolves, and then until the last answer is given.
pub async fn serve(listener: UnixListener, shared: Shared, ended: oneshot::Receiver<()>) {
    let gate = Gate::new(listener, shared.access);
    let shared = Arc::new(shared);
    let (routes, _) = router().split_for_parts();
    let app = routes
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is no such endpoint; see GET /v1/openapi.json") })
        .method_not_allowed_fallback(|| async {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "this endpoint has no such method; see GET /v1/openapi.json")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), allowed))
        .with_state(shared);
    gate.serve(app, ended).await;
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

/// A viewer may read and nothing else, and one viewer's question at a time reaches the daemon's loop. The body of an order is
/// read here, within its limits. The gate has let in no client without a role.
async fn allowed(
    State(shared): App,
    Extension(peer): Extension<ConnectedPeer>,
    request: Request,
    next: Next,
) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match peer.role() {
        Some(Role::Operator) if reads => next.run(request).await,
        Some(Role::Operator) => match with_body(request).await {
            Ok(request) => next.run(request).await,
            Err(response) => response,
        },
        _ if reads => {
            let _turn = shared.viewing.acquire().await;
            next.run(request).await
        }
        _ => refuse(
            StatusCode::FORBIDDEN,
            "this user may only read; run the command as root, or join the group that `pod-steer run --group` names",
        ),
    }
}

/// A request with its whole body, which has to come in time and may not be too long.
async fn with_body(request: Request) -> Result<Request, Response> {
    let (head, body) = request.into_parts();
    match timeout(BODY_MAX, bounded::read(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => Ok(Request::from_parts(head, bytes.into())),
        Ok(Err(Unread::TooLong)) => {
            Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {BODY_BYTES_MAX} bytes")))
        }
        Ok(Err(Unread::Broken(error))) => {
            Err(refuse(StatusCode::BAD_REQUEST, format!("cannot read the body: {}", crate::chain(&error))))
        }
        Err(_) => {
            let message = format!("the body did not arrive within {} s", BODY_MAX.as_secs());
            Err(refuse(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

/// Whatever was asked, the answer moves no cursor and changes no colour of a terminal.
fn refuse(status: StatusCode, error: impl Into<String>) -> Response {
    let error = error.into().lines().map(visible).collect::<Vec<_>>().join("\n");
    (status, Json(ErrorBody { error })).into_response()
}

/// A path, a query or a body that cannot be decoded.
fn misread(error: &str) -> Response {
    refuse(StatusCode::BAD_REQUEST, shown(error, ERROR_CHARS_MAX))
}

async fn ask<T>(shared: &Shared, make: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Response> {
    let (sender, answer) = oneshot::channel();
    let ended = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending");
    shared.asks.send(make(sender)).await.map_err(|_| ended())?;
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
        (status = 403, description = "This user may only read", body = ErrorBody),
        (status = 422, description = "It makes no sense; nothing was changed", body = ErrorBody),
    ),
)]
async fn exec(
    State(shared): App,
    Extension(peer): Extension<ConnectedPeer>,
    body: Result<Json<ExecRequest>, JsonRejection>,
) -> Response {
    let Json(request) = match body {
        Ok(body) => body,
        Err(error) => return misread(&error.body_text()),
    };
    match peer.process() {
        Ok(peer) => answer(ask(&shared, |sender| Ask::Exec(request, peer, sender)).await),
        Err(error) => refuse(StatusCode::FORBIDDEN, format!("the asking process cannot be identified: {error}")),
    }
}

/// Adopt a process that listens
#[utoipa::path(
    post, path = "/v1/register", request_body = RegisterRequest,
    responses(
        (status = 200, description = "It is a backend", body = Registered),
        (status = 400, description = "It is not understood", body = ErrorBody),
        (status = 403, description = "This user may only read", body = ErrorBody),
        (status = 422, description = "It makes no sense; nothing was changed", body = ErrorBody),
    ),
)]
async fn register(State(shared): App, body: Result<Json<RegisterRequest>, JsonRejection>) -> Response {
    match body {
        Ok(Json(request)) => answer(ask(&shared, |sender| Ask::Register(request, sender)).await),
        Err(error) => misread(&error.body_text()),
    }
}

/// End all steering and leave nothing behind
#[utoipa::path(
    post, path = "/v1/unload",
    responses(
        (status = 200, description = "It is done, and the daemon ends", body = UnloadedBody),
        (status = 403, description = "This user may only read", body = ErrorBody),
        (status = 422, description = "It failed", body = ErrorBody),
    ),
)]
async fn unload(State(shared): App) -> Response {
    let done = ask(&shared, Ask::Unload).await;
    answer(done.map(|done| done.map(|d| UnloadedBody { namespaces: d.namespaces, cgroups: d.cgroups, maps: d.maps })))
}
