//! Services that sleep while no client comes: what wakes them, and the orders that wait for that. `rollout` has the steps.
//!
//! While one sleeps, a copy of the listeners that hold its clients tells of the first client at once.

mod quiet;
mod told;
mod unstarted;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
};

use tokio::task::AbortHandle;

use super::{
    Event,
    control::Control,
    operations::{GivenOrder, Orders},
    recorded::Asker,
};
use crate::{
    condition::Condition,
    ids::{BackendId, BackendIndex},
    rollout::{Decision, Order, Quiet, WakeOrder},
    world::{Backend, Phase},
};

use unstarted::Unstarted;

/// Who gives the orders of this file.
const WHO: &str = "pod-steer";

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
    /// By service: containers that could not be started when it woke.
    unstarted: BTreeMap<String, Unstarted>,
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
    fn is_paused(&self, service: &str) -> bool {
        self.world.decisions.get(service).is_some_and(|decision| decision.paused)
    }

    fn give(&mut self, service: String, order: Order) {
        let who = WHO.to_owned();
        let asker = if order == Order::Idle { Asker::Idle } else { Asker::Daemon };
        self.orders.given.push_back(GivenOrder::new(service, order, who, asker));
    }

    /// Wakes services that sleep, and watches over the others. Orders go on that have waited for it.
    pub(super) fn follow_sleep(&mut self) {
        let Orders { sleepers, operations, .. } = &mut self.orders;
        let asleep = self.world.decisions.iter().filter(|(_, decision)| decision.asleep.is_some());
        let asleep: Vec<String> = asleep.map(|(service, _)| service.clone()).collect();
        sleepers.called.retain(|service| asleep.contains(service));
        sleepers.waiting.retain(|given| !given.asker.is_gone());
        let still: Vec<String> = asleep.into_iter().filter(|service| !operations.contains_key(service)).collect();
        let waiting = std::mem::take(&mut self.orders.sleepers.waiting);
        let waits = |given: &GivenOrder| self.waits_for_wake(given) && self.wake_hindrance(&given.service).is_none();
        let (waiting, due): (Vec<_>, Vec<_>) = waiting.into_iter().partition(waits);
        self.orders.sleepers.waiting = waiting;
        for service in still {
            let is_woken = due.iter().any(|given| given.service == service && matches!(given.order, Order::Wake(_)));
            match self.has_to_wake(&service) {
                true if is_woken => {}
                true => self.give(service, Order::Wake(WakeOrder::default())),
                false => self.watch_holds(&service),
            }
        }
        due.into_iter().rev().for_each(|given| self.orders.given.push_front(given));
    }

    fn has_to_wake(&self, service: &str) -> bool {
        let containers = self.world.decisions.get(service).and_then(|decision| decision.asleep.as_ref());
        let containers = containers.map(|asleep| &asleep.containers);
        let own = || self.world.backends.values().filter(|backend| backend.spec.service == service);
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
        let running = self.orders.operations.get(&given.service).map(|operation| &operation.order);
        let is_asleep = self.world.decisions.get(&given.service).is_some_and(|decision| decision.asleep.is_some());
        waits(&given.order, given.has_awaited_wake, running, is_asleep)
    }

    /// Why a service that sleeps is not about to wake, if that is so.
    pub(super) fn wake_hindrance(&self, service: &str) -> Option<String> {
        let asleep = self.world.decisions.get(service)?.asleep.as_ref()?;
        let backends = || self.world.backends.values().filter(|backend| backend.spec.service == service);
        if backends().any(|backend| is_up(backend) || self.is_starting(backend)) {
            return None;
        }
        let is_unknown =
            !self.engines.are_all_known() && !asleep.containers.iter().any(|id| self.world.backends.contains_key(id));
        match backends().any(|backend| self.is_engine_lost(backend)) || is_unknown {
            true => Some("the engine of its containers does not answer".to_owned()),
            false => self.wake_failure(service),
        }
    }

    /// An order waits until its service is awake.
    pub(super) fn await_wake(&mut self, given: GivenOrder) {
        // The listeners that it has waited for may be gone by then.
        self.orders.sleepers.waiting.push(GivenOrder { has_waited: false, has_awaited_wake: true, ..given });
    }
}

/// The names of containers that sleep. They stay stopped if pod-steer is unloaded.
pub fn asleep(decisions: &BTreeMap<String, Decision>, backends: &BTreeMap<BackendId, Backend>) -> Vec<String> {
    let asleep = decisions.values().filter_map(|decision| decision.asleep.as_ref());
    let name = |id: &BackendId| backends.get(id).map_or_else(|| id.to_string(), |backend| backend.name.clone());
    asleep.flat_map(|asleep| &asleep.containers).map(name).collect()
}

/// Whether an order has to wait until its service is awake. `has_waited` says that it has done so before.
fn waits(order: &Order, has_waited: bool, running: Option<&Order>, is_asleep: bool) -> bool {
    match (order, running) {
        (Order::Idle | Order::Forget, _) => false,
        (_, Some(Order::Idle)) => true,
        (Order::Wake(_), _) => false,
        // A rollback that was given meanwhile ends the wake.
        (Order::Rollback, Some(Order::Wake(_))) => has_waited,
        (_, Some(Order::Wake(_))) => true,
        (_, Some(_)) => false,
        (_, None) => is_asleep,
    }
}

/// Whether a backend has processes, or may have.
fn is_up(backend: &Backend) -> bool {
    !matches!(backend.phase, Phase::Created | Phase::Exited)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_wait_until_their_service_is_awake() {
        let (wake, pause) = (Order::Wake(WakeOrder::default()), Order::Pause(Default::default()));
        for order in [&pause, &Order::Rollback] {
            assert!(waits(order, false, None, true) && !waits(order, false, None, false));
            assert!(waits(order, false, Some(&Order::Idle), false), "it keeps the service awake, or is asleep by then");
            assert!(waits(order, true, Some(&wake), true), "the wake is for it");
            assert!(!waits(order, false, Some(&Order::Unpause), false));
        }
        assert!(waits(&pause, false, Some(&wake), true));
        assert!(!waits(&Order::Rollback, false, Some(&wake), true), "it ends the wake");
        assert!(waits(&wake, false, Some(&Order::Idle), true) && !waits(&wake, true, None, true));
        assert!(!waits(&wake, false, Some(&wake), true) && !waits(&Order::Idle, false, Some(&Order::Idle), false));
    }
}
