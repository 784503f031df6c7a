//! When services fall asleep: every second their counters tell which of those with the option `idle` have been without a connection for long
//! enough.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use tracing::{info, warn};

use super::is_up;
use crate::{
    api::OrderError,
    clock::boot_ms,
    daemon::{control::Control, holds::own_uid},
    rollout::{Order, Quiet},
};

/// How long a service must have been without a connection before that is stored.
const STORED_MS: u64 = 5_000;
/// How long it takes until a service is tried again that could not be put to sleep.
const AGAIN_MS: i64 = 60_000;

impl Control {
    /// Puts services to sleep that have had no connection for as long as their options say.
    pub(in crate::daemon) fn look_for_idle(&mut self) {
        if !self.has_heard_all() {
            return;
        }
        self.start_unstarted();
        let wanted: BTreeMap<String, u64> = self
            .world
            .options
            .iter()
            .filter(|(_, options)| options.idle_ms > 0)
            .map(|(service, options)| (service.clone(), options.idle_ms))
            .collect();
        let sleepers = &mut self.orders.sleepers;
        sleepers.quiet.retain(|service, _| wanted.contains_key(service));
        sleepers.unable.retain(|service, _| wanted.contains_key(service));
        sleepers.refused.retain(|service, _| wanted.contains_key(service));
        for (service, idle_ms) in wanted {
            let quiet = self.note_quiet(&service);
            if !quiet.has_lasted(idle_ms, boot_ms()) {
                self.orders.sleepers.refused.remove(&service);
            }
            let unable = self.world.cannot_sleep(&service, own_uid());
            let is_able = unable.is_none();
            match unable {
                Some(condition) => drop(self.orders.sleepers.unable.insert(service.clone(), condition)),
                None => drop(self.orders.sleepers.unable.remove(&service)),
            }
            if is_able && quiet.has_lasted(idle_ms, boot_ms()) && self.may_sleep(&service) {
                info!(%service, "no connection for as long as its option `idle` says");
                self.give(service, Order::Idle);
            }
        }
    }

    fn note_quiet(&mut self, service: &str) -> Quiet {
        let own = self.world.backends.values().filter(|backend| backend.spec.service == service);
        let (mut opened, mut live) = (0, 0);
        for backend in own {
            let counters = self.kernel.counters().backend(backend.index);
            opened += counters.opened + counters.moved_in;
            live += self.live(backend.index);
        }
        let before = self.orders.sleepers.quiet.get(service).copied().or_else(|| self.totals.quiet(service));
        let now_ms = boot_ms();
        // It has not been left alone: the time begins when that has ended.
        let is_busy = self.orders.operations.contains_key(service) || self.is_paused(service);
        let quiet = Quiet { opened, condition: self.quiet_condition(service), since_ms: now_ms };
        let quiet = quiet.after(before, live.max(is_busy.into()));
        if quiet.has_lasted(STORED_MS, now_ms) {
            self.totals.set_quiet(service, quiet);
        }
        self.orders.sleepers.quiet.insert(service.to_owned(), quiet);
        quiet
    }

    /// A hash of what has to stay as it is while a service is quiet: what was decided, and its backends and since when each is ready.
    fn quiet_condition(&self, service: &str) -> u64 {
        let own = self.world.backends.values().filter(|backend| backend.spec.service == service && is_up(backend));
        let backends: BTreeSet<_> = own.map(|backend| (&backend.id, backend.ready_since_ms)).collect();
        let revision = self.world.decisions.get(service).map(|decision| decision.revision);
        let mut hasher = DefaultHasher::new();
        (revision, backends).hash(&mut hasher);
        hasher.finish()
    }

    /// Why a service cannot be put to sleep now.
    pub(in crate::daemon) fn cannot_sleep(&self, service: &str) -> Option<String> {
        let not_stored = self.orders.ledger.not_stored();
        let not_stored =
            not_stored.map(|condition| format!("another daemon would not know that it sleeps: {condition}"));
        not_stored.or_else(|| Some(self.world.cannot_sleep(service, own_uid())?.to_string()))
    }

    /// Whether a service is being put to sleep.
    pub(in crate::daemon) fn is_falling_asleep(&self, service: &str) -> bool {
        self.orders.operations.get(service).is_some_and(|operation| operation.order == Order::Idle)
    }

    fn may_sleep(&self, service: &str) -> bool {
        let own = || self.world.backends.values().filter(|backend| backend.spec.service == service);
        let is_due = self.orders.sleepers.refused.get(service).is_none_or(|(_, at_ms)| *at_ms <= boot_ms());
        let is_busy = self.orders.operations.contains_key(service) || self.awaits_holds(service);
        let serves = own().any(|backend| self.state(backend).is_ready());
        // An engine that does not answer stops nothing.
        let is_any_lost = own().any(|backend| self.is_engine_lost(backend));
        let is_stored = self.orders.ledger.not_stored().is_none();
        !self.is_paused(service) && !is_busy && is_due && serves && !is_any_lost && is_stored
    }

    /// A service could not be put to sleep.
    pub(in crate::daemon) fn idle_answered(&mut self, service: &str, error: Option<OrderError>) {
        let refused = &mut self.orders.sleepers.refused;
        match error {
            Some(error) => {
                warn!(%service, %error, "it could not be put to sleep");
                refused.insert(service.to_owned(), (error.to_string(), boot_ms() + AGAIN_MS));
            }
            None => drop(refused.remove(service)),
        }
    }
}
