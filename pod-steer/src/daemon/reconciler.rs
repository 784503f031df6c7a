//! A turn of the loop: the inputs have changed facts; now the kernel is brought to the plan that follows from them, and whatever
//! relies on that goes on.

use std::time::Instant;

use super::{control::Control, deferred::Deferred};
use crate::{
    clock::boot_ms,
    condition::{Condition, Reason},
    kernel::Applied,
};

impl Control {
    /// Reconciles, and does what was waiting for that, until nothing is left to do.
    pub(super) fn turn(&mut self) {
        self.touch_if_due();
        self.begin_steps();
        let mut has_given = false;
        loop {
            self.reconcile();
            let goes_on = self.proceed();
            if self.is_unloaded {
                return;
            }
            if !goes_on && std::mem::replace(&mut has_given, true) {
                break;
            }
            if !goes_on {
                self.give_due_orders();
            }
        }
        self.inspect_due();
        self.look_for_holders();
        self.free_due_ports();
        self.keep_totals();
        self.kernel.end_turn();
    }

    /// Does the next thing that relies on the kernel having the plan. False if there is none. Each may change facts.
    fn proceed(&mut self) -> bool {
        if let Some(recorded) = self.orders.recorded.take() {
            self.continue_recorded(recorded);
        } else if !self.deferred.is_empty() {
            let mut deferred = std::mem::take(&mut self.deferred);
            // A container may bind soon after its cgroup appears, so its programs are attached before any other is located.
            deferred.make_contiguous().sort_by_key(|deferred| !matches!(deferred, Deferred::Attach { .. }));
            deferred.into_iter().for_each(|deferred| self.resume(deferred));
        } else if let Some(given) = self.orders.given.pop_front() {
            self.carry_out(given);
        } else if let Some(ask) = self.asks.pop_front() {
            self.answer_ask(ask);
        } else {
            return self.step_next() || self.answer_begun();
        }
        true
    }

    /// Whether the kernel follows the decision of a service that was planned last.
    pub(super) fn is_in_force(&self, service: &str) -> bool {
        let planned = self.plan.decisions.get(service).zip(self.services.index(service));
        !self.engines.is_awaiting() && planned.is_none_or(|(decision, index)| self.kernel.follows(index, *decision))
    }

    /// Brings the kernel to what follows from the facts: the only place where a plan is made and applied, called in one place.
    fn reconcile(&mut self) {
        let begun = Instant::now();
        if self.engines.is_awaiting() || !self.dirty.is_due(begun) {
            return;
        }
        self.world.now_ms = boot_ms();
        // Both may change facts, which this plan is to have.
        self.renew_own_listeners();
        self.follow_checks();
        let changed = self.dirty.take();
        let mut plan = std::mem::take(&mut self.plan);
        let states = plan.states.clone();
        self.world.replan(&changed, &mut plan);
        self.name_services(&plan);
        self.attach_namespaces(&plan);
        let owners = || {
            let backends = self.world.backends.values();
            backends.filter_map(|backend| Some((backend.index, self.services.index(&backend.spec.service)?))).collect()
        };
        let Applied { settled, error, is_behind, is_stale, refused } =
            self.kernel.apply(&plan, self.services.all(), owners);
        let published = self.kernel.take_published();
        if published > 0 {
            // That of a decision is measured from the decision on.
            self.totals.count_tables(published, Some(begun.elapsed()).filter(|_| !self.kernel.has_switched()));
        }
        self.world.refuse(&mut plan, &refused);
        // The tables are in effect already; only operations wait for the grace periods.
        self.orders.settled = settled;
        match error {
            Some(error) => {
                let message = format!("it refused a change, which is tried again: {}", crate::chain(&error));
                self.conditions.set("the kernel", Condition::without_remedy(Reason::ChangeRefused, message));
            }
            None => self.conditions.clear(Reason::ChangeRefused, "the kernel"),
        }
        self.leave_namespaces(&plan);
        self.store_ready_times();
        self.report(&plan, &states);
        self.plan = plan;
        self.begin_forwarding();
        self.compare_new_ways();
        self.tell_conditions();
        self.note_silent();
        self.dirty.applied(&changed, begun, Instant::now(), is_behind, is_stale);
        self.leave_pause();
    }
}
