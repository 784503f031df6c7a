//! Whether one version has a larger share of a fault than another: Fisher's exact test, two-sided (twice the smaller tail).
#![forbid(unsafe_code)]

use statrs::distribution::{Discrete as _, Hypergeometric};

use super::{Compared, MORE_MIN, SAMPLE_MIN, Side, UNANSWERED_MIN};

/// So many of so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub faults: u64,
    pub all: u64,
}

impl Share {
    pub fn part(self) -> f64 {
        if self.all == 0 { 0.0 } else { self.faults as f64 / self.all as f64 }
    }
}

/// A kind of fault.
pub struct Kind {
    /// What the version does, for messages.
    pub does: &'static str,
    /// Of what it is a share.
    pub of: &'static str,
    /// By how much the share must be larger.
    pub more_min: f64,
    /// It must be so many times as large.
    pub times_min: f64,
    pub share: fn(&Side, &Compared) -> Share,
    /// A share that must be larger by as much, too.
    pub also: Option<fn(&Side) -> Share>,
}

impl Kind {
    /// Whether the other share, if there is one, is larger too.
    pub fn also_is_larger(&self, new: &Side, old: &Side) -> bool {
        self.also.is_none_or(|share| share(new).part() >= share(old).part() + self.more_min)
    }
}

/// Connections that are old enough for a request to be overdue.
pub const OLDER: &str = "older connection";
/// Connections with an answer by HTTP/1.
pub const HTTP: &str = "HTTP connection";

/// All of them. Each counts connections, since those are independent of each other, and the requests on one are not.
pub const KINDS: [Kind; 5] = [
    Kind {
        does: "resets more connections",
        of: "connection",
        more_min: MORE_MIN,
        times_min: 1.0,
        share: |side, _| Share { faults: side.observed.reset, all: side.observed.ended },
        also: None,
    },
    Kind {
        does: "closes more connections without an answer",
        of: "connection",
        more_min: MORE_MIN,
        times_min: 1.0,
        share: |side, _| Share { faults: side.observed.empty, all: side.observed.ended },
        also: None,
    },
    Kind {
        does: "has more clients that left without an answer",
        of: "connection",
        more_min: MORE_MIN,
        times_min: 2.0,
        share: |side, _| Share { faults: side.observed.left, all: side.observed.ended },
        also: None,
    },
    Kind {
        does: "leaves clients waiting on more connections",
        of: OLDER,
        more_min: UNANSWERED_MIN,
        times_min: 2.0,
        share: |side, _| Share { faults: side.overdue, all: side.old_connections },
        also: None,
    },
    Kind {
        does: "answers with 5xx on more connections",
        of: HTTP,
        more_min: MORE_MIN,
        times_min: 1.0,
        share: |side, _| Share { faults: side.observed.failing, all: side.observed.spoken },
        // A connection with more requests has more chances.
        also: Some(|side| Share { faults: side.observed.classes[3], all: side.observed.classes.iter().sum() }),
    },
];

/// Whether the first share is larger than the second one, with this probability of an error; nothing if a sample is too small.
pub fn is_larger(new: Share, old: Share, kind: &Kind, error: f64) -> Option<bool> {
    if new.all.min(old.all) < SAMPLE_MIN {
        return None;
    }
    let is_relevant = new.part() >= old.part() + kind.more_min && new.part() >= old.part() * kind.times_min;
    Some(is_relevant && 2.0 * at_least(new, old) <= error)
}

/// The probability that the first of two versions which are alike has at least so many of the faults of both, if it has more than its part.
fn at_least(new: Share, old: Share) -> f64 {
    let (new_faults, old_faults) = (new.faults.min(new.all), old.faults.min(old.all));
    let (all, both) = (new.all.saturating_add(old.all), new_faults.saturating_add(old_faults));
    let Ok(distribution) = Hypergeometric::new(all, both, new.all) else { return 1.0 };
    // Behind the middle, each term is smaller than the one before it, by a ratio that needs no factorial.
    let (mut term, mut sum, mut faults) = (distribution.ln_pmf(new_faults).exp(), 0.0, new_faults);
    while term > sum * f64::EPSILON {
        sum += term;
        if faults >= both.min(new.all) {
            break;
        }
        let of = |number: u64| number as f64;
        let more = of(both - faults) * of(new.all - faults);
        let fewer = of(faults + 1) * (of(all) - of(both) - of(new.all) + of(faults) + 1.0);
        (term, faults) = (term * more / fewer, faults + 1);
    }
    sum.min(1.0)
}
