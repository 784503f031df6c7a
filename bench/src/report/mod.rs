//! The results of a benchmark run, as values: sections with rows and columns. `measure` produces them, `judge` judges them, `show` and
//! `page` present them.

mod file;
mod noise;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use file::{check_writable, read};
pub use noise::{interval, quantile, quotients};

/// Version of this layout. Files of another version are not compared.
pub const FORMAT: u32 = 2;

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// The machine's properties, as (name, value): `("kernel", "6.18.0")`.
    pub machine: Vec<(String, String)>,
    /// The share of its processors that was in use before the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_pct: Option<f64>,
    /// Whether it was a quick run, whose figures are rough.
    pub quick: bool,
    /// The sections, in the order for people.
    pub sections: Vec<Section>,
}

/// One workload, with a row for each contestant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// Its name for `--only`: `new-connections`.
    pub name: String,
    /// For people.
    pub title: String,
    /// A description in two or three sentences.
    pub about: String,
    /// The measures, in the order of the columns.
    pub columns: Vec<Column>,
    /// One for each contestant, or for each size.
    pub rows: Vec<Row>,
    /// The missing contestants, and why.
    pub skipped: Vec<(String, String)>,
}

/// One measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// The key in [`Row::values`]: `requests_per_s`.
    pub key: String,
    /// For people, with its unit: `requests/s`.
    pub title: String,
    /// The better direction.
    pub better: Better,
}

/// The better direction of a measure.
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
    /// The base of its ratios; `None` if it has none.
    pub base: Option<String>,
    /// By [`Column::key`]. Measures that a contestant does not have are missing.
    pub values: BTreeMap<String, Figure>,
    /// By [`Column::key`]: the values of the rounds, in order. Those of two rows of a section correspond, value by value. Only where all
    /// contestants had the same rounds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rounds: BTreeMap<String, Vec<f64>>,
    /// A remark for reading it.
    pub note: Option<String>,
}

/// A measure over several rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The median of the rounds, and the least and the most.
    pub value: Spread,
    /// The same of its ratio to the base, taken round by round, so that drift affects both alike.
    pub ratio: Option<Spread>,
    /// The confidence interval of 95%, where [`Row::rounds`] does not give it.
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

    /// The largest deviation of the extremes from the median, as a part of it.
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

    /// The median of samples without counterparts in other rows, with their extremes.
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
    /// The confidence interval of 95% of a value.
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
        // A base of zero has no ratio.
        assert_eq!(Figure::of(&[1.0], Some(&[0.0])).unwrap().ratio, None);
    }
}
