//! A small report for unit tests, like those of the benchmark program, with invented figures.

use std::collections::BTreeMap;

use crate::report::{Better, Column, FORMAT, Figure, Report, Row, Section, Spread};

/// A figure without rounds and base.
pub fn alone(value: f64) -> Figure {
    Figure::one(value)
}

/// The median of many samples, with their least and greatest.
pub fn sampled(value: Spread) -> Figure {
    let known = Spread { low: 0.95 * value.median, high: 1.05 * value.median, ..value };
    Figure { value, ratio: None, known: Some(known) }
}

/// A row, to be modified.
pub fn row<'a>(report: &'a mut Report, section: &str, row: &str) -> &'a mut Row {
    let section = report.sections.iter_mut().find(|found| found.name == section).unwrap();
    section.rows.iter_mut().find(|found| found.name == row).unwrap()
}

/// A report of one workload, `tls`, which has no aim: a base and pod-steer.
pub fn workload() -> Report {
    let mut report = report();
    report.sections.retain(|section| section.name == "keep-alive");
    report.sections[0].name = "tls".to_owned();
    report
}

/// The figure of a measure from its rounds, with the ratios to a base that has rounds too.
pub fn rounds(report: &mut Report, section: &str, name: &str, key: &str, rounds: &[f64]) {
    let base = row(report, section, name).base.clone();
    let base = base.and_then(|base| row(report, section, &base).rounds.get(key).cloned());
    let row = row(report, section, name);
    row.values.insert(key.to_owned(), Figure::of(rounds, base.as_deref()).unwrap());
    row.rounds.insert(key.to_owned(), rounds.to_vec());
}

/// The rounds of a measure, each within 3% of it.
fn near(number: f64) -> Vec<f64> {
    [0.97, 1.01, 0.99, 1.0, 1.02, 0.98, 1.03].map(|part| part * number).into()
}

/// Values with rounds near them, and their ratios to a base with equal rounds.
fn against(base: &Row, name: &str, title: &str, values: &[(&str, f64)]) -> Row {
    let mut row = single(name, title, &[]);
    row.base = Some(base.name.clone());
    for (key, value) in values {
        let rounds = near(*value);
        let figure = Figure::of(&rounds, base.rounds.get(*key).map(Vec::as_slice)).unwrap();
        row.values.insert((*key).to_owned(), figure);
        row.rounds.insert((*key).to_owned(), rounds);
    }
    row
}

fn single(name: &str, title: &str, values: &[(&str, f64)]) -> Row {
    let values = values.iter().map(|(key, value)| ((*key).to_owned(), alone(*value))).collect();
    Row { name: name.to_owned(), title: title.to_owned(), base: None, values, rounds: BTreeMap::new(), note: None }
}

fn section(name: &str, title: &str, columns: &[(&str, &str, Better)], rows: Vec<Row>) -> Section {
    let column = |(key, title, better): &(&str, &str, Better)| Column {
        key: (*key).to_owned(),
        title: (*title).to_owned(),
        better: *better,
    };
    Section {
        name: name.to_owned(),
        title: title.to_owned(),
        about: "What a sample says that it did: 64 connections at a time, one request on each.".to_owned(),
        columns: columns.iter().map(column).collect(),
        rows,
        skipped: Vec::new(),
    }
}

/// With the ratios of throughput to the base.
fn traffic(name: &str, title: &str, base: (&str, &str), ratios: &[(&str, &str, f64)]) -> Section {
    let columns = [("requests_per_s", "requests/s", Better::Higher), ("p99_us", "p99, µs", Better::Lower)];
    let mut base = single(base.0, base.1, &[("requests_per_s", 40_000.0), ("p99_us", 2_000.0)]);
    base.rounds = base.values.iter().map(|(key, figure)| (key.clone(), vec![figure.value.median; 7])).collect();
    let of = |(name, title, ratio): &(&str, &str, f64)| {
        against(&base, name, title, &[("requests_per_s", 40_000.0 * ratio), ("p99_us", 2_000.0 / ratio)])
    };
    let others: Vec<Row> = ratios.iter().map(of).collect();
    section(name, title, &columns, std::iter::once(base).chain(others).collect())
}

/// A machine that does not exist.
pub fn report() -> Report {
    let ratios = [
        ("reuseport", "SO_REUSEPORT", 0.97),
        ("pod-steer", "pod-steer, host namespace", 0.96),
        ("haproxy", "HAProxy, TCP mode", 0.5),
    ];
    let direct = ("direct", "direct listener");
    let ours = |ratio| [("pod-steer", "pod-steer, host namespace", ratio)];
    let mut new_connections = traffic("new-connections", "A new connection for each request", direct, &ratios);
    new_connections.skipped.push(("nginx-stream".to_owned(), "no stream module".to_owned()));
    let mut keep_alive = traffic("keep-alive", "Kept connections", direct, &ours(0.985));
    keep_alive.rows[1].note = Some("both backends on one host".to_owned());
    let idle_columns = [("own_b", "own bytes/connection", Better::Lower)];
    let idle = section(
        "idle",
        "10,000 idle connections",
        &idle_columns,
        vec![
            single("pod-steer", "pod-steer, host namespace", &[("own_b", 12.0)]),
            single("haproxy", "HAProxy, TCP mode", &[("own_b", 34_567.0)]),
        ],
    );
    let swap_columns = [
        ("gap_ms", "longest gap, ms", Better::Lower),
        ("failed", "failed requests", Better::Lower),
        ("swaps", "swaps", Better::Higher),
        ("requests", "requests", Better::Higher),
    ];
    let swaps = |name, gap, failed| {
        let mut row = single(name, name, &[("failed", failed), ("swaps", 100.0), ("requests", 123_456.0)]);
        let spread = |median| Spread { median, low: median / 2.0, high: 3.0 * median };
        for (key, median) in [("gap_ms", gap), ("baseline_gap_ms", 0.7)] {
            row.values.insert(key.to_owned(), sampled(spread(median)));
        }
        row
    };
    let swap_rows = vec![swaps("pod-steer", 0.9, 0.0), swaps("docker-p", 1_234.0, 567.0)];
    Report {
        format: FORMAT,
        machine: vec![("processor".to_owned(), "a processor".to_owned()), ("cores".to_owned(), "2".to_owned())],
        busy_pct: Some(1.0),
        quick: false,
        sections: vec![
            new_connections,
            keep_alive,
            idle,
            section("hot-swap", "A switch under load", &swap_columns, swap_rows),
            traffic("new-connections-pair", "Side by side", ("reuseport", "SO_REUSEPORT"), &ours(0.99)),
            traffic("keep-alive-pair", "Side by side", direct, &[("pod-steer-one", "pod-steer, one listener", 0.95)]),
        ],
    }
}
