//! The Debian package, by cargo-deb. `pod-steer/Cargo.toml` says what is in it; `packaging/debian` has the scripts.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::{commit_time, dir, files, program};
use crate::cmd::{command, output, run, shown};
use crate::paths::{self, which};
use crate::{say, setup};

const CARGO_DEB_VERSION: &str = "3.8.0";
/// Lintian finds a static program odd, which this one is on purpose; `packaging/debian/lintian-overrides` has the reasons.
const LINTIAN: [&str; 2] = ["--fail-on", "error,warning"];

/// Builds the package, checks it, and returns its path.
pub fn build() -> Result<PathBuf> {
    program::build()?;
    files::write()?;
    let package = make("deb", "1")?;
    if which("dpkg-deb").is_some() {
        print!("{}", output(command("dpkg-deb").arg("--info").arg(&package))?);
        print!("{}", output(command("dpkg-deb").arg("--contents").arg(&package))?);
    }
    lint(&package)?;
    say::note(&format!("{}: install it with `apt install ./FILE`", program::shown(&package)));
    Ok(package)
}

/// The same files as the package of a next version, to upgrade to.
pub fn next() -> Result<PathBuf> {
    make("deb-next", "2")
}

/// Packs the files into a directory of this name.
fn make(name: &str, revision: &str) -> Result<PathBuf> {
    setup::ensure_tool("cargo-deb", CARGO_DEB_VERSION, "it makes the Debian package; takes a minute, once")?;
    let out = dir()?.join(name);
    let _ = fs::remove_dir_all(&out);
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    run(command(paths::tool("cargo-deb"))
        .args(["--no-build", "--no-strip", "--quiet", "--manifest-path", "pod-steer/Cargo.toml"])
        .args(["--deb-revision", revision, "--output"])
        .arg(&out)
        .env("SOURCE_DATE_EPOCH", commit_time()?))?;
    let made = fs::read_dir(&out)?.filter_map(|entry| Some(entry.ok()?.path()));
    let made: Vec<PathBuf> = made.filter(|file| file.extension().is_some_and(|ext| ext == "deb")).collect();
    match made.as_slice() {
        [package] => Ok(package.clone()),
        _ => bail!("cargo-deb made {made:?} and not one package"),
    }
}

/// Checks it with lintian, if the machine has that.
fn lint(package: &PathBuf) -> Result<()> {
    if which("lintian").is_none() {
        say::note("there is no lintian: the package is not checked by it (`apt-get install lintian`)");
        return Ok(());
    }
    let mut lintian = command("lintian");
    lintian.args(LINTIAN).arg("--allow-root").arg(package);
    let status =
        lintian.stdin(Stdio::null()).status().with_context(|| format!("cannot start `{}`", shown(&lintian)))?;
    if !status.success() {
        bail!("`{}` found faults", shown(&lintian));
    }
    say::note("lintian finds nothing wrong");
    Ok(())
}
