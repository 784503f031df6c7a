//! Forwarded connections that do not open: the host's firewall drops what it is not told to let pass, and pod-steer sees only that no
//! server answers.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::control::Control;
use crate::{
    condition::{Condition, Reason},
    ids::BackendIndex,
};

/// So many connections, over so long: a client that gives up is no fault of the firewall.
const CONNECTIONS: u64 = 3;
const AFTER: Duration = Duration::from_secs(10);
/// Connections that come so far apart have nothing to do with each other.
const APART: Duration = Duration::from_secs(60);

/// What may be wrong and what to do, if the host's firewall sees the packets and if it does not.
const FORWARDED: (&str, &str) = (
    "connections are forwarded to it, and none opens: the host's firewall may drop them",
    "let packets with the mark 0x40000000 pass, as docs/forwarding.md says",
);
const HANDED_OVER: (&str, &str) = (
    "connections are handed over to it, and none opens: the container's own firewall or rp_filter may drop them",
    "look at both, or label it `pod-steer.via=forward`",
);

/// The forwarded backends, by index.
#[derive(Debug, Default)]
pub(super) struct Unanswered(BTreeMap<BackendIndex, Seen>);

/// A backend since its last connection opened.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Counters at that time.
    steered: u64,
    opened: u64,
    /// When the first connection was forwarded to it since, and the last one.
    first: Option<Instant>,
    last: (u64, Instant),
}

impl Unanswered {
    /// Takes the counters of a backend. True if connections are forwarded to it and none opens.
    fn note(&mut self, index: BackendIndex, steered: u64, opened: u64, now: Instant) -> bool {
        let fresh = Seen { steered, opened, first: None, last: (steered, now) };
        let seen = self.0.entry(index).or_insert(fresh);
        if now.saturating_duration_since(seen.last.1) > APART {
            *seen = Seen { steered: seen.last.0.min(steered), ..fresh };
        }
        if seen.opened != opened {
            *seen = fresh;
        }
        if steered > seen.last.0 {
            seen.last = (steered, now);
        }
        if steered > seen.steered {
            seen.first.get_or_insert(now);
        }
        let silent = seen.first.map_or(Duration::ZERO, |first| now.saturating_duration_since(first));
        steered - seen.steered.min(steered) >= CONNECTIONS && silent >= AFTER
    }

    fn retain(&mut self, stays: impl Fn(BackendIndex) -> bool) {
        self.0.retain(|index, _| stays(*index));
    }
}

impl Control {
    /// Compares what is forwarded to each backend with what opens there.
    pub(super) fn compare_forwarded(&mut self) {
        let now = Instant::now();
        self.unanswered.retain(|index| self.plan.destinations.contains_key(&index));
        let mut is_news = false;
        for index in self.plan.destinations.keys() {
            let counters = self.kernel.counters().backend(*index);
            let is_unanswered = self.unanswered.note(*index, counters.steered, counters.opened, now);
            let Some(backend) = self.world.by_index_mut(*index) else { continue };
            if is_unanswered {
                is_news |= !backend.conditions.contains_key(&Reason::ForwardUnanswered);
                let is_handed_over = self.plan.destinations.get(index).is_some_and(|of| of.peer.is_some());
                let (message, remedy) = if is_handed_over { HANDED_OVER } else { FORWARDED };
                backend.set_condition(Condition::new(Reason::ForwardUnanswered, message, remedy));
            } else {
                backend.end_condition(Reason::ForwardUnanswered);
            }
        }
        if is_news {
            // Another program may have removed a rule.
            self.compare_firewall();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_unanswered_while_connections_come_and_none_opens() {
        let (mut unanswered, begin) = (Unanswered::default(), Instant::now());
        let mut at =
            |s: u64, steered, opened| unanswered.note(BackendIndex(1), steered, opened, begin + Duration::from_secs(s));
        assert!(!at(0, 100, 90), "what was before is not known");
        assert!(!at(20, 100, 90), "no client comes");
        assert!(!at(21, 105, 90) && !at(30, 105, 90), "they may be on their way");
        assert!(at(31, 105, 90) && at(50, 106, 90));
        assert!(!at(51, 107, 91), "one has opened");
        assert!(!at(52, 108, 91) && !at(62, 109, 91), "two are few");
        assert!(at(63, 110, 91));
        assert!(!at(200, 111, 91), "the others were long ago");
    }
}
