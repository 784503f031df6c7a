//! The facts that a look starts from.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
};

use super::{Holders, Roles};
use crate::{
    ids::{NetnsCookie, SocketCookie},
    netns::Netns,
    ports::Port,
    process_set::ProcessSet,
    procs::Check,
    world::{Socket, State},
};

/// The facts about all sockets.
#[derive(Debug, Default)]
pub struct Facts {
    /// The backends whose sockets are listed.
    pub backends: Vec<BackendFacts>,
    /// The registered sockets of all backends, and pod-steer's own.
    pub registered: HashSet<SocketCookie>,
    /// How the tables use sockets.
    pub roles: Roles,
    /// The network namespaces to look at, and the processes by which each is opened.
    pub places: Vec<(Netns, Vec<ProcessSet>)>,
    /// Where the processes that hold sockets are searched for.
    pub holders: Holders,
    /// Whether connections are listed.
    pub live: bool,
    /// Notes about what is missing.
    pub unseen: Vec<String>,
}

/// The services that use each port of each namespace.
pub type Interest<'a> = HashMap<NetnsCookie, HashMap<Port, BTreeSet<&'a str>>>;

impl Facts {
    /// The ports of the backends: every listener on one of them is listed. An error of `check` ends it.
    pub fn interest(&self, check: Check<'_>) -> io::Result<Interest<'_>> {
        let mut interest = Interest::new();
        for backend in &self.backends {
            let mut namespaces = backend.namespaces();
            namespaces.extend(backend.ingress);
            for netns in namespaces {
                check()?;
                let of_netns = interest.entry(netns).or_default();
                for port in backend.ports_in(netns) {
                    of_netns.entry(port).or_default().insert(backend.service.as_str());
                }
            }
        }
        Ok(interest)
    }
}

/// The facts about a backend.
#[derive(Clone, Debug, Default)]
pub struct BackendFacts {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its service.
    pub service: String,
    /// Its version.
    pub version: String,
    /// The ports that its clients connect to.
    pub service_ports: BTreeSet<Port>,
    /// The ports that its server asks for.
    pub target_ports: BTreeSet<Port>,
    /// Its network namespace, if it is known.
    pub netns: Option<NetnsCookie>,
    /// The namespace that its clients come to, if it is known.
    pub ingress: Option<NetnsCookie>,
    /// Its state, if a daemon knows it.
    pub state: Option<State>,
    /// Why those of its sockets that are no members of a table get no new connections, if a daemon knows it.
    pub without_clients: Option<String>,
    /// Whether its clients come to another network namespace, and their packets are forwarded.
    pub forwarded: bool,
    /// Its processes.
    pub processes: ProcessSet,
    /// Its sockets.
    pub sockets: Vec<(SocketCookie, Socket)>,
}

impl BackendFacts {
    /// The namespaces in which it may listen.
    pub fn namespaces(&self) -> BTreeSet<NetnsCookie> {
        self.sockets.iter().map(|(_, socket)| socket.netns_cookie).chain(self.netns).collect()
    }

    /// The ports of a namespace that it or its clients use.
    pub fn ports_in(&self, netns: NetnsCookie) -> BTreeSet<Port> {
        let mut ports = BTreeSet::new();
        let is_own = self.netns == Some(netns) || self.sockets.iter().any(|(_, own)| own.netns_cookie == netns);
        if is_own {
            ports.extend(&self.target_ports);
        }
        if self.ingress == Some(netns) || is_own && !self.forwarded {
            ports.extend(&self.service_ports);
        }
        ports
    }

    /// The local ports of its connections. A connection that was steered has the port that its client connected to.
    pub fn local_ports(&self) -> BTreeSet<Port> {
        let bound = self.sockets.iter().map(|(_, socket)| socket.hidden_port.unwrap_or(socket.port));
        let mut ports: BTreeSet<Port> = bound.chain(self.target_ports.iter().copied()).collect();
        if !self.forwarded {
            ports.extend(&self.service_ports);
        }
        ports
    }
}
