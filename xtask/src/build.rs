//! The builds that demo, tests and benchmarks need.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::arch::Arch;
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

/// The later releases that tests upgrade to: features of `pod-steer`.
const LATER_RELEASES: [&str; 3] = ["test-program", "test-layout", "test-layout-more"];

/// A fifth of such a build is debug information.
const QUICK: &str = "profile.dev.package.pod-steer.debug=false";

/// Builds the later releases and returns the directory in which each has the name of its feature.
pub fn later_releases() -> Result<PathBuf> {
    let dir = paths::target().join("later-releases");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for feature in LATER_RELEASES.map(Some).into_iter().chain([None]) {
        let mut build = cargo();
        build.args(["build", "--package", "pod-steer"]);
        run(build.args(feature.into_iter().flat_map(|feature| ["--features", feature, "--config", QUICK])))?;
        // The last build is an ordinary one, so that the usual path has no test release.
        let Some(feature) = feature else { continue };
        let place = dir.join(feature);
        let _ = fs::remove_file(&place);
        // Cargo replaces the file rather than rewriting it, so a hard link is safe and takes no space.
        fs::hard_link(paths::target().join("debug/pod-steer"), &place)
            .with_context(|| format!("cannot make {}", place.display()))?;
    }
    Ok(dir)
}

/// Builds the test server as one static file that runs in an empty container.
pub fn named_server() -> Result<PathBuf> {
    static_programs(&[("pod-steer-tests", "named-server")]).map(|dir| dir.join("named-server"))
}

/// Builds the programs of the tests beside this one, where their fixtures look for them.
pub fn test_programs() -> Result<()> {
    run(cargo().args(["build", "--workspace", "--exclude", "xtask", "--bins"]))
}

/// The same for another architecture, linked with musl.
pub fn static_programs_for(arch: Arch, programs: &[(&str, &str)]) -> Result<PathBuf> {
    if Arch::own() == Some(arch) {
        return static_programs(programs);
    }
    setup::ensure()?;
    let (musl, target) = (arch.musl(), paths::target().join("static"));
    setup::ensure_target(&musl)?;
    let chosen = programs.iter().flat_map(|(package, program)| ["--package", package, "--bin", program]);
    run(cargo()
        .args(["build", "--release", "--target", &musl])
        .args(chosen)
        .arg("--target-dir")
        .arg(&target)
        .envs([arch.build_env()]))?;
    Ok(target.join(musl).join("release"))
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

/// Builds the program `bench`, and beside it the programs of the tests that it starts.
pub fn bench(release: bool) -> Result<PathBuf> {
    let mut build = cargo();
    // This program itself runs.
    build.args(["build", "--workspace", "--exclude", "xtask", "--bins"]);
    if release {
        build.arg("--release");
    }
    run(&mut build)?;
    Ok(paths::target().join(if release { "release" } else { "debug" }).join("bench"))
}

/// Builds the program that measures the kernel programs alone. Only cargo's messages have its path.
pub fn program_bench(release: bool) -> Result<PathBuf> {
    setup::ensure()?;
    let mut build = cargo();
    build.args(["bench", "--package", "pod-steer", "--bench", "program", "--no-run"]);
    if !release {
        build.args(["--profile", "dev"]);
    }
    // Progress and compiler errors go to the terminal.
    build.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let messages = output(&mut build)?;
    executable(&messages, "program").context("cargo's messages lack the path of the benchmark `program`")
}

/// The path of a benchmark in cargo's messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let ours = |message: &serde_json::Value| {
        let kinds = message["target"]["kind"].as_array();
        message["target"]["name"] == name && kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "bench"))
    };
    messages.filter(ours).find_map(|message| Some(message["executable"].as_str()?.into()))
}

/// The name of this machine's target.
pub fn host_triple() -> Result<String> {
    let version = output(command("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_benchmark_is_found_in_the_messages_of_cargo() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"program"},"executable":null}"#,
            "\nno message\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["bench"],"name":"other"},"executable":"/t/other-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["bench"],"name":"program"},"executable":"/t/program-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executable(messages, "program"), Some("/t/program-1".into()));
        assert_eq!(executable(messages, "none"), None);
    }
}
