//! `cargo xtask quadlet`: fetches a Podman that has quadlets, from Debian's archive, and writes the units that its generator makes of the
//! examples to `tests/quadlet`, where `examples_quadlet.rs` runs them. Nothing is installed. Run it when the examples have changed: the test
//! says so. Not part of `cargo xtask test`, since Debian 12 has an older Podman and the package is large.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::archive::{Archive, unpack_all};
use crate::cmd::{command, output, run};
use crate::{paths, say};

/// The oldest release whose Podman has quadlets.
const SUITE: &str = "trixie";
/// The generator in the package, which also runs with the libraries of older releases.
const GENERATOR: &str = "usr/libexec/podman/quadlet";
/// Where a machine has quadlets.
const INSTALLED: &str = "/etc/containers/systemd";

/// The `quadlet` task.
pub fn quadlet() -> Result<ExitCode> {
    let dir = paths::target().join("quadlet");
    let generator = dir.join("root").join(GENERATOR);
    if !generator.is_file() {
        say::heading(&format!("fetching Podman from Debian {SUITE}"));
        fetch(&dir)?;
    }
    let version = output(command(&generator).arg("--version"))?;
    let examples = paths::root().join("examples/quadlet");
    let made = output(command(&generator).arg("--dryrun").env("QUADLET_UNIT_DIRS", &examples))?;
    let made = made.replace(&examples.display().to_string(), INSTALLED);
    let mut count = 0;
    // Each unit begins with a line `---NAME---`.
    for unit in made.split("\n---").map(|unit| unit.trim_start_matches("---")) {
        let (name, text) = unit.split_once("---\n").context("a unit without a name")?;
        let lines: Vec<&str> = text.trim().lines().filter(|line| !line.starts_with('#')).collect();
        let first = format!("# Written by `cargo xtask quadlet`, with the generator of Podman {}.", version.trim());
        fs::write(paths::root().join("tests/quadlet").join(name), format!("{first}\n{}\n", lines.join("\n")))?;
        say::note(&format!("tests/quadlet/{name}"));
        count += 1;
    }
    ensure!(
        count == fs::read_dir(&examples)?.count(),
        "{count} units were made of the files in {}",
        examples.display()
    );
    Ok(ExitCode::SUCCESS)
}

fn fetch(dir: &Path) -> Result<()> {
    let (packages, unpacked) = (dir.join("packages"), dir.join("unpacked"));
    for made in [&packages, &unpacked] {
        fs::create_dir_all(made).with_context(|| format!("cannot make {}", made.display()))?;
    }
    let archive = Archive::open(dir.join("archive"), &[SUITE])?;
    run(archive.apt("apt-get").args(["download", "-qq", "podman"]).current_dir(&packages))?;
    unpack_all(&packages, &unpacked)?;
    // Only a complete one has this name.
    Ok(fs::rename(&unpacked, dir.join("root"))?)
}
