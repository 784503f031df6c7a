//! Judges a report by the aims.

use crate::numbers;
use crate::report::{self, Report, Section, Spread};

use super::aims::{AIMS, Aim, Bound, CORES};

/// Whether an aim was reached, by the median of the rounds.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Met,
    Missed,
    /// The rounds differ too much, or are too few: in another run the median may be on the other side of the bound.
    CannotTell,
    /// With the reason.
    NotMeasured(String),
}

/// An aim and its result.
pub struct Judged {
    pub aim: &'static Aim,
    pub reached: Option<Spread>,
    pub verdict: Verdict,
    /// The confidence interval of the median, if the report has enough rounds.
    pub known: Option<Spread>,
}

/// The measure of an aim in a report.
struct Reached {
    spread: Spread,
    /// As [`Judged::known`].
    known: Option<Spread>,
    /// Whether there were several rounds.
    has_rounds: bool,
}

/// Every aim, in the order of the table.
pub fn judge(report: &Report) -> Vec<Judged> {
    AIMS.iter().map(|aim| one(aim, report)).collect()
}

fn one(aim: &'static Aim, report: &Report) -> Judged {
    let section = report.section(aim.section).ok_or(format!("{} was not run", aim.section));
    let found = section.and_then(|section| match reached(aim, section) {
        Ok(reached) => Ok((section, reached)),
        Err(why) => Err(format!("{}: {why}", aim.section)),
    });
    match found {
        Ok((section, reached)) => {
            let (spread, known) = (reached.spread, reached.known);
            Judged { aim, reached: Some(spread), verdict: verdict(aim, section, &reached), known }
        }
        Err(why) => Judged { aim, reached: None, verdict: Verdict::NotMeasured(why), known: None },
    }
}

/// Round by round where the report has the rounds, or one row is the base of the other; else by the medians.
fn reached(aim: &Aim, section: &Section) -> Result<Reached, String> {
    let figure = |name: &str| {
        let row = section.row(name).ok_or_else(|| missing(section, name))?;
        let figure = row.values.get(aim.key).ok_or_else(|| format!("{name} has no {}", aim.key))?;
        Ok::<_, String>((row, *figure))
    };
    let (row, own) = figure(aim.row)?;
    let Some(over) = aim.over else {
        let has_rounds = row.rounds.contains_key(aim.key);
        return Ok(Reached { spread: own.value, known: row.known(aim.key), has_rounds });
    };
    let others = section.row(over);
    if let Some(quotients) = others.and_then(|others| report::quotients((row, aim.key), (others, aim.key))) {
        let spread = Spread::of(&quotients).ok_or("no round has a number")?;
        return Ok(Reached { spread, known: report::interval(&quotients), has_rounds: true });
    }
    if let (true, Some(spread)) = (row.base.as_deref() == Some(over), own.ratio) {
        return Ok(Reached { spread, known: None, has_rounds: false });
    }
    let (other_row, other) = figure(over)?;
    let quotient = match (own.ratio, other.ratio) {
        (Some(own), Some(other)) if row.base == other_row.base => own.median / other.median,
        _ => own.value.median / other.value.median,
    };
    if quotient.is_finite() {
        Ok(Reached { spread: Spread::one(quotient), known: None, has_rounds: false })
    } else {
        Err(format!("{over} has nothing to divide by"))
    }
}

fn verdict(aim: &Aim, section: &Section, reached: &Reached) -> Verdict {
    let unknown = match reached.known {
        Some(known) => aim.bound.divides(known.low, known.high),
        None => reached.has_rounds,
    };
    if unknown {
        return Verdict::CannotTell;
    }
    let met = aim.bound.allows(reached.spread.median);
    match aim.bound {
        Bound::NoneIn(key, least) if met => {
            let row = section.row(aim.row);
            let count = row.and_then(|row| row.values.get(key)).map_or(0.0, |figure| figure.value.median);
            if count >= least {
                Verdict::Met
            } else {
                Verdict::NotMeasured(format!("{} {key} are too few", numbers::short(count)))
            }
        }
        _ if met => Verdict::Met,
        _ => Verdict::Missed,
    }
}

impl Judged {
    /// `0.987 (0.980 to 0.994)`, with its interval, or the extremes of the rounds, or neither.
    pub fn reached(&self) -> String {
        let Some(reached) = &self.reached else { return String::new() };
        // A quotient has one digit more than its bound, so that the reader can tell on which side it is.
        let written = |number: f64| match self.aim.over {
            Some(_) => format!("{number:.3}"),
            None => numbers::short(number),
        };
        let range = numbers::range(self.known.as_ref().unwrap_or(reached), written).map(|range| format!(" ({range})"));
        format!("{}{}{}", written(reached.median), self.aim.unit, range.unwrap_or_default())
    }

    /// A few words, and the reason if there is one.
    pub fn verdict(&self) -> String {
        match &self.verdict {
            Verdict::Met => "met".to_owned(),
            Verdict::Missed => "missed".to_owned(),
            Verdict::CannotTell => "cannot tell".to_owned(),
            Verdict::NotMeasured(why) => format!("not measured ({why})"),
        }
    }

    /// The remark on an aim that was missed.
    pub fn why(&self) -> Option<&'static str> {
        self.aim.why.filter(|_| self.verdict == Verdict::Missed)
    }
}

/// The number of cores of the aims, and whether the report is from such a machine.
pub fn cores(report: &Report) -> String {
    let cores = report.machine.iter().find(|(what, _)| what == "cores").map(|(_, how)| how.as_str());
    let other = cores.filter(|cores| *cores != CORES);
    let other = other.map(|cores| {
        format!(" This one has {cores}, which clients and servers share differently, so the ratios may differ.")
    });
    format!("The aims are for a machine with {CORES} cores.{}", other.unwrap_or_default())
}

/// Why a section lacks a row.
fn missing(section: &Section, row: &str) -> String {
    match section.skipped.iter().find(|(name, _)| name == row) {
        Some((_, why)) => format!("{row} was skipped: {}", numbers::first_sentence(why)),
        None => format!("{row} was not run"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn judged(report: &Report, measure: &str) -> Judged {
        judge(report).into_iter().find(|judged| judged.aim.measure.starts_with(measure)).unwrap()
    }

    #[test]
    fn aims_are_judged_by_what_was_measured() {
        let report = sample::report();
        let steered = judged(&report, "new connections/s, pod-steer ÷ the kernel's");
        assert_eq!((steered.reached().as_str(), steered.aim.bound().as_str()), ("0.990 (0.960 to 1.020)", "≥ 0.98"));
        assert_eq!(steered.verdict, Verdict::CannotTell);
        let kept = judged(&report, "keep-alive requests/s");
        assert_eq!((kept.reached().as_str(), kept.verdict().as_str()), ("0.950 (0.921 to 0.979)", "missed"));
        assert_eq!(judged(&report, "memory per idle").verdict, Verdict::Met);
        assert_eq!(judged(&report, "failed requests").verdict, Verdict::Met);
    }

    #[test]
    fn quotients_are_taken_round_by_round() {
        let mut report = sample::report();
        let mut rounds = |name: &str, rounds: &[f64]| {
            sample::rounds(&mut report, "new-connections-pair", name, "requests_per_s", rounds);
        };
        // Their medians agree, but they differ in every round but one.
        rounds("reuseport", &[100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 300.0]);
        rounds("pod-steer", &[90.0, 180.0, 270.0, 360.0, 450.0, 540.0, 300.0]);
        let steered = judged(&report, "new connections/s, pod-steer ÷ the kernel's");
        assert_eq!(steered.reached(), "0.900 (0.900 to 1.000)");
        assert_eq!(steered.verdict(), "cannot tell");
        let ours = |report: &mut Report, change: fn(&mut Vec<f64>)| {
            let row = sample::row(report, "new-connections-pair", "pod-steer");
            change(row.rounds.get_mut("requests_per_s").unwrap());
            judged(report, "new connections/s, pod-steer ÷ the kernel's").verdict()
        };
        assert_eq!(ours(&mut report, |rounds| rounds[6] = 270.0), "missed");
        assert_eq!(ours(&mut report, |rounds| rounds.fill(1000.0)), "met");
        // Five rounds are too few, whatever they are.
        sample::row(&mut report, "new-connections-pair", "reuseport")
            .rounds
            .values_mut()
            .for_each(|all| all.truncate(5));
        assert_eq!(ours(&mut report, |rounds| rounds.truncate(5)), "cannot tell");
    }

    #[test]
    fn another_number_of_cores_is_told() {
        let mut report = sample::report();
        assert_eq!(cores(&report), "The aims are for a machine with 2 cores.");
        report.machine[1].1 = "64".to_owned();
        assert!(cores(&report).contains("This one has 64, "));
    }

    #[test]
    fn what_was_not_measured_is_not_met() {
        let mut report = sample::report();
        let row = sample::row(&mut report, "hot-swap", "pod-steer");
        row.values.insert("swaps".to_owned(), sample::alone(5.0));
        let few = judged(&report, "failed requests");
        assert_eq!(few.verdict(), "not measured (5 swaps are too few)");
        let row = sample::row(&mut report, "hot-swap", "pod-steer");
        row.values.insert("failed".to_owned(), sample::alone(1.0));
        assert_eq!(judged(&report, "failed requests").verdict, Verdict::Missed);

        report.sections.retain(|section| section.name != "idle");
        assert_eq!(judged(&report, "memory per idle").verdict(), "not measured (idle was not run)");
        let missing = judged(&report, "new connections/s, pod-steer ÷ nginx");
        assert_eq!(missing.verdict(), "not measured (new-connections: nginx-stream was skipped: no stream module)");
    }
}
