//! How the processes and the network namespaces of backends are reached.

use std::collections::{BTreeMap, BTreeSet};

use super::control::Control;
use crate::{
    ids::NetnsCookie,
    netns::Netns,
    process_set::ProcessSet,
    procs::process_id,
    world::{Backend, Kind, Phase},
};

impl Control {
    /// The processes of a backend: those of its cgroup, or the process that is followed.
    pub(super) fn processes_of(&self, backend: &Backend) -> ProcessSet {
        let followed = backend.process.map(|process| process.id);
        // One that an earlier version registered is known by its pid alone.
        let registered = || match backend.kind {
            Kind::Registered { pid } => process_id(pid).ok(),
            _ => None,
        };
        let cgroup = self.places.path(backend.index).cloned();
        let alone = backend.process.is_some_and(|process| process.holds_only);
        ProcessSet { cgroup, process: followed.or_else(registered), alone }
    }

    /// The namespaces of backends by their cookies, and the processes by which each is opened.
    pub(super) fn namespaces(&self) -> BTreeMap<NetnsCookie, (Netns, Vec<ProcessSet>)> {
        self.namespaces_where(|_| true)
    }

    /// The same, of these alone.
    pub(super) fn namespaces_among(
        &self,
        cookies: &BTreeSet<NetnsCookie>,
    ) -> BTreeMap<NetnsCookie, (Netns, Vec<ProcessSet>)> {
        if cookies.is_empty() { BTreeMap::new() } else { self.namespaces_where(|cookie| cookies.contains(&cookie)) }
    }

    fn namespaces_where(
        &self,
        counts: impl Fn(NetnsCookie) -> bool,
    ) -> BTreeMap<NetnsCookie, (Netns, Vec<ProcessSet>)> {
        let mut namespaces: BTreeMap<NetnsCookie, (Netns, Vec<ProcessSet>)> = BTreeMap::new();
        for backend in self.world.backends.values().filter(|backend| backend.phase != Phase::Exited) {
            // The ingress namespace of a forwarded backend is our own, for which no process is needed.
            if let Some(ingress) = backend.ingress().filter(|ingress| counts(ingress.cookie)) {
                namespaces.entry(ingress.cookie).or_insert((ingress, Vec::new()));
            }
            let Some(netns) = backend.netns.filter(|netns| counts(netns.cookie)) else { continue };
            namespaces.entry(netns.cookie).or_insert((netns, Vec::new())).1.push(self.processes_of(backend));
        }
        namespaces
    }
}
