//! What clients ask the daemon's loop, and where the answers go.

use tokio::sync::oneshot;

use super::{
    caller::Peer,
    types::{ExecRequest, OperationStatus, RegisterRequest, Registered, Status},
};
use crate::{
    kernel::Unloaded,
    rollout::{Operation, Order},
};

/// Where an answer to `exec` or `register` goes.
pub type Answer = oneshot::Sender<Result<Registered, String>>;

/// A question or an order of a client; each is answered once.
pub enum Ask {
    /// What is going on?
    Status(oneshot::Sender<Status>),
    /// Make the asking process a backend.
    Exec(ExecRequest, Peer, Answer),
    /// Adopt a process that listens.
    Register(RegisterRequest, Answer),
    /// Do something with a service.
    Order(Box<OrderAsk>),
    /// What has become of an operation?
    Operation(u64, oneshot::Sender<Option<OperationStatus>>),
    /// What was ordered, of one service or all; the newest last. An error if the service is unknown.
    History(Option<String>, oneshot::Sender<Result<Vec<Operation>, String>>),
    /// Undo everything and end.
    Unload(oneshot::Sender<Result<Unloaded, String>>),
}

/// An order, and who gave it.
#[derive(Debug)]
pub struct OrderAsk {
    /// The service.
    pub service: String,
    /// What is to be done.
    pub order: Order,
    /// Who wants it, for people.
    pub who: String,
    /// Answered when it has taken effect for every client, or, if it takes its time, when it has begun.
    pub answer: oneshot::Sender<Result<Operation, OrderError>>,
}

/// Why an order is not carried out; one line each. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// It makes no sense.
    #[error("{0}")]
    Input(String),
    /// Another operator holds the service.
    #[error("{0}")]
    Held(String),
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
}
