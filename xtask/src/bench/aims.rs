//! What the benchmarks are meant to show, as data, and whether a report shows it.

use pod_steer_tests::measures::{Report, Section, Spread};

use super::numbers;

/// One aim: a figure, or a figure divided by another row's, within a bound.
pub struct Aim {
    pub measure: &'static str,
    section: &'static str,
    row: &'static str,
    key: &'static str,
    /// The row of the same section that it is divided by.
    over: Option<&'static str>,
    unit: &'static str,
    bound: Bound,
}

/// What is to be reached.
#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// Nothing. What is less than this cannot be told from nothing.
    Zero {
        resolution: f64,
    },
    /// None at all, in so many (the key of their count, and how many there must be).
    NoneIn(&'static str, f64),
}

/// Whether it was.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Met,
    Missed,
    /// With the reason.
    NotMeasured(String),
}

/// An aim, and what was reached.
pub struct Judged {
    pub aim: &'static Aim,
    pub reached: Option<Spread>,
    pub verdict: Verdict,
}

const fn aim(
    measure: &'static str,
    (section, row, key): (&'static str, &'static str, &'static str),
    over: Option<&'static str>,
    unit: &'static str,
    bound: Bound,
) -> Aim {
    Aim { measure, section, row, key, over, unit, bound }
}

/// On two cores.
const AIMS: [Aim; 13] = [
    aim(
        "new connections/s, pod-steer ÷ the kernel's own SO_REUSEPORT",
        ("new-connections", "pod-steer", "requests_per_s"),
        Some("reuseport"),
        "",
        Bound::AtLeast(0.98),
    ),
    aim(
        "keep-alive requests/s, pod-steer ÷ direct",
        ("keep-alive", "pod-steer", "requests_per_s"),
        Some("direct"),
        "",
        Bound::AtLeast(0.99),
    ),
    aim(
        "keep-alive p99, pod-steer ÷ direct",
        ("keep-alive", "pod-steer", "p99_us"),
        Some("direct"),
        "",
        Bound::AtMost(1.02),
    ),
    aim(
        "new connections/s, pod-steer ÷ nginx stream",
        ("new-connections", "pod-steer", "requests_per_s"),
        Some("nginx-stream"),
        "",
        Bound::AtLeast(1.6),
    ),
    aim(
        "new connections/s, pod-steer ÷ HAProxy",
        ("new-connections", "pod-steer", "requests_per_s"),
        Some("haproxy"),
        "",
        Bound::AtLeast(1.6),
    ),
    aim(
        "memory per idle connection beyond the server's own",
        ("idle", "pod-steer", "own_b"),
        None,
        " B",
        // A MiB of slab over 10,000 connections: the kernel takes and gives back as much by itself.
        Bound::Zero { resolution: 105.0 },
    ),
    aim("program run, 10,000 services", ("program", "services-10000", "run_ns"), None, " ns", Bound::AtMost(100.0)),
    aim(
        "program run, 10,000 services ÷ 1 service",
        ("program", "services-10000", "run_ns"),
        Some("services-1"),
        "",
        Bound::AtMost(1.3),
    ),
    aim(
        "listen() to steered under churn, p99",
        ("control-plane", "churn", "steered_p99_ms"),
        None,
        " ms",
        Bound::AtMost(2.0),
    ),
    aim(
        "one change among 1,000 backends: event to switch in effect",
        ("control-plane", "backends-1000", "switch_ms"),
        None,
        " ms",
        Bound::AtMost(5.0),
    ),
    aim(
        "daemon memory with 1,000 backends",
        ("control-plane", "backends-1000", "daemon_mib"),
        None,
        " MiB",
        Bound::AtMost(20.0),
    ),
    aim(
        "daemon CPU when nothing changes",
        ("control-plane", "backends-1000", "idle_cpu_pct"),
        None,
        "%",
        // One tick of the kernel's clock in ten seconds.
        Bound::Zero { resolution: 0.1 },
    ),
    aim(
        "failed requests in 100 swaps under load",
        ("hot-swap", "pod-steer", "failed"),
        None,
        "",
        Bound::NoneIn("swaps", 100.0),
    ),
];

/// Every aim, in the order of the table.
pub fn judge(report: &Report) -> Vec<Judged> {
    AIMS.iter().map(|aim| aim.judge(report)).collect()
}

impl Aim {
    /// `≥ 0.98`, `≤ 5 ms`, `0 (± 0.1%)`.
    pub fn bound(&self) -> String {
        match self.bound {
            Bound::AtLeast(least) => format!("≥ {least}{}", self.unit),
            Bound::AtMost(most) => format!("≤ {most}{}", self.unit),
            Bound::Zero { resolution } => format!("0 (± {resolution}{})", self.unit),
            Bound::NoneIn(..) => "0".to_owned(),
        }
    }

    fn judge(&'static self, report: &Report) -> Judged {
        let section = report.section(self.section).ok_or(format!("{} was not run", self.section));
        let reached = section.and_then(|section| match self.reached(section) {
            Ok(reached) => Ok((section, reached)),
            Err(why) => Err(format!("{}: {why}", self.section)),
        });
        let (reached, verdict) = match reached {
            Ok((section, reached)) => (Some(reached), self.verdict(section, reached.median)),
            Err(why) => (None, Verdict::NotMeasured(why)),
        };
        Judged { aim: self, reached, verdict }
    }

    /// Round by round where one row is the base of the other; else by what both have in common.
    fn reached(&self, section: &Section) -> Result<Spread, String> {
        let figure = |name: &str| {
            let row = section.row(name).ok_or_else(|| missing(section, name))?;
            let figure = row.values.get(self.key).ok_or_else(|| format!("{name} has no {}", self.key))?;
            Ok::<_, String>((row, *figure))
        };
        let (row, own) = figure(self.row)?;
        let Some(over) = self.over else { return Ok(own.value) };
        if let (true, Some(ratio)) = (row.base.as_deref() == Some(over), own.ratio) {
            return Ok(ratio);
        }
        let (other_row, other) = figure(over)?;
        let quotient = match (own.ratio, other.ratio) {
            (Some(own), Some(other)) if row.base == other_row.base => own.median / other.median,
            _ => own.value.median / other.value.median,
        };
        if quotient.is_finite() { Ok(Spread::one(quotient)) } else { Err(format!("{over} has nothing to divide by")) }
    }

    fn verdict(&self, section: &Section, reached: f64) -> Verdict {
        let met = match self.bound {
            Bound::AtLeast(least) => reached >= least,
            Bound::AtMost(most) => reached <= most,
            Bound::Zero { resolution } => reached <= resolution,
            Bound::NoneIn(..) => reached == 0.0,
        };
        match self.bound {
            Bound::NoneIn(key, least) if met => {
                let row = section.row(self.row);
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
}

impl Judged {
    /// `0.987`, `3.20 ms (2.10–4.40)`, or nothing.
    pub fn reached(&self) -> String {
        let Some(reached) = &self.reached else { return String::new() };
        // A quotient has one digit more than its bound, or the reader could not tell which side of it it is on.
        let written = |number: f64| match self.aim.over {
            Some(_) => format!("{number:.3}"),
            None => numbers::short(number),
        };
        format!("{}{}{}", written(reached.median), self.aim.unit, numbers::range(reached, written))
    }

    /// One or two words, and the reason if there is one.
    pub fn verdict(&self) -> String {
        match &self.verdict {
            Verdict::Met => "met".to_owned(),
            Verdict::Missed => "missed".to_owned(),
            Verdict::NotMeasured(why) => format!("not measured ({why})"),
        }
    }
}

/// Why a section lacks a row.
fn missing(section: &Section, row: &str) -> String {
    match section.skipped.iter().find(|(name, _)| name == row) {
        Some((_, why)) => format!("{row} was skipped: {why}"),
        None => format!("{row} was not run"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample;

    fn judged(report: &Report, measure: &str) -> Judged {
        judge(report).into_iter().find(|judged| judged.aim.measure.starts_with(measure)).unwrap()
    }

    #[test]
    fn aims_are_judged_by_what_was_measured() {
        let report = sample::report();
        let steered = judged(&report, "new connections/s, pod-steer ÷ the kernel's");
        // Both have ratios to the direct listener: 0.96 and 0.97.
        assert_eq!(steered.reached(), "0.990");
        assert_eq!((steered.aim.bound().as_str(), steered.verdict), ("≥ 0.98", Verdict::Met));
        // Its base is in the section, so the rounds count.
        let kept = judged(&report, "keep-alive requests/s");
        assert_eq!((kept.reached().as_str(), kept.verdict), ("0.985 (0.970–1.000)", Verdict::Missed));
        assert_eq!(judged(&report, "memory per idle").verdict, Verdict::Met);
        assert_eq!(judged(&report, "failed requests").verdict, Verdict::Met);
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
