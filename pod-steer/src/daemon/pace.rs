//! How much time the work for each service, or backend, may take. What runs in a backend decides how often it listens and closes, so one
//! that has taken its part waits, and what waits is done together; others do not notice.
//!
//! It is the virtual scheduling of a leaky bucket (ITU-T I.371, annex A) that is filled with time instead of cells.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use crate::world::Changed;

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
    /// Services whose changes wait, and until when.
    waiting: BTreeMap<String, Instant>,
}

impl Pace {
    /// The sockets of a service have changed: whether that is to be planned at once. If not, it is due later.
    pub fn changed(&mut self, service: &str, now: Instant) -> bool {
        let at = self.taken.waits_until(service, now);
        match at {
            Some(_) if self.waiting.contains_key(service) => {}
            Some(at) => drop(self.waiting.insert(service.to_owned(), at)),
            None => drop(self.changed.insert(service.to_owned())),
        }
        at.is_none()
    }

    /// Services that have waited and are to be planned now.
    pub fn take_due(&mut self, now: Instant) -> Vec<String> {
        let due: Vec<String> = self.waiting.extract_if(.., |_, at| *at <= now).map(|(service, _)| service).collect();
        self.changed.extend(due.iter().cloned());
        due
    }

    /// A service is to be planned now, whatever it has taken: whether it has waited.
    pub fn hurry(&mut self, service: &str) -> bool {
        let has_waited = self.waiting.remove(service).is_some();
        if has_waited {
            self.changed.insert(service.to_owned());
        }
        has_waited
    }

    /// What has changed is planned, which took so long: the services share it because of which that was done. Those that waited need not
    /// if they were planned with them.
    pub fn planned(&mut self, changed: &Changed, took: Duration, now: Instant) {
        self.waiting.retain(|service, _| !changed.has(service));
        let each = took / u32::try_from(self.changed.len()).unwrap_or(u32::MAX).max(1);
        for service in std::mem::take(&mut self.changed) {
            self.taken.take(service, each, now);
        }
    }

    /// When changes that wait are to be planned.
    pub fn due(&self) -> Option<Instant> {
        self.waiting.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn of(service: &str) -> Changed {
        Changed::Services(BTreeSet::from([service.to_owned()]))
    }

    /// How often a service is planned that changes each millisecond, for ten seconds.
    fn plans(pace: &mut Pace, now: &mut Instant, took: Duration) -> u32 {
        let (end, mut planned) = (*now + Duration::from_secs(10), 0);
        while *now < end {
            if !pace.take_due(*now).is_empty() | pace.changed("noisy", *now) {
                *now += took;
                pace.planned(&Changed::All, took, *now);
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
            pace.planned(&Changed::All, 5 * MS, now);
            at_once
        });
        assert_eq!(at_once.count(), 21);
    }

    #[test]
    fn none_waits_long_for_what_was_done_for_others() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert!(pace.changed("quiet", now));
        pace.planned(&Changed::All, Duration::from_secs(5), now);
        assert!(!pace.changed("quiet", now) && pace.due() == Some(now + WAIT_MAX));
        assert!(pace.changed("other", now));
        pace.planned(&of("other"), MS, now);
        assert!(pace.due().is_some(), "it has nothing to do with the other");
        assert!(!pace.hurry("other") && pace.hurry("quiet") && pace.due().is_none(), "an order does not wait");
        pace.planned(&of("quiet"), Duration::ZERO, now);
        assert!(!pace.changed("quiet", now));
        // What waits is planned with a change that concerns all, at its cost.
        pace.planned(&Changed::All, MS, now);
        assert_eq!(pace.due(), None);
        assert!(pace.changed("quiet", now + WAIT_MAX));
    }

    #[test]
    fn a_plan_for_many_is_shared_out() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for service in ["a", "b", "c", "d"] {
            assert!(pace.changed(service, now));
        }
        pace.planned(&Changed::All, AT_ONCE * 2, now);
        assert!(pace.changed("a", now), "it has taken half of what it may take at once");
        pace.planned(&of("a"), AT_ONCE, now);
        assert!(!pace.changed("a", now) && pace.changed("b", now));
    }
}
