//! Reports in files.

use std::fs::{self, OpenOptions};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{FORMAT, Report};

/// A report as a file has it.
pub fn read(file: &Path) -> Result<Report> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    parsed(&text).with_context(|| format!("{} is no report that can be read", file.display()))
}

fn parsed(text: &str) -> Result<Report> {
    let value: serde_json::Value = serde_json::from_str(text)?;
    // Report another layout as such, not by the first missing field.
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => Ok(serde_json::from_value(value)?),
        Some(format) => bail!("it has format {format}, and this program reads {FORMAT}"),
        None => bail!("it does not say its format"),
    }
}

/// Checks before a run of minutes that a report can be written to a file. Creates no file, and leaves an existing one unchanged.
pub fn check_writable(file: &Path) -> Result<()> {
    let cannot = || format!("cannot write {}", file.display());
    if file.exists() {
        OpenOptions::new().append(true).open(file).with_context(cannot)?;
        return Ok(());
    }
    OpenOptions::new().create_new(true).write(true).open(file).with_context(cannot)?;
    fs::remove_file(file).with_context(cannot)
}

impl Report {
    /// Writes it so that [`read`] reads the same.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_file_is_tried_and_left_as_it_is() -> Result<()> {
        let dir = std::env::temp_dir().join(format!("pod-steer-bench-{}", std::process::id()));
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
