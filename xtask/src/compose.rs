//! Docker Compose 2. Debian 12 has version 1, so the program comes from Debian 13, and is not installed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::archive::{Archive, unpack_all};
use crate::cmd::run;
use crate::{paths, say};

const SUITE: &str = "trixie";
const PACKAGE: &str = "docker-compose";
/// Where the package has it.
const PROGRAM: &str = "usr/libexec/docker/cli-plugins/docker-compose";

/// Unpacks it for the tests. Without it, those with it are skipped.
pub fn ensure() {
    if let Err(error) = get() {
        say::note(&format!("Compose 2 cannot be fetched: {error:#}"));
    }
}

/// The program, which is fetched once. apt checks the package by the signed list of the release.
pub fn get() -> Result<PathBuf> {
    let dir = paths::tools().join("compose");
    let program = dir.join("docker-compose");
    if program.is_file() {
        return Ok(program);
    }
    say::note(&format!("fetching Docker Compose from Debian {SUITE} into target/tools: 13 MB, once"));
    let (lists, made) = (dir.join("archive"), dir.join("made"));
    let archive = Archive::open(lists.clone(), &[SUITE])?;
    let _ = fs::remove_dir_all(&made);
    fs::create_dir_all(&made).with_context(|| format!("cannot make {}", made.display()))?;
    run(archive.apt("apt-get").args(["download", "-qq", PACKAGE]).current_dir(&made))?;
    unpack_all(&made, &made)?;
    // Only a complete one has this name.
    fs::rename(made.join(PROGRAM), &program).context("the package has no plugin of Docker")?;
    for unneeded in [lists, made] {
        fs::remove_dir_all(&unneeded).with_context(|| format!("cannot remove {}", unneeded.display()))?;
    }
    Ok(program)
}
