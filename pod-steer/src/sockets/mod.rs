//! The listening sockets of backends: their tables, queues, processes and connections. The caller has the facts; a look completes them with
//! the kernel's, which takes a while. One namespace and one process are open at a time.
#![forbid(unsafe_code)]

mod connections;
mod facts;
mod limits;
mod others;
mod processes;
mod roles;
mod servers;
#[cfg(test)]
mod tests;
mod why;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    net::SocketAddr,
    time::Duration,
};

use crate::{
    api::sockets::{SocketNamespace, SocketRole, SocketStatus, Sockets},
    ids::SocketCookie,
    listening::{self, Listener},
    netns::Netns,
    ports::Port,
    process_set::{ProcessSet, open_netns},
    world::Socket,
};
use connections::Connections;
pub use facts::{BackendFacts, Facts};
pub use limits::Limits;
use limits::Unseen;
use others::Others;
use processes::Held;
pub use processes::Holders;
pub use roles::{Place, PlannedPorts, Roles, tables_of};
pub use why::without_clients;

/// Time limit of a look.
pub const LOOK_MAX: Duration = Duration::from_secs(5);
/// Maximum number of sockets that are listed.
const LISTED_MAX: usize = 16_384;

/// What a look has found so far.
struct Look<'a> {
    facts: &'a Facts,
    limits: &'a Limits<'a>,
    listeners: HashMap<SocketCookie, Listener>,
    others: Others,
    namespaces: Vec<SocketNamespace>,
    connections: Option<Connections<'a>>,
    unseen: Unseen,
}

/// Completes the facts, within the limits.
pub fn look(facts: &Facts, limits: &Limits<'_>) -> Sockets {
    let mut look = Look {
        facts,
        limits,
        listeners: HashMap::new(),
        others: Others::default(),
        namespaces: Vec::new(),
        connections: facts.live.then(|| Connections::new(&facts.backends)),
        unseen: Unseen::of(&facts.unseen),
    };
    look.at_namespaces();
    let held = look.at_processes();
    look.into_answer(&held)
}

impl Look<'_> {
    fn at_namespaces(&mut self) {
        let (facts, limits) = (self.facts, self.limits);
        let places = &facts.places;
        let interest = facts.interest(&|| limits.check()).unwrap_or_default();
        for (number, (netns, sets)) in places.iter().enumerate() {
            if let Err(error) = limits.check() {
                let left = places.len() - number;
                self.unseen.add(format!("{left} of {} network namespaces were not looked at: {error}", places.len()));
                return;
            }
            if let Err(error) = self.at_namespace(*netns, sets, interest.get(&netns.cookie)) {
                self.unseen.add(format!("the network namespace {netns} was not looked at completely: {error}"));
            }
        }
    }

    fn at_namespace(
        &mut self,
        netns: Netns,
        sets: &[ProcessSet],
        ports: Option<&HashMap<Port, BTreeSet<&str>>>,
    ) -> io::Result<()> {
        let ns = open_netns(netns, sets)?;
        let listeners = listening::listeners(&ns, netns.cookie)?;
        if listeners.iter().any(|listener| listener.cookie.is_none()) {
            return Err(io::Error::other("sock_diag(7) is not available, and /proc/net has no socket cookies"));
        }
        for listener in listeners {
            match listener.cookie.filter(|cookie| self.facts.registered.contains(cookie)) {
                Some(cookie) => {
                    self.listeners.insert(cookie, listener);
                }
                None => {
                    if let Some(services) = ports.and_then(|ports| ports.get(&listener.port)) {
                        self.others.add(services, netns.cookie, listener);
                    }
                }
            }
        }
        let turned_away = listening::turned_away(&ns, netns.cookie)?;
        self.namespaces.push(SocketNamespace {
            id: netns.to_string(),
            cookie: netns.cookie.0,
            overflows: turned_away.overflows,
            drops: turned_away.drops,
            syn_drops: turned_away.syn_drops,
        });
        self.connections.as_mut().map_or(Ok(()), |connections| connections.read(&ns, netns.cookie, self.limits))
    }

    fn at_processes(&mut self) -> Held {
        let sockets = self.facts.backends.iter().flat_map(|backend| &backend.sockets);
        let mut of_backends: HashSet<u64> =
            sockets.filter_map(|(cookie, _)| Some(self.listeners.get(cookie)?.inode)).collect();
        of_backends.extend(self.connections.iter().flat_map(Connections::inodes));
        let of_others = self.others.inodes().collect();
        let held = Held::search(self.facts.holders, &self.facts.backends, (&of_backends, &of_others), self.limits);
        if let Some(error) = &held.missed {
            self.unseen.add(format!("not all processes were looked at: {error}"));
        }
        held
    }

    fn into_answer(mut self, held: &Held) -> Sockets {
        let Facts { backends, holders, .. } = self.facts;
        let mut all: Vec<(usize, SocketCookie, &Socket)> = Vec::new();
        for (at, backend) in backends.iter().enumerate() {
            all.extend(backend.sockets.iter().map(|(cookie, socket)| (at, *cookie, socket)));
        }
        all.sort_by_cached_key(|(at, cookie, socket)| {
            let BackendFacts { service, version, name, id, .. } = &backends[*at];
            (service.as_str(), version.as_str(), name.as_str(), id.as_str(), socket.ip, socket.port, *cookie)
        });
        if let Some(more @ 1..) = all.len().checked_sub(LISTED_MAX) {
            self.unseen
                .add(format!("{more} further sockets were not listed: restrict the list to a service or a backend"));
            all.truncate(LISTED_MAX);
        }
        let sockets = all.into_iter().map(|(at, cookie, socket)| self.status(at, cookie, socket, held)).collect();
        let others = std::mem::take(&mut self.others).described(backends, held, *holders, &mut self.unseen);
        let connections = self.connections.take().map(|own| own.settled(held, &mut self.unseen));
        Sockets { sockets, others, namespaces: self.namespaces, connections, unseen: self.unseen.into_lines() }
    }

    fn status(&self, at: usize, cookie: SocketCookie, socket: &Socket, held: &Held) -> SocketStatus {
        let backend = &self.facts.backends[at];
        let listener = self.listeners.get(&cookie);
        let Place { role, ports } = self.facts.roles.of(cookie);
        let is_seen = self.facts.holders != Holders::Nowhere;
        let holding = listener.filter(|_| is_seen).map(|listener| held.of(at, listener.inode));
        SocketStatus {
            service: backend.service.clone(),
            version: backend.version.clone(),
            backend: backend.name.clone(),
            backend_id: backend.id.clone(),
            state: backend.state,
            cookie: cookie.0,
            netns_cookie: socket.netns_cookie.0,
            listens: SocketAddr::new(socket.ip, socket.port.number).to_string(),
            hidden_port: socket.hidden_port.map(|port| port.number),
            v6only: if socket.ip.is_ipv4() { None } else { listener.and_then(|one| one.v6only).or(socket.v6only) },
            ifindex: socket.ifindex,
            uid: listener.map(|one| one.uid).or(socket.uid).filter(|_| is_seen),
            role,
            why: backend.without_clients.clone().filter(|_| role != SocketRole::Table),
            clients: ports.into_iter().collect(),
            forwarded: backend.forwarded,
            waiting: listener.map(|one| one.waiting),
            backlog: listener.filter(|one| one.cookie.is_some()).map(|one| one.backlog),
            drops: listener.map(|one| one.drops),
            holders: holding.as_ref().map(|holding| holding.count),
            processes: holding.map(|holding| holding.processes).unwrap_or_default(),
        }
    }
}
