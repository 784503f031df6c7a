//! Services that sleep while no client comes: when they fall asleep, and what wakes them. `rollout` has the steps.
//!
//! Every second the counters of services with the option `idle` tell whether they have been without a connection for long enough. While
//! one sleeps, a copy of the listeners that hold its clients tells of the first client at once.

mod told;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
};

use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::{Event, control::Control, operations::GivenOrder, recorded::Asker};
use crate::{
    api::OrderError,
    clock::boot_ms,
    condition::Condition,
    ids::BackendIndex,
    rollout::{Order, Quiet, WakeOrder},
    world::{Backend, Phase},
};

/// Who gives the orders of this file.
const WHO: &str = "pod-steer";
/// How long a service must have been without a connection before that is stored.
const STORED_MS: u64 = 5_000;
/// How long it takes until a service is tried again that could not be put to sleep.
const AGAIN_MS: i64 = 60_000;

/// State of services that sleep, or are to.
#[derive(Default)]
pub(super) struct Sleepers {
    /// Since when each service with the option `idle` has had no connection.
    quiet: BTreeMap<String, Quiet>,
    /// Those of them that cannot be put to sleep.
    unable: BTreeMap<String, Condition>,
    /// Those of them that could not be put to sleep when they were to: why, and when that is tried again.
    refused: BTreeMap<String, (String, i64)>,
    /// Orders that wait until their service is awake.
    waiting: Vec<GivenOrder>,
    /// Tasks that wait for the first client of a hold.
    watches: BTreeMap<BackendIndex, AbortHandle>,
    /// Services that sleep and to which a client has come.
    called: BTreeSet<String>,
}

impl Sleepers {
    /// Whether another order waits until a service is awake.
    pub fn is_wanted(&self, service: &str) -> bool {
        self.waiting.iter().any(|given| given.service == service)
    }

    /// A hold has ended.
    pub fn end_watch(&mut self, index: BackendIndex) {
        if let Some(watch) = self.watches.remove(&index) {
            watch.abort();
        }
    }
}

impl Control {
    /// Puts services to sleep that have had no connection for as long as their options say.
    pub(super) fn look_for_idle(&mut self) {
        if !self.has_heard_all() {
            return;
        }
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
            let unable = self.world.cannot_sleep(&service, super::holds::own_uid());
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
        let quiet = Quiet::seen(before, opened, live.max(is_busy.into()), now_ms);
        if quiet.has_lasted(STORED_MS, now_ms) {
            self.totals.set_quiet(service, quiet);
        }
        self.orders.sleepers.quiet.insert(service.to_owned(), quiet);
        quiet
    }

    fn may_sleep(&self, service: &str) -> bool {
        let own = || self.world.backends.values().filter(|backend| backend.spec.service == service);
        let is_due = self.orders.sleepers.refused.get(service).is_none_or(|(_, at_ms)| *at_ms <= boot_ms());
        let is_busy = self.orders.operations.contains_key(service) || self.awaits_holds(service);
        let serves = own().any(|backend| self.state(backend).is_ready());
        // An engine that does not answer stops nothing.
        let is_any_lost = own().any(|backend| self.is_engine_lost(backend));
        !self.is_paused(service) && !is_busy && is_due && serves && !is_any_lost
    }

    fn is_paused(&self, service: &str) -> bool {
        self.world.decisions.get(service).is_some_and(|decision| decision.paused)
    }

    fn give(&mut self, service: String, order: Order) {
        let who = WHO.to_owned();
        let asker = if order == Order::Idle { Asker::Idle } else { Asker::Daemon };
        self.orders.given.push_back(GivenOrder { service, order, who, asker, has_waited: false });
    }

    /// A service could not be put to sleep.
    pub(super) fn idle_answered(&mut self, service: &str, error: Option<OrderError>) {
        let refused = &mut self.orders.sleepers.refused;
        match error {
            Some(error) => {
                warn!(%service, %error, "it could not be put to sleep");
                refused.insert(service.to_owned(), (error.to_string(), boot_ms() + AGAIN_MS));
            }
            None => drop(refused.remove(service)),
        }
    }

    /// Wakes services that sleep, and watches over the others. Orders go on that have waited for it.
    pub(super) fn follow_sleep(&mut self) {
        let is_still = |service: &String| !self.orders.operations.contains_key(service);
        let asleep = self.world.decisions.iter().filter(|(_, decision)| decision.asleep.is_some());
        let asleep: Vec<String> = asleep.map(|(service, _)| service.clone()).filter(is_still).collect();
        for service in asleep {
            if self.has_to_wake(&service) {
                self.orders.sleepers.called.remove(&service);
                self.give(service, Order::Wake(WakeOrder::default()));
            } else {
                self.watch_holds(&service);
            }
        }
        let waiting = std::mem::take(&mut self.orders.sleepers.waiting);
        let (waiting, due): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|given| self.waits_for_wake(given));
        self.orders.sleepers.waiting = waiting;
        due.into_iter().rev().for_each(|given| self.orders.given.push_front(given));
    }

    fn has_to_wake(&self, service: &str) -> bool {
        let containers = self.world.decisions.get(service).and_then(|decision| decision.asleep.as_ref());
        let containers = containers.map(|asleep| &asleep.containers);
        let own = || self.world.backends.values().filter(|backend| backend.spec.service == service);
        let is_up = |backend: &Backend| !matches!(backend.phase, Phase::Created | Phase::Exited);
        let is_gone = self.engines.are_all_known()
            && containers.is_none_or(|ids| !ids.iter().any(|id| self.world.backends.contains_key(id)));
        // Nothing could tell of its clients.
        let is_held = self.world.holds.values().any(|hold| hold.service == service) || self.is_opening(service);
        let is_called = self.orders.sleepers.called.contains(service) || self.held_clients(service) > 0;
        is_called || !is_held || is_gone || self.orders.sleepers.is_wanted(service) || own().any(is_up)
    }

    /// Has the first client of a service reported.
    fn watch_holds(&mut self, service: &str) {
        let own = self.world.holds.iter().filter(|(_, hold)| hold.service == service);
        for index in own.map(|(index, _)| *index).collect::<Vec<_>>() {
            let Some(path) = self.hold_path(index).filter(|_| !self.orders.sleepers.watches.contains_key(&index))
            else {
                continue;
            };
            let listeners = move || -> Vec<OwnedFd> { super::holds::descriptors(&path) };
            let watch = self.effects.watch(listeners, Event::ClientHeld(index));
            self.orders.sleepers.watches.insert(index, watch);
        }
    }

    /// A client has come to a hold.
    pub(super) fn client_held(&mut self, index: BackendIndex) {
        self.orders.sleepers.watches.remove(&index);
        if let Some(hold) = self.world.holds.get(&index) {
            self.orders.sleepers.called.insert(hold.service.clone());
        }
    }

    /// Whether an order has to wait until its service is awake, which it then wakes.
    pub(super) fn waits_for_wake(&self, given: &GivenOrder) -> bool {
        let service = given.service.as_str();
        if matches!(given.order, Order::Idle | Order::Wake(_) | Order::Forget) {
            return false;
        }
        match self.orders.operations.get(service).map(|operation| &operation.order) {
            Some(Order::Idle) => true,
            Some(Order::Wake(_)) => given.order != Order::Rollback && self.wake_failure(service).is_none(),
            Some(_) => false,
            None => self.world.decisions.get(service).is_some_and(|decision| decision.asleep.is_some()),
        }
    }

    /// An order waits until its service is awake.
    pub(super) fn await_wake(&mut self, given: GivenOrder) {
        self.orders.sleepers.waiting.push(given);
    }

    /// Containers that sleep stay stopped.
    pub(super) fn warn_of_sleepers(&self) {
        for (service, decision) in self.world.decisions.iter().filter(|(_, decision)| decision.asleep.is_some()) {
            warn!(%service, containers = ?decision.asleep.as_ref().map(|asleep| &asleep.containers), "its containers stay stopped");
        }
    }
}
