//! The daemon's answers so far, and since when there has been none.

use std::{path::Path, time::Duration};

use tokio::time::Instant;

use super::{board::Board, sample::History};
use crate::api::{
    client::{self, ClientError},
    live::Live,
};

/// Asks the daemon once.
pub(in crate::cli) async fn ask(socket: &Path) -> Result<Live, ClientError> {
    client::get(socket, "/v1/live").await
}

/// The wall clock, in milliseconds since 1970.
pub(in crate::cli) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// The answers so far.
#[derive(Debug)]
pub(in crate::cli) struct Answers {
    begun: Instant,
    history: History,
    /// What the last one shows.
    pub board: Board,
}

impl Answers {
    /// Begins with the first answer.
    pub(in crate::cli) fn new(live: Live) -> Self {
        let (begun, mut history) = (Instant::now(), History::default());
        history.add(Duration::ZERO, &live.status);
        let board = Board::new(live, &history, now_ms());
        Self { begun, history, board }
    }

    /// Adds an answer that has just come.
    pub(in crate::cli) fn add(&mut self, live: Live) {
        self.history.add(self.begun.elapsed(), &live.status);
        self.board = Board::new(live, &self.history, now_ms());
    }
}

/// Why the daemon does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Away {
    /// Since when, in milliseconds since 1970.
    pub since_ms: i64,
    /// The error.
    pub reason: String,
}

impl Away {
    /// After another failure: since the first of them.
    pub(in crate::cli) fn after(before: Option<&Self>, error: &ClientError) -> Self {
        Self { since_ms: before.map_or_else(now_ms, |away| away.since_ms), reason: error.to_string() }
    }
}
