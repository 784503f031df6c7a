//! The API: HTTP/JSON on a unix socket. It checks permissions (`gate`, `peer`) and passes requests to the daemon's loop.

mod alive;
mod answers;
mod asks;
mod caller;
pub mod client;
mod events;
mod gate;
pub mod live;
pub mod metrics;
pub mod openapi;
pub(crate) mod orders;
mod peer;
mod slots;
pub mod sockets;
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

/// Time limit for the body of a request.
const BODY_MAX: Duration = Duration::from_secs(10);
/// Maximum size of a body. An order that names thousands of networks is shorter.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Maximum length of an error that quotes a part of a body.
const ERROR_CHARS_MAX: usize = 300;

/// State shared by all requests.
#[derive(Debug)]
pub struct Shared {
    /// Requests to the daemon's loop.
    pub asks: mpsc::Sender<Ask>,
    /// Events of the daemon.
    pub events: broadcast::Sender<EventRecord>,
    /// The groups that may use the API.
    pub access: Access,
    /// Held while the loop answers a request of a viewer.
    viewing: Semaphore,
    /// Held by looks at sockets.
    looks: sockets::Looks,
}

impl Shared {
    /// An API that sends requests to `asks` and reads events from `events`.
    pub fn new(asks: mpsc::Sender<Ask>, events: broadcast::Sender<EventRecord>, access: Access) -> Self {
        Self { asks, events, access, viewing: Semaphore::new(1), looks: sockets::Looks::default() }
    }
}

/// Serves until `ended` resolves, and then completes the requests under way. Metrics are served on a TCP port too, if one is given.
pub async fn serve(
    listener: UnixListener,
    metrics: Option<metrics::Port>,
    shared: Shared,
    ended: oneshot::Receiver<()>,
) {
    let gate = Gate::new(listener, shared.access);
    let shared = Arc::new(shared);
    let scrapes = metrics.map(|port| tokio::spawn(metrics::serve(port, Arc::clone(&shared))));
    let (routes, _) = router().split_for_parts();
    let app = routes
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is no such endpoint; see GET /v1/openapi.json") })
        .method_not_allowed_fallback(|| async {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "this endpoint has no such method; see GET /v1/openapi.json")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), allowed))
        .with_state(shared);
    gate.serve(app, ended).await;
    if let Some(scrapes) = scrapes {
        scrapes.abort();
    }
}

/// Every endpoint, with its description.
fn router() -> OpenApiRouter<Arc<Shared>> {
    OpenApiRouter::with_openapi(openapi::Frame::openapi())
        .routes(routes!(status))
        .routes(routes!(live::live))
        .routes(routes!(sockets::sockets))
        .routes(routes!(metrics::metrics))
        .routes(routes!(events::events))
        .routes(routes!(orders::order))
        .routes(routes!(orders::operation))
        .routes(routes!(orders::history))
        .routes(routes!(exec))
        .routes(routes!(register))
        .routes(routes!(unload))
        .routes(routes!(openapi::openapi))
        .routes(routes!(openapi::root))
}

type App = State<Arc<Shared>>;

/// Refuses orders of viewers, and passes one request of a viewer at a time to the daemon's loop. Reads the body of an order within its
/// limits. The gate admits no client without a role.
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
            "this user may only read; run the command as root, or as a member of the group given by `pod-steer run --group`",
        ),
    }
}

/// Reads the whole body of a request, within the time and size limits.
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

/// Escapes control characters in an error, which may quote the request.
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

/// Services, their backends and states, and the decisions about them
#[utoipa::path(get, path = "/v1/status", responses((status = 200, description = "The current status", body = Status)))]
async fn status(State(shared): App) -> Response {
    answer(ask(&shared, Ask::Status).await.map(Ok))
}

/// Make the process at the other end of this connection a backend
#[utoipa::path(
    post, path = "/v1/exec", request_body = ExecRequest,
    responses(
        (status = 200, description = "The process is a backend and is in its cgroup", body = Registered),
        (status = 400, description = "The request cannot be parsed", body = ErrorBody),
        (status = 403, description = "This user may only read", body = ErrorBody),
        (status = 422, description = "The request is invalid; nothing was changed", body = ErrorBody),
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

/// Make a backend of a process that already listens
#[utoipa::path(
    post, path = "/v1/register", request_body = RegisterRequest,
    responses(
        (status = 200, description = "The process is a backend", body = Registered),
        (status = 400, description = "The request cannot be parsed", body = ErrorBody),
        (status = 403, description = "This user may only read", body = ErrorBody),
        (status = 422, description = "The request is invalid; nothing was changed", body = ErrorBody),
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
        (status = 200, description = "Everything is removed; the daemon exits", body = UnloadedBody),
        (status = 403, description = "This user may only read", body = ErrorBody),
        (status = 422, description = "Unloading failed", body = ErrorBody),
    ),
)]
async fn unload(State(shared): App) -> Response {
    answer(ask(&shared, Ask::Unload).await)
}
