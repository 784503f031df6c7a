//! `cargo xtask bench`: builds and starts the program that measures (`tests/src/bin/bench`), and makes of its report what
//! people read: tables and aims on the terminal, and after a full run `docs/benchmarks.md` with its plot. `--check`
//! compares with the committed report. Nothing here measures, and no figure is written here by hand.

mod aims;
mod compare;
mod complete;
mod docs;
mod names;
mod noise;
mod notes;
mod numbers;
mod page;
mod plot;
mod ratio;
mod run;
#[cfg(test)]
mod sample;
mod share;
mod show;
mod table;
mod tolerance;
mod verdict;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use pod_steer_tests::measures::Report;

use crate::{privilege, say};
use run::Measured;

/// All sections of a full report.
const SECTIONS: [&str; 8] =
    ["new-connections", "keep-alive", "tls", "large", "idle", "program", "control-plane", "hot-swap"];

/// Sections in which nobody but pod-steer is measured.
const OURS_ALONE: [&str; 2] = ["program", "control-plane"];

/// What was asked for.
#[derive(clap::Args)]
pub struct Options {
    /// Fewer and shorter rounds, whose figures are rough; nothing is written below docs
    #[arg(long)]
    quick: bool,
    /// Only sections, or contestants, whose name contains this; nothing is written below docs
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare the ratios with those of docs/benchmarks.json, and fail if one is worse beyond its tolerance, or an aim was
    /// met and is not any more; nothing is written below docs
    #[arg(long)]
    check: bool,
    /// Measure nothing: take this report, which `--json` wrote
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "only"])]
    from: Option<PathBuf>,
}

/// The `bench` task.
pub fn bench(options: &Options) -> Result<ExitCode> {
    // Before the run: it takes minutes.
    let committed = match ready(options) {
        Ok(committed) => committed,
        Err(error) => {
            eprintln!("{} {error:#}", say::red("error:"));
            return Ok(ExitCode::from(2));
        }
    };
    let Measured { report, failed } = match &options.from {
        Some(file) => Measured { report: run::read(file)?, failed: None },
        None => match privilege::root_or_remedy() {
            Some(remedy) => return remedy,
            None => run::measure(options)?,
        },
    };
    let whole = is_whole(options, &report);
    let everybody = whole || options.only.as_deref().is_some_and(names::is_of_section);
    let missing = complete::missing(&report, everybody);
    let judged = verdict::judge(&report);
    show::report(&report, &judged);
    let not_for_docs =
        not_for_docs(options, &report, &missing).or_else(|| failed.as_ref().map(|_| "the run failed".to_owned()));
    // A full run tells what the page is about to lose; only a check is judged by it.
    let wanted = options.check || not_for_docs.is_none();
    let good = !wanted || compared(committed, &report, whole) || !options.check;
    println!();
    if let Some(file) = &options.json {
        run::write(&report, file)?;
        say::note(&format!("the report is in {}", file.display()));
    }
    match not_for_docs {
        Some(why) => say::note(&format!("docs/benchmarks.md and its plot are left as they are: {why}")),
        None => {
            docs::write(&report, &judged)?;
            say::note("written: docs/benchmarks.md, docs/benchmarks.svg, docs/benchmarks.json");
        }
    }
    if !missing.is_empty() {
        eprintln!("{} not measured: {}", say::red("error:"), missing.join("; "));
    }
    match failed {
        Some(error) => Err(error),
        None if good && missing.is_empty() => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::FAILURE),
    }
}

/// Whether what was asked for can be done; and the committed report, or why there is none.
fn ready(options: &Options) -> Result<Result<Report>> {
    options.only.as_deref().map_or(Ok(()), names::check)?;
    options.json.as_deref().map_or(Ok(()), run::check_writable)?;
    let committed = run::read(&docs::report_file());
    if options.check {
        let nothing = "there is nothing to compare with: a full run writes docs/benchmarks.json";
        return Ok(Ok(committed.context(nothing)?));
    }
    Ok(committed)
}

/// Prints what became of the committed ratios; whether none is worse.
fn compared(committed: Result<Report>, report: &Report, whole: bool) -> bool {
    match committed {
        Ok(committed) => show::comparison(&compare::compare(&committed, report, whole)),
        Err(error) => {
            show::no_comparison(&error);
            false
        }
    }
}

/// Whether everything was asked for. What a file was asked for is seen by what it has.
fn is_whole(options: &Options, report: &Report) -> bool {
    match &options.from {
        Some(_) => lacking(report).is_empty(),
        None => options.only.is_none(),
    }
}

/// The part of a quick run that needs nothing beyond what the tests need, so that `test` can tell whether measuring still works.
/// What it found is not judged.
pub fn try_out() -> Result<()> {
    let only = Some(run::WITHOUT_OTHERS.to_owned());
    let Measured { report, failed } =
        run::measure(&Options { quick: true, only, json: None, check: false, from: None })?;
    show::report(&report, &[]);
    if let Some(failed) = failed {
        return Err(failed);
    }
    let figures = report.section(run::WITHOUT_OTHERS).map_or(0, |s| s.rows.iter().map(|row| row.values.len()).sum());
    ensure!(figures == 24, "six sizes and four measures are 24 figures, not {figures}");
    Ok(())
}

/// Why this report does not become the page, if it does not.
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

/// Sections that a report does not have.
fn lacking(report: &Report) -> Vec<&'static str> {
    SECTIONS.into_iter().filter(|name| report.section(name).is_none()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_made_of_a_full_report_only() {
        let options = Options { quick: false, only: None, json: None, check: false, from: None };
        let mut report = sample::report();
        let why = not_for_docs(&options, &report, &[]);
        assert_eq!(why.as_deref(), Some("the report lacks tls, large, program, control-plane"));
        let section = report.sections[0].clone();
        report.sections = SECTIONS
            .map(|name| {
                let mut section = section.clone();
                section.name = name.to_owned();
                section
            })
            .into();
        assert_eq!(not_for_docs(&options, &report, &[]), None);
        assert!(
            is_whole(&options, &report) && not_for_docs(&options, &report, &["direct of tls".to_owned()]).is_some()
        );
        let only = Options { only: Some("tls".to_owned()), ..options };
        assert_eq!(not_for_docs(&only, &report, &[]).as_deref(), Some("only `tls` was run"));
        report.quick = true;
        assert_eq!(not_for_docs(&only, &report, &[]).as_deref(), Some("this was a quick run"));
    }
}
