//! The services that a change concerns. Services are planned independently of each other, unless they meet at a port:
//! by a claim, a rule, or a hidden port of a socket. So after a change, only services that meet the changed one are
//! planned again: directly or through others, now or at their last plan.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use super::{Backend, Claimed, Lingering, Socket, Sockets, World};
use crate::{
    condition::Condition,
    ids::{BackendIndex, NetnsCookie, SocketCookie},
    namespace::Netns,
    ports::{Port, Proto},
    rule::RuleKey,
};

/// What has changed since the last plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Only these services: their backends, sockets or decisions.
    Services(BTreeSet<String>),
    /// Possibly every service: a namespace, an unmanaged listener, or the settings.
    All,
}

impl Default for Changed {
    fn default() -> Self {
        Self::Services(BTreeSet::new())
    }
}

impl Changed {
    /// Whether nothing has changed.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Whether something of this service may have changed.
    pub fn has(&self, service: &str) -> bool {
        match self {
            Self::Services(services) => services.contains(service),
            Self::All => true,
        }
    }

    /// Marks a service as changed.
    pub fn add(&mut self, service: &str) {
        if let Self::Services(services) = self
            && !services.contains(service)
        {
            services.insert(service.to_owned());
        }
    }
}

/// The ports and backends of a service at its last plan.
#[derive(Clone, Debug, Default)]
pub(super) struct Footprint {
    /// In ascending order, each with the cookie of its namespace.
    ports: Vec<(NetnsCookie, Port)>,
    indices: Vec<BackendIndex>,
}

/// The services that are planned together, with the ports and backends that they have now or had at their last plan.
pub(super) struct Scope {
    /// `None` stands for every service.
    parts: Option<Parts>,
}

#[derive(Default)]
struct Parts {
    services: BTreeSet<String>,
    /// By the cookie of the namespace and the protocol.
    ports: BTreeMap<(NetnsCookie, Proto), PortSet>,
    indices: BTreeSet<BackendIndex>,
}

impl Scope {
    /// The scope of a change.
    pub fn of(world: &World, changed: &Changed) -> Self {
        let Changed::Services(services) = changed else { return Self { parts: None } };
        let mut parts = Parts::default();
        let mut more = services.clone();
        while !more.is_empty() {
            parts.add(world, &more);
            more = parts.neighbours(world);
        }
        Self { parts: Some(parts) }
    }

    pub fn has_service(&self, service: &str) -> bool {
        self.parts.as_ref().is_none_or(|parts| parts.services.contains(service))
    }

    pub fn has_rule(&self, key: &RuleKey) -> bool {
        self.parts.as_ref().is_none_or(|parts| parts.has(key.netns_cookie, key.port))
    }

    pub fn has_index(&self, backend: BackendIndex) -> bool {
        self.parts.as_ref().is_none_or(|parts| parts.indices.contains(&backend))
    }
}

impl Parts {
    fn has(&self, netns_cookie: NetnsCookie, port: Port) -> bool {
        self.ports.get(&(netns_cookie, port.proto)).is_some_and(|ports| ports.has(port.number))
    }

    fn insert(&mut self, netns_cookie: NetnsCookie, port: Port) {
        self.ports.entry((netns_cookie, port.proto)).or_default().insert(port.number);
    }

    fn add(&mut self, world: &World, services: &BTreeSet<String>) {
        for service in services {
            let Some(Footprint { ports, indices }) = world.footprints.get(service) else { continue };
            ports.iter().for_each(|(netns_cookie, port)| self.insert(*netns_cookie, *port));
            self.indices.extend(indices);
        }
        self.services.extend(services.iter().cloned());
        for backend in world.backends.values() {
            if services.contains(&backend.spec.service) {
                declared(backend).for_each(|(netns_cookie, port)| self.insert(netns_cookie, port));
                self.indices.insert(backend.index);
            } else if !self.services.contains(&backend.spec.service) {
                // Another service's backend may have got the index of one that has ended.
                self.indices.remove(&backend.index);
            }
        }
        let others = world.lingering.iter().filter(|(_, lingering)| !self.services.contains(&lingering.service));
        for (index, _) in others {
            self.indices.remove(index);
        }
        for socket in world.sockets.values() {
            if let Some(port) = socket.hidden_port.filter(|_| self.indices.contains(&socket.backend)) {
                self.insert(socket.netns_cookie, port);
            }
        }
        for (key, _) in world.claimed.iter().filter(|(_, claimed)| services.contains(&claimed.service)) {
            self.insert(key.netns_cookie, key.port);
        }
    }

    /// The other services that meet these at a port.
    fn neighbours(&self, world: &World) -> BTreeSet<String> {
        let meets = |(netns_cookie, port): (NetnsCookie, Port)| self.has(netns_cookie, port);
        let declared = world.backends.values().filter(|backend| declared(backend).any(meets));
        let declared = declared.map(|backend| &backend.spec.service);
        let hidden = world.sockets.values();
        let hidden = hidden.filter(|socket| socket.hidden_port.is_some_and(|port| meets((socket.netns_cookie, port))));
        let hidden = hidden.filter_map(|socket| Some(&world.by_index(socket.backend)?.spec.service));
        let claimed = world.claimed.iter().filter(|(key, _)| meets((key.netns_cookie, key.port)));
        let claimed = claimed.map(|(_, claimed)| &claimed.service);
        let before = world.footprints.iter().filter(|(_, before)| before.ports.iter().copied().any(meets));
        let before = before.map(|(service, _)| service);
        // Others in the namespace of a forwarded one may get some of its clients.
        let own = world.backends.values().filter(|backend| self.services.contains(&backend.spec.service));
        let own: BTreeSet<NetnsCookie> = own.filter_map(|backend| Some(backend.netns?.cookie)).collect();
        let shares = |netns: Netns| own.contains(&netns.cookie);
        let sharing = world.backends.values().filter(|backend| backend.forwarded().is_some());
        let sharing = sharing.filter(|backend| backend.netns.is_some_and(shares)).map(|backend| &backend.spec.service);
        let all = declared.chain(hidden).chain(claimed).chain(before).chain(sharing);
        all.filter(|service| !self.services.contains(*service)).cloned().collect()
    }
}

/// The ports that a backend would claim for its service; none before its namespace is known.
fn declared(backend: &Backend) -> impl Iterator<Item = (NetnsCookie, Port)> {
    backend
        .keeps_ports_in()
        .flat_map(|netns| backend.spec.ports.iter().map(move |map| (netns.cookie, map.service_port())))
}

/// The part of the world that belongs to a scope.
pub(super) struct Facts<'a> {
    pub world: &'a World,
    /// In the order of their ids.
    pub backends: Vec<&'a Backend>,
    /// As their clients see them, in the order of their cookies. Those that no client can reach are left out.
    pub sockets: Vec<(SocketCookie, Cow<'a, Socket>)>,
    /// In the order of their keys.
    pub claimed: Vec<(&'a RuleKey, &'a Claimed)>,
    /// What remains of backends that have ended, by index.
    pub lingering: Vec<(&'a BackendIndex, &'a Lingering)>,
    /// The sockets that get no clients because of the user that owns them, by cookie: the index of the backend, and the
    /// condition.
    pub refused: BTreeMap<SocketCookie, (BackendIndex, Option<Condition>)>,
}

impl<'a> Facts<'a> {
    pub fn new(world: &'a World, scope: &Scope) -> Self {
        let backends = world.backends.values().filter(|backend| scope.has_service(&backend.spec.service));
        let sockets = world.sockets.iter().filter(|(_, socket)| scope.has_index(socket.backend));
        let forwarded: BTreeMap<BackendIndex, &Backend> =
            world.backends.values().filter(|own| own.forwarded().is_some()).map(|own| (own.index, own)).collect();
        let sockets = sockets.filter_map(|(cookie, socket)| match forwarded.get(&socket.backend) {
            Some(backend) => Some((*cookie, backend.seen_from_ingress(socket)?)),
            None => Some((*cookie, Cow::Borrowed(socket))),
        });
        let claimed = world.claimed.iter().filter(|(key, _)| scope.has_rule(key));
        let lingering = world.lingering.iter().filter(|(_, lingering)| scope.has_service(&lingering.service));
        let mut refused = world.refused_sockets();
        refused.retain(|_, (backend, _)| scope.has_index(*backend));
        Self {
            world,
            backends: backends.collect(),
            sockets: sockets.collect(),
            claimed: claimed.collect(),
            lingering: lingering.collect(),
            refused,
        }
    }

    /// All sockets.
    pub fn sockets(&self) -> Sockets<'_> {
        Sockets::new(self.sockets.iter().map(|(cookie, socket)| (cookie, &**socket)))
    }

    /// The socket with this cookie.
    pub fn socket(&self, cookie: SocketCookie) -> Option<&Socket> {
        let place = self.sockets.binary_search_by_key(&cookie, |(cookie, _)| *cookie).ok()?;
        Some(&self.sockets[place].1)
    }

    /// The sockets that may get clients.
    pub fn allowed_sockets(&self) -> Sockets<'_> {
        let allowed = self.sockets.iter().filter(|(cookie, _)| !self.refused.contains_key(cookie));
        Sockets::new(allowed.map(|(cookie, socket)| (cookie, &**socket)))
    }
}

impl World {
    /// Records the footprints of the services in a scope.
    pub(super) fn note_footprints(&mut self, scope: &Scope) {
        self.footprints.retain(|service, _| !scope.has_service(service));
        let mut now: BTreeMap<String, Footprint> = BTreeMap::new();
        let Facts { backends, sockets, claimed, lingering, .. } = Facts::new(self, scope);
        let mut names: BTreeMap<BackendIndex, &str> = BTreeMap::new();
        for backend in backends {
            let own = now.entry(backend.spec.service.clone()).or_default();
            own.ports.extend(declared(backend));
            own.indices.push(backend.index);
            names.insert(backend.index, &backend.spec.service);
        }
        for (_, socket) in sockets {
            if let Some((port, service)) = socket.hidden_port.zip(names.get(&socket.backend)) {
                now.entry((*service).to_owned()).or_default().ports.push((socket.netns_cookie, port));
            }
        }
        for (key, claimed) in claimed {
            now.entry(claimed.service.clone()).or_default().ports.push((key.netns_cookie, key.port));
        }
        for (index, lingering) in lingering {
            now.entry(lingering.service.clone()).or_default().indices.push(*index);
        }
        for own in now.values_mut() {
            own.ports.sort_unstable();
            own.ports.dedup();
        }
        self.footprints.append(&mut now);
    }
}

/// A set of port numbers, one bit each.
#[derive(Default)]
struct PortSet(Vec<u64>);

impl PortSet {
    fn insert(&mut self, port: u16) {
        let (word, bit) = (usize::from(port / 64), port % 64);
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << bit;
    }

    fn has(&self, port: u16) -> bool {
        self.0.get(usize::from(port / 64)).is_some_and(|word| word & 1 << (port % 64) != 0)
    }
}

#[cfg(test)]
mod tests;
