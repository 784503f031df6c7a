//! Combines the numbers of single rounds into rows.

use std::collections::BTreeMap;

use crate::report::{Column, Figure, Row};

use super::ways::{WAYS, Way};

/// Counts, and differences to the base, for which a ratio is meaningless.
const COUNTS: [&str; 4] = ["connections", "errors", "lost_syns", "own_b"];

/// The numbers of one workload: by contestant and key, one for each round.
#[derive(Default)]
pub struct Tally {
    rounds: BTreeMap<(&'static str, &'static str), Vec<f64>>,
    failed: BTreeMap<&'static str, String>,
}

impl Tally {
    /// One round of one contestant.
    pub fn add(&mut self, contestant: &'static str, numbers: impl IntoIterator<Item = (&'static str, f64)>) {
        for (key, number) in numbers {
            self.rounds.entry((contestant, key)).or_default().push(number);
        }
    }

    /// A contestant that is out, and why.
    pub fn fail(&mut self, contestant: &'static str, reason: String) {
        self.failed.insert(contestant, reason);
    }

    /// Whether it is out.
    pub fn has_failed(&self, contestant: &str) -> bool {
        self.failed.contains_key(contestant)
    }

    /// The contestants that are out, and why.
    pub fn failed(&self) -> Vec<(String, String)> {
        self.failed.iter().map(|(name, reason)| ((*name).to_owned(), reason.clone())).collect()
    }

    /// The numbers of one contestant.
    pub fn numbers(&self, contestant: &str, key: &str) -> Option<&[f64]> {
        let found = self.rounds.iter().find(|((name, of), _)| *name == contestant && *of == key);
        found.filter(|_| !self.has_failed(contestant)).map(|(_, numbers)| numbers.as_slice())
    }

    /// Adds, as another key, the difference of each contestant to its base.
    pub fn subtract_base(&mut self, of: &'static str, to: &'static str) {
        for way in WAYS {
            let base = way.base.and_then(|base| self.numbers(base, of));
            if let Some((own, base)) = self.numbers(way.name, of).zip(base) {
                let beyond = own.iter().zip(base).map(|(own, base)| own - base).collect();
                self.rounds.insert((way.name, to), beyond);
            }
        }
    }

    /// The row of a contestant, if it has numbers.
    pub fn row(&self, way: &Way, base: Option<&'static str>, columns: &[Column]) -> Option<Row> {
        let figure = |column: &Column| {
            let of = base.filter(|_| !COUNTS.contains(&column.key.as_str()));
            let base = of.and_then(|base| self.numbers(base, &column.key));
            Some((column.key.clone(), Figure::of(self.numbers(way.name, &column.key)?, base)?))
        };
        let values: BTreeMap<_, _> = columns.iter().filter_map(figure).collect();
        let note = way.note.map(str::to_owned);
        let (name, title, base) = (way.name.into(), way.title.into(), base.map(str::to_owned));
        let rounds =
            values.keys().filter_map(|key| Some((key.clone(), self.numbers(way.name, key)?.to_vec()))).collect();
        (!values.is_empty()).then_some(Row { name, title, base, values, rounds, note })
    }
}

#[cfg(test)]
mod tests {
    use crate::report::Better;

    use super::*;

    fn columns() -> [Column; 2] {
        ["requests_per_s", "own_b"].map(|key| Column { key: key.into(), title: key.into(), better: Better::Higher })
    }

    fn row_of(tally: &Tally, name: &str) -> Option<Row> {
        let way = WAYS.iter().find(|way| way.name == name).unwrap();
        tally.row(way, way.base, &columns())
    }

    #[test]
    fn rows_have_ratios_to_their_base() {
        let mut tally = Tally::default();
        for (direct, haproxy) in [(100.0, 50.0), (80.0, 20.0), (90.0, 30.0)] {
            tally.add("direct", [("requests_per_s", direct)]);
            tally.add("haproxy", [("requests_per_s", haproxy)]);
        }
        tally.subtract_base("requests_per_s", "own_b");
        let row = row_of(&tally, "haproxy").unwrap();
        let figure = row.values["requests_per_s"];
        assert_eq!((figure.value.median, figure.ratio.unwrap().low), (30.0, 0.25));
        assert_eq!((row.values["own_b"].value.median, row.values["own_b"].ratio), (-60.0, None));
        let direct = row_of(&tally, "direct").unwrap();
        assert_eq!((direct.values["requests_per_s"].ratio, direct.values.len()), (None, 1));
        assert_eq!(row_of(&tally, "dnat"), None);
    }

    #[test]
    fn what_is_beyond_a_base_has_no_ratio_to_what_is_beyond_the_next() {
        let mut tally = Tally::default();
        for (name, total) in [("direct", 100.0), ("direct-pod", 110.0), ("dnat", 115.0)] {
            tally.add(name, [("requests_per_s", total)]);
        }
        tally.subtract_base("requests_per_s", "own_b");
        let own = row_of(&tally, "dnat").unwrap().values["own_b"];
        assert_eq!((own.value.median, own.ratio), (5.0, None));
    }

    #[test]
    fn who_is_out_has_no_row_and_is_nobodys_base() {
        let mut tally = Tally::default();
        tally.add("direct", [("requests_per_s", 1.0)]);
        tally.add("haproxy", [("requests_per_s", 1.0)]);
        tally.fail("direct", "it died".into());
        assert_eq!(row_of(&tally, "direct"), None);
        assert_eq!(row_of(&tally, "haproxy").unwrap().values["requests_per_s"].ratio, None);
        assert_eq!(tally.failed(), [("direct".to_owned(), "it died".to_owned())]);
    }
}
