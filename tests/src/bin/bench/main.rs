//! What `cargo xtask bench` starts as root when everything is built and installed: measures, and writes what it found as
//! JSON ([`pod_steer_tests::measures`]). What it says meanwhile goes to standard error.
//!
//! Each part has hosts and namespaces of its own, which end with it. To add one, write a function and a line of [`PARTS`].

mod control;
mod costs;
mod machine;
mod options;
mod program;
mod swap;
mod traffic;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use options::Options;
use pod_steer_tests::measures::{FORMAT, Report, Section};

/// Some sections that are measured together.
struct Part {
    /// Their names, in the order in which people should read them.
    sections: &'static [&'static str],
    /// Names of the rows that can be asked for alone; none where rows are sizes.
    contestants: &'static [&'static str],
    /// Measures those that are wanted ([`Options::wants_section`], [`Options::wants_contestant`]).
    measure: fn(&Options) -> Result<Vec<Section>>,
}

/// Everything that is measured, in the order of the report.
const PARTS: &[Part] = &[
    Part { sections: traffic::SECTIONS, contestants: traffic::CONTESTANTS, measure: traffic::measure },
    Part { sections: control::SECTIONS, contestants: &[], measure: control::measure },
    Part { sections: swap::SECTIONS, contestants: swap::CONTESTANTS, measure: swap::measure },
    // The last: the kernel is busy for some time after it, freeing ten thousand tables.
    Part { sections: program::SECTIONS, contestants: &[], measure: program::measure },
];

/// Measures everything that is wanted. A part that fails does not end the others, and what there is is written after each:
/// a run that dies in the last part has the others.
fn run(options: &Options) -> Result<()> {
    let (machine, sections) = (machine::describe(), Vec::new());
    let mut report = Report { format: FORMAT, machine, quick: options.quick, sections };
    let mut failed = Vec::new();
    for part in PARTS.iter().filter(|part| options.wants_part(part)) {
        match (part.measure)(options) {
            Ok(measured) => report.sections.extend(measured),
            Err(error) => {
                eprintln!("error: {error:#}");
                failed.push(part.sections.join(", "));
            }
        }
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(&options.output, text).with_context(|| format!("writing {}", options.output.display()))?;
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

/// The whole error on one line, as reports have it.
fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A number for people: `10,000`.
fn thousands(number: u64) -> String {
    if number < 1_000 { number.to_string() } else { format!("{},{:03}", thousands(number / 1_000), number % 1_000) }
}

fn main() -> ExitCode {
    match Options::read(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        let numbers = [0, 999, 1_000, 10_020, 1_000_000].map(thousands);
        assert_eq!(numbers, ["0", "999", "1,000", "10,020", "1,000,000"]);
    }
}
