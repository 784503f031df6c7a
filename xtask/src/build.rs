//! The builds that demo and tests start from.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cmd::{cargo, command, output, run};
use crate::{paths, setup};

/// Sets up and builds `pod-steer`, with the kernel programs inside; returns the program.
pub fn pod_steer(release: bool) -> Result<PathBuf> {
    setup::ensure()?;
    let mut build = cargo();
    build.args(["build", "--package", "pod-steer"]);
    if release {
        build.arg("--release");
    }
    run(&mut build)?;
    Ok(paths::target().join(if release { "release" } else { "debug" }).join("pod-steer"))
}

/// Builds the test server that answers with its name, as one static file that runs in an empty container.
pub fn named_server() -> Result<PathBuf> {
    static_programs(&[("pod-steer-tests", "named-server")]).map(|dir| dir.join("named-server"))
}

/// Builds programs, each named with its package, as static files; returns their directory.
pub fn static_programs(programs: &[(&str, &str)]) -> Result<PathBuf> {
    setup::ensure()?;
    let host = host_triple()?;
    let target = paths::target().join("static");
    // With `--target`, even the host's own, the flags do not reach build scripts and procedural macros.
    let chosen = programs.iter().flat_map(|(package, program)| ["--package", package, "--bin", program]);
    run(cargo()
        .args(["build", "--release", "--target", &host])
        .args(chosen)
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    Ok(target.join(host).join("release"))
}

fn host_triple() -> Result<String> {
    let version = output(command("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}
