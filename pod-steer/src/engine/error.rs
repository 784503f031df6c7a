//! Errors of an engine, whatever its protocol is.

use std::{error::Error, io, time::Duration};

/// Why an engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Its socket cannot be connected to.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The time limit has passed.
    #[error("no answer (timed out after {} s)", .0.as_secs())]
    Timeout(Duration),
    /// The connection broke off.
    #[error("the connection broke off: {0}")]
    Broken(Box<dyn Error + Send + Sync>),
    /// The container or image does not exist; the engine's message.
    #[error("{0}")]
    NotFound(String),
    /// The container is not in a state for that; the engine's message.
    #[error("{0}")]
    Conflict(String),
    /// The engine refuses the request for another reason; its message.
    #[error("{0}")]
    Refused(String),
    /// The answer exceeds its maximum length.
    #[error("{what} is longer than {max} bytes, so the rest was not read; see the engine's log")]
    TooLong {
        /// The answer.
        what: String,
        /// Its maximum length.
        max: usize,
    },
    /// The answer cannot be parsed.
    #[error("cannot parse the answer to {what}: {reason}")]
    Unreadable {
        /// The request.
        what: String,
        /// The parse error, escaped for output.
        reason: String,
    },
    /// More containers than can be followed.
    #[error("it has more than {0} containers with pod-steer labels; remove some of the containers, or their labels")]
    TooMany(usize),
}

/// Why a container was not stopped or started.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Undone {
    /// The error, and what to do.
    pub message: String,
    /// The engine has not answered.
    pub is_without_answer: bool,
}

impl EngineError {
    /// True if the engine has answered, and only this answer cannot be used.
    pub fn is_of_one_answer(&self) -> bool {
        matches!(self, Self::TooLong { .. } | Self::Unreadable { .. })
    }

    /// True if the engine has not answered: it may be restarted just now, and is to be asked again.
    pub fn is_without_answer(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Timeout(_) | Self::Broken(_))
    }

    /// True if the engine has answered that it does not do this.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::NotFound(_) | Self::Conflict(_) | Self::Refused(_))
    }
}
