//! Builds what a run needs, and starts the program that measures.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pod_steer_tests::measures::{FORMAT, Report};

use super::Options;
use crate::cmd::{command, output, run};
use crate::{build, debian, paths, say, setup};

/// A section that needs no package beyond what the tests need: nobody else's program takes part.
pub const WITHOUT_OTHERS: &str = "program";

/// What a run left.
pub struct Measured {
    pub report: Report,
    /// Why the report lacks something, if it does: what was measured is worth showing all the same.
    pub failed: Option<anyhow::Error>,
}

/// Sets up, builds, measures.
pub fn measure(options: &Options) -> Result<Measured> {
    let file = paths::target().join("bench-report.json");
    say::heading("setting up and building");
    setup::ensure()?;
    match options.only.as_deref() {
        Some(WITHOUT_OTHERS) => debian::ensure_for_program_bench()?,
        _ => debian::ensure_for_bench()?,
    }
    let pod_steer = build::pod_steer(true)?;
    let named_server = build::named_server()?;
    let program_bench = build::program_bench()?;
    let mut bench = command(build::bench()?);
    bench.env("POD_STEER_BIN", pod_steer).env("POD_STEER_TESTS_LOG_LEVEL", "info");
    bench.env("POD_STEER_NAMED_SERVER", named_server).env("POD_STEER_PROGRAM_BENCH", program_bench);
    bench.arg("--output").arg(&file);
    if options.quick {
        bench.arg("--quick");
    }
    if let Some(only) = &options.only {
        bench.args([OsStr::new("--only"), OsStr::new(only)]);
    }
    // What an earlier run found must not be taken for what this one did.
    if file.exists() {
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    say::heading("measuring");
    let failed = run(&mut bench).err();
    let mut measured = match (read(&file), failed) {
        (Err(_), Some(failed)) => return Err(failed),
        (report, failed) => Measured { report: report?, failed },
    };
    if !measured.report.machine.iter().any(|(what, _)| what == "date") {
        let date = output(command("date").args(["-u", "+%Y-%m-%d"]))?;
        measured.report.machine.push(("date".to_owned(), date.trim().to_owned()));
    }
    Ok(measured)
}

/// A report as a file has it.
pub fn read(file: &Path) -> Result<Report> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    parsed(&text).with_context(|| format!("{} is no report that can be read", file.display()))
}

/// Whether it was written by a program that knew less.
#[cfg(test)]
pub fn is_of_older_format(file: &Path) -> bool {
    let value = fs::read_to_string(file).ok().and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    value.and_then(|value| value.get("format")?.as_u64()).is_some_and(|format| format < u64::from(FORMAT))
}

fn parsed(text: &str) -> Result<Report> {
    let value: serde_json::Value = serde_json::from_str(text)?;
    // Another layout is named as such, not by the first field that it lacks.
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => Ok(serde_json::from_value(value)?),
        Some(format) => bail!("it has format {format}, and this program reads {FORMAT}"),
        None => bail!("it does not say its format"),
    }
}

/// Whether a report can be written there: a run takes minutes, and what cannot be written in the end is told before it. Leaves no
/// file behind, and one that is there as it is.
pub fn check_writable(file: &Path) -> Result<()> {
    let cannot = || format!("cannot write {}", file.display());
    if file.exists() {
        OpenOptions::new().append(true).open(file).with_context(cannot)?;
        return Ok(());
    }
    OpenOptions::new().create_new(true).write(true).open(file).with_context(cannot)?;
    fs::remove_file(file).with_context(cannot)
}

/// Writes a report so that `read` reads it.
pub fn write(report: &Report, file: &PathBuf) -> Result<()> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample;

    #[test]
    fn a_file_is_tried_and_left_as_it_is() -> Result<()> {
        let dir = std::env::temp_dir().join(format!("pod-steer-xtask-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let file = dir.join("report.json");
        check_writable(&file)?;
        assert!(!file.exists());
        fs::write(&file, "before")?;
        check_writable(&file)?;
        assert_eq!(fs::read_to_string(&file)?, "before");
        assert!(check_writable(&dir).is_err() && check_writable(&dir.join("none/report.json")).is_err());
        fs::remove_dir_all(&dir)?;
        Ok(())
    }

    #[test]
    fn a_report_of_another_format_is_not_read() -> Result<()> {
        let report = sample::report();
        assert_eq!(parsed(&serde_json::to_string(&report)?)?, report);
        let other = serde_json::to_string(&Report { format: FORMAT + 1, ..report })?;
        let why = |text: &str| parsed(text).unwrap_err().to_string();
        assert_eq!(why(&other), format!("it has format {}, and this program reads {FORMAT}", FORMAT + 1));
        assert_eq!(why("{}"), "it does not say its format");
        Ok(())
    }
}
