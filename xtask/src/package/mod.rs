//! `cargo xtask package`: what is installed. The static program (`program`), the files that packages have beside it (`files`), and the
//! packages made of both; `trial` installs one. Everything is below `target/package`; nothing is installed here.

mod deb;
mod files;
mod image;
mod program;
mod rpm;
mod trial;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::cmd::{command, output};
use crate::{paths, privilege};

/// What to make.
#[derive(clap::Subcommand)]
pub enum Package {
    /// The program as one static file
    Static {
        /// For this architecture [default: that of the machine]
        #[arg(long, value_enum)]
        arch: Option<Arch>,
    },
    /// A package for Debian and its derivatives
    Deb {
        /// Also install, upgrade and purge it in a clean Debian, under load: some minutes (needs root)
        #[arg(long = "try")]
        try_it: bool,
    },
    /// A package for Fedora and its relatives
    Rpm {
        /// Also install, upgrade and remove it by rpm in a clean Debian, under load: some minutes (needs root)
        #[arg(long = "try")]
        try_it: bool,
    },
    /// A container image with the program alone, which `docker load` takes
    Image {
        /// Also start it in a Docker engine and let it steer other containers, under load: a minute (needs root)
        #[arg(long = "try")]
        try_it: bool,
    },
}

/// The `package` task.
pub fn package(package: &Package) -> Result<ExitCode> {
    match package {
        Package::Static { arch: None } => program::build().map(drop)?,
        Package::Static { arch: Some(arch) } => program::build_for(*arch).map(drop)?,
        Package::Deb { try_it: false } => deb::build().map(drop)?,
        Package::Deb { try_it: true } => match privilege::root_or_remedy() {
            Some(ended) => return ended,
            None => trial::run(&trial::DEB, &deb::build()?, &deb::next()?)?,
        },
        Package::Rpm { try_it: false } => rpm::build().map(drop)?,
        Package::Rpm { try_it: true } => match privilege::root_or_remedy() {
            Some(ended) => return ended,
            None => trial::run(&trial::RPM, &rpm::build()?, &rpm::next()?)?,
        },
        Package::Image { try_it: false } => image::build().map(drop)?,
        Package::Image { try_it: true } => match privilege::root_or_remedy() {
            Some(ended) => return ended,
            None => image::try_it(&image::build()?)?,
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// The directory of everything that is made here. `pod-steer/Cargo.toml` names files in it, so it is the same whatever
/// `CARGO_TARGET_DIR` is.
fn dir() -> Result<PathBuf> {
    let dir = paths::root().join("target/package");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// The time of the commit, which packages have as the time of their files: two builds of one commit are alike.
fn commit_time() -> Result<String> {
    let time =
        output(command("git").args(["log", "-1", "--format=%ct"])).context("packages are made in a repository")?;
    Ok(time.trim().to_owned())
}
