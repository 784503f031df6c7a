//! What the daemon tells for metrics beside its status.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::totals::{ServiceTotals, Totals};
use crate::{ids::BackendId, listening::TurnedAway};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Counted for the daemon as a whole.
    pub totals: Totals,
    /// Counted by service.
    pub services: Vec<ServiceTotals>,
    /// The engines by their addresses, and whether each can be reached.
    pub engines: BTreeMap<String, bool>,
    /// The accept queues of each backend.
    pub queues: BTreeMap<BackendId, Queues>,
    /// Packets that the listeners of a backend have dropped; nothing of those that have dropped none.
    pub drops: BTreeMap<BackendId, u64>,
    /// By the `DEVICE:INODE` of a network namespace with listeners of backends: the clients that were turned away there.
    pub namespaces: BTreeMap<String, TurnedAway>,
    /// What the kernel programs could not report.
    pub lost: Lost,
}

/// What the kernel programs could not report to the daemon, because a map was full. It finds out otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Events.
    pub events: u64,
    /// Descriptions of sockets.
    pub descriptions: u64,
}

/// The accept queues of a backend's listeners.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Queues {
    /// Connections that wait to be accepted.
    pub length: u64,
    /// How many may wait: the sum of the backlogs.
    pub limit: u64,
    /// How full the fullest of them is; 1 if it takes no more.
    pub usage: f64,
}

impl Queues {
    /// Adds the queue of a listener. The kernel lets one more connection than the backlog wait.
    pub fn add(&mut self, waiting: u32, backlog: u32) {
        self.length += u64::from(waiting);
        self.limit += u64::from(backlog);
        self.usage = self.usage.max(f64::from(waiting) / (f64::from(backlog) + 1.0));
    }

    /// These and others together.
    pub fn and(self, other: Self) -> Self {
        Self { length: self.length + other.length, limit: self.limit + other.limit, usage: self.usage.max(other.usage) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_queue_of_a_backend_counts() {
        let mut queues = Queues::default();
        queues.add(1, 127);
        queues.add(4, 3);
        assert_eq!(queues, Queues { length: 5, limit: 130, usage: 1.0 });
        assert_eq!(Queues::default().and(queues), queues);
    }
}
