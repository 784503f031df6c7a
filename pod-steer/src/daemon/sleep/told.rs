//! The conditions of services that sleep, or should.

use std::collections::BTreeSet;

use crate::{
    clock::boot_ms,
    condition::{Condition, Reason},
    daemon::control::Control,
    rollout::{self, Order},
};

/// How long containers may take to serve before that is a condition.
const SLOW_MS: i64 = 10_000;

impl Control {
    /// Why the containers of a service that is to wake cannot be started.
    pub(super) fn wake_failure(&self, service: &str) -> Option<String> {
        let asleep = self.world.decisions.get(service)?.asleep.as_ref()?;
        rollout::wake_failures(&self.view(service), asleep)
    }

    /// The conditions of a service that sleeps, or should.
    pub(in crate::daemon) fn sleep_conditions(&self, service: &str) -> Vec<Condition> {
        let sleepers = &self.orders.sleepers;
        let refused = sleepers.refused.get(service).map(|(why, _)| {
            Condition::without_remedy(Reason::CannotSleep, format!("it could not be put to sleep: {why}"))
        });
        let of_sleep = sleepers.unable.get(service).cloned().or(refused);
        let wakes = self.wake_condition(service).or_else(|| self.unstarted_condition(service));
        of_sleep.into_iter().chain(wakes).collect()
    }

    fn unstarted_condition(&self, service: &str) -> Option<Condition> {
        let down = self.orders.sleepers.unstarted.get(service)?.down(&self.world);
        let names: Vec<&str> = down.map(|backend| backend.name.as_str()).collect();
        let message =
            format!("it has woken without {}, which could not be started; that is tried again", names.join(", "));
        (!names.is_empty()).then(|| Condition::new(Reason::WakeFails, message, "see why in the daemon's log"))
    }

    fn wake_condition(&self, service: &str) -> Option<Condition> {
        let operation = self.orders.operations.get(service)?;
        let (Order::Wake(_), rollout::Phase::Starting { since_ms, .. }) = (&operation.order, &operation.phase) else {
            return None;
        };
        let after = boot_ms().saturating_sub(*since_ms);
        let message = match self.wake_failure(service) {
            Some(failure) => format!("it is to wake, and {failure}; that is tried again"),
            None if after >= SLOW_MS => format!("it is to wake, and cannot serve after {} s", after / 1_000),
            None => return None,
        };
        let remedy = format!("see why in the container's log; to end this: pod-steer rollback {service}");
        Some(Condition::new(Reason::WakeFails, message, remedy))
    }

    /// The conditions of all services that sleep, or should.
    pub(in crate::daemon) fn all_sleep_conditions(&self) -> impl Iterator<Item = (String, Vec<Condition>)> {
        let waking = self.orders.operations.values().filter(|operation| operation.is_of_sleep());
        let sleepers = &self.orders.sleepers;
        let services = waking
            .map(|operation| &operation.service)
            .chain(sleepers.unable.keys())
            .chain(sleepers.refused.keys())
            .chain(sleepers.unstarted.keys());
        let services: BTreeSet<&String> = services.collect();
        services.into_iter().map(|service| (service.clone(), self.sleep_conditions(service)))
    }
}
