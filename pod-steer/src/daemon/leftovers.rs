//! Detaching from the cgroups of backends that have ended.

use std::collections::{BTreeSet, HashMap};

use super::control::Control;
use crate::{
    ids::{BackendIndex, CgroupId},
    kernel::Cgroup,
    world::{Backend, Phase},
};

/// Most cgroups that are detached in a row before other inputs are handled.
const LEFT_AT_ONCE_MAX: usize = 8;

impl Control {
    /// Leaves cgroups that are over. Connections that moved away before they were accepted still end there, and are
    /// counted there: so not before the last one has, even if the cgroup itself is gone.
    ///
    /// Not many at once: each blocks the loop for half a millisecond. The others are detached by a later call.
    pub(super) fn drop_leftovers(&mut self) {
        self.places.begin_cleanup();
        if self.engines.is_awaiting() {
            return;
        }
        let mut left = 0;
        let by_index: HashMap<BackendIndex, &Backend> = self.world.backends.values().map(|b| (b.index, b)).collect();
        // A container that starts again has its new cgroup before the engine says so.
        let is_over = |cgroup: CgroupId, index: BackendIndex| match (by_index.get(&index), self.places.id(index)) {
            (None, _) => !self.is_of_hold(index),
            (Some(_), Some(current)) => current != cgroup,
            (Some(backend), None) => backend.phase == Phase::Exited,
        };
        let (over, mut attached): (Vec<_>, Vec<_>) =
            self.kernel.attached_backends().into_iter().partition(|&(cgroup, index)| is_over(cgroup, index));
        for (cgroup, index) in over {
            if self.counts_in(cgroup, index) {
                attached.push((cgroup, index));
                continue;
            }
            if left == LEFT_AT_ONCE_MAX {
                self.places.ask_for_cleanup();
                attached.push((cgroup, index));
                continue;
            }
            self.leave(cgroup, index);
            left += 1;
        }
        let (attached, counting): (BTreeSet<CgroupId>, BTreeSet<BackendIndex>) = attached.into_iter().unzip();
        let over = self.world.lingering.extract_if(.., |index, _| !counting.contains(index));
        let over: Vec<String> = over.map(|(_, lingering)| lingering.service).collect();
        over.iter().for_each(|service| self.touch_service(service));
        self.places.retain_retired(|path| {
            let counts = Cgroup::open(path).is_ok_and(|cgroup| attached.contains(&cgroup.id));
            if !counts {
                crate::cgroups::below::remove(path);
            }
            counts
        });
    }

    /// Whether the programs of a backend's cgroup still have connections to count.
    pub(super) fn counts_in(&self, cgroup: CgroupId, index: BackendIndex) -> bool {
        let counters = self.kernel.counters().backend(index);
        counters.opened != counters.closed && self.kernel.runs_in(cgroup, index)
    }

    /// Detaches the programs from a cgroup. The end of a connection that moved away from there is not seen any more.
    pub(super) fn leave(&mut self, cgroup: CgroupId, index: BackendIndex) {
        for to in self.kernel.write_off_moved(index) {
            self.indices.write_off(to);
        }
        self.kernel.detach_backend(cgroup, index);
    }
}
