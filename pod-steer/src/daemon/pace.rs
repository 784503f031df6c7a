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
const PARTS: u32 = 4;
/// Each may take so much at once before it waits.
const AT_ONCE: Duration = Duration::from_millis(100);
/// None waits longer, whatever it has taken: what it is charged for may have been done for others too.
const WAIT_MAX: Duration = Duration::from_millis(250);

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
        let until = self.until.entry(id).or_insert(now);
        *until = (*until + took * PARTS).min(now + AT_ONCE * PARTS + WAIT_MAX);
    }
}

/// What the loop does for changes of sockets: the time that it takes for each service, and the changes that wait.
#[derive(Default)]
pub(super) struct Pace {
    taken: Taken,
    /// Services whose changes are to be planned at once.
    changed: BTreeSet<String>,
    /// Services whose changes wait.
    waiting: BTreeSet<String>,
    /// When the first of those that wait is to be planned.
    due: Option<Instant>,
}

impl Pace {
    /// The sockets of a service have changed: whether that is to be planned at once. If not, it is due later.
    fn changed(&mut self, service: &str, now: Instant) -> bool {
        let at = self.taken.waits_until(service, now);
        let services = if at.is_some() { &mut self.waiting } else { &mut self.changed };
        if !services.contains(service) {
            services.insert(service.to_owned());
        }
        self.due = self.due.into_iter().chain(at).min();
        at.is_none()
    }

    /// Whether changes that have waited are to be planned now.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.due.is_some_and(|due| due <= now);
        if is_due {
            self.changed.append(&mut self.waiting);
        }
        is_due
    }

    /// All changes have been planned, which took so long: the services share it because of which that was done.
    pub fn planned(&mut self, took: Duration, now: Instant) {
        self.due = None;
        self.waiting.clear();
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

    const MS: Duration = Duration::from_millis(1);

    /// How often a service is planned that changes each millisecond, for ten seconds.
    fn plans(pace: &mut Pace, now: &mut Instant, took: Duration) -> u32 {
        let (end, mut planned) = (*now + Duration::from_secs(10), 0);
        while *now < end {
            if pace.is_due(*now) | pace.changed("noisy", *now) {
                *now += took;
                pace.planned(took, *now);
                planned += 1;
            }
            assert!(pace.changed("quiet", *now), "another service is planned at once");
            pace.changed.remove("quiet");
            *now += MS;
        }
        planned
    }

    #[test]
    fn a_service_has_its_part_and_others_do_not_wait() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        // A quarter of ten seconds, and what it may take at once.
        let planned = plans(&mut pace, &mut now, 5 * MS);
        assert!((500..=525).contains(&planned), "{planned}");
        // After a rest it may take as much at once again.
        now += Duration::from_secs(1);
        let at_once = (0..100).take_while(|_| {
            let at_once = pace.changed("noisy", now);
            pace.planned(5 * MS, now);
            at_once
        });
        assert_eq!(at_once.count(), 21);
    }

    #[test]
    fn none_waits_long_for_what_was_done_for_others() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert!(pace.changed("quiet", now));
        pace.planned(Duration::from_secs(5), now);
        assert!(!pace.changed("quiet", now) && pace.due() == Some(now + WAIT_MAX));
        // What waits is planned with the changes of others, at their cost.
        assert!(pace.changed("other", now));
        pace.planned(MS, now);
        assert_eq!(pace.due(), None);
        assert!(pace.changed("quiet", now + WAIT_MAX));
    }

    #[test]
    fn a_plan_for_many_is_shared_out() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for service in ["a", "b", "c", "d"] {
            assert!(pace.changed(service, now));
        }
        pace.planned(AT_ONCE * 2, now);
        assert!(pace.changed("a", now), "it has taken half of what it may take at once");
        pace.planned(AT_ONCE, now);
        assert!(!pace.changed("a", now) && pace.changed("b", now));
    }
}
