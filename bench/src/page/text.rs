//! `docs/benchmarks.md`, made of a report. All that is written here is words; every figure comes from the report, or from
//! the tables of aims and tolerances.

use std::fmt::Write as _;

use crate::report::{Better, Column, Report, Row, Section, Spread};

use super::notes::Notes;
use super::share;
use crate::judge::ratio::DERIVED;
use crate::judge::tolerance::{COUNTS, TOLERANCES};
use crate::judge::verdict::{self, Judged};
use crate::numbers;

const INTRODUCTION: &str = "\
# Benchmarks

What pod-steer costs beside what people would use instead, as one run on one machine found it. This page is generated:

```sh
cargo xtask bench
```

";

const HONESTY: &str = "
Clients, servers, proxies and everything else shared this one machine and its cores, in network namespaces of the run's own. The
absolute figures are this machine's, and another one has others. What says something elsewhere are the ratios: all contestants ran in
one run, in turn, round by round, so that the machine's drift hit all alike; what took less than a round may have disturbed one alone.

";

const HOW_TO_READ: &str = "\
## How to read it

Each cell has the median of the rounds, below it the lowest and the highest one, and then the ratio to the base, with its own
lowest and highest. A ratio is taken in each round, of the contestant and the base in that round. The base is `direct`: one
server that listens itself, with no proxy before it. Those whose servers are behind Docker's bridge are compared with such a server there,
`direct-pod`; `docker-proxy` with `direct-local`, as both have their client on the host itself; where pod-steer is alone, the base is the
smallest size. ↑ marks what is better when it is more, ↓ what is better when it is less.

";

const PLOT: &str = "\
<img src=\"benchmarks.svg\" width=\"100%\" alt=\"Throughput of each contestant as a ratio to a direct listener, and the longest \
pause that a client sees around a switch; the tables below have the figures\">

";

const NOISE: &str = "The median decides. It is within the noise where the rounds differ so much that another run may find it on the \
other side of the bound: the interval that has the median with a chance of 95% reaches there.";

const NOT_YET: &str = "\
## Not measured yet

- UDP: it comes with its own work.
- Rules for prefixes of addresses: they come with their own work.

";

const CHECK: &str = "\
## Regression check

`cargo xtask bench --check` measures again and compares pod-steer's ratios with those in `docs/benchmarks.json`, never its times. It
fails if the median of one is worse by more than this, and names it. Not if the committed median is within the interval that has the
median with a chance of 95%, as the rounds say: then it may be the noise. It fails too if an aim that is a ratio or a count was met and
is missed beyond the noise, and if what was measured for the committed report is missing.

| measure | full run | `--quick` | why so much |
|---|---|---|---|
";

/// The whole page.
pub fn page(report: &Report, judged: &[Judged]) -> String {
    let mut page = INTRODUCTION.to_owned();
    page += "## The machine\n\n| what | how |\n|---|---|\n";
    for (what, how) in &report.machine {
        line(&mut page, &[escaped(what), escaped(how)]);
    }
    page += HONESTY;
    page += HOW_TO_READ;
    page += PLOT;
    aims(&mut page, report, judged);
    let notes = Notes::of(report);
    list(&mut page, "## Contestants\n\nWhat is the same in several tables:\n\n", &notes.common());
    for found in &report.sections {
        section(&mut page, found, &notes);
    }
    page += NOT_YET;
    page += CHECK;
    let ratios = TOLERANCES.iter().map(|tolerance| (tolerance.kind, &tolerance.margin));
    for (kind, margin) in ratios.chain(DERIVED.iter().map(|derived| (derived.kind, &derived.margin))) {
        let percent = |quick| format!("{:.0}%", 100.0 * margin.part(quick));
        line(&mut page, &[kind.to_owned(), percent(false), percent(true), margin.why.to_owned()]);
    }
    let (lost, failed): (Vec<_>, Vec<_>) = COUNTS.iter().partition(|(_, more)| *more > 0.0);
    let keys: Vec<_> = failed.iter().map(|(key, _)| *key).collect();
    let counts = format!("requests that fail (`{}`)", keys.join("`, `"));
    line(&mut page, &[counts, "none".to_owned(), "none".to_owned(), "one that fails is not noise".to_owned()]);
    for (key, more) in lost {
        let more = format!("{} more", numbers::short(more));
        line(
            &mut page,
            &[format!("`{key}`"), more.clone(), more, "clients send them again; some are lost at any load".to_owned()],
        );
    }
    page
}

fn aims(page: &mut String, report: &Report, judged: &[Judged]) {
    let _ = write!(
        page,
        "## Aims\n\n{} {NOISE}\n\n| measure | aim | reached | |\n|---|---|---|---|\n",
        verdict::cores(report)
    );
    for one in judged {
        line(
            page,
            &[
                one.aim.measure.to_owned(),
                unbroken(&one.aim.bound()),
                unbroken(&one.reached()),
                escaped(&one.verdict()),
            ],
        );
    }
    page.push('\n');
    for (one, why) in judged.iter().filter_map(|one| Some((one, one.why()?))) {
        let _ = write!(page, "{}: {why}\n\n", one.aim.measure);
    }
    if let Some(told) = share::told(report) {
        let _ = write!(page, "{told}\n\n");
    }
}

fn section(page: &mut String, section: &Section, notes: &Notes) {
    let _ = write!(page, "## {}\n\n{}\n\n", escaped(&section.title), flat(&section.about));
    let mut titles = vec![String::new()];
    titles.extend(section.columns.iter().map(title));
    line(page, &titles);
    *page += &("|---|".to_owned() + &"--:|".repeat(section.columns.len()) + "\n");
    for row in &section.rows {
        let mut cells = vec![name(row)];
        cells.extend(section.columns.iter().map(|column| cell(column, row)));
        line(page, &cells);
    }
    page.push('\n');
    list(page, "", &notes.below(section));
}

/// Nothing, if there is nothing to tell.
fn list(page: &mut String, heading: &str, notes: &[(String, String)]) {
    if notes.is_empty() {
        return;
    }
    *page += heading;
    for (name, text) in notes {
        let _ = writeln!(page, "- `{name}`: {}", flat(text));
    }
    page.push('\n');
}

fn title(column: &Column) -> String {
    let better = match column.better {
        Better::Higher => '↑',
        Better::Lower => '↓',
    };
    format!("{} {better}", escaped(&column.title))
}

fn name(row: &Row) -> String {
    if row.title == row.name { format!("`{}`", row.name) } else { format!("`{}`<br>{}", row.name, escaped(&row.title)) }
}

fn cell(column: &Column, row: &Row) -> String {
    let Some(figure) = row.values.get(&column.key) else { return "-".to_owned() };
    let value = numbers::short(figure.value.median) + &range(&figure.value, numbers::short);
    match figure.ratio {
        Some(ratio) => format!("{value}<br>×{}{}", numbers::ratio(ratio.median), range(&ratio, numbers::ratio)),
        None => value,
    }
}

/// In a line of its own, which a narrow column must not break.
fn range(spread: &Spread, written: impl Fn(f64) -> String) -> String {
    let range = numbers::range(spread, written);
    range.map_or(String::new(), |range| format!("<br><sub>{}</sub>", unbroken(&range)))
}

fn line(page: &mut String, cells: &[String]) {
    let _ = writeln!(page, "| {} |", cells.join(" | "));
}

fn unbroken(text: &str) -> String {
    text.replace(' ', "\u{a0}")
}

/// In one line: what a program said on several must not end a list, or begin a heading.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// As it may stand in a cell.
fn escaped(text: &str) -> String {
    flat(text).replace('|', "\\|").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn the_page_has_what_was_found() {
        let mut report = sample::report();
        report.machine.push(("a|b".to_owned(), "c\nd".to_owned()));
        let page = page(&report, &verdict::judge(&report));
        let has = |line: &str| assert!(page.lines().any(|found| found == line), "{line} is not in:\n{page}");
        has("| a\\|b | c d |");
        has("|  | requests/s ↑ | p99, µs ↓ |");
        let throughput =
            "20,000<br><sub>19,400\u{a0}to\u{a0}20,600</sub><br>×0.50<br><sub>0.48\u{a0}to\u{a0}0.52</sub>";
        let tail = "4,000<br><sub>3,880\u{a0}to\u{a0}4,120</sub><br>×2.00<br><sub>1.94\u{a0}to\u{a0}2.06</sub>";
        has(&format!("| `haproxy`<br>HAProxy, TCP mode | {throughput} | {tail} |"));
        has("| `direct`<br>direct listener | 40,000 | 2,000 |");
        has("- `nginx-stream`: not here: no stream module");
        has("- `pod-steer`: both backends on one host");
        has("| failed requests in 100 swaps under load | 0 | 0 | met |");
        assert!(page.ends_with("|\n") && !page.lines().any(|line| line.ends_with(' ')), "{page}");
    }
}
