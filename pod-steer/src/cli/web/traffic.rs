//! The new connections a second of each version, over the last ten minutes. Pure.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};

use crate::cli::live::board::Board;

/// How far back it goes.
pub(super) const WINDOW_S: f64 = 600.0;
/// The most versions of a service with a colour of their own; the others are one line.
pub(super) const COLOURS: usize = 6;
/// The name of that line.
const OTHERS: &str = "other versions";

/// The rates of a version.
#[derive(Clone, Debug)]
struct Series {
    /// The number of its colour, which it keeps: the lowest that no other version had when this one came.
    colour: usize,
    /// One for each sample; nothing if no rate was known.
    rates: VecDeque<Option<f32>>,
}

/// Rates by service and version. Bounded: samples leave after ten minutes, versions with their last sample.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic {
    /// When the samples were taken, in seconds of a monotonic clock.
    times_s: VecDeque<f64>,
    services: BTreeMap<String, BTreeMap<String, Series>>,
}

/// A version in a chart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    /// The version.
    pub name: String,
    /// The number of its colour.
    pub colour: usize,
    /// One rate for each of the chart's times; nothing if none was known.
    pub rates: Vec<Option<f64>>,
}

impl Line {
    /// The last rate, if there is one.
    pub(super) fn last(&self) -> Option<f64> {
        self.rates.last().copied().flatten()
    }

    /// The mean of the rates at these indices.
    fn mean(&self, within: &[usize]) -> Option<f64> {
        let known: Vec<f64> = within.iter().filter_map(|index| self.rates[*index]).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    }
}

/// What a chart shows of a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Lines {
    /// How long ago each sample was taken, in seconds; the oldest first.
    pub ages_s: Vec<f64>,
    /// In the order of their colours.
    pub lines: Vec<Line>,
}

impl Traffic {
    /// Adds what the board shows at this time of a monotonic clock.
    pub(super) fn add(&mut self, at_s: f64, board: &Board) {
        let samples = self.times_s.len();
        for service in &board.services {
            let versions = self.services.entry(service.row.name.clone()).or_default();
            for (row, _) in &service.versions {
                let taken: Vec<usize> = versions.values().map(|series| series.colour).collect();
                let series = versions.entry(row.name.clone()).or_insert_with(|| Series {
                    colour: (0..).find(|colour| !taken.contains(colour)).unwrap_or_default(),
                    rates: std::iter::repeat_n(None, samples).collect(),
                });
                series.rates.push_back(row.figures.rate.map(|rate| rate as f32));
            }
        }
        self.times_s.push_back(at_s);
        let samples = self.times_s.len();
        let expired = self.times_s.iter().take_while(|time| **time < at_s - WINDOW_S).count();
        self.times_s.drain(..expired);
        for versions in self.services.values_mut() {
            versions.retain(|_, series| {
                // A version that is gone.
                series.rates.resize(samples, None);
                series.rates.drain(..expired);
                series.rates.iter().any(Option::is_some)
            });
        }
        self.services.retain(|_, versions| !versions.is_empty());
    }

    /// What the chart of a service shows at this time.
    pub(super) fn lines(&self, service: &str, now_s: f64) -> Lines {
        let ages_s: Vec<f64> = self.times_s.iter().map(|time| now_s - time).collect();
        let mut series: Vec<(&String, &Series)> = self.services.get(service).into_iter().flatten().collect();
        series.sort_by_key(|(_, series)| series.colour);
        let rates =
            |series: &Series| -> Vec<Option<f64>> { series.rates.iter().map(|rate| rate.map(f64::from)).collect() };
        let (own, others): (Vec<_>, Vec<_>) = series.into_iter().partition(|(_, series)| series.colour < COLOURS);
        let own = own.into_iter().map(|(name, series)| Line {
            name: name.clone(),
            colour: series.colour,
            rates: rates(series),
        });
        let mut lines: Vec<Line> = own.collect();
        let others = others.into_iter().map(|(_, series)| rates(series)).reduce(|sums, more| {
            let both = sums.into_iter().zip(more);
            both.map(|(sum, rate)| sum.map_or(rate, |sum| Some(sum + rate.unwrap_or_default()))).collect()
        });
        lines.extend(others.map(|rates| Line { name: OTHERS.to_owned(), colour: COLOURS, rates }));
        Lines { ages_s, lines }
    }

    /// The number of a version's colour.
    pub(super) fn colour(&self, service: &str, version: &str) -> Option<usize> {
        self.services.get(service)?.get(version).map(|series| series.colour.min(COLOURS))
    }
}

impl Lines {
    /// For each minute, the newest first: how many minutes ago it began, and the mean rate of each line.
    pub(super) fn minutes(&self) -> Vec<(usize, Vec<Option<f64>>)> {
        let minute = |number: usize| {
            let (from, to) = (number as f64 * 60.0, (number + 1) as f64 * 60.0);
            let within: Vec<usize> = self
                .ages_s
                .iter()
                .enumerate()
                .filter(|(_, age)| (from..to).contains(age))
                .map(|(index, _)| index)
                .collect();
            (number + 1, self.lines.iter().map(|line| line.mean(&within)).collect::<Vec<_>>())
        };
        let minutes = (0..(WINDOW_S / 60.0) as usize).map(minute);
        minutes.filter(|(_, means)| means.iter().any(Option::is_some)).collect()
    }

    /// The sums of the lines from below: for each sample the upper edge of each line, or nothing if no rate was known.
    pub(super) fn stacked(&self) -> Vec<Option<Vec<f64>>> {
        let at = |index: usize| {
            let rates = self.lines.iter().map(|line| line.rates.get(index).copied().flatten());
            let rates: Vec<Option<f64>> = rates.collect();
            rates.iter().any(Option::is_some).then(|| {
                let mut sum = 0.0;
                let edges = rates.into_iter().map(|rate| {
                    sum += rate.unwrap_or_default();
                    sum
                });
                edges.collect()
            })
        };
        (0..self.ages_s.len()).map(at).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        api::live::Live,
        cli::live::{fixture, sample::History},
    };

    /// Samples of `web`, two seconds apart, with what each version has opened at each.
    pub(in crate::cli::web) fn traffic(samples: &[&[(&str, u64)]]) -> (Traffic, f64) {
        let (mut traffic, mut history, mut at_s) = (Traffic::default(), History::default(), 0);
        for opened in samples {
            at_s += 2;
            let status = fixture::opened(opened);
            history.add(Duration::from_secs(at_s), &status);
            let board = Board::new(Live { status, queues: BTreeMap::default() }, &history, 0);
            traffic.add(at_s as f64, &board);
        }
        (traffic, at_s as f64)
    }

    #[test]
    fn a_version_keeps_its_colour_and_its_past() {
        let (traffic, now) =
            traffic(&[&[("v2-1", 0)], &[("v2-1", 20)], &[("v1-1", 0), ("v2-1", 40)], &[("v1-1", 200), ("v2-1", 60)]]);
        let shown = traffic.lines("web", now);
        assert_eq!(shown.ages_s, [6.0, 4.0, 2.0, 0.0]);
        let line = |index: usize| (shown.lines[index].name.as_str(), shown.lines[index].rates.clone());
        assert_eq!(line(0), ("v2", vec![None, Some(10.0), Some(10.0), Some(10.0)]), "it was there first");
        assert_eq!(line(1), ("v1", vec![None, None, None, Some(100.0)]));
        assert_eq!((traffic.colour("web", "v1"), traffic.colour("web", "v3")), (Some(1), None));
        assert_eq!(shown.stacked(), [None, Some(vec![10.0, 10.0]), Some(vec![10.0, 10.0]), Some(vec![10.0, 110.0])]);
        assert_eq!(shown.minutes(), [(1, vec![Some(10.0), Some(100.0)])]);
        assert_eq!(traffic.lines("nope", now).lines, []);
    }

    #[test]
    fn it_forgets_what_is_older_than_the_window() {
        let samples: Vec<Vec<(&str, u64)>> =
            (0..400).map(|n| if n < 50 { vec![("v1-1", n), ("v2-1", n)] } else { vec![("v2-1", n)] }).collect();
        let (traffic, now) = traffic(&samples.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let shown = traffic.lines("web", now);
        assert_eq!((shown.ages_s.len(), shown.ages_s[0]), (301, WINDOW_S));
        assert_eq!(shown.lines.len(), 1, "v1 has left");
        assert_eq!(shown.lines[0].rates.len(), 301);
        assert_eq!(shown.minutes().len(), 10);
    }

    #[test]
    fn more_versions_than_colours_are_one_line() {
        let names: Vec<String> = (1..=9).map(|n| format!("v{n}-1")).collect();
        let at = |opened: u64| names.iter().map(|name| (name.as_str(), opened)).collect::<Vec<_>>();
        let (traffic, now) = traffic(&[&at(0), &at(2)]);
        let shown = traffic.lines("web", now);
        assert_eq!(shown.lines.len(), COLOURS + 1);
        let last = shown.lines.last().unwrap();
        assert_eq!((last.name.as_str(), last.last(), last.colour), ("other versions", Some(3.0), COLOURS));
        assert_eq!(traffic.colour("web", "v9"), Some(COLOURS));
    }
}
