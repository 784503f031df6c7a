//! Compares a report with the committed one. Only ratios are compared, since times depend on the machine, and only pod-steer's own rows,
//! since a slower other program is no regression of this project. A ratio is judged only if its rounds suffice (`ratio`); the others
//! are listed as undecided.

#[cfg(test)]
mod tests;

use super::is_ours_alone;
use super::ratio::{DERIVED, Ratio};
use super::tolerance::{COUNTS, Margin, Tolerance};
use super::verdict::{self, Judged, Verdict};
use crate::numbers;
use crate::report::{Better, Report, Row, Section};

/// The result of a comparison.
#[derive(Debug, Default, PartialEq)]
pub struct Comparison {
    /// How many measures were judged.
    pub judged: usize,
    /// One line for each measure that got worse beyond its tolerance.
    pub worse: Vec<String>,
    /// Measures of both reports whose rounds differ too much, or are too few, to judge them.
    pub cannot_tell: Vec<String>,
    /// One line for each measure that could not be compared, and for each difference of the machine.
    pub told: Vec<String>,
}

/// Compares a report with the committed one. A complete run (`whole`) may lack no measure: a change that breaks a measurement must not
/// pass as "nothing got worse".
pub fn compare(committed: &Report, new: &Report, whole: bool) -> Comparison {
    let told = differences(&committed.machine, &new.machine);
    let mut found = Comparison { told, ..Comparison::default() };
    let busy = new.busy_pct.is_some_and(|busy_pct| busy_pct > BUSY_PCT);
    if busy {
        found.told.push("the machine was busy with other work: no ratio is called worse".to_owned());
    }
    let mut with = Comparing { quick: new.quick, busy, same_processor: same_processor(committed, new), whole, found };
    for section in &committed.sections {
        match new.section(&section.name) {
            Some(other) => with.section(section, other),
            None => with.lacks(&section.name, "was not run"),
        }
    }
    with.aims(committed, new);
    with.found
}

/// Ratios depend on the machine too, if less than times do, so a regression is reported with the difference of the machines.
fn differences(committed: &[(String, String)], new: &[(String, String)]) -> Vec<String> {
    let other = |what: &String| new.iter().find(|(name, _)| name == what).map(|(_, how)| how);
    let pairs =
        committed.iter().filter(|(what, _)| what != "date").filter_map(|(what, how)| Some((what, how, other(what)?)));
    pairs
        .filter(|(_, how, now)| how != now)
        .map(|(what, how, now)| format!("another machine: {what} was {how}, and is {now}"))
        .collect()
}

/// On a busier machine, other work may disturb one contestant more than another.
const BUSY_PCT: f64 = 10.0;

/// The facts about a machine's processors that must agree.
fn same_processor(committed: &Report, new: &Report) -> bool {
    let fact = |report: &Report, what: &str| report.machine.iter().find(|(name, _)| name == what).cloned();
    ["CPU", "cores"].iter().all(|what| fact(committed, what) == fact(new, what))
}

struct Comparing {
    quick: bool,
    /// Whether other work disturbed the run.
    busy: bool,
    same_processor: bool,
    whole: bool,
    found: Comparison,
}

impl Comparing {
    fn section(&mut self, committed: &Section, new: &Section) {
        let alone = is_ours_alone(&committed.name);
        for row in committed.rows.iter().filter(|row| alone || row.name.starts_with("pod-steer")) {
            let name = format!("{}, {}", committed.name, row.name);
            let skipped = new.skipped.iter().find(|(skipped, _)| *skipped == row.name);
            match (new.row(&row.name), skipped) {
                (Some(now), _) => {
                    self.counts(&name, row, now);
                    match row.base.as_deref().filter(|base| committed.row(base).is_some() && new.row(base).is_none()) {
                        Some(base) => self.lacks(&name, &format!("has no {base} beside it")),
                        None => self.row(&name, (committed, row), (new, now)),
                    }
                }
                // It ran before, so a failure counts as worse.
                (None, Some((_, why))) => {
                    let why = numbers::first_sentence(why);
                    self.found.worse.push(format!("{name}: no figures any more: {why}"));
                }
                // Sizes are rows, and a quick run has other sizes.
                (None, None) if alone && self.quick => self.tell(&name, "which a quick run does not have"),
                (None, None) => self.lacks(&name, "was not run"),
            }
        }
        for derived in DERIVED.iter().filter(|derived| derived.section == committed.name) {
            let name = format!("{}, {}", derived.section, derived.kind);
            match (derived.ratio(committed), derived.ratio(new)) {
                (Some(before), Some(now)) => self.ratio(&name, Better::Lower, &derived.margin, before, now),
                // A row that is missing was reported above.
                (Some(_), None) if derived.parts().iter().all(|(row, _)| new.row(row).is_some()) => {
                    self.lacks(&name, "was not measured");
                }
                _ => {}
            }
        }
    }

    fn row(&mut self, name: &str, (committed, row): (&Section, &Row), (new, now): (&Section, &Row)) {
        for column in &committed.columns {
            let Some(tolerance) = Tolerance::of(&column.key) else { continue };
            let Some(before) = Ratio::to_base(committed, row, &column.key) else { continue };
            let name = format!("{name}, {}", column.title);
            match Ratio::to_base(new, now, &column.key) {
                Some(ratio) => self.ratio(&name, column.better, &tolerance.margin, before, ratio),
                None if now.values.contains_key(&column.key) => self.lacks(&name, "has no ratio"),
                None if self.quick && new.columns.iter().all(|other| other.key != column.key) => {
                    self.tell(&name, "which a quick run does not have");
                }
                None => self.lacks(&name, "was not measured"),
            }
        }
    }

    /// A missing count is zero: a report may leave out failures if there were none.
    fn counts(&mut self, name: &str, committed: &Row, new: &Row) {
        for (key, more) in COUNTS {
            let most = |row: &Row| row.values.get(key).map(|figure| figure.value.high);
            let (before, now) = (most(committed), most(new));
            self.found.judged += usize::from(before.or(now).is_some());
            let (before, now) = (before.unwrap_or(0.0), now.unwrap_or(0.0));
            if now > before + more {
                let (before, now) = (numbers::short(before), numbers::short(now));
                self.found.worse.push(format!("{name}, {key}: {before} committed, {now} now"));
            }
        }
    }

    fn ratio(&mut self, name: &str, better: Better, margin: &Margin, before: Ratio, now: Ratio) {
        let section = name.split(", ").next().unwrap_or_default();
        let comparable = self.same_processor || !is_ours_alone(section);
        match now.is_worse_than(&before, better, margin.part).filter(|worse| comparable && !(*worse && self.busy)) {
            None => self.found.cannot_tell.push(name.to_owned()),
            Some(worse) => {
                self.found.judged += 1;
                if worse {
                    let (percent, before, now) = (100.0 * margin.part, written(&before), written(&now));
                    let line = format!("{name}: ratio {before} committed, {now} now (tolerance {percent:.0}%)");
                    self.found.worse.push(line);
                }
            }
        }
    }

    /// An aim that was met must not be lost in small steps, each within its tolerance. A quick run has too few rounds to judge
    /// ratios by aims.
    fn aims(&mut self, committed: &Report, new: &Report) {
        let met = verdict::judge(committed).into_iter().filter(|before| before.verdict == Verdict::Met);
        let met: Vec<_> =
            met.map(|before| before.aim).filter(|aim| aim.holds_elsewhere()).map(|aim| aim.measure).collect();
        let judged: Vec<_> = verdict::judge(new).into_iter().filter(|now| met.contains(&now.aim.measure)).collect();
        for now in judged.iter().filter(|now| self.whole && !self.quick && has_row(new, now)) {
            if let Verdict::NotMeasured(why) = &now.verdict {
                let measure = now.aim.measure;
                self.found.worse.push(format!("{measure}: its aim was met, and is not measured any more: {why}"));
            }
        }
        for now in judged.iter().filter(|now| now.aim.is_count() || (now.known.is_some() && !self.quick)) {
            match now.verdict {
                Verdict::CannotTell => self.found.cannot_tell.push(format!("aims, {}", now.aim.measure)),
                _ => self.found.judged += usize::from(now.reached.is_some()),
            }
            if now.verdict == Verdict::Missed && (now.aim.is_count() || !self.busy) {
                let (measure, bound, reached) = (now.aim.measure, now.aim.bound(), now.reached());
                self.found.worse.push(format!("{measure}: the aim ({bound}) was met, and is missed: {reached} now"));
            }
        }
    }

    /// Measures of the committed report that this one lacks.
    fn lacks(&mut self, name: &str, why: &str) {
        if self.whole {
            self.found.worse.push(format!("{name}: it cannot be compared any more: it {why}"));
        } else {
            self.tell(name, &format!("which {why}"));
        }
    }

    fn tell(&mut self, name: &str, why: &str) {
        self.found.told.push(format!("not compared: {name}, {why}"));
    }
}

/// `0.960 (0.950 to 0.970)`
fn written(ratio: &Ratio) -> String {
    let ends = ratio.known.and_then(|known| numbers::range(&known, |number| format!("{number:.3}")));
    format!("{:.3}{}", ratio.median, ends.map(|ends| format!(" ({ends})")).unwrap_or_default())
}

/// Whether pod-steer's part of an aim was measured. If not, that is reported separately.
fn has_row(report: &Report, judged: &Judged) -> bool {
    report.section(judged.aim.section).is_some_and(|section| section.row(judged.aim.row).is_some())
}
