//! The ratios that are compared: those of a row to its base, and some of pod-steer alone where no other contestant is measured. Both
//! parts are from one report, so that the machine's speed cancels out.

use crate::report::{self, Better, Row, Section, Spread};

use super::tolerance::Margin;

/// A ratio with its confidence interval of 95%. With fewer than six rounds there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    pub median: f64,
    pub known: Option<Spread>,
}

/// One measure of pod-steer divided by another one. Lower is better.
pub struct Derived {
    /// For people.
    pub kind: &'static str,
    pub section: &'static str,
    /// A row, and a key.
    of: (&'static str, &'static str),
    over: (&'static str, &'static str),
    pub margin: Margin,
}

pub const DERIVED: [Derived; 5] = [
    Derived {
        kind: "longest pause of a swap ÷ that without a swap",
        section: "hot-swap",
        of: ("pod-steer", "gap_ms"),
        over: ("pod-steer", "baseline_gap_ms"),
        margin: Margin {
            part: 0.50,
            why: "both are the longest of thousands, and one time slice of the scheduler changes them",
        },
    },
    Derived {
        kind: "pause between old answers and new ÷ the longest pause without a swap",
        section: "hot-swap",
        of: ("pod-steer", "switch_gap_ms"),
        over: ("pod-steer", "baseline_gap_ms"),
        margin: Margin { part: 1.00, why: "one request's time beside the longest of thousands" },
    },
    Derived {
        kind: "program run, a steered port ÷ an unclaimed port",
        section: "program",
        of: ("services-1", "run_ns"),
        over: ("services-1", "other_ns"),
        margin: Margin { part: 0.20, why: "a matter of cache misses" },
    },
    Derived {
        kind: "listen() to steered under churn, p99 ÷ p50",
        section: "control-plane",
        of: ("churn", "steered_p99_ms"),
        over: ("churn", "steered_p50_ms"),
        margin: Margin { part: 1.00, why: "the scheduler delays ten of a thousand processes" },
    },
    Derived {
        kind: "one change among 1,000 backends ÷ listen() to steered under churn, p50",
        section: "control-plane",
        of: ("backends-1000", "switch_ms"),
        over: ("churn", "steered_p50_ms"),
        margin: Margin { part: 0.75, why: "few changes, each with the start of a process beside it" },
    },
];

impl Derived {
    /// The ratio in a section; `None` if it lacks one of the two.
    pub fn ratio(&self, section: &Section) -> Option<Ratio> {
        let ((of, key), (over, other_key)) = (self.of, self.over);
        let (row, other) = (section.row(of)?, section.row(over)?);
        if let Some(quotients) = report::quotients((row, key), (other, other_key)) {
            return Some(Ratio::of(&quotients));
        }
        let median = row.values.get(key)?.value.median / other.values.get(other_key)?.value.median;
        // Their rounds do not correspond, so the intervals are divided end by end.
        let known = row.known(key).zip(other.known(other_key));
        let known = known.map(|(own, other)| Spread { median, low: own.low / other.high, high: own.high / other.low });
        Some(Ratio { median, known })
    }

    /// The row and the key of each part.
    pub fn parts(&self) -> [(&'static str, &'static str); 2] {
        [self.of, self.over]
    }
}

impl Ratio {
    /// The ratio of a row to its base: by their rounds, or by the summary if the report lacks the rounds. A base has no ratio to itself,
    /// which would always be 1.
    pub fn to_base(section: &Section, row: &Row, key: &str) -> Option<Self> {
        let base = row.base.as_deref().filter(|base| *base != row.name)?;
        match report::quotients((row, key), (section.row(base)?, key)) {
            Some(quotients) => Some(Self::of(&quotients)),
            None => Some(Self { median: row.values.get(key)?.ratio?.median, known: None }),
        }
    }

    fn of(rounds: &[f64]) -> Self {
        Self { median: Spread::of(rounds).map_or(f64::NAN, |spread| spread.median), known: report::interval(rounds) }
    }

    /// Whether it is worse than an earlier one by more than this part; `None` where the rounds cannot tell. It is worse if all values
    /// of the two intervals say so, and not worse if none do.
    pub fn is_worse_than(&self, before: &Self, better: Better, part: f64) -> Option<bool> {
        let (before, now) = before.known.zip(self.known)?;
        let (least, most) = match better {
            Better::Higher => (before.low / now.high, before.high / now.low),
            Better::Lower => (now.low / before.high, now.high / before.low),
        };
        // A divisor of 0 gives NaN or infinity, neither of which can be judged.
        match (least > 1.0 + part, most <= 1.0 + part) {
            (true, _) if least.is_finite() => Some(true),
            (_, true) if most > 0.0 => Some(false),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(low: f64, high: f64) -> Ratio {
        let median = (low + high) / 2.0;
        Ratio { median, known: Some(Spread { median, low, high }) }
    }

    #[test]
    fn a_ratio_is_worse_if_it_is_so_wherever_both_are() {
        let before = known(0.99, 1.01);
        let more = |low, high| known(low, high).is_worse_than(&before, Better::Higher, 0.1);
        assert_eq!(more(0.98, 1.02), Some(false));
        assert_eq!(more(1.5, 9.0), Some(false), "better");
        assert_eq!(more(0.8, 1.2), None, "too wide");
        assert_eq!(more(0.8, 0.91), None, "0.91 is within a tenth of 0.99");
        assert_eq!(more(0.5, 0.89), Some(true));
        let less = |low, high| known(low, high).is_worse_than(&before, Better::Lower, 0.1);
        assert_eq!(
            [less(0.1, 0.2), less(1.0, 1.05), less(1.0, 1.3), less(1.2, 1.3)],
            [Some(false), Some(false), None, Some(true)]
        );
    }

    #[test]
    fn wide_ends_of_the_earlier_one_count_as_well() {
        let now = known(0.79, 0.81);
        assert_eq!(now.is_worse_than(&known(0.99, 1.01), Better::Higher, 0.1), Some(true));
        assert_eq!(now.is_worse_than(&known(0.80, 1.20), Better::Higher, 0.1), None);
    }

    #[test]
    fn what_is_not_known_or_divided_by_nothing_is_not_told() {
        let unknown = Ratio { median: 0.1, known: None };
        assert_eq!(unknown.is_worse_than(&known(1.0, 1.0), Better::Higher, 0.1), None);
        assert_eq!(known(1.0, 1.0).is_worse_than(&unknown, Better::Higher, 0.1), None);
        for none in [0.0, f64::INFINITY, f64::NAN] {
            for better in [Better::Higher, Better::Lower] {
                assert_ne!(known(none, none).is_worse_than(&known(1.0, 1.0), better, 0.1), Some(true), "{none}");
                assert_ne!(known(1.0, 1.0).is_worse_than(&known(none, none), better, 0.1), Some(true), "{none}");
            }
        }
    }
}
