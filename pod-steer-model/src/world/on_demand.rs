//! Ports that a server opens on demand, such as those of passive FTP. When the daemon hears of such a listener, the
//! client is already there. So the kernel program finds the listener without the daemon, if only one backend of the service can
//! have opened it.
//!
//! Two servers of one service cannot share such a range, because a client of one could be given the other's connection.
//! The younger backend yields, by this rule:
//! - the older backend opens the range on demand ([`super::port_history`]), and no backend of the service listens steadily on
//!   all ports of the range that it declares: otherwise the range is an ordinary one of a service with several replicas;
//! - the younger backend has never listened on a port of the range;
//! - it loses its claim on the ports of that range and keeps all others. If it has never been able to serve, it is refused
//!   as a whole: `exec` and `register` fail, a container is not steered.

use std::collections::{BTreeMap, BTreeSet};

use super::{Backend, Phase, Sockets, claims::keys};
use crate::{
    condition::{Condition, Reason},
    ids::BackendIndex,
    ports::{Port, PortMap, compact},
    rule::RuleKey,
};

/// The backends that yield to an older one of their service that opens a range on demand.
#[derive(Default)]
pub(super) struct Conflicts {
    /// By index.
    pub conditions: BTreeMap<BackendIndex, Condition>,
    /// Indices of the backends that may claim nothing.
    pub refused: BTreeSet<BackendIndex>,
    /// Claims that other backends do not get, with the index of the backend.
    pub withheld: BTreeSet<(BackendIndex, RuleKey)>,
}

/// A range that a backend opens on demand.
struct Held<'a> {
    holder: &'a Backend,
    range: &'a [PortMap],
    keys: BTreeSet<RuleKey>,
}

impl Backend {
    /// Its ports that belong to these claims.
    fn ports_among<'a>(&'a self, claims: &'a BTreeSet<RuleKey>) -> impl Iterator<Item = (&'a PortMap, Vec<RuleKey>)> {
        let cookie = self.ingress().map(|netns| netns.cookie);
        let of = move |map| Some((map, keys(cookie?, map).filter(|key| claims.contains(key)).collect::<Vec<_>>()));
        self.spec.ports.iter().filter_map(of).filter(|(_, keys)| !keys.is_empty())
    }
}

/// Finds the conflicts between backends, which are given from the oldest to the youngest.
pub(super) fn conflicts(sockets: &Sockets<'_>, by_age: &[&Backend]) -> Conflicts {
    let mut held: Vec<Held<'_>> = Vec::new();
    let mut conflicts = Conflicts::default();
    for backend in by_age.iter().filter(|backend| backend.phase != Phase::Exited) {
        let Some(netns) = backend.ingress() else { continue };
        for Held { holder, range, keys } in &held {
            if holder.spec.service != backend.spec.service {
                continue;
            }
            let clashing: Vec<(&PortMap, Vec<RuleKey>)> = backend.ports_among(keys).collect();
            let listens = |port| sockets.of(backend.index).any(|(_, socket)| socket.port == port);
            let has_listened =
                |map: &PortMap| backend.port_history.has(map.target_port()) || listens(map.target_port());
            if clashing.is_empty() || clashing.iter().any(|(map, _)| has_listened(map)) {
                continue;
            }
            let message = format!(
                "{} of the same service opens the ports {} on demand, and a client of one server could get the other's \
                 connection",
                holder.name,
                compact(range)
            );
            let condition = Condition::new(Reason::OnDemandConflict, message, "give each server a range of its own");
            conflicts.conditions.entry(backend.index).or_insert(condition);
            if !backend.port_history.has_served {
                conflicts.refused.insert(backend.index);
            }
            conflicts.withheld.extend(clashing.into_iter().flat_map(|(_, keys)| keys).map(|key| (backend.index, key)));
        }
        if conflicts.refused.contains(&backend.index) {
            continue;
        }
        for range in backend.on_demand() {
            let keys: BTreeSet<RuleKey> = range.iter().flat_map(|map| keys(netns.cookie, map)).collect();
            let is_free = keys.iter().all(|key| !conflicts.withheld.contains(&(backend.index, *key)));
            let mut others = by_age.iter().filter(|other| other.spec.service == backend.spec.service);
            if is_free && !others.any(|other| listens_steadily(other, sockets, &keys)) {
                held.push(Held { holder: backend, range, keys });
            }
        }
    }
    conflicts
}

/// Whether a backend declares some of these ports and keeps a listener open on each of them.
fn listens_steadily(backend: &Backend, sockets: &Sockets<'_>, claims: &BTreeSet<RuleKey>) -> bool {
    let open: BTreeSet<Port> = sockets.of(backend.index).map(|(_, socket)| socket.port).collect();
    let mut ports = backend.ports_among(claims).map(|(map, _)| map.target_port()).peekable();
    ports.peek().is_some() && ports.all(|port| open.contains(&port) && backend.port_history.has_kept(port))
}

/// The claims on ranges whose servers listen on other port numbers. Without a rule, a client of a listener that has
/// just been opened would find no listener at its port. (With the same numbers, the kernel's own lookup finds it.)
pub(super) fn claims(backends: &[&Backend]) -> BTreeSet<RuleKey> {
    let mut claims = BTreeSet::new();
    for backend in backends {
        let Some(netns) = backend.ingress() else { continue };
        let moved = backend.ranges().filter(|range| range.iter().any(|map| map.port != map.target));
        claims.extend(moved.flatten().flat_map(|map| keys(netns.cookie, map)));
    }
    claims
}

#[cfg(test)]
mod tests;
