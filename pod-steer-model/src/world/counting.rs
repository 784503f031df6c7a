//! Whether the kernel programs have counted all connections of a backend. They count a connection only if they were
//! attached to the cgroup in which its listener was made, before it was opened.

use super::{Backend, Kind, Phase};

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

    /// Starts counting anew, because it is started again: its listeners are made in a cgroup with attached programs.
    pub fn counts_anew(&mut self) {
        // While it runs, this is the event of a start that the snapshot already contains.
        if self.phase != Phase::Running {
            self.counts_incomplete = false;
            self.inherited.clear();
        }
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
        restarted.counts_anew();
        restarted.phase = Phase::Running;
        assert!(!restarted.has_uncounted_connections());
        late.phase = Phase::Running;
        late.counts_anew();
        assert!(late.has_uncounted_connections(), "it is no other start");
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
