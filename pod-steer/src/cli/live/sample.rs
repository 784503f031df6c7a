//! Rates and shares, from the counters of the last samples. Pure.
#![forbid(unsafe_code)]

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use crate::{api::types::Status, ids::BackendId};

/// The shares that versions and backends got are those of this time.
pub(in crate::cli) const WINDOW: Duration = Duration::from_secs(10);
/// Rounds a window up to whole samples: they come a little later than once in an interval.
const SLACK: Duration = Duration::from_millis(500);

/// What backends have gained since the sample before.
#[derive(Debug)]
struct Gain {
    /// When that sample was taken, and when this one was.
    from: Duration,
    to: Duration,
    by_backend: HashMap<BackendId, u64>,
}

/// The last samples.
#[derive(Debug, Default)]
pub(in crate::cli) struct History {
    last: Option<(Duration, HashMap<BackendId, u64>)>,
    /// The oldest first.
    gains: VecDeque<Gain>,
}

impl History {
    /// Adds a sample that was taken at this time of a monotonic clock.
    pub(in crate::cli) fn add(&mut self, at: Duration, status: &Status) {
        let backends = status.services.iter().flat_map(|service| &service.backends);
        let counts: HashMap<BackendId, u64> = backends
            // The connections of a registered process are not counted when they open: its lookups are.
            .map(|own| (own.id.as_str().into(), if own.kind == "registered" { own.steered } else { own.opened }))
            .collect();
        if let Some((from, before)) = self.last.take() {
            // A backend without an earlier count may be new, or one that a new daemon has found again.
            let gained = |(id, now): (&BackendId, &u64)| {
                let before = *before.get(id)?;
                // A counter that fell began again at zero.
                Some((id.clone(), now.checked_sub(before).unwrap_or(*now)))
            };
            let by_backend = counts.iter().filter_map(gained).collect();
            self.gains.push_back(Gain { from, to: at, by_backend });
        }
        self.last = Some((at, counts));
        let begin = at.saturating_sub(WINDOW + SLACK);
        while self.gains.len() > 1 && self.gains.front().is_some_and(|gain| gain.from < begin) {
            self.gains.pop_front();
        }
    }

    /// New connections a second of a backend, between the last two samples.
    pub(in crate::cli) fn rate(&self, id: &str) -> Option<f64> {
        let gain = self.gains.back()?;
        let seconds = gain.to.saturating_sub(gain.from).as_secs_f64();
        let gained = *gain.by_backend.get(id)?;
        (seconds > 0.0).then(|| gained as f64 / seconds)
    }

    /// New connections of a backend in the window.
    pub(in crate::cli) fn gained(&self, id: &str) -> Option<u64> {
        let mut gains = self.gains.iter().filter_map(|gain| gain.by_backend.get(id)).peekable();
        gains.peek()?;
        Some(gains.sum())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fixture, *};

    fn history(counts: &[(u64, &[(&str, u64)])]) -> History {
        let mut history = History::default();
        for (at_s, backends) in counts {
            history.add(Duration::from_secs(*at_s), &fixture::opened(backends));
        }
        history
    }

    #[test]
    fn a_rate_needs_two_samples() {
        assert_eq!(history(&[]).rate("a"), None);
        assert_eq!(history(&[(0, &[("a", 500)])]).rate("a"), None);
        let two = history(&[(0, &[("a", 500)]), (2, &[("a", 700), ("b", 9_000)])]);
        assert_eq!((two.rate("a"), two.gained("a")), (Some(100.0), Some(200)));
        assert_eq!((two.rate("b"), two.gained("b")), (None, None), "it may have had them for long");
        assert_eq!((two.rate("gone"), two.gained("gone")), (None, None));
    }

    #[test]
    fn a_counter_that_fell_began_again() {
        let reset = history(&[(0, &[("a", 1_000)]), (1, &[("a", 30)]), (2, &[("a", 50)])]);
        assert_eq!((reset.rate("a"), reset.gained("a")), (Some(20.0), Some(50)));
    }

    #[test]
    fn a_rate_is_the_mean_of_a_gap() {
        // No daemon answered for a minute, and the kernel went on counting.
        let gap = history(&[(0, &[("a", 0)]), (1, &[("a", 10)]), (61, &[("a", 610)])]);
        assert_eq!((gap.rate("a"), gap.gained("a")), (Some(10.0), Some(600)), "the window has at least one gain");
    }

    #[test]
    fn a_backend_that_was_away_has_no_rate_at_once() {
        let away = history(&[(0, &[("a", 100)]), (1, &[]), (2, &[("a", 700)])]);
        assert_eq!(away.rate("a"), None);
    }

    #[test]
    fn shares_forget_what_was_before_the_window() {
        let mut history = History::default();
        for second in 0..30_u64 {
            // All connections of the first ten seconds go to `a`, the others to `b`.
            let (a, b) = (second.min(10) * 100, second.saturating_sub(10) * 100);
            history.add(Duration::from_secs(second), &fixture::opened(&[("a", a), ("b", b)]));
        }
        assert_eq!((history.gained("a"), history.gained("b")), (Some(0), Some(1_000)));
        assert_eq!(history.gains.len(), 10);
    }

    #[test]
    fn two_samples_at_one_instant_have_no_rate() {
        assert_eq!(history(&[(1, &[("a", 1)]), (1, &[("a", 2)])]).rate("a"), None);
    }
}
