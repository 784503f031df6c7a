//! `GET /v1/sockets`: the listening sockets of backends, and on request their connections.
//!
//! A look walks through processes and namespaces, so one look for operators and one for viewers run at a time. The work itself holds the
//! permit: a client that hangs up gives its place to the next one only when its look has stopped.

#[cfg(test)]
mod tests;
mod types;

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    Ask, Shared, ask, misread,
    peer::{ConnectedPeer, Role},
    refuse,
    types::ErrorBody,
};
pub use types::{
    BackendConnections, ConnectionStatus, OtherSocket, SocketNamespace, SocketProcess, SocketRole, SocketStatus,
    Sockets, SocketsQuery,
};

const NO_CONNECTIONS: &str = "this user may not list connections, which tell the addresses of clients; run the command as root, or as a \
                              member of the group given by `pod-steer run --group`";

/// A request for sockets.
#[derive(Debug)]
pub struct SocketsAsk {
    /// Selects the sockets.
    pub query: SocketsQuery,
    /// Whether processes and users are part of the answer.
    pub with_processes: bool,
    /// Held until the look has ended.
    pub turn: OwnedSemaphorePermit,
    /// Gets the JSON of [`Sockets`], or an error if there is no such service or backend. Closed when the client hangs up.
    pub answer: oneshot::Sender<Result<Vec<u8>, String>>,
}

/// The places of looks: one for operators and one for viewers, so that viewers delay no operator.
#[derive(Debug)]
pub(super) struct Looks {
    operators: Arc<Semaphore>,
    viewers: Arc<Semaphore>,
}

impl Default for Looks {
    fn default() -> Self {
        let one = || Arc::new(Semaphore::new(1));
        Self { operators: one(), viewers: one() }
    }
}

impl Looks {
    /// Waits until a look of this role may begin. `None` if the daemon is ending.
    async fn turn(&self, is_operator: bool) -> Option<OwnedSemaphorePermit> {
        let own = if is_operator { &self.operators } else { &self.viewers };
        Arc::clone(own).acquire_owned().await.ok()
    }
}

/// The listening sockets of backends: tables, processes and queues; with `live=true` also their connections
#[utoipa::path(
    get, path = "/v1/sockets",
    params(
        ("service" = Option<String>, Query, description = "Only this service"),
        ("backend" = Option<String>, Query, description = "Only this backend: its name, or the beginning of its id"),
        ("live" = Option<bool>, Query, description = "List established connections too; for operators only"),
    ),
    responses(
        (status = 200, description = "The sockets; viewers get no processes and no users", body = Sockets),
        (status = 400, description = "The request cannot be parsed", body = ErrorBody),
        (status = 403, description = "This user may not list connections", body = ErrorBody),
        (status = 404, description = "There is no such service or backend", body = ErrorBody),
    ),
)]
pub(super) async fn sockets(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<ConnectedPeer>,
    query: Result<Query<SocketsQuery>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(error) => return misread(&error.body_text()),
    };
    let is_operator = peer.role() == Some(Role::Operator);
    if query.live && !is_operator {
        return refuse(StatusCode::FORBIDDEN, NO_CONNECTIONS);
    }
    let Some(turn) = shared.looks.turn(is_operator).await else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending");
    };
    let make = |answer| Ask::Sockets(SocketsAsk { query, with_processes: is_operator, turn, answer });
    match ask(&shared, make).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Ok(Err(error)) => refuse(StatusCode::NOT_FOUND, error),
        Err(response) => response,
    }
}
