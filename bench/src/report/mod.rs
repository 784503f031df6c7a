//! What a benchmark run has found, as values: sections with rows and columns. `measure` makes it, `judge` judges it, `show` and
//! `page` present it.

mod file;
mod noise;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use file::{check_writable, read};
pub use noise::{interval, quantile, quotients};

/// Version of this layout; a file of another one is not compared.
pub const FORMAT: u32 = 2;

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// The machine, as (what, how): `("kernel", "6.18.0")`.
    pub machine: Vec<(String, String)>,
    /// How much of its processors was in use before the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_pct: Option<f64>,
    /// Whether it was a quick run, whose figures are rough.
    pub quick: bool,
    /// What was measured, in the order in which people should read it.
    pub sections: Vec<Section>,
}

/// One workload, or one question, with an answer for each contestant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// What `--only` knows it by: `new-connections`.
    pub name: String,
    /// For people.
    pub title: String,
    /// What was done, in two or three sentences.
    pub about: String,
    /// What was measured, in the order of the columns.
    pub columns: Vec<Column>,
    /// One for each contestant, or for each size.
    pub rows: Vec<Row>,
    /// Who is missing, and why.
    pub skipped: Vec<(String, String)>,
}

/// One measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// The key in [`Row::values`]: `requests_per_s`.
    pub key: String,
    /// For people, with its unit: `requests/s`.
    pub title: String,
    /// Which way is good.
    pub better: Better,
}

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// A throughput.
    Higher,
    /// A time, a cost.
    Lower,
}

/// One contestant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The same in all sections: `pod-steer`, `haproxy`.
    pub name: String,
    /// For people: `HAProxy, TCP mode`.
    pub title: String,
    /// The row that its ratios are to; none if it stands alone.
    pub base: Option<String>,
    /// By [`Column::key`]; what a contestant does not have is missing.
    pub values: BTreeMap<String, Figure>,
    /// By [`Column::key`]: what each round found, in their order. Those of two rows of a section belong together, number by
    /// number. Only where there were rounds that all contestants had.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rounds: BTreeMap<String, Vec<f64>>,
    /// What one must know to read it.
    pub note: Option<String>,
}

/// A measure over several rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The median of the rounds, and the least and the most.
    pub value: Spread,
    /// The same of its ratio to the base, taken round by round: what drifts, drifts for both.
    pub ratio: Option<Spread>,
    /// Between which ends the value is known with a confidence of 95%, where [`Row::rounds`] does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<Spread>,
}

/// The middle and the ends of some numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median; of an even number the lower one of the two in the middle.
    pub median: f64,
    /// The least.
    pub low: f64,
    /// The most.
    pub high: f64,
}

impl Spread {
    /// Of at least one number.
    pub fn of(numbers: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.iter().copied().filter(|number| number.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        Some(Self { median: sorted[(sorted.len() - 1) / 2], low, high })
    }

    /// How far the ends are from the median at most, as a part of it.
    pub fn reach(&self) -> f64 {
        (self.high - self.median).max(self.median - self.low) / self.median.abs()
    }

    /// Of a single number.
    pub fn one(number: f64) -> Self {
        Self { median: number, low: number, high: number }
    }
}

impl Figure {
    /// Of the rounds of one contestant and of its base, in the same order.
    pub fn of(rounds: &[f64], base: Option<&[f64]>) -> Option<Self> {
        let ratio = base.and_then(|base| {
            let ratios: Vec<f64> = rounds.iter().zip(base).map(|(own, base)| own / base).collect();
            Spread::of(&ratios)
        });
        Some(Self { value: Spread::of(rounds)?, ratio, known: None })
    }

    /// Of a single number.
    pub fn one(number: f64) -> Self {
        Self { value: Spread::one(number), ratio: None, known: None }
    }

    /// The median of samples that have no counterparts in other rows, with their ends.
    pub fn of_samples(samples: &[f64]) -> Option<Self> {
        Some(Self { value: Spread::of(samples)?, ratio: None, known: interval(samples) })
    }
}

impl Report {
    /// A section, by its name.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }
}

impl Row {
    /// Between which ends a value is known with a confidence of 95%.
    pub fn known(&self, key: &str) -> Option<Spread> {
        self.rounds.get(key).and_then(|rounds| interval(rounds)).or(self.values.get(key)?.known)
    }
}

impl Section {
    /// A row, by its name.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round() {
        let figure = Figure::of(&[50.0, 10.0, 30.0], Some(&[100.0, 20.0, 30.0])).unwrap();
        assert_eq!(figure.value, Spread { median: 30.0, low: 10.0, high: 50.0 });
        assert_eq!(figure.ratio, Some(Spread { median: 0.5, low: 0.5, high: 1.0 }));
        assert_eq!(Figure::of(&[], None), None);
        // A base of nothing has no ratio.
        assert_eq!(Figure::of(&[1.0], Some(&[0.0])).unwrap().ratio, None);
    }
}
