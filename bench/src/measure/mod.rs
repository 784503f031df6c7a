//! The measurements. This module produces figures and judges none of them. Progress goes to standard error.
//!
//! Each part has hosts and namespaces of its own, which end with it. To add one, write a function and a line of [`PARTS`].

mod control;
mod costs;
mod machine;
mod program;
mod swap;
mod traffic;

use anyhow::{Result, ensure};

use crate::options::Options;
use crate::report::{FORMAT, Report, Section};

/// Some sections that are measured together.
pub struct Part {
    /// Their names, in the order of the report.
    pub sections: &'static [&'static str],
    /// Names of the rows that can be selected; none where rows are sizes.
    pub contestants: &'static [&'static str],
    /// Whether only pod-steer is measured.
    pub ours_alone: bool,
    /// Measures the wanted ones ([`Options::wants_section`], [`Options::wants_contestant`]).
    measure: fn(&Options) -> Result<Vec<Section>>,
}

/// Everything that is measured, in the order of the report.
pub const PARTS: &[Part] = &[
    Part {
        sections: traffic::SECTIONS,
        contestants: traffic::CONTESTANTS,
        ours_alone: false,
        measure: traffic::measure,
    },
    Part { sections: control::SECTIONS, contestants: &[], ours_alone: true, measure: control::measure },
    Part { sections: swap::SECTIONS, contestants: swap::CONTESTANTS, ours_alone: false, measure: swap::measure },
    // The last one: after it the kernel is busy freeing ten thousand tables for some time.
    Part { sections: program::SECTIONS, contestants: &[], ours_alone: true, measure: program::measure },
];

/// The section with no further requirements than the tests.
pub const WITHOUT_OTHERS: &str = program::SECTIONS[0];

/// Names of all sections, in the order of the report.
pub fn sections() -> impl Iterator<Item = &'static str> {
    PARTS.iter().flat_map(|part| part.sections).copied()
}

/// Measures everything that is wanted, and calls `keep` with the report after each part, so that a run that dies keeps the completed
/// parts. After a failed part the others still run; the error names the failed ones.
pub fn measure(options: &Options, keep: impl Fn(&Report) -> Result<()>) -> Result<(Report, Result<()>)> {
    let (machine, sections) = (machine::describe(), Vec::new());
    let busy_pct = Some(machine::busy_pct()?);
    let mut report = Report { format: FORMAT, machine, busy_pct, quick: options.quick, sections };
    let mut failed = Vec::new();
    for part in PARTS.iter().filter(|part| options.wants_part(part)) {
        match (part.measure)(options) {
            Ok(measured) => report.sections.extend(measured),
            Err(error) => {
                eprintln!("error: {error:#}");
                failed.push(part.sections.join(", "));
            }
        }
        keep(&report)?;
    }
    let failed = || -> Result<()> {
        ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
        Ok(())
    };
    Ok((report, failed()))
}

/// The complete error on one line, for reports.
fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ")
}
