//! Checks that a report has its necessary rows: every base, without which nothing is compared, and pod-steer.

use crate::report::{Report, Section};

use super::is_ours_alone;
use crate::numbers;

/// The missing rows, each with the reason. `everybody`: all contestants were wanted.
pub fn missing(report: &Report, everybody: bool) -> Vec<String> {
    report.sections.iter().flat_map(|section| of_section(section, everybody)).collect()
}

fn of_section(section: &Section, everybody: bool) -> Vec<String> {
    let bases = section.rows.iter().filter_map(|row| row.base.as_deref());
    let skipped = section.skipped.iter().map(|(name, _)| name.as_str());
    let ours = skipped.filter(|name| name.starts_with("pod-steer"));
    let has_ours = section.rows.iter().any(|row| row.name.starts_with("pod-steer"));
    let itself = (everybody && !is_ours_alone(&section.name) && !has_ours).then_some("pod-steer");
    let mut wanted: Vec<&str> = bases.chain(ours).chain(itself).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let lacking = wanted.into_iter().filter(|name| section.row(name).is_none());
    let mut missing: Vec<String> =
        lacking.map(|name| format!("{} of {}: {}", name, section.name, why(section, name))).collect();
    if section.rows.is_empty() && missing.is_empty() {
        missing.push(format!("every row of {}", section.name));
    }
    missing
}

fn why(section: &Section, row: &str) -> String {
    let skipped = section.skipped.iter().find(|(name, _)| name == row);
    skipped.map_or("no reason was given".to_owned(), |(_, why)| numbers::first_sentence(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn bases_and_pod_steer_must_be_there() {
        let mut report = sample::report();
        assert_eq!(missing(&report, true), [""; 0]);
        report.sections[0].rows.retain(|row| row.name != "direct");
        report.sections[0].skipped.push(("direct".to_owned(), "it died. So what".to_owned()));
        report.sections[1].rows.retain(|row| row.name != "pod-steer");
        let base = "direct of new-connections: it died";
        assert_eq!(missing(&report, false), [base]);
        assert_eq!(missing(&report, true), [base, "pod-steer of keep-alive: no reason was given"]);
        report.sections[1].skipped.push(("pod-steer".to_owned(), "no BTF".to_owned()));
        assert_eq!(missing(&report, false), [base, "pod-steer of keep-alive: no BTF"]);
        report.sections[2].rows.clear();
        assert_eq!(missing(&report, false)[2], "every row of idle");
    }
}
