//! How containers with network namespaces of their own are connected: looked at beside the loop when one starts, when its engine says
//! that its networks change, and at each resync.

use tracing::{debug, warn};

use super::{Event, control::Control};
use crate::{
    ids::{BackendId, NetnsCookie},
    links,
    listening::Listener,
    netns::Netns,
    process_set::{ProcessSet, listeners_of_netns, open_netns},
    settings::Via,
    world::{Backend, Bridge, Network, Phase, Pods, Unreached},
};

/// Whether a backend has a network namespace of its own that is no pod, and a process in it.
fn is_looked_at(backend: &Backend, pods: &Pods<'_>) -> bool {
    let runs = matches!(backend.phase, Phase::Running | Phase::Paused | Phase::Stopping);
    runs && backend.network == Network::Own && backend.netns.is_some() && !pods.has(backend)
}

impl Control {
    /// The network of a container may have changed.
    pub(super) fn look_at_network(&mut self, id: &str) {
        let pods = self.world.pods();
        if let Some(backend) = self.world.backends.get(id).filter(|backend| is_looked_at(backend, &pods)) {
            self.looks.add(backend.id.clone());
            self.begin_looks();
        }
    }

    /// Looks at all of them again: not every change is told.
    pub(super) fn look_at_networks(&mut self) {
        let pods = self.world.pods();
        let own = self.world.backends.values().filter(|backend| is_looked_at(backend, &pods));
        self.looks.renew(own.map(|backend| backend.id.clone()));
        self.begin_looks();
    }

    /// A backend has joined this namespace, which may have become a pod.
    pub(super) fn joined(&mut self, netns: Netns) {
        let pods = self.world.pods();
        let is_owner =
            |backend: &&Backend| backend.network == Network::Own && backend.netns == Some(netns) && pods.has(backend);
        let owners: Vec<BackendId> =
            self.world.backends.values().filter(is_owner).map(|backend| backend.id.clone()).collect();
        for id in owners {
            let was_connected = |backend: &&mut Backend| backend.bridge.is_some() || backend.ingress_before.is_some();
            let Some(backend) = self.world.backends.get_mut(&id).filter(was_connected) else { continue };
            backend.becomes_pod();
            debug!(container = %id, %netns, "shares its namespace with another backend of its service: clients arrive there");
            if let Err(error) = self.store.put(backend) {
                warn!(error = %crate::chain(&error), "a restart will have to find this container again");
            }
        }
    }

    /// A backend of such a network is gone: what it had joined may be no pod any more.
    pub(super) fn left(&mut self, network: Network) {
        if network == Network::Joined {
            self.look_at_networks();
        }
    }

    fn begin_looks(&mut self) {
        let pods = self.world.pods();
        while let Some(id) = self.looks.begin() {
            let backend = self.world.backends.get(&id).filter(|backend| is_looked_at(backend, &pods));
            let Some((netns, backend)) = backend.and_then(|backend| Some((backend.netns?, backend))) else {
                self.looks.end(&id);
                continue;
            };
            let processes = [self.processes_of(backend)];
            // Its service must not take a port from a server that listens where its clients come to.
            let asks = backend.bridge.is_none() && backend.spec.via != Via::Socket;
            let failed = Event::Bridged { id: id.clone(), netns_cookie: netns.cookie, found: None };
            self.effects.run(failed, move || {
                let found = look(netns, &processes, asks).inspect_err(|error| {
                    debug!(container = %id, %netns, %error, "cannot find how its namespace is connected");
                });
                Event::Bridged { id, netns_cookie: netns.cookie, found: found.ok() }
            });
        }
    }

    /// A look has found how a container is connected; nothing if it failed.
    pub(super) fn bridged(&mut self, id: &BackendId, netns_cookie: NetnsCookie, found: Option<Found>) {
        self.looks.end(id);
        self.note_connection(id, netns_cookie, found);
        self.begin_looks();
    }

    fn note_connection(&mut self, id: &BackendId, netns_cookie: NetnsCookie, found: Option<Found>) {
        let pods = self.world.pods();
        // It may have been started again meanwhile.
        let is_same = |backend: &Backend| {
            is_looked_at(backend, &pods) && backend.netns.is_some_and(|netns| netns.cookie == netns_cookie)
        };
        if !self.world.backends.get(id).is_some_and(is_same) {
            return;
        }
        let Some(backend) = self.world.backends.get_mut(id) else { return };
        let Some(Found { connection, listeners }) = found else { return };
        if !backend.connected(connection) {
            return;
        }
        debug!(container = %id, bridge = ?backend.bridge, unreached = ?backend.unreached, "its network was found");
        if let Err(error) = self.store.put(backend) {
            warn!(error = %crate::chain(&error), "a restart will have to find this container again");
        }
        let (index, ingress) = (backend.index, backend.ingress());
        if let Some((ingress, listeners)) = ingress.zip(listeners) {
            self.note_listeners(ingress.cookie, listeners);
        }
        self.touch_backend(index);
    }
}

/// What a look has found.
pub struct Found {
    connection: Result<Bridge, Unreached>,
    /// The listeners of the ingress namespace, if they were asked for.
    listeners: Option<Vec<Listener>>,
}

fn look(netns: Netns, processes: &[ProcessSet], asks: bool) -> std::io::Result<Found> {
    let connection = links::look(&open_netns(netns, processes)?, netns.cookie)?;
    let ingress = connection.as_ref().ok().map(|bridge| bridge.ingress).filter(|_| asks);
    let listeners = ingress.map(|ingress| listeners_of_netns(ingress, &[])).transpose()?;
    Ok(Found { connection, listeners })
}
