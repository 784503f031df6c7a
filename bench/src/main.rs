//! The program behind `cargo xtask bench`: measures (`measure`), judges the report by the aims and the committed report (`judge`), and
//! shows it on the terminal (`show`) and, after a full run, in `docs/benchmarks.md` with its plot (`page`). No figure is written by hand.

#![forbid(unsafe_code)]

mod judge;
mod measure;
mod numbers;
mod options;
mod page;
mod report;
#[cfg(test)]
mod sample;
mod show;
mod table;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use pod_steer_tests::say;

use judge::{compare, complete, verdict};
use options::Options;
use report::Report;

fn main() -> ExitCode {
    let options = Options::parse();
    bench(&options).unwrap_or_else(|error| {
        eprintln!("{} {error:#}", say::red("error:"));
        ExitCode::FAILURE
    })
}

fn bench(options: &Options) -> Result<ExitCode> {
    // Before the run, since that takes minutes.
    let committed = match ready(options) {
        Ok(committed) => committed,
        Err(error) => {
            eprintln!("{} {error:#}", say::red("error:"));
            return Ok(ExitCode::from(2));
        }
    };
    if options.needs {
        println!("{}", options.needs());
        return Ok(ExitCode::SUCCESS);
    }
    let (report, failed) = match &options.from {
        Some(file) => (report::read(file)?, Ok(())),
        None => {
            say::heading("measuring");
            measure::measure(options, |report| options.json.as_deref().map_or(Ok(()), |file| report.write(file)))?
        }
    };
    let whole = is_whole(options, &report);
    let missing = complete::missing(&report, whole || options.wants_all_contestants());
    let judged = verdict::judge(&report);
    show::report(&report, &judged);
    // The committed report may be rendered again, even if it is incomplete.
    let again = !options.check && committed.as_ref().is_ok_and(|committed| *committed == report);
    let not_for_docs = not_for_docs(options, &report, &missing).filter(|_| !again);
    let not_for_docs = not_for_docs.or_else(|| failed.as_ref().err().map(|_| "the run failed".to_owned()));
    // A full run reports rows that the page loses; only a check fails.
    let wanted = options.check || not_for_docs.is_none();
    let good = !wanted || compared(committed, &report, whole) || !options.check;
    println!();
    if let Some(file) = &options.json {
        report.write(file)?;
        say::note(&format!("the report is in {}", file.display()));
    }
    match not_for_docs {
        Some(why) => say::note(&format!("docs/benchmarks.md and its plot are left as they are: {why}")),
        None => {
            page::write(&report, &judged)?;
            say::note("written: docs/benchmarks.md, docs/benchmarks.svg, docs/benchmarks.json");
        }
    }
    if !missing.is_empty() {
        eprintln!("{} not measured: {}", say::red("error:"), missing.join("; "));
    }
    failed?;
    Ok(if good && missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks the options; returns the committed report, or why there is none.
fn ready(options: &Options) -> Result<Result<Report>> {
    options.json.as_deref().map_or(Ok(()), report::check_writable)?;
    let committed = report::read(&page::report_file());
    if options.check {
        let nothing = "there is nothing to compare with: a full run writes docs/benchmarks.json";
        return Ok(Ok(committed.context(nothing)?));
    }
    Ok(committed)
}

/// Prints the comparison with the committed ratios. True if none is worse.
fn compared(committed: Result<Report>, report: &Report, whole: bool) -> bool {
    match committed {
        Ok(committed) => show::comparison(&compare::compare(&committed, report, whole)),
        Err(error) => {
            show::no_comparison(&error);
            false
        }
    }
}

/// Whether everything was wanted. For a file, its contents decide.
fn is_whole(options: &Options, report: &Report) -> bool {
    match &options.from {
        Some(_) => lacking(report).is_empty(),
        None => options.only.is_none(),
    }
}

/// Why this report does not replace the page, if it does not.
fn not_for_docs(options: &Options, report: &Report, missing: &[String]) -> Option<String> {
    if options.check {
        return Some("this was a check".to_owned());
    }
    if report.quick {
        return Some("this was a quick run".to_owned());
    }
    if let Some(only) = &options.only {
        return Some(format!("only `{only}` was run"));
    }
    let lacking = lacking(report);
    if !lacking.is_empty() {
        return Some(format!("the report lacks {}", lacking.join(", ")));
    }
    (!missing.is_empty()).then(|| "the report lacks what is named below".to_owned())
}

/// Sections that a report lacks.
fn lacking(report: &Report) -> Vec<&'static str> {
    measure::sections().filter(|name| report.section(name).is_none()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_made_of_a_full_report_only() {
        let options = Options::parse_from(["bench"]);
        let mut report = sample::report();
        let why = not_for_docs(&options, &report, &[]).unwrap();
        assert!(why.starts_with("the report lacks ") && why.contains("tls") && why.contains("control-plane"), "{why}");
        let section = report.sections[0].clone();
        let named = |name: &str| report::Section { name: name.to_owned(), ..section.clone() };
        report.sections = measure::sections().map(named).collect();
        assert_eq!(not_for_docs(&options, &report, &[]), None);
        assert!(
            is_whole(&options, &report) && not_for_docs(&options, &report, &["direct of tls".to_owned()]).is_some()
        );
        let only = Options::parse_from(["bench", "--only", "tls"]);
        assert_eq!(not_for_docs(&only, &report, &[]).as_deref(), Some("only `tls` was run"));
        report.quick = true;
        assert_eq!(not_for_docs(&only, &report, &[]).as_deref(), Some("this was a quick run"));
    }
}
