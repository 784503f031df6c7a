//! The three files below `docs` that a full run writes. They are one: the page and the plot are what the report says.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use pod_steer_tests::measures::Report;

use super::verdict::Judged;
use super::{page, plot, run};
use crate::paths;

/// What a later run is compared with.
pub fn report_file() -> PathBuf {
    paths::root().join("docs/benchmarks.json")
}

/// Writes all three.
pub fn write(report: &Report, judged: &[Judged]) -> Result<()> {
    let file = report_file();
    if let Some(docs) = file.parent() {
        fs::create_dir_all(docs).with_context(|| format!("cannot make {}", docs.display()))?;
    }
    let texts = [("md", page::page(report, judged)), ("svg", plot::plot(report))];
    for (end, text) in texts {
        let file = file.with_extension(end);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    run::write(report, &file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::verdict;

    #[test]
    fn nothing_of_the_page_is_typed_by_hand() -> Result<()> {
        let file = report_file();
        let committed = |end: &str| fs::read_to_string(file.with_extension(end)).ok();
        // One of an older layout was made by an older program; the next full run makes it anew.
        if run::is_of_older_format(&file) {
            return Ok(());
        }
        let made = match file.exists() {
            true => {
                let report = run::read(&file)?;
                (Some(page::page(&report, &verdict::judge(&report))), Some(plot::plot(&report)))
            }
            false => (None, None),
        };
        let remedy = "`cargo xtask bench --from docs/benchmarks.json` writes the page and the plot anew";
        assert!((committed("md"), committed("svg")) == made, "{remedy}");
        Ok(())
    }
}
