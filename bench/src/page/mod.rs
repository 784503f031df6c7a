//! The three files in `docs` that a full run writes: the report, and the page and the plot that are rendered from it.

mod cost;
mod notes;
mod plot;
mod share;
mod text;

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result};

use crate::judge::verdict::Judged;
use crate::report::Report;

pub use notes::Notes;

/// The committed report, with which later runs are compared.
pub fn report_file() -> PathBuf {
    // In the tree for which cargo runs this, since two may share a target directory.
    let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).join("../docs/benchmarks.json")
}

/// Writes all three.
pub fn write(report: &Report, judged: &[Judged]) -> Result<()> {
    let file = report_file();
    if let Some(docs) = file.parent() {
        fs::create_dir_all(docs).with_context(|| format!("cannot make {}", docs.display()))?;
    }
    let texts = [("md", text::page(report, judged)), ("svg", plot::plot(report))];
    for (end, text) in texts {
        let file = file.with_extension(end);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    report.write(&file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::verdict;
    use crate::report;

    #[test]
    fn nothing_of_the_page_is_typed_by_hand() -> Result<()> {
        let file = report_file();
        let committed = |end: &str| fs::read_to_string(file.with_extension(end)).ok();
        let made = match file.exists() {
            true => {
                let report = report::read(&file)?;
                (Some(text::page(&report, &verdict::judge(&report))), Some(plot::plot(&report)))
            }
            false => (None, None),
        };
        let remedy = "`cargo xtask bench --from docs/benchmarks.json` writes the page and the plot anew";
        assert!((committed("md"), committed("svg")) == made, "{remedy}");
        Ok(())
    }
}
