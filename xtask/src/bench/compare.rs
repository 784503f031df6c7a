//! Whether a report is worse than the committed one. Ratios are compared, never times: those are the machine's. Only
//! pod-steer's own rows count: that another program got slower is not this project's regression. A ratio is worse if its
//! median is beyond the tolerance and no round reached the committed median: where rounds differ that much, nobody knows.

use pod_steer_tests::measures::{Better, Column, Figure, Report, Row, Section};

use super::tolerance::{COUNTS, Tolerance};
use super::{OURS_ALONE, numbers};

/// What the comparison found.
#[derive(Debug, Default, PartialEq)]
pub struct Comparison {
    /// How many measures were compared.
    pub compared: usize,
    /// One line for each measure that got worse beyond its tolerance.
    pub worse: Vec<String>,
    /// One line for each thing that could not be compared, and for each that differs about the machine.
    pub told: Vec<String>,
}

/// The report beside the committed one.
pub fn compare(committed: &Report, new: &Report) -> Comparison {
    let told = differences(&committed.machine, &new.machine);
    let mut with = Comparing { quick: new.quick, found: Comparison { told, ..Comparison::default() } };
    for section in &committed.sections {
        match new.section(&section.name) {
            Some(other) => with.section(section, other),
            None => with.found.told.push(format!("not compared: {}, which was not run", section.name)),
        }
    }
    with.found
}

/// Ratios depend on the machine too, if less than times do: who reads of a regression must know.
fn differences(committed: &[(String, String)], new: &[(String, String)]) -> Vec<String> {
    let other = |what: &String| new.iter().find(|(name, _)| name == what).map(|(_, how)| how);
    let pairs =
        committed.iter().filter(|(what, _)| what != "date").filter_map(|(what, how)| Some((what, how, other(what)?)));
    pairs
        .filter(|(_, how, now)| how != now)
        .map(|(what, how, now)| format!("another machine: {what} was {how}, and is {now}"))
        .collect()
}

struct Comparing {
    quick: bool,
    found: Comparison,
}

impl Comparing {
    fn section(&mut self, committed: &Section, new: &Section) {
        let ours = |row: &&Row| row.name.starts_with("pod-steer") || OURS_ALONE.contains(&committed.name.as_str());
        for row in committed.rows.iter().filter(ours) {
            let name = format!("{}, {}", committed.name, row.name);
            let skipped = new.skipped.iter().find(|(skipped, _)| *skipped == row.name);
            match (new.row(&row.name), skipped) {
                (Some(now), _) => {
                    self.row(&name, &committed.columns, row, now);
                    self.counts(&name, row, now);
                }
                // It ran once: that it does not any more is worse than slow.
                (None, Some((_, why))) => self.found.worse.push(format!("{name}: no figures any more: {why}")),
                (None, None) => self.found.told.push(format!("not compared: {name}, which was not run")),
            }
        }
    }

    fn row(&mut self, name: &str, columns: &[Column], committed: &Row, new: &Row) {
        for column in columns.iter().filter(|column| !COUNTS.contains(&column.key.as_str())) {
            let Some(before) = committed.values.get(&column.key) else { continue };
            let name = format!("{name}, {}", column.title);
            match new.values.get(&column.key) {
                Some(now) => self.measure(&name, column, before, now),
                None => self.found.told.push(format!("not compared: {name}, which was not measured")),
            }
        }
    }

    /// Where none is told there was none: a report may leave out what went wrong if nothing did.
    fn counts(&mut self, name: &str, committed: &Row, new: &Row) {
        for key in COUNTS {
            let most = |row: &Row| row.values.get(key).map(|figure| figure.value.high);
            let (before, now) = (most(committed), most(new));
            self.found.compared += usize::from(before.or(now).is_some());
            let (before, now) = (before.unwrap_or(0.0), now.unwrap_or(0.0));
            if now > before {
                let (before, now) = (numbers::short(before), numbers::short(now));
                self.found.worse.push(format!("{name}, {key}: {before} committed, {now} now"));
            }
        }
    }

    fn measure(&mut self, name: &str, column: &Column, before: &Figure, now: &Figure) {
        let (Some(tolerance), Some(before)) = (Tolerance::of(&column.key), before.ratio) else { return };
        let Some(now) = now.ratio else {
            self.found.told.push(format!("not compared: {name}, as its base is missing"));
            return;
        };
        let part = tolerance.part(self.quick);
        let (worse_by, best_round_reaches) = match column.better {
            Better::Higher => (before.median / now.median, now.high >= before.median),
            Better::Lower => (now.median / before.median, now.low <= before.median),
        };
        self.found.compared += 1;
        // So that a quotient that is no number counts as worse.
        let within = worse_by <= 1.0 + part;
        if !within && !best_round_reaches {
            let percent = 100.0 * part;
            let (before, now) = (before.median, now.median);
            let ratios = format!("ratio {before:.3} committed, {now:.3} now");
            self.found.worse.push(format!("{name}: {ratios} (tolerance {percent:.0}%)"));
        }
    }
}

#[cfg(test)]
mod tests {
    use pod_steer_tests::measures::Spread;

    use super::*;
    use crate::bench::sample;

    fn with_ratio(section: &str, row: &str, key: &str, ratio: f64) -> Report {
        let mut report = sample::report();
        let figure = sample::row(&mut report, section, row).values.get_mut(key).unwrap();
        figure.ratio = Some(Spread::one(ratio));
        report
    }

    #[test]
    fn the_same_is_not_worse() {
        let found = compare(&sample::report(), &sample::report());
        // pod-steer's throughput and p99 of two workloads, and its failed requests.
        assert_eq!(found, Comparison { compared: 5, ..Comparison::default() });
    }

    #[test]
    fn ratios_may_move_within_their_tolerance() {
        let check = |report: &Report| compare(&sample::report(), report).worse;
        // Committed: 0.96, and a full run's tolerance is 6%.
        assert_eq!(check(&with_ratio("new-connections", "pod-steer", "requests_per_s", 0.91)), [""; 0]);
        assert_eq!(check(&with_ratio("new-connections", "pod-steer", "requests_per_s", 2.0)), [""; 0]);
        let worse = with_ratio("new-connections", "pod-steer", "requests_per_s", 0.90);
        let line = "new-connections, pod-steer, requests/s: ratio 0.960 committed, 0.900 now (tolerance 6%)";
        assert_eq!(check(&worse), [line]);
        assert_eq!(check(&Report { quick: true, ..worse }), [""; 0]);
        // Latencies: less is better, and the tail may move more.
        assert_eq!(check(&with_ratio("new-connections", "pod-steer", "p99_us", 1.2)), [""; 0]);
        assert_eq!(check(&with_ratio("new-connections", "pod-steer", "p99_us", 1.5)).len(), 1);
        assert_eq!(check(&with_ratio("new-connections", "pod-steer", "p99_us", f64::NAN)).len(), 1);
        assert_eq!(check(&with_ratio("new-connections", "haproxy", "requests_per_s", 0.1)), [""; 0]);
    }

    #[test]
    fn one_round_that_was_as_good_is_enough() {
        let worse = |high| {
            let mut report = sample::report();
            let row = sample::row(&mut report, "new-connections", "pod-steer");
            let ratio = Some(Spread { median: 0.6, low: 0.5, high });
            row.values.get_mut("requests_per_s").unwrap().ratio = ratio;
            compare(&sample::report(), &report).worse.len()
        };
        assert_eq!([worse(0.95), worse(0.96)], [1, 0]);
    }

    #[test]
    fn times_are_not_compared_and_counts_are() {
        let mut report = sample::report();
        let row = sample::row(&mut report, "hot-swap", "pod-steer");
        row.values.insert("gap_ms".to_owned(), sample::alone(900.0));
        row.values.insert("failed".to_owned(), sample::alone(2.0));
        let found = compare(&sample::report(), &report);
        assert_eq!(found.worse, ["hot-swap, pod-steer, failed: 0 committed, 2 now"]);

        let mut report = sample::report();
        let row = sample::row(&mut report, "keep-alive", "pod-steer");
        row.values
            .insert("errors".to_owned(), Figure { value: Spread { median: 0.0, low: 0.0, high: 3.0 }, ratio: None });
        let worse = compare(&sample::report(), &report).worse;
        assert_eq!(worse, ["keep-alive, pod-steer, errors: 0 committed, 3 now"]);
    }

    #[test]
    fn what_cannot_be_compared_is_told() {
        let mut report = sample::report();
        report.sections.retain(|section| section.name != "hot-swap");
        report.sections[0].rows.retain(|row| row.name != "pod-steer");
        report.machine[0].1 = "another one".to_owned();
        let found = compare(&sample::report(), &report);
        assert_eq!(found.worse, [""; 0]);
        let told = [
            "another machine: processor was a processor, and is another one",
            "not compared: new-connections, pod-steer, which was not run",
            "not compared: hot-swap, which was not run",
        ];
        assert_eq!(found.told, told);

        report.sections[0].skipped.push(("pod-steer".to_owned(), "it does not start".to_owned()));
        let worse = compare(&sample::report(), &report).worse;
        assert_eq!(worse, ["new-connections, pod-steer: no figures any more: it does not start"]);
    }
}
