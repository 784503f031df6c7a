//! Backends that run as different users: whose each port is, and what a backend does without whose port is another's.

use std::collections::BTreeSet;

use pod_steer_ebpf::{PROTO_TCP, PortKey};
use tracing::warn;

use super::control::Control;
use crate::{procs::FoundSocket, world::Backend};

fn port_key(netns_cookie: u64, port: u16) -> PortKey {
    PortKey { netns_cookie, port, proto: PROTO_TCP, pad: [0; 5] }
}

impl Control {
    /// A socket that was bound before its backend was managed has its port: who comes later and is another user is moved.
    /// That is so whatever the kernel programs noted of a bind that failed for it.
    pub(super) fn note_port_user(&mut self, socket: &FoundSocket) {
        let port = port_key(socket.netns_cookie, socket.bound.port());
        if self.shared_ports().contains(&port) {
            return;
        }
        if let Err(error) = self.kernel.own_port(port, socket.uid) {
            warn!(error = %crate::chain(&error), port = port.port, "a backend of another user may fail to bind it");
        }
    }

    /// Ports on which sockets of ours listen that were not moved.
    fn shared_ports(&self) -> BTreeSet<PortKey> {
        let shared = self.world.sockets.values().filter(|socket| socket.hidden_port.is_none());
        shared.map(|socket| port_key(socket.netns_cookie, socket.port)).collect()
    }

    /// Lets ports go that nobody listens on, so that the next to come may be of any user. A server binds some time before
    /// it listens: while a backend may be about to, a port goes when it is found unused twice, `RESYNC_EVERY` apart.
    pub(super) fn free_ports(&mut self, compare: bool) {
        if !self.awaited.is_empty() {
            return;
        }
        let unused: BTreeSet<PortKey> = self.kernel.owned_ports().difference(&self.shared_ports()).copied().collect();
        let wanted = |port: &PortKey| {
            let here = |backend: &Backend| backend.netns.is_none_or(|netns| netns.cookie == port.netns_cookie);
            let backends = self.world.backends.values().filter(|backend| here(backend));
            backends.flat_map(|backend| &backend.spec.ports).any(|map| map.target == port.port)
        };
        let again = |port: &PortKey| compare && self.unused_ports.contains(port);
        let (over, unused): (BTreeSet<PortKey>, _) = unused.into_iter().partition(|port| again(port) || !wanted(port));
        for port in over {
            self.kernel.free_port(port);
        }
        if compare {
            self.unused_ports = unused;
        }
    }

    /// What a backend does without; one line for each port.
    pub(super) fn notes(&self, backend: &Backend) -> Vec<String> {
        let own = self.world.sockets.iter().filter(|(_, socket)| socket.backend == backend.index);
        let moved = own.filter(|(_, socket)| socket.hidden_port.is_some());
        let notes: BTreeSet<String> = moved
            .filter_map(|(cookie, socket)| {
                let [uid, owner] = self.kernel.socket(*cookie)?.users;
                Some(format!(
                    "it runs as user {uid}, and port {} was user {owner}'s already: it is steered to all the same, but \
                     connections that wait in its queue are lost when it stops, and without pod-steer nobody reaches it",
                    socket.port
                ))
            })
            .collect();
        let uncounted = self.counted(backend).and_then(Result::err);
        let uncounted = uncounted.map(|reason| format!("its connections are not counted: {reason}"));
        notes.into_iter().chain(uncounted).collect()
    }
}
