//! A daemon that starts takes over what the one before it left.

use std::{collections::BTreeMap, path::PathBuf};

use tracing::debug;

use super::{control::Control, deferred::Deferred};
use crate::{
    cgroups, engine,
    ids::{BackendIndex, CgroupId},
    kernel::Cgroup,
    world::{Backend, Kind, Phase},
};

impl Control {
    /// Takes over what an earlier daemon left: its backends, and the sockets in the socket map. Only
    /// what an engine then says changes any of it.
    pub(super) fn adopt(&mut self) {
        self.world.backends = self.store.backends();
        let unknown = self.world.backends.is_empty() && !self.kernel.attached_backends().is_empty();
        if unknown && self.kernel.rules().next().is_some() {
            self.await_engines();
        }
        self.adopt_holds();
        // Before ended backends are found: another backend may hold the listener of one that has ended.
        self.read_sockets();
        self.drop_refused_images();
        let alive: Vec<Backend> = self.world.backends.values().cloned().collect();
        for backend in alive {
            match &backend.kind {
                Kind::Container { engine } => {
                    if let Some(path) = self.cgroups.expect(&backend.id, "", engine::owner(engine)) {
                        self.adopt_cgroup(&backend, path);
                    }
                }
                Kind::Exec => self.adopt_exec(&backend),
                Kind::Registered { pid } => self.adopt_registered(&backend, *pid),
            }
        }
        self.find_cgroups();
        for backend in self.world.backends.values() {
            backend.places().for_each(|netns| self.netns.see(netns, None));
        }
        if !self.engines.is_awaiting() {
            self.detach_unknown();
        }
        // A link that was lost meanwhile is attached again below; a backend that was ready has not changed by that.
        let ready = self.world.backends.values().filter(|backend| backend.ready_since_ms.is_some());
        let lost = ready.filter_map(|backend| Some(backend.netns?.cookie)).filter(|c| !self.world.steered.contains(c));
        self.world.repairing = lost.collect();
        self.resume_operations();
        self.adopt_over();
        self.drop_leftovers();
        self.touch();
        self.deferred.push_back(Deferred::Adopted);
    }

    /// Detaches what no backend has.
    pub(super) fn detach_unknown(&mut self) {
        for (cgroup, index) in self.kernel.attached_backends() {
            // No backend has this index any more, so its counts belong to none.
            if self.world.by_index(index).is_none() && !self.is_of_hold(index) && !self.counts_in(cgroup, index) {
                self.leave(cgroup, index);
            }
        }
    }

    fn adopt_cgroup(&mut self, backend: &Backend, path: PathBuf) {
        debug!(container = %backend.name, path = %path.display(), "still there");
        let cgroup = Cgroup::open(&path).ok().map(|cgroup| cgroup.id);
        self.places.set(backend.index, path, cgroup);
    }

    /// Finds the cgroups of containers that are where the daemon does not look for new ones, by the ids that are pinned.
    fn find_cgroups(&mut self) {
        let unknown = |index: &BackendIndex| {
            let backend = self.world.by_index(*index).filter(|_| self.places.path(*index).is_none())?;
            (matches!(backend.kind, Kind::Container { .. }) && backend.phase != Phase::Exited).then(|| backend.clone())
        };
        let attached = self.kernel.attached_backends();
        let lost: BTreeMap<CgroupId, Backend> =
            attached.iter().filter_map(|(cgroup, index)| Some((*cgroup, unknown(index)?))).collect();
        if lost.is_empty() {
            return;
        }
        for (cgroup, path) in cgroups::with_ids(self.cgroups.mount(), &lost.keys().copied().collect()) {
            // The kernel uses an id again only after 2^32 others, or after a reboot, which ends the pins too.
            if let Some(backend) = lost.get(&cgroup)
                && cgroups::own_cgroup(&path, &backend.id) == Some(&path)
            {
                self.adopt_cgroup(backend, path);
            }
        }
    }
}
