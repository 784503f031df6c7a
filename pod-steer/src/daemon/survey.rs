//! Enumerates the listeners of network namespaces, to find those that are not managed, and those whose device has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::PathBuf,
};

use tracing::{debug, warn};

use super::{Event, control::Control};
use crate::{
    condition::{Condition, Reason},
    ids::{BackendId, CgroupId, NetnsCookie},
    listening::{self, Listener},
    netns::Netns,
    process_set::{ProcessSet, listeners_of_netns},
    procs::FoundSocket,
    world::{self, Backend},
};

/// What was found of a container that ran before it was managed.
pub struct Survey {
    /// Its id.
    pub id: BackendId,
    /// Its namespace, held open.
    pub netns: (Netns, File),
    /// The listeners there.
    pub listeners: std::io::Result<Vec<Listener>>,
    /// Its cgroup, if it was known.
    pub cgroup: Option<CgroupId>,
    /// Its own, held open until they are registered.
    pub sockets: Vec<FoundSocket>,
}

impl Control {
    /// Looks at every namespace of a backend, beside the loop.
    pub(super) fn survey(&mut self) {
        // In a namespace without a backend nothing is looked at.
        self.note_without_clients();
        self.survey_these(self.namespaces());
    }

    /// Looks at the namespaces where a listener that is not managed keeps a service from a port: nothing tells when it closes.
    pub(super) fn survey_ports_in_use(&self) {
        let waits = |backend: &&Backend| {
            let own = self.plan.conditions.get(&backend.index).into_iter().flatten();
            own.into_iter().any(|own| own.reason == Reason::PortInUse)
        };
        let waiting = self.world.backends.values().filter(waits);
        let cookies: BTreeSet<NetnsCookie> = waiting.filter_map(Backend::claims_in).map(|netns| netns.cookie).collect();
        if !cookies.is_empty() {
            self.survey_these(self.namespaces_among(&cookies));
        }
    }

    fn survey_these(&self, namespaces: BTreeMap<NetnsCookie, (Netns, Vec<ProcessSet>)>) {
        self.effects.run_on(move |inputs| {
            for (netns_cookie, (netns, sets)) in namespaces {
                match listeners_of_netns(netns, &sets) {
                    Ok(listeners) => drop(inputs.blocking_send(Event::Listeners { netns_cookie, listeners })),
                    Err(error) => debug!(%netns, %error, "cannot enumerate the listeners of a network namespace"),
                }
            }
        });
    }

    /// Takes the listeners of a namespace.
    pub(super) fn surveyed(&mut self, netns_cookie: NetnsCookie, listeners: Vec<Listener>) {
        for listener in &listeners {
            let Some(cookie) = listener.cookie else { continue };
            // It may be given to another user at any time.
            self.note_user(cookie, listener.uid);
            let Some(socket) = self.world.sockets.get_mut(&cookie) else { continue };
            // A device may be set when a socket listens already, and no kernel program runs then.
            if socket.ifindex != listener.ifindex {
                socket.ifindex = listener.ifindex;
                let index = socket.backend;
                self.kernel.note_device(cookie, listener.ifindex);
                self.touch_backend(index);
            }
        }
        if self.note_listeners(netns_cookie, listeners) {
            self.note_without_clients();
        }
    }

    /// Reports the listeners that get no clients because of a service.
    fn note_without_clients(&mut self) {
        let without = world::without_clients(&self.world, &self.plan).into_iter().map(|(place, service)| {
            let message = format!(
                "it is not managed and gets no clients, since the service `{service}` claims its port and had it first"
            );
            let remedy = "end it, choose another port, or claim single addresses";
            (format!("listener {place}"), Condition::new(Reason::UnmanagedListener, message, remedy))
        });
        self.conditions.replace(Reason::UnmanagedListener, without);
    }

    /// Remembers which of the listeners of a namespace are not managed. True if that is news.
    pub(super) fn note_listeners(&mut self, netns_cookie: NetnsCookie, mut listeners: Vec<Listener>) -> bool {
        // One that the kernel programs have registered in this moment has its event under way.
        let is_ours = |cookie| self.world.sockets.contains_key(&cookie) || self.kernel.socket(cookie).is_some();
        listeners.retain(|listener| !listener.cookie.is_some_and(is_ours) && !self.may_be_opening(listener));
        let is_news = self.world.note_foreign(netns_cookie, listeners);
        if is_news {
            self.touch();
        }
        is_news
    }

    /// Looks for the sockets of a container that ran before it was managed, and then at its namespace: the port is claimed
    /// when it is known which listeners are its own.
    pub(super) fn survey_container(&mut self, id: &str, netns: Netns, ns: File, path: PathBuf) {
        let Some(backend) = self.world.backends.get(id) else { return };
        let ports = self.world.configured.listening_ports(&backend.spec);
        let (id, index) = (backend.id.clone(), backend.index);
        let cgroup = self.begin_search(&id, index);
        let failed = Event::Found { id: id.clone(), cgroup, sockets: None };
        self.effects.run(failed, move || {
            let wanted = |socket: &FoundSocket| ports.contains(&socket.port());
            let sockets = ProcessSet::of_cgroup(&path).listeners(wanted);
            let listeners = listening::listeners(&ns, netns.cookie);
            Event::Surveyed(Box::new(Survey { id, netns: (netns, ns), listeners, cgroup, sockets }))
        });
    }

    pub(super) fn container_surveyed(&mut self, survey: Survey) {
        let Survey { id, netns: (netns, ns), listeners, cgroup, sockets } = survey;
        if self.is_void(&id, cgroup) {
            return;
        }
        match listeners {
            Ok(mut listeners) => {
                listeners.retain(|listener| !sockets.iter().any(|own| Some(own.cookie) == listener.cookie));
                self.lives_in(&id, netns, ns, Some(listeners));
                self.found(&id, cgroup, Some(sockets));
            }
            Err(error) => {
                warn!(container = %id, %netns, %error, "the listeners of its namespace cannot be enumerated, so no port is claimed");
                self.end_search(&id, &sockets);
            }
        }
    }
}
