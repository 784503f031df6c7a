//! The files that packages have beside the program: manual pages, completions, the configuration file.

use std::path::PathBuf;

use anyhow::Result;

use super::dir;
use crate::cmd::{cargo, run};
use crate::setup;

/// Writes them anew, and returns their directory.
pub fn write() -> Result<PathBuf> {
    setup::ensure()?;
    let files = dir()?.join("files");
    // Pages of commands that are gone must not be packed.
    let _ = std::fs::remove_dir_all(&files);
    run(cargo().args(["run", "--quiet", "--package", "pod-steer-packaging", "--"]).arg(&files))?;
    Ok(files)
}
