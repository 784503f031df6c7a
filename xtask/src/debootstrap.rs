//! A clean Debian in a directory, made by debootstrap from the machine's own archive, and kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::cmd::{command, run};
use crate::{archive, debian, say};

const RELEASE: &str = "bookworm";

/// The root of a Debian below `dir` with these packages, separated by commas, beside what every Debian has. It is made again if they have
/// changed. Needs root.
pub fn root(dir: &Path, packages: &str) -> Result<PathBuf> {
    let (root, made, record) = (dir.join("root"), dir.join("made"), dir.join("packages"));
    if root.is_dir() && fs::read_to_string(&record).is_ok_and(|made_of| made_of == packages) {
        return Ok(root);
    }
    let _ = fs::remove_dir_all(&root);
    debian::ensure_for_packages()?;
    say::heading(&format!("making a Debian {RELEASE}"));
    let _ = fs::remove_dir_all(&made);
    fs::create_dir_all(&made).with_context(|| format!("cannot make {}", made.display()))?;
    run(command("debootstrap")
        .args(["--variant=minbase", &format!("--include={packages}"), RELEASE])
        .arg(&made)
        .arg(archive::address()?)
        .stdout(Stdio::null()))?;
    // Only a complete one has this name.
    fs::rename(&made, &root)?;
    fs::write(record, packages)?;
    Ok(root)
}
