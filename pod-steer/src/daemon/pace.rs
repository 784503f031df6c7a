//! How much time the work for each service, or backend, may take. What runs in a backend decides how often it listens and closes, so one
//! that has taken its part waits, and what waits is done together; others do not notice.
//!
//! It is the virtual scheduling of a leaky bucket (ITU-T I.371, annex A) that is filled with time instead of cells.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use super::control::Control;

/// Each may take one part in so many.
const PARTS: u32 = 10;
/// Each may take so much at once before it waits.
const AT_ONCE: Duration = Duration::from_millis(50);

/// The time that each has taken, by name or id.
#[derive(Default)]
pub(super) struct Taken {
    /// When it will be over, at the pace at which it may be taken. Few are in the past.
    until: HashMap<String, Instant>,
}

impl Taken {
    /// Until when one has to wait, if it has.
    pub fn waits_until(&self, id: &str, now: Instant) -> Option<Instant> {
        self.until.get(id)?.checked_sub(AT_ONCE * PARTS).filter(|at| *at > now)
    }

    /// One has taken so long.
    pub fn take(&mut self, id: String, took: Duration, now: Instant) {
        self.until.retain(|_, until| *until > now);
        *self.until.entry(id).or_insert(now) += took * PARTS;
    }
}

/// What the loop does for changes of sockets: the time that it takes for each service, and the changes that wait.
#[derive(Default)]
pub(super) struct Pace {
    taken: Taken,
    /// Services whose sockets have changed since the last plan.
    changed: BTreeSet<String>,
    /// When the first of those that wait is to be planned.
    due: Option<Instant>,
}

impl Pace {
    /// The sockets of a service have changed: whether that is to be planned at once. If not, it is due later.
    fn changed(&mut self, service: &str, now: Instant) -> bool {
        if !self.changed.contains(service) {
            self.changed.insert(service.to_owned());
        }
        let Some(at) = self.taken.waits_until(service, now) else { return true };
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
        false
    }

    /// All changes have been planned, which took so long: the services share it.
    pub fn planned(&mut self, took: Duration, now: Instant) {
        self.due = None;
        let each = took / u32::try_from(self.changed.len()).unwrap_or(u32::MAX).max(1);
        for service in std::mem::take(&mut self.changed) {
            self.taken.take(service, each, now);
        }
    }

    /// When changes that wait are to be planned.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl Control {
    /// The sockets of a service have changed, as the kernel says.
    pub(super) fn sockets_changed(&mut self, service: &str) {
        self.holders.watching = true;
        if self.pace.changed(service, Instant::now()) {
            self.touch();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_its_part_and_others_do_not_wait() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let ms = Duration::from_millis;
        let (mut now, mut planned) = (start, 0);
        // A change each millisecond; a plan takes five.
        while now < start + Duration::from_secs(10) {
            let is_due = pace.due().is_some_and(|due| due <= now);
            if pace.changed("noisy", now) || is_due {
                now += ms(5);
                pace.planned(ms(5), now);
                planned += 1;
            }
            assert!(pace.changed("quiet", now), "another service is planned at once");
            pace.changed.remove("quiet");
            now += ms(1);
        }
        // A tenth of ten seconds, and what it may take at once.
        assert!((200..=212).contains(&planned), "{planned}");
        // After a rest it may take as much at once again.
        now += Duration::from_secs(1);
        let at_once = (0..100).take_while(|_| {
            let at_once = pace.changed("noisy", now);
            pace.planned(ms(5), now);
            at_once
        });
        assert_eq!(at_once.count(), 11);
    }

    #[test]
    fn a_plan_for_many_is_shared_out() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for service in ["a", "b", "c", "d"] {
            assert!(pace.changed(service, now));
        }
        pace.planned(AT_ONCE * 2, now);
        assert!(pace.changed("a", now), "it has taken half of what it may take at once");
        pace.planned(AT_ONCE * 2, now);
        assert!(!pace.changed("a", now) && pace.changed("b", now));
        assert_eq!(pace.due(), Some(now + AT_ONCE * 2 * PARTS / 4 + AT_ONCE * 2 * PARTS - AT_ONCE * PARTS));
    }
}
