//! The output after a run: the results of the aims, a table for each section, and the missing contestants.

use std::collections::BTreeMap;
use std::{env, io};

use crate::report::{Report, Section};

use pod_steer_tests::say::{bold, green, heading, note, red};

use crate::judge::compare::Comparison;
use crate::judge::verdict::{self, Judged, Verdict};
use crate::page::Notes;
use crate::table;

/// The width if the output is no terminal.
const COLUMNS: usize = 80;
/// The least width at which an aim fits on one line.
const WIDE: usize = 120;

/// The terminal's width, or that of `COLUMNS`.
fn width() -> usize {
    let said = env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let terminal = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| size.ws_col as usize);
    terminal.filter(|columns| *columns > 0).or(said).unwrap_or(COLUMNS)
}

const COMPARED: &str = "compared with the committed ratios";

const CANNOT_TELL: &str =
    "their rounds are too few or differ too much, or the machine was busy or has another processor";

const LEGEND: &str = "× is the ratio to the base, taken round by round; ± is the round that is farthest off; where that would say \
    too little, the least and the greatest are there (`0.5 to 4.2`)";

/// Prints all measures. The aims come first, since most readers want these.
pub fn report(report: &Report, judged: &[Judged]) {
    let width = width();
    heading("the machine");
    for (what, how) in &report.machine {
        note(&format!("{what}: {how}"));
    }
    if let Some(busy_pct) = report.busy_pct {
        note(&format!("other work before the run: {busy_pct:.0}% of the processors"));
    }
    if report.quick {
        note("a quick run: its figures are rough");
    }
    if !judged.is_empty() {
        aims(report, judged, width);
    }
    heading("how to read the tables");
    remark(LEGEND, width);
    let notes = Notes::of(report);
    let mut told = BTreeMap::new();
    for found in &report.sections {
        section(found, width, &notes, &mut told);
    }
    let common = notes.common();
    if !common.is_empty() {
        heading("contestants");
        for (name, text) in common {
            remark(&format!("{name}: {text}"), width);
        }
    }
}

/// `told` has the titles that were already printed.
fn section(section: &Section, width: usize, notes: &Notes, told: &mut BTreeMap<String, String>) {
    heading(&format!("{}: {}", section.name, section.title));
    remark(&section.about, width);
    println!();
    for (ours, line) in table::lines(section, width) {
        println!("{}", if ours { bold(&line) } else { line });
    }
    let mut below = notes.below(section);
    for row in &section.rows {
        let new = told.insert(row.name.clone(), row.title.clone()).as_ref() != Some(&row.title);
        let title = (new && row.title != row.name).then(|| row.title.clone());
        let noted = below.iter().position(|(name, _)| *name == row.name).map(|place| below.remove(place).1);
        let words: Vec<String> = title.into_iter().chain(noted).collect();
        if !words.is_empty() {
            remark(&format!("{}: {}", row.name, words.join(". ")), width);
        }
    }
    // A missing contestant has no row.
    for (name, text) in below {
        remark(&format!("{name}: {text}"), width);
    }
}

/// Text of any length, in lines that are easy to read.
fn remark(text: &str, width: usize) {
    for line in table::wrapped(text, width.saturating_sub(3).min(120)) {
        note(&line);
    }
}

/// The aims and their results.
fn aims(report: &Report, judged: &[Judged], width: usize) {
    heading("aims");
    remark(&verdict::cores(report), width);
    let wide = width >= WIDE;
    let measures = judged.iter().map(|one| one.aim.measure.chars().count()).max().unwrap_or(0);
    for one in judged {
        // Padded before it is painted, as colours have letters too.
        let verdict = match &one.verdict {
            Verdict::Met => green(&format!("{:<8}", "met")),
            Verdict::Missed => red(&format!("{:<8}", "missed")),
            Verdict::CannotTell | Verdict::NotMeasured(_) => format!("{:<8}", "?"),
        };
        let reached = match &one.verdict {
            Verdict::NotMeasured(why) => format!("not measured: {why}"),
            Verdict::CannotTell => format!("{}: cannot tell", one.reached()),
            _ => one.reached(),
        };
        let (measure, bound) = (one.aim.measure, one.aim.bound());
        if wide {
            note(&format!("{verdict}{measure:<measures$}  {bound:<12}  {reached}"));
        } else {
            note(&format!("{verdict}{measure}"));
            note(&format!("{:8}{bound:<12}  {reached}", ""));
        }
        for line in table::wrapped(one.why().unwrap_or_default(), width.saturating_sub(11).min(112)) {
            note(&format!("{:8}{line}", ""));
        }
    }
}

/// Prints the comparison with the committed report. True if nothing got worse.
pub fn comparison(found: &Comparison) -> bool {
    heading(COMPARED);
    for line in &found.told {
        note(line);
    }
    for line in &found.worse {
        println!("   {} {line}", red("worse:"));
    }
    if !found.cannot_tell.is_empty() {
        let (count, sections) = (found.cannot_tell.len(), by_section(&found.cannot_tell));
        let text = format!("cannot tell {count} measures ({sections}): {CANNOT_TELL}");
        remark(&text, width());
    }
    let good = found.worse.is_empty() && found.judged + found.cannot_tell.len() > 0;
    match (found.judged, found.worse.len()) {
        _ if !good && found.worse.is_empty() => println!("   {} there was nothing to compare", red("error:")),
        (0, 0) => note("no measure could be judged: a full run, or one on a quiet machine, can tell more"),
        (judged, 0) => note(&format!("{} {judged} measures judged, none beyond its tolerance", green("good:"))),
        (judged, worse) => note(&format!("{judged} measures judged, {worse} worse")),
    }
    good
}

/// `tls 12, large 3`, of names that begin with a section.
fn by_section(names: &[String]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for section in names.iter().filter_map(|name| name.split(", ").next()) {
        match counts.iter_mut().find(|(name, _)| *name == section) {
            Some((_, count)) => *count += 1,
            None => counts.push((section, 1)),
        }
    }
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

/// Why nothing can be compared.
pub fn no_comparison(why: &anyhow::Error) {
    heading(COMPARED);
    remark(&format!("they cannot be compared: {why:#}"), width());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted_by_section() {
        let names = ["tls, pod-steer, p50", "large, pod-steer, p99", "tls, pod-steer, p99"].map(str::to_owned);
        assert_eq!(by_section(&names), "tls 2, large 1");
    }
}
