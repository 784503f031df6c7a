//! What a single backend is asked, without the rest of the world.

use super::{Backend, BackendId, Health, Kind, Network, Phase, Socket};
use crate::labels::Spec;

impl Backend {
    /// A backend of which nothing else is known. Its name is its id until it has another.
    pub fn new(id: impl Into<BackendId>, kind: Kind, index: u32, spec: Spec) -> Self {
        let id = id.into();
        Self {
            name: id.clone(),
            id,
            kind,
            index,
            created_ms: 0,
            seen: 0,
            seen_after: None,
            spec,
            phase: Phase::Created,
            health: Health::Unchecked,
            probed: Health::Unchecked,
            ready_since_ms: None,
            network: Network::Unknown,
            netns: None,
            stop_signal: None,
            stop_timeout_s: None,
            stop_by_ms: None,
            process: None,
            exec_cgroup: None,
            inherited: Default::default(),
            counts_incomplete: false,
            image: None,
            port_history: Default::default(),
            troubles: Default::default(),
        }
    }

    /// Sorts backends by their age, the oldest first.
    pub(crate) fn age(&self) -> (u64, i64, &str) {
        (self.seen, self.created_ms, &self.id)
    }

    /// Whether clients of its service can be given to this socket of it; one for health checks alone serves no client.
    pub(crate) fn serves_by(&self, socket: &Socket) -> bool {
        self.spec.ports.iter().any(|map| map.target == socket.port)
    }
}
