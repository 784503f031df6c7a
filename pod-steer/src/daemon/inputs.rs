//! What the loop is told and asked.

use std::os::fd::OwnedFd;

use rustix::net::UCred;
use tokio::sync::oneshot;

use crate::{
    api::types::{ExecRequest, RegisterRequest, Registered, Status},
    engine::EngineInput,
    kernel::{KernelError, Unloaded},
    world::BackendId,
};

/// A message for the loop.
pub enum Input {
    /// From a container engine.
    Engine(EngineInput),
    /// From a client of the API.
    Ask(Ask),
    /// A socket that had just begun to listen was looked at.
    Inspected {
        /// Its cookie.
        cookie: u64,
        /// What was found; nothing if it was gone already.
        found: Option<super::sockets::Inspection>,
    },
    /// Sockets that listened before their backend was managed.
    Found {
        /// Index of the backend.
        index: u32,
        /// The sockets, held open until they are registered.
        sockets: Vec<crate::procs::FoundSocket>,
    },
    /// An adopted process has ended.
    Ended(BackendId),
    /// A namespace is steered in now, or cannot be.
    Attached {
        /// Its cookie.
        cookie: u64,
        /// Why not.
        result: Result<(), KernelError>,
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
    Register(RegisterRequest, Peer, Answer),
    /// Undo everything and end.
    Unload(oneshot::Sender<Result<Unloaded, String>>),
}

/// The process that asks.
#[derive(Debug)]
pub struct Peer {
    /// Its pid, user and group when it connected.
    pub cred: UCred,
    /// A pidfd that the kernel gave for the connection (Linux 6.5), which no other process can slip into.
    pub pidfd: Option<OwnedFd>,
}
