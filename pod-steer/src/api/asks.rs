//! Requests of clients to the daemon's loop, with their reply channels.

use tokio::sync::oneshot;

use super::{
    caller::Peer,
    metrics::measured::Measured,
    sockets::SocketsAsk,
    types::{ExecRequest, OperationStatus, RegisterRequest, Registered, Status, UnloadedBody},
};
use crate::rollout::{Operation, Order};

/// Reply channel of `exec` and `register`.
pub type Answer = oneshot::Sender<Result<Registered, String>>;

/// A request of a client. Each is answered once.
pub enum Ask {
    /// Get the status.
    Status(oneshot::Sender<Status>),
    /// Get the listening sockets of backends.
    Sockets(SocketsAsk),
    /// Get what metrics have beside the status.
    Measured(oneshot::Sender<Measured>),
    /// Make the calling process a backend.
    Exec(ExecRequest, Peer, Answer),
    /// Make a backend of a process that already listens.
    Register(RegisterRequest, Answer),
    /// Carry out an order.
    Order(Box<OrderAsk>),
    /// Get the progress of an operation.
    Operation(u64, oneshot::Sender<Option<OperationStatus>>),
    /// Get past operations of one service or all, newest last. An error if the service is unknown.
    History(Option<String>, oneshot::Sender<Result<Vec<Operation>, String>>),
    /// Undo everything and exit.
    Unload(oneshot::Sender<Result<UnloadedBody, String>>),
}

/// An order and its operator.
#[derive(Debug)]
pub struct OrderAsk {
    /// The service.
    pub service: String,
    /// The order.
    pub order: Order,
    /// The operator, for messages.
    pub who: String,
    /// Answered when the order has taken effect for every client. A deploy or canary is answered when it has begun.
    pub answer: oneshot::Sender<Result<Operation, OrderError>>,
}

/// Why an order was refused, in one line. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// The order is invalid.
    #[error("{0}")]
    Input(String),
    /// Another operation on the service is running.
    #[error("{0}")]
    Held(String),
    /// The order failed.
    #[error("{0}")]
    Failed(String),
}
