//! The first table of the page, with the costs: one line for each way to run two versions on one port.

use std::fmt::Write as _;

use crate::judge::IDLE_RESOLUTION_B;
use crate::numbers;
use crate::report::{self, Report, Spread};

/// The base of all ratios: a server that listens itself.
const BASE: &str = "direct";

/// The rows, with their titles: enough to choose by.
const ROWS: [(&str, &str); 6] = [
    (BASE, "a direct listener"),
    ("pod-steer", "**pod-steer**"),
    ("haproxy", "HAProxy, TCP mode"),
    ("nginx-stream", "nginx, stream"),
    ("nginx-http", "nginx, HTTP proxy"),
    ("docker-p", "`docker run -p`"),
];

const HEAD: &str = "\
|  | new connections/s | requests/s on kept connections | CPU time per new connection | memory per idle connection | longest pause when a \
version is replaced | failed requests meanwhile |
|---|--:|--:|--:|--:|--:|--:|
";

/// The table, and the base of its ratios. Empty if there is no base.
pub fn table(report: &Report) -> String {
    let base = |section: &str, key: &str| Some(report.section(section)?.row(BASE)?.values.get(key)?.value.median);
    let (Some(connections), Some(requests)) =
        (base("new-connections", "requests_per_s"), base("keep-alive", "requests_per_s"))
    else {
        return String::new();
    };
    let mut table = HEAD.to_owned();
    for (name, title) in ROWS {
        let cells = [
            ratio(report, "new-connections", name, "requests_per_s"),
            ratio(report, "keep-alive", name, "requests_per_s"),
            ratio(report, "new-connections", name, "cpu_s"),
            memory(report, name),
            value(report, "hot-swap", name, "gap_ms").map(|ms| format!("{} ms", numbers::short(ms))),
            failed(report, name),
        ];
        if cells.iter().any(Option::is_some) {
            let cells = cells.map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
            let _ = writeln!(table, "| {title} | {} |", cells.join(" | "));
        }
    }
    let (connections, requests) = (numbers::short(connections), numbers::short(requests));
    let _ = write!(
        table,
        "\n× is the ratio to a direct listener: {connections} new connections/s with a request each, {requests} requests/s on kept \
         connections.\n\n"
    );
    table
}

fn value(report: &Report, section: &str, row: &str, key: &str) -> Option<f64> {
    Some(report.section(section)?.row(row)?.values.get(key)?.value.median)
}

/// The ratio to the direct listener, whatever a row's own base is.
fn ratio(report: &Report, section: &str, name: &str, key: &str) -> Option<String> {
    let section = report.section(section)?;
    let (row, base) = (section.row(name)?, section.row(BASE)?);
    let median = match report::quotients((row, key), (base, key)) {
        Some(quotients) => Spread::of(&quotients)?.median,
        None if name == BASE => 1.0,
        None => row.values.get(key)?.ratio.filter(|_| row.base.as_deref() == Some(BASE))?.median,
    };
    Some(if name == BASE { "1".to_owned() } else { format!("×{}", numbers::ratio(median)) })
}

/// Memory beyond that of the server.
fn memory(report: &Report, name: &str) -> Option<String> {
    Some(match value(report, "idle", name, "own_b")? {
        own_b if own_b.abs() <= IDLE_RESOLUTION_B => "0".to_owned(),
        own_b => format!("{} B", numbers::short(own_b)),
    })
}

fn failed(report: &Report, name: &str) -> Option<String> {
    let count = |key| value(report, "hot-swap", name, key);
    let failed = numbers::short(count("failed")?);
    Some(match (count("requests"), count("swaps")) {
        (Some(requests), Some(swaps)) => {
            format!("{failed} of {} in {} swaps", numbers::short(requests), numbers::short(swaps))
        }
        _ => failed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn each_way_has_its_ratios_to_a_direct_listener() {
        let table = table(&sample::report());
        let has = |line: &str| assert!(table.lines().any(|found| found == line), "{line} is not in:\n{table}");
        has("| a direct listener | 1 | 1 | 1 | - | - | - |");
        has("| **pod-steer** | ×0.96 | ×0.98 | - | 0 | 0.900 ms | 0 of 123,456 in 100 swaps |");
        has("| HAProxy, TCP mode | ×0.50 | - | - | 34,567 B | - | - |");
        has("| `docker run -p` | - | - | - | - | 1,234 ms | 567 of 123,456 in 100 swaps |");
        assert!(table.contains("40,000 new connections/s") && !table.contains("nginx"), "{table}");
    }

    #[test]
    fn without_a_base_there_is_no_table() {
        let mut report = sample::report();
        report.sections[0].rows.remove(0);
        assert_eq!(table(&report), "");
    }
}
