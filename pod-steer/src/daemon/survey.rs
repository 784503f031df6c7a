//! Enumerates the listeners of network namespaces, to find those that are not managed, and those whose device has changed.

use std::{collections::BTreeMap, fs::File, os::unix::fs::MetadataExt as _, path::PathBuf};

use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use super::{Input, control::Control};
use crate::{
    listening::{self, Listener},
    netns::Netns,
    procs::{self, FoundSocket, Process},
    world::{self, Kind, Phase},
};

/// Topic of conditions.
const NO_CLIENTS: &str = "no-clients";

/// A way into a network namespace: by a process of a backend.
pub(super) enum Way {
    Cgroup(PathBuf),
    Process(i32),
}

impl Way {
    pub(super) fn open(&self, netns: Netns) -> Option<File> {
        match self {
            Self::Cgroup(path) => procs::netns_of_cgroup(path, netns).ok(),
            Self::Process(pid) => Process::open(*pid).and_then(|process| process.netns()).ok(),
        }
    }
}

/// Opens a network namespace: our own, or by one of these ways.
pub(super) fn open(netns: Netns, ways: &[Way]) -> Option<File> {
    let same = |file: &File| file.metadata().is_ok_and(|m| (m.dev(), m.ino()) == (netns.dev, netns.inode));
    let own = File::open("/proc/self/ns/net").ok().filter(same);
    own.or_else(|| ways.iter().find_map(|way| way.open(netns).filter(same)))
}

/// What was found of a container that ran before it was managed.
pub struct Survey {
    /// Its id.
    pub id: String,
    /// Its namespace, held open.
    pub netns: (Netns, File),
    /// The listeners there.
    pub listeners: std::io::Result<Vec<Listener>>,
    /// Its own, held open until they are registered.
    pub sockets: Vec<FoundSocket>,
}

impl Control {
    /// The namespaces of backends, and the ways into each.
    pub(super) fn ways(&self) -> BTreeMap<u64, (Netns, Vec<Way>)> {
        let mut ways: BTreeMap<u64, (Netns, Vec<Way>)> = BTreeMap::new();
        for backend in self.world.backends.values().filter(|backend| backend.phase != Phase::Exited) {
            let Some(netns) = backend.netns else { continue };
            let way = match (&backend.kind, self.paths.get(&backend.index)) {
                (Kind::Registered { pid }, _) => Some(Way::Process(*pid)),
                (_, path) => path.cloned().map(Way::Cgroup),
            };
            ways.entry(netns.cookie).or_insert((netns, Vec::new())).1.extend(way);
        }
        ways
    }

    /// Looks at every namespace of a backend, beside the loop.
    pub(super) fn survey(&self) {
        let (ways, inputs) = (self.ways(), self.inputs.clone());
        spawn_blocking(move || {
            for (netns_cookie, (netns, ways)) in ways {
                let Some(file) = open(netns, &ways) else { continue };
                match listening::listeners(&file, netns_cookie) {
                    Ok(listeners) => drop(inputs.blocking_send(Input::Listeners { netns_cookie, listeners })),
                    Err(error) => debug!(%netns, %error, "cannot enumerate the listeners of a network namespace"),
                }
            }
        });
    }

    /// Takes the listeners of a namespace.
    pub(super) fn surveyed(&mut self, netns_cookie: u64, listeners: Vec<Listener>) {
        for listener in &listeners {
            let Some(cookie) = listener.cookie else { continue };
            let Some(socket) = self.world.sockets.get_mut(&cookie) else { continue };
            // A device may be set when a socket listens already, and no kernel program runs then.
            if socket.ifindex != listener.ifindex {
                socket.ifindex = listener.ifindex;
                self.kernel.note_device(cookie, listener.ifindex);
                self.touch();
            }
        }
        self.note_listeners(netns_cookie, listeners);
        let without = world::without_clients(&self.world, &self.plan).into_iter().map(|(place, service)| {
            let message = format!(
                "it is not managed and gets no clients, since the service `{service}` claims its port and had it first; end \
                 it, choose another port, or claim single addresses"
            );
            (format!("listener {place}"), message)
        });
        self.conditions.replace(NO_CLIENTS, without);
    }

    /// Remembers which of the listeners of a namespace are not managed.
    pub(super) fn note_listeners(&mut self, netns_cookie: u64, mut listeners: Vec<Listener>) {
        // One that the kernel programs have registered in this moment has its event under way.
        let is_ours = |cookie| self.world.sockets.contains_key(&cookie) || self.kernel.socket(cookie).is_some();
        listeners.retain(|listener| !listener.cookie.is_some_and(is_ours));
        if self.world.note_foreign(netns_cookie, listeners) {
            self.touch();
        }
    }

    /// Looks for the sockets of a container that ran before it was managed, and then at its namespace: the port is claimed
    /// when it is known which listeners are its own.
    pub(super) fn survey_container(&mut self, id: &str, netns: Netns, ns: File, path: PathBuf) {
        let Some(backend) = self.world.backends.get(id) else { return };
        let ports = self.world.configured.listening_ports(&backend.spec);
        let (id, index, inputs) = (backend.id.clone(), backend.index, self.inputs.clone());
        self.begin_search(index);
        spawn_blocking(move || {
            let wanted = |socket: &FoundSocket| ports.contains(&socket.bound.port());
            let sockets = procs::listeners_in_cgroup(&path, wanted).unwrap_or_default();
            let listeners = listening::listeners(&ns, netns.cookie);
            let survey = Survey { id, netns: (netns, ns), listeners, sockets };
            let _ = inputs.blocking_send(Input::Surveyed(Box::new(survey)));
        });
    }

    pub(super) fn container_surveyed(&mut self, survey: Survey) {
        let Survey { id, netns: (netns, ns), listeners, sockets } = survey;
        let Some(index) = self.world.backends.get(&id).map(|backend| backend.index) else { return };
        match listeners {
            Ok(mut listeners) => {
                listeners.retain(|listener| !sockets.iter().any(|own| Some(own.cookie) == listener.cookie));
                self.lives_in(&id, netns, ns, Some(listeners));
                self.found(index, sockets);
            }
            Err(error) => {
                warn!(container = %id, %netns, %error, "the listeners of its namespace cannot be enumerated, so no port is claimed");
                self.end_search(index, &sockets);
            }
        }
    }
}
