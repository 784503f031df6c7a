//! Containers that could not be started when their service woke. It serves without them, and they are started again and again until they run or
//! an operator orders something else.

use std::collections::BTreeSet;

use super::{Sleepers, is_up};
use crate::{
    clock::boot_ms,
    daemon::control::Control,
    ids::BackendId,
    world::{Backend, World},
};

/// How long it takes until they are started again.
const AGAIN_MS: i64 = 60_000;

/// See the module.
pub(super) struct Unstarted {
    ids: BTreeSet<BackendId>,
    /// When they are started again, in milliseconds since the machine booted.
    at_ms: i64,
}

impl Unstarted {
    /// Those that do not run and are there still.
    pub(super) fn down<'a>(&self, world: &'a World) -> impl Iterator<Item = &'a Backend> {
        self.ids.iter().filter_map(|id| world.backends.get(id)).filter(|backend| !is_up(backend))
    }
}

impl Sleepers {
    /// Something else was ordered.
    pub fn end_starts(&mut self, service: &str) {
        self.unstarted.remove(service);
    }
}

impl Control {
    pub(in crate::daemon) fn start_later(&mut self, service: &str, ids: BTreeSet<BackendId>) {
        let unstarted = Unstarted { ids, at_ms: boot_ms() + AGAIN_MS };
        self.orders.sleepers.unstarted.insert(service.to_owned(), unstarted);
    }

    /// Starts those whose time has come.
    pub(super) fn start_unstarted(&mut self) {
        let now_ms = boot_ms();
        let mut all = std::mem::take(&mut self.orders.sleepers.unstarted);
        // One that was removed is unknown only if its engine says so.
        all.retain(|_, own| !self.engines.are_all_known() || own.down(&self.world).next().is_some());
        for (service, own) in &mut all {
            if own.at_ms <= now_ms && !self.orders.operations.contains_key(service) && !self.is_paused(service) {
                own.at_ms = now_ms + AGAIN_MS;
                let down = own.down(&self.world).map(|backend| backend.id.clone()).collect();
                self.start_backends(&down);
            }
        }
        self.orders.sleepers.unstarted = all;
    }
}
