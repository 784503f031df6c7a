//! The ratios that are compared: those of a row to its base, and some of pod-steer alone, which has no other contestant beside it
//! where they are measured. All are of one report, so the machine's speed is in both of their parts.

use crate::report::{Row, Section, Spread};

use super::noise;
use super::tolerance::Margin;

/// Where a ratio is, and within which ends its median is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

/// One of pod-steer's measures beside another one of pod-steer's. Less is better.
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
            full: 0.50,
            quick: 2.00,
            why: "both are the longest of thousands: one time slice of the scheduler more, and it is another one",
        },
    },
    Derived {
        kind: "pause between old answers and new ÷ the longest pause without a swap",
        section: "hot-swap",
        of: ("pod-steer", "switch_gap_ms"),
        over: ("pod-steer", "baseline_gap_ms"),
        margin: Margin { full: 1.00, quick: 3.00, why: "it is one request's time, beside the longest of thousands" },
    },
    Derived {
        kind: "program run, a steered port ÷ a port that nobody claimed",
        section: "program",
        of: ("services-1", "run_ns"),
        over: ("services-1", "other_ns"),
        margin: Margin { full: 0.20, quick: 0.40, why: "so little is a matter of cache misses" },
    },
    Derived {
        kind: "listen() to steered under churn, p99 ÷ p50",
        section: "control-plane",
        of: ("churn", "steered_p99_ms"),
        over: ("churn", "steered_p50_ms"),
        margin: Margin {
            full: 1.00,
            quick: 3.00,
            why: "the p99 is what the scheduler does to ten of a thousand processes",
        },
    },
    Derived {
        kind: "one change among 1,000 backends ÷ listen() to steered under churn, p50",
        section: "control-plane",
        of: ("backends-1000", "switch_ms"),
        over: ("churn", "steered_p50_ms"),
        margin: Margin { full: 0.75, quick: 2.00, why: "few changes, each with the start of a process beside it" },
    },
];

impl Derived {
    /// What a section has of it.
    pub fn ratio(&self, section: &Section) -> Option<Ratio> {
        let ((of, key), (over, other_key)) = (self.of, self.over);
        let (row, other) = (section.row(of)?, section.row(over)?);
        if let Some(quotients) = noise::quotients((row, key), (other, other_key)) {
            return Ratio::of(&quotients);
        }
        let quotient = row.values.get(key)?.value.median / other.values.get(other_key)?.value.median;
        quotient.is_finite().then(|| Spread::one(quotient).into())
    }

    /// The rows that it is of.
    pub fn rows(&self) -> [&'static str; 2] {
        [self.of.0, self.over.0]
    }

    /// Puts both of its parts into a section.
    #[cfg(test)]
    pub fn set(&self, section: &mut Section, of: f64, over: f64) {
        use crate::report::Figure;

        for ((name, key), value) in [(self.of, of), (self.over, over)] {
            let row = section.rows.iter_mut().find(|row| row.name == name).unwrap();
            row.values.insert(key.to_owned(), Figure { value: Spread::one(value), ratio: None });
        }
    }
}

impl Ratio {
    /// Of a row to its base: by their rounds, or by what was made of them if those are not in the report. A base has none to
    /// itself: it would be 1 whatever becomes of it.
    pub fn to_base(section: &Section, row: &Row, key: &str) -> Option<Self> {
        let base = row.base.as_deref().filter(|base| *base != row.name)?;
        match noise::quotients((row, key), (section.row(base)?, key)) {
            Some(quotients) => Self::of(&quotients),
            None => Some(row.values.get(key)?.ratio?.into()),
        }
    }

    fn of(rounds: &[f64]) -> Option<Self> {
        noise::interval(rounds).map(Self::from)
    }
}

impl From<Spread> for Ratio {
    fn from(Spread { median, low, high }: Spread) -> Self {
        Self { median, low, high }
    }
}
