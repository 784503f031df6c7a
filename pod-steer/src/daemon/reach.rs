//! How the processes and the network namespaces of backends are reached.

use std::collections::{BTreeMap, BTreeSet};

use super::control::Control;
use crate::{
    ids::NetnsCookie,
    netns::Netns,
    process_set::ProcessSet,
    procs::process_id,
    sys,
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
        let process = followed.or_else(registered);
        // A registered process may have started the next version, which is registered too.
        let others = |other: &Backend| {
            let is_other = other.index != backend.index && matches!(other.kind, Kind::Registered { .. });
            other.process.map(|process| process.id).filter(|_| is_other)
        };
        let without = match backend.kind {
            Kind::Registered { .. } => self.world.backends.values().filter_map(others).collect(),
            _ => Vec::new(),
        };
        ProcessSet { cgroup, process, alone, without }
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

    /// These namespaces, and the processes by which each is opened. One that is not known is left out.
    pub(super) fn places_of(&self, cookies: impl Iterator<Item = NetnsCookie>) -> Vec<(Netns, Vec<ProcessSet>)> {
        // Our own namespace is opened without a process, so no backend is needed.
        let own = sys::own_netns_cookie().ok();
        let cookies: Vec<NetnsCookie> = cookies.collect();
        let of_others = cookies.iter().copied().filter(|cookie| Some(*cookie) != own).collect();
        let mut others = self.namespaces_among(&of_others);
        let place = |cookie| others.remove(&cookie).or_else(|| Some((self.netns.get(cookie)?, Vec::new())));
        cookies.into_iter().filter_map(place).collect()
    }

    fn namespaces_where(
        &self,
        counts: impl Fn(NetnsCookie) -> bool,
    ) -> BTreeMap<NetnsCookie, (Netns, Vec<ProcessSet>)> {
        let mut namespaces: BTreeMap<NetnsCookie, (Netns, Vec<ProcessSet>)> = BTreeMap::new();
        // Our own needs no process to be opened, and the service of one that has ended has its ports there still.
        let own = sys::own_netns_cookie().ok();
        for backend in self.world.backends.values() {
            let runs = backend.phase != Phase::Exited;
            let places = backend.places().filter(|netns| counts(netns.cookie));
            for netns in places.filter(|netns| runs || Some(netns.cookie) == own) {
                let (_, processes) = namespaces.entry(netns.cookie).or_insert((netns, Vec::new()));
                if runs && backend.netns == Some(netns) {
                    processes.push(self.processes_of(backend));
                }
            }
        }
        namespaces
    }
}
