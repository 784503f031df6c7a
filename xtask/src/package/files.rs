//! The files that packages have beside the program: manual pages, completions, the configuration file.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::dir;
use crate::cmd::{cargo, run};
use crate::{paths, setup};

const UNIT: &str = "pod-steer.service";

/// Writes them anew, and returns their directory.
pub fn write() -> Result<PathBuf> {
    setup::ensure()?;
    let files = dir()?.join("files");
    // Pages of commands that are gone must not be packed.
    let _ = fs::remove_dir_all(&files);
    run(cargo().args(["run", "--quiet", "--package", "pod-steer-packaging", "--"]).arg(&files))?;
    // A program that was installed by hand in /usr/local/bin would be found first.
    let unit = fs::read_to_string(paths::root().join("examples").join(UNIT)).context("cannot read the unit")?;
    let units = files.join("units");
    fs::create_dir_all(&units)?;
    fs::write(units.join(UNIT), unit.replace("ExecStart=pod-steer", "ExecStart=/usr/bin/pod-steer"))?;
    Ok(files)
}
