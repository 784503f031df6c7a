//! The counts of clients.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::connection::{End, Loss};

/// If there are more servers, only their number is shown.
const NAMES_SHOWN_MAX: usize = 8;

/// Every connection of a load, exactly once: `connections() == answered() + losses.len()`.
#[derive(Debug, Default)]
pub struct Tally {
    /// Answered connections by the server's name.
    pub by_name: BTreeMap<String, u64>,
    /// Answered requests by the server's name.
    pub requests_by_name: BTreeMap<String, u64>,
    /// Connections without an answer, with the time since the load began.
    pub losses: Vec<(Duration, Loss)>,
    /// Answers in which the server saw another peer address than the client's: the address was rewritten on the way.
    pub disguised: Vec<(SocketAddr, SocketAddr)>,
    /// Every answered connection, of a load that was told to log them.
    pub log: Vec<Logged>,
}

/// An answered connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Just before `connect` was called.
    pub began: Instant,
    /// When the last answer had come.
    pub ended: Instant,
    /// The server that answered.
    pub name: String,
}

impl Tally {
    pub(super) fn add(&mut self, end: End, at: Duration) {
        match end {
            End::Answered(answer) => {
                *self.by_name.entry(answer.name.clone()).or_default() += 1;
                *self.requests_by_name.entry(answer.name).or_default() += u64::from(answer.requests);
                if let Some(peer) = answer.peer
                    && peer != answer.local
                {
                    self.disguised.push((answer.local, peer));
                }
            }
            End::Lost(loss, before) => {
                if let Some(answer) = before {
                    *self.requests_by_name.entry(answer.name).or_default() += u64::from(answer.requests);
                }
                self.losses.push((at, loss));
            }
        }
    }

    /// Adds the counts of another load.
    pub fn merge(&mut self, other: Self) {
        for (name, n) in other.by_name {
            *self.by_name.entry(name).or_default() += n;
        }
        for (name, n) in other.requests_by_name {
            *self.requests_by_name.entry(name).or_default() += n;
        }
        self.losses.extend(other.losses);
        self.disguised.extend(other.disguised);
        self.log.extend(other.log);
    }

    /// Connections in all.
    pub fn connections(&self) -> u64 {
        self.answered() + self.losses.len() as u64
    }

    /// Answered connections.
    pub fn answered(&self) -> u64 {
        self.by_name.values().sum()
    }

    /// Requests in all: answered ones, and one for each lost connection.
    pub fn requests(&self) -> u64 {
        self.requests_by_name.values().sum::<u64>() + self.losses.len() as u64
    }

    /// Connections that one server answered.
    pub fn answered_by(&self, name: &str) -> u64 {
        self.by_name.get(name).copied().unwrap_or(0)
    }

    /// Losses of one kind.
    pub fn lost(&self, kind: impl Fn(&Loss) -> bool) -> usize {
        self.losses.iter().filter(|(_, loss)| kind(loss)).count()
    }

    /// Refused connections.
    pub fn refused(&self) -> usize {
        self.lost(|loss| matches!(loss, Loss::Refused))
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reset_before = self.lost(|loss| matches!(loss, Loss::ResetBefore(_)));
        let reset_after = self.lost(|loss| matches!(loss, Loss::ResetAfter(_)));
        let timed_out = self.lost(|loss| matches!(loss, Loss::ConnectTimedOut | Loss::AnswerTimedOut(_)));
        let other = self.lost(|loss| matches!(loss, Loss::Garbled(..) | Loss::Rejected | Loss::Failed(_)));
        write!(f, "{} connections, {} answered by ", self.connections(), self.answered())?;
        match self.by_name.len() {
            ..=NAMES_SHOWN_MAX => write!(f, "{:?}, ", self.by_name)?,
            servers => write!(f, "{servers} servers, ")?,
        }
        write!(f, "{} refused, {reset_before} reset before an answer, ", self.refused())?;
        write!(f, "{reset_after} reset after, {timed_out} timed out, {other} other")?;
        if !self.disguised.is_empty() {
            let first = &self.disguised[..self.disguised.len().min(5)];
            write!(f, "; {} seen as another peer, the first ones as {first:?}", self.disguised.len())?;
        }
        // A few examples are more useful than a number or a list of thousands.
        if !self.losses.is_empty() {
            write!(f, "; first losses {:?}", &self.losses[..self.losses.len().min(5)])?;
        }
        Ok(())
    }
}
