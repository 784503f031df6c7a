//! The backend that owns a listener, if several backends hold it.

use serde::{Deserialize, Serialize};

use super::{Backend, Phase, World};
use crate::{ids::BackendIndex, ports::Port, process::ProcessId};

/// The init process, of which any other process may become a child.
const INIT: i32 = 1;

/// A process whose listeners belong to a backend, wherever the process moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// The process.
    pub id: ProcessId,
    /// Its effective user when it became a backend.
    pub uid: u32,
    /// Whether it is older than the process that it replaces, as a socket activator is. Then it only holds the
    /// listener, and its other children are not part of the backend.
    #[serde(default)]
    pub holds_only: bool,
}

impl Followed {
    /// The process that takes the place of this one, once this one has ended.
    pub fn succeeded_by(self, id: ProcessId) -> Self {
        let holds_only = id.pid == INIT || id.start <= self.id.start;
        Self { id, holds_only, ..self }
    }
}

impl World {
    /// The backend that owns a listener, of the backends with these indices, whose processes hold it. A running backend
    /// comes before one that was told to stop or is frozen; then one that serves by the listener itself; then one of
    /// the service that the listener belonged to; then the oldest. A backend that does not use the port, or that has
    /// ended, never owns it.
    pub fn holder<'a>(&'a self, indices: &[BackendIndex], port: Port, service: Option<&str>) -> Option<&'a Backend> {
        let rank = |backend: &'a Backend| {
            let of_another = service.is_some_and(|service| service != backend.spec.service);
            let holds_only = backend.process.is_some_and(|process| process.holds_only);
            (backend.phase != Phase::Running, holds_only, of_another, backend.age())
        };
        let holders = self.backends.values().filter(|backend| indices.contains(&backend.index));
        let alive = holders.filter(|backend| !matches!(backend.phase, Phase::Created | Phase::Exited));
        let wanting = alive.filter(|backend| self.configured.listening_ports(&backend.spec).contains(&port));
        wanting.min_by(|one, other| rank(one).cmp(&rank(other)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::tests::{backend, world};

    fn holder(change: impl FnOnce(&mut Vec<Backend>), indices: &[u32], service: Option<&str>) -> Option<u32> {
        let mut backends =
            vec![backend(0, "web", "80:8080"), backend(1, "web", "80:8080"), backend(2, "api", "90:8080")];
        for (age, backend) in backends.iter_mut().enumerate() {
            backend.seen = age as u64;
        }
        change(&mut backends);
        let indices: Vec<BackendIndex> = indices.iter().copied().map(BackendIndex).collect();
        world(backends, []).holder(&indices, Port::tcp(8080), service).map(|backend| backend.index.0)
    }

    #[test]
    fn the_oldest_holder_of_the_service_serves() {
        assert_eq!(holder(|_| {}, &[1, 0, 2], Some("web")), Some(0));
        assert_eq!(holder(|_| {}, &[1, 2], Some("web")), Some(1));
        assert_eq!(holder(|_| {}, &[1, 2], Some("api")), Some(2));
        assert_eq!(holder(|_| {}, &[1, 2], None), Some(1));
        assert_eq!(holder(|_| {}, &[2], Some("web")), Some(2), "its own spec wants the port");
        assert_eq!(holder(|_| {}, &[], Some("web")), None);
    }

    #[test]
    fn a_stopping_frozen_or_ended_holder_yields() {
        let phase = |phase| move |backends: &mut Vec<Backend>| backends[0].phase = phase;
        for yields in [Phase::Stopping, Phase::Paused, Phase::Exited] {
            assert_eq!(holder(phase(yields), &[0, 1], Some("web")), Some(1), "{yields:?}");
        }
        assert_eq!(holder(phase(Phase::Stopping), &[0], Some("web")), Some(0));
        assert_eq!(holder(phase(Phase::Exited), &[0], Some("web")), None);
    }

    #[test]
    fn an_activator_yields_to_the_process_that_it_has_started() {
        let registered = Followed { id: ProcessId { pid: 70, start: 900 }, uid: 0, holds_only: false };
        let after = |pid, start| registered.succeeded_by(ProcessId { pid, start });
        assert!(!after(71, 901).holds_only, "a new binary, or a worker");
        assert!(after(60, 899).holds_only && after(60, 900).holds_only && after(1, 5000).holds_only);
        let activated = |backends: &mut Vec<Backend>| backends[0].process = Some(after(1, 0));
        assert_eq!(holder(activated, &[0, 1], Some("web")), Some(1));
        assert_eq!(holder(activated, &[0], Some("web")), Some(0));
    }

    #[test]
    fn a_backend_without_the_port_holds_nothing() {
        assert_eq!(holder(|backends| backends[0] = backend(0, "web", "80:9090"), &[0], Some("web")), None);
    }
}
