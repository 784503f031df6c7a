//! What the loop is told and asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::sync::oneshot;

use super::Peer;
use crate::{
    api::types::{ExecRequest, OperationStatus, RegisterRequest, Registered, Status},
    engine::EngineInput,
    kernel::Unloaded,
    rollout::{Operation, Order},
    world::BackendId,
};

/// A message for the loop.
pub enum Input {
    /// From a container engine.
    Engine(EngineInput),
    /// From a client of the API.
    Ask(Ask),
    /// Sockets of a backend that had just begun to listen were looked at.
    Inspected {
        /// The backend.
        id: BackendId,
        /// What was found, by cookie; nothing of those that were not seen.
        found: BTreeMap<u64, Option<super::inspections::Inspection>>,
        /// How long the look took.
        took: Duration,
    },
    /// Sockets that listened before their backend was managed.
    Found {
        /// The backend.
        id: BackendId,
        /// The sockets, held open until they are registered; nothing if the search failed.
        sockets: Option<Vec<crate::procs::FoundSocket>>,
    },
    /// The listeners of a namespace were enumerated.
    Listeners {
        /// Cookie of the namespace.
        netns_cookie: u64,
        /// All of them.
        listeners: Vec<crate::listening::Listener>,
    },
    /// The accept queues of some namespaces were looked at: by the cookie of each, the listeners whose queue
    /// is full.
    AcceptQueues(Vec<(u64, Vec<super::accept_queues::FullQueue>)>),
    /// The ports that no socket uses, by the cookie of their namespace.
    Idle(Vec<(u64, BTreeSet<u16>)>),
    /// A process that is to be registered was looked at.
    Registering(Box<super::register::Registration>),
    /// A container that ran before it was managed was looked at.
    Surveyed(Box<super::survey::Survey>),
    /// On which ports a backend listens that does not listen where it should.
    Elsewhere {
        /// The backend.
        id: BackendId,
        /// The ports; nothing if the look failed.
        ports: Option<BTreeSet<u16>>,
    },
    /// What is believed of a backend's health has changed.
    Probed {
        /// The backend.
        id: BackendId,
        /// The number of the checker that says so.
        number: u64,
        /// What is believed.
        verdict: crate::health::Verdict,
    },
    /// Engines have had their time to answer at the start.
    EnginesLate,
    /// A process that is followed has ended.
    Ended {
        /// The backend.
        id: BackendId,
        /// The process.
        process: crate::procs::ProcessId,
    },
    /// The settings were read again; or why not.
    SettingsRead(Result<Box<crate::config::RunConfig>, String>),
    /// Which processes hold listeners was looked at.
    Held(super::holders::Answers),
    /// Nobody can be using the former tables of a service any more.
    Settled(String),
    /// Packets that the listeners of a backend have dropped so far.
    Dropped {
        /// The backend.
        id: BackendId,
        /// How many.
        dropped: u64,
    },
    /// The connections of registered backends were counted.
    Counted {
        /// The generation that they were counted for.
        generation: u64,
        /// By backend.
        counts: super::counted::Counts,
    },
    /// A namespace is steered in now, or cannot be.
    Attached {
        /// Its cookie.
        cookie: u64,
        /// Why not.
        result: Result<(), String>,
    },
}

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
    /// Somebody else holds the service.
    #[error("{0}")]
    Held(String),
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
}
