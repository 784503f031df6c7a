//! Backends that run as different users: whose each port is, and which feature a backend lacks whose port is another's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
};

use pod_steer_ebpf::PortKey;
use tracing::{debug, warn};

use super::{Event, control::Control};
use crate::{
    condition::{Condition, Reason, Severity},
    ids::NetnsCookie,
    listening, netns,
    ports::{Port, Proto},
    process_set::open_netns,
    procs::FoundSocket,
    world::{Backend, addresses_of_others, handed_over, missing_ports, via_ignored},
};

fn port_key(netns_cookie: NetnsCookie, port: Port) -> PortKey {
    PortKey { netns_cookie: netns_cookie.0, port: port.number, proto: port.proto.number(), pad: [0; 5] }
}

/// The port that a key is for; nothing if it is of a protocol that is not steered here.
fn of_key(key: &PortKey) -> Option<Port> {
    Some(Port { number: key.port, proto: Proto::from_number(key.proto)? })
}

/// The walk through the kernel's connections that tells which ports are used: one at a time, whatever has ended meanwhile.
#[derive(Debug, Default)]
pub(super) struct PortUsers {
    is_due: bool,
    under_way: bool,
    /// Ports of a user on which no socket listened at the last comparison.
    unused: BTreeSet<PortKey>,
}

impl PortUsers {
    /// A backend has ended, and may have left a port.
    pub fn ask(&mut self) {
        self.is_due = true;
    }

    /// True if ports are to be compared now.
    fn take(&mut self) -> bool {
        !self.under_way && std::mem::take(&mut self.is_due)
    }

    /// True if a walk may begin; else the ports are compared again when the one that is under way has ended.
    fn begin(&mut self) -> bool {
        let may_begin = !self.under_way;
        self.under_way = true;
        self.is_due |= !may_begin;
        may_begin
    }
}

impl Control {
    /// Frees ports of backends that have ended.
    pub(super) fn free_due_ports(&mut self) {
        if self.port_users.take() {
            self.free_ports(false);
        }
    }

    /// A socket that was bound before its backend was managed has its port: who comes later and is another user is moved.
    /// That is so whatever the kernel programs noted of a bind that failed for it.
    pub(super) fn note_port_user(&mut self, socket: &FoundSocket) {
        let port = port_key(socket.netns_cookie, socket.port());
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

    /// Frees ports that no listener and no connection uses, so that any user may bind them next. A server binds some time before
    /// it listens: while a backend may be about to, a port goes when it is found unused twice, `RESYNC_EVERY` apart.
    pub(super) fn free_ports(&mut self, compare: bool) {
        if self.engines.is_awaiting() {
            return;
        }
        let unused: BTreeSet<PortKey> = self.kernel.owned_ports().difference(&self.shared_ports()).copied().collect();
        let wanted = |port: &PortKey| {
            let here = |backend: &Backend| backend.netns.is_none_or(|netns| netns.cookie.0 == port.netns_cookie);
            let backends = self.world.backends.values().filter(|backend| here(backend));
            backends
                .flat_map(|backend| &backend.spec.ports)
                .any(|map| (map.target, map.proto.number()) == (port.port, port.proto))
        };
        let again = |port: &PortKey| compare && self.port_users.unused.contains(port);
        let (over, unused): (BTreeSet<PortKey>, _) = unused.into_iter().partition(|port| again(port) || !wanted(port));
        if compare {
            // Those that connections still use are looked at once more.
            self.port_users.unused = unused.into_iter().chain(over.iter().copied()).collect();
        }
        self.free_idle(over);
    }

    /// Frees those of these ports that no connection uses either: an accepted connection keeps the port of its listener, and the
    /// kernel refuses the port to another user as long as it exists. That takes a walk through the kernel's connections, beside
    /// the loop. A port whose namespace cannot be entered or examined keeps its owner; one whose namespace is gone is freed.
    fn free_idle(&mut self, ports: BTreeSet<PortKey>) {
        if ports.is_empty() || !self.port_users.begin() {
            return;
        }
        let mut by_netns: BTreeMap<NetnsCookie, BTreeSet<Port>> = BTreeMap::new();
        for port in ports {
            by_netns.entry(NetnsCookie(port.netns_cookie)).or_default().extend(of_key(&port));
        }
        let mut namespaces = self.namespaces();
        self.effects.run(Event::Idle(Vec::new()), move || {
            let mut opened: BTreeMap<NetnsCookie, File> = BTreeMap::new();
            for cookie in by_netns.keys() {
                let ns = namespaces.remove(cookie).and_then(|(netns, sets)| open_netns(netns, &sets).ok());
                opened.extend(ns.map(|ns| (*cookie, ns)));
            }
            let others: BTreeSet<NetnsCookie> =
                by_netns.keys().copied().filter(|cookie| !opened.contains_key(cookie)).collect();
            let search = netns::search(&others);
            opened.extend(search.found);
            let mut idle = Vec::new();
            for (netns_cookie, mut ports) in by_netns {
                if let Some(ns) = opened.get(&netns_cookie) {
                    match listening::in_use(ns, netns_cookie, &ports) {
                        Ok(used) => ports.retain(|port| !used.contains(port)),
                        Err(error) => {
                            debug!(%netns_cookie, %error, "cannot enumerate the connections of a network namespace");
                            continue;
                        }
                    }
                } else if search.incomplete {
                    continue;
                }
                idle.push((netns_cookie, ports));
            }
            Event::Idle(idle)
        });
    }

    /// A walk has ended: frees ports on which no server has begun to listen meanwhile. By the cookie of each namespace.
    pub(super) fn free_unless_shared(&mut self, idle: Vec<(NetnsCookie, BTreeSet<Port>)>) {
        self.port_users.under_way = false;
        let shared = self.shared_ports();
        let ports = idle
            .into_iter()
            .flat_map(|(netns_cookie, ports)| ports.into_iter().map(move |port| port_key(netns_cookie, port)));
        for port in ports.filter(|port| !shared.contains(port)) {
            self.port_users.unused.remove(&port);
            self.kernel.free_port(port);
        }
    }

    /// The features that a backend lacks.
    pub(super) fn backend_infos(&self, backend: &Backend) -> Vec<Condition> {
        let own = self.world.sockets.iter().filter(|(_, socket)| socket.backend == backend.index);
        let moved = own.filter(|(_, socket)| socket.hidden_port.is_some());
        // One for each port.
        let moved: BTreeSet<Condition> = moved
            .filter_map(|(cookie, socket)| {
                let [uid, owner] = self.kernel.socket(*cookie)?.users;
                let message = format!(
                    "it runs as user {uid}, and port {} was user {owner}'s already: it is steered to all the same, but \
                     connections that wait in its queue are lost when it stops, and without pod-steer no client reaches it",
                    socket.port
                );
                let remedy = format!("run it as user {owner} if that matters");
                Some(Condition::new(Reason::PortOfOtherUser, message, remedy))
            })
            .collect();
        let uncounted = self.counted(backend).and_then(Result::err).map(|error| {
            let message = format!("its connections are not counted: {error}");
            Condition::without_remedy(Reason::ConnectionsNotCounted, message)
        });
        let others = addresses_of_others(&self.world, backend);
        let past = handed_over(&self.world, backend).filter(|own| own.severity == Severity::Info);
        moved
            .into_iter()
            .chain(missing_ports(&self.world, backend))
            .chain(others)
            .chain(uncounted)
            .chain(past)
            .chain(self.world.pods().told(backend))
            .chain(via_ignored(backend))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_ends_cost_one_more_walk() {
        let mut walk = PortUsers::default();
        assert!(!walk.take());
        walk.ask();
        assert!(walk.take() && walk.begin());
        walk.ask();
        walk.ask();
        assert!(!walk.take() && !walk.begin(), "one is under way");
        walk.under_way = false;
        assert!(walk.take() && walk.begin());
        walk.under_way = false;
        assert!(!walk.take());
    }
}
