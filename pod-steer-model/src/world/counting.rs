//! Whether the kernel programs have counted all connections of a backend. They count a connection only if they were
//! attached to the cgroup in which its listener was made, before it was opened.

use super::{Backend, Health, Kind, Phase};

impl Backend {
    /// Whether it may have connections that its kernel counters do not include.
    pub fn has_uncounted_connections(&self) -> bool {
        match self.kind {
            Kind::Registered { .. } => true,
            // A container without a process has no connection.
            _ if matches!(self.phase, Phase::Created | Phase::Exited) => false,
            _ => self.counts_incomplete || !self.inherited.is_empty(),
        }
    }

    /// It is started again: its listeners are made in a cgroup with attached programs, and its health check has no result yet. An event
    /// says when, in nanoseconds since 1970; its description will say the same, or a little less.
    pub fn starts_anew(&mut self, at_ns: Option<i64>) {
        // While it runs, this is the event of a start that its description already contains, or will.
        if self.phase != Phase::Running {
            self.counts_anew();
            if self.health != Health::Unchecked {
                self.health = Health::Starting;
            }
            self.started_ns = self.started_ns.max(at_ns.unwrap_or_default());
        }
    }

    /// Its engine says that it was started then, in nanoseconds since 1970. True if that is another run than the one that was known, whose
    /// end was not told.
    pub fn is_started_at(&mut self, ns: i64) -> bool {
        let is_next = self.started_ns != 0 && ns > self.started_ns;
        self.started_ns = self.started_ns.max(ns);
        is_next
    }

    /// It has no connection yet, and the programs that count them are attached.
    pub fn counts_anew(&mut self) {
        self.counts_incomplete = false;
        self.inherited.clear();
    }
}

#[cfg(test)]
mod tests {
    use crate::ids::{BackendId, SocketCookie};

    use super::{super::tests::backend, *};

    #[test]
    fn counters_are_trusted_unless_they_may_have_missed_connections() {
        let ordinary = backend(0, "web", "80");
        assert!(!ordinary.has_uncounted_connections());
        let registered = Backend { kind: Kind::Registered { pid: 1 }, ..ordinary.clone() };
        assert!(registered.has_uncounted_connections());
        let mut inherits = ordinary.clone();
        inherits.inherited.insert(SocketCookie(7));
        assert!(inherits.has_uncounted_connections());
        let mut late = Backend { counts_incomplete: true, ..inherits };
        for phase in [Phase::Running, Phase::Paused, Phase::Stopping] {
            late.phase = phase;
            assert!(late.has_uncounted_connections(), "{phase:?}");
        }
        late.phase = Phase::Exited;
        assert!(!late.has_uncounted_connections(), "it has no process");
        let mut restarted = late.clone();
        restarted.starts_anew(None);
        restarted.phase = Phase::Running;
        assert!(!restarted.has_uncounted_connections());
        late.phase = Phase::Running;
        late.starts_anew(None);
        assert!(late.has_uncounted_connections(), "it is no other start");
    }

    #[test]
    fn a_run_whose_end_was_not_told_is_known_by_its_start() {
        let mut known = backend(0, "web", "80");
        assert!(!known.is_started_at(100), "an earlier version did not store it");
        assert!(!known.is_started_at(100) && !known.is_started_at(99) && !known.is_started_at(0));
        assert!(known.is_started_at(101) && !known.is_started_at(101));
        // The event of the described start comes later.
        known.phase = Phase::Running;
        known.starts_anew(Some(102));
        assert!(!known.is_started_at(101));
        // The event comes first.
        known.phase = Phase::Exited;
        known.starts_anew(Some(203));
        assert!(!known.is_started_at(202) && known.is_started_at(300));
    }

    #[test]
    fn the_health_of_the_last_run_is_not_that_of_the_next() {
        let after = |health, phase| {
            let mut again = Backend { health, phase, ..backend(0, "web", "80") };
            again.starts_anew(None);
            again.health
        };
        assert_eq!(after(Health::Healthy, Phase::Exited), Health::Starting);
        assert_eq!(after(Health::Unhealthy, Phase::Stopping), Health::Starting);
        assert_eq!(after(Health::Unchecked, Phase::Exited), Health::Unchecked, "it has no check");
        assert_eq!(after(Health::Healthy, Phase::Running), Health::Healthy, "it is no other start");
    }

    #[test]
    fn incomplete_counts_survive_a_restart_of_the_daemon() {
        let late = Backend { counts_incomplete: true, ..backend(0, "web", "80") };
        let mut stored = serde_json::to_value(&late).unwrap();
        let read = |stored: &serde_json::Value| serde_json::from_value::<Backend>(stored.clone()).unwrap();
        assert!(read(&stored).counts_incomplete);
        stored.as_object_mut().unwrap().remove("counts_incomplete");
        let earlier: BackendId = read(&stored).id.clone();
        assert!(earlier == late.id && !read(&stored).counts_incomplete, "an earlier version did not store it");
    }
}
