//! What has changed since the last reconcile, and when it is to be tried again.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use pod_steer_ebpf::OwnListener;

use crate::{daemon::pace::Pace, ids::SocketCookie, world::Changed};

/// Least time until a change that the kernel refused is tried again.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// That time is at least so many times what the last attempt took: with thousands of rules an attempt takes long, and clients of the
/// API must be answered meanwhile.
const RETRY_SHARE: u32 = 9;

/// Changes that the kernel does not have.
#[derive(Default)]
pub struct Dirty {
    changed: Changed,
    pace: Pace,
    /// Listeners that have closed: what they were known by, and the cookie of each.
    closed: BTreeSet<(OwnListener, SocketCookie)>,
    /// When a change that the kernel refused is tried again.
    retry_at: Option<Instant>,
    /// A rule that is in force may not be as planned.
    is_stale: bool,
}

impl Dirty {
    /// Something has changed that may concern every service.
    pub fn mark_all(&mut self) {
        self.changed = Changed::All;
    }

    /// Something of this service alone has changed.
    pub fn mark(&mut self, service: &str) {
        self.changed.add(service);
    }

    /// Sockets of this service have changed, which happens as often as its processes want: at the pace that it may take.
    pub fn mark_paced(&mut self, service: &str, now: Instant) {
        if self.pace.changed(service, now) {
            self.changed.add(service);
        }
    }

    /// Marks the changes that have waited for their pace and are due.
    pub fn mark_due(&mut self, now: Instant) {
        for service in self.pace.take_due(now) {
            self.changed.add(&service);
        }
    }

    /// Marks a service if a change of it waits for its pace.
    pub fn hurry(&mut self, service: &str) {
        if self.pace.hurry(service) {
            self.changed.add(service);
        }
    }

    /// When changes that wait for their pace are due.
    pub fn due(&self) -> Option<Instant> {
        self.pace.due()
    }

    /// A listener has closed.
    pub fn note_closed(&mut self, listeners: impl IntoIterator<Item = (OwnListener, SocketCookie)>) {
        self.closed.extend(listeners);
    }

    /// Takes the listeners that have closed.
    pub fn take_closed(&mut self) -> BTreeSet<(OwnListener, SocketCookie)> {
        std::mem::take(&mut self.closed)
    }

    /// Whether something has changed, or it is time to try again what was refused.
    pub fn is_due(&self, now: Instant) -> bool {
        self.retry_at.is_some_and(|at| at <= now) || !self.changed.is_nothing()
    }

    /// Takes what has changed: nothing at all if only a refused change is tried again.
    pub fn take(&mut self) -> Changed {
        std::mem::take(&mut self.changed)
    }

    /// What was taken has been planned and given to the kernel, between these times.
    pub fn applied(&mut self, changed: &Changed, begun: Instant, now: Instant, is_behind: bool, is_stale: bool) {
        let took = now.saturating_duration_since(begun);
        self.retry_at = is_behind.then(|| now + RETRY_MIN.max(took * RETRY_SHARE));
        self.is_stale = is_stale;
        self.pace.planned(changed, took, now);
    }

    /// Whether something that is in force may not be as planned.
    pub fn is_stale(&self) -> bool {
        !self.changed.is_nothing() || self.is_stale || self.pace.due().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_change_is_tried_again_in_a_while() {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        assert!(!dirty.is_due(now) && !dirty.is_stale());
        dirty.mark("web");
        assert!(dirty.is_stale());
        assert!(dirty.is_due(now));
        let changed = dirty.take();
        assert!(changed.has("web") && !changed.has("api"));
        dirty.applied(&changed, now, now, true, true);
        assert!(!dirty.is_due(now) && dirty.is_stale());
        let again = now + RETRY_MIN;
        assert!(dirty.is_due(again) && dirty.take().is_nothing());
        // An attempt that took long is repeated less often.
        dirty.applied(&changed, again, again + RETRY_MIN, true, true);
        assert!(!dirty.is_due(again + RETRY_MIN * RETRY_SHARE));
        let later = again + RETRY_MIN * (RETRY_SHARE + 1);
        assert!(dirty.is_due(later));
        dirty.applied(&changed, later, later, false, false);
        assert!(!dirty.is_stale() && !dirty.is_due(later + RETRY_MIN * 100));
    }

    #[test]
    fn a_change_that_waits_for_its_pace_is_stale_until_it_is_planned() {
        let (mut dirty, now) = (Dirty::default(), Instant::now());
        dirty.mark_paced("web", now);
        assert!(dirty.is_due(now));
        let changed = dirty.take();
        dirty.applied(&changed, now, now + Duration::from_secs(5), false, false);
        dirty.mark_paced("web", now + Duration::from_secs(5));
        assert!(!dirty.is_due(now + Duration::from_secs(5)) && dirty.is_stale());
        dirty.hurry("web");
        assert!(dirty.is_due(now + Duration::from_secs(5)));
    }
}
