//! The summary of the swaps of one contestant.

use std::{collections::BTreeMap, time::Duration};

use crate::report::{Better, Column, Figure, Row, Spread};

/// One swap under load.
#[derive(Debug)]
pub struct Swap {
    /// The longest pause around it.
    pub gap: Duration,
    /// The longest pause between answers of different versions.
    pub gap_at_switch: Duration,
    /// The longest pause in an equally long time before it, if that was measured.
    pub gap_before: Option<Duration>,
    /// From the first command to the end of the last.
    pub took: Duration,
    /// The interval of [`Self::gap`].
    pub stretch: Duration,
    /// Requests of all clients.
    pub requests: u64,
    /// Requests without an answer.
    pub failures: BTreeMap<&'static str, u64>,
}

/// The columns of [`row`].
pub fn columns() -> Vec<Column> {
    let column = |key: &str, title: &str, better| Column { key: key.to_owned(), title: title.to_owned(), better };
    vec![
        column("gap_ms", "longest pause, ms", Better::Lower),
        column("switch_gap_ms", "from old answers to new, ms", Better::Lower),
        column("baseline_gap_ms", "without a swap, ms", Better::Lower),
        column("failed", "failed requests", Better::Lower),
        column("requests", "requests", Better::Higher),
        column("swaps", "swaps", Better::Higher),
    ]
}

/// One contestant's row.
pub fn row(name: &str, title: &str, swaps: &[Swap]) -> Row {
    let over = |value: fn(&Swap) -> Option<Duration>| {
        let all: Vec<f64> = swaps.iter().filter_map(value).map(|value| value.as_secs_f64() * 1e3).collect();
        Figure::of_samples(&all)
    };
    let total = |number: u64| Some(Figure::one(number as f64));
    let mut failures: BTreeMap<&str, u64> = BTreeMap::new();
    for (what, times) in swaps.iter().flat_map(|swap| &swap.failures) {
        *failures.entry(what).or_default() += times;
    }
    let figures = [
        ("gap_ms", over(|swap| Some(swap.gap))),
        ("switch_gap_ms", over(|swap| Some(swap.gap_at_switch))),
        ("baseline_gap_ms", over(|swap| swap.gap_before)),
        ("failed", total(failures.values().sum())),
        ("requests", total(swaps.iter().map(|swap| swap.requests).sum())),
        ("swaps", total(swaps.len() as u64)),
    ];
    let values = figures.into_iter().filter_map(|(key, figure)| Some((key.to_owned(), figure?))).collect();
    Row {
        name: name.into(),
        title: title.into(),
        base: None,
        values,
        rounds: BTreeMap::new(),
        note: note(swaps, &failures),
    }
}

fn note(swaps: &[Swap], failures: &BTreeMap<&str, u64>) -> Option<String> {
    let took: Vec<f64> = swaps.iter().map(|swap| swap.took.as_secs_f64()).collect();
    let took = Spread::of(&took)?.median;
    let kinds: Vec<String> = failures.iter().map(|(what, times)| format!("{times} {what}")).collect();
    let failed = if kinds.is_empty() { String::new() } else { format!("; failed: {}", kinds.join(", ")) };
    Some(format!("from the first command to the end of the last: {took:.1} s{failed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swap(gap_ms: u64, failures: &[(&'static str, u64)]) -> Swap {
        let (gap, took, failures) = (Duration::from_millis(gap_ms), Duration::from_secs(2), failures.iter().copied());
        Swap {
            gap,
            gap_at_switch: gap / 4,
            gap_before: (gap_ms > 4).then_some(gap / 2),
            took,
            stretch: took,
            requests: 1000,
            failures: failures.collect(),
        }
    }

    #[test]
    fn adds_up_every_swap() {
        let swaps = [swap(4, &[]), swap(10, &[("refused", 3), ("timed out", 1)]), swap(6, &[("refused", 2)])];
        let row = row("haproxy", "HAProxy", &swaps);
        assert_eq!(row.values["gap_ms"].value, Spread { median: 6.0, low: 4.0, high: 10.0 });
        assert_eq!(row.values["switch_gap_ms"].value.high, 2.5);
        assert_eq!(row.values["baseline_gap_ms"].value, Spread { median: 3.0, low: 3.0, high: 5.0 });
        assert_eq!(row.values["failed"].value, Spread::one(6.0));
        assert_eq!(row.values["requests"].value, Spread::one(3000.0));
        assert_eq!(row.values["swaps"].value, Spread::one(3.0));
        assert!(row.note.is_some_and(|note| note.ends_with("2.0 s; failed: 5 refused, 1 timed out")));
        assert_eq!(columns().len(), row.values.len());
    }
}
