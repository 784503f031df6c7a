//! The checks that run no test: format, lints, documentation, dependencies, and the project's own rules.

use std::process::Command;

use anyhow::{Result, bail};

use super::tidy;
use crate::cmd::{cargo, command, output, run};
use crate::{paths, say, setup};

/// One check; an error is its failure.
pub struct Check {
    pub name: &'static str,
    pub run: fn() -> Result<()>,
}

/// The quick ones first.
pub const ALL: [Check; 7] = [
    Check { name: "format", run: format },
    Check { name: "the project's own rules", run: tidy::tidy },
    Check { name: "what the daemon links", run: no_kernel_code_in_the_daemon },
    Check { name: "lints", run: clippy },
    Check { name: "lints of the kernel side", run: clippy_of_the_kernel_side },
    Check { name: "documentation", run: documentation },
    Check { name: "licences, sources and advisories of dependencies", run: dependencies },
];

/// It compiles in a minute on two cores, so it is always installed.
const CARGO_DENY_VERSION: &str = "0.20.2";

fn format() -> Result<()> {
    // By default it also colours output to a file.
    let colour = if say::on_terminal() { "auto" } else { "never" };
    run(cargo().args(["fmt", "--all", "--check", "--", "--color", colour]))
}

fn clippy() -> Result<()> {
    let all = ["--workspace", "--all-targets", "--features", "pod-steer-fuzz/libfuzzer"];
    run(cargo().arg("clippy").args(all).args(["--", "-D", "warnings"]))
}

fn clippy_of_the_kernel_side() -> Result<()> {
    run(cargo()
        .args(["clippy", "--package", "pod-steer-ebpf", "--bins", "--features", "kernel"])
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core", "--target-dir"])
        // The variable below is part of cargo's fingerprint of a build. In the common directory it would cause a complete
        // rebuild.
        .arg(paths::target().join("kernel-lints"))
        .args(["--", "-D", "warnings"])
        .env("RUSTC_BOOTSTRAP", "1")
        // As in pod-steer/build.rs: programs read the registers of the machine's processor.
        .env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH)))
}

fn documentation() -> Result<()> {
    run(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

/// aya-ebpf exports `memcpy`, `memmove` and `memset` under those names; linked into the daemon they would replace
/// libc's, eighty times slower.
fn no_kernel_code_in_the_daemon() -> Result<()> {
    if let Some(line) = linked("pod-steer", &["aya-ebpf"])? {
        bail!("pod-steer links {line}: keep it behind the feature `kernel` of pod-steer-ebpf");
    }
    if let Some(line) = linked("pod-steer-model", &["aya", "libc", "rustix", "tokio"])? {
        bail!("pod-steer-model links {line}: it decides on values, and its callers bring them in");
    }
    Ok(())
}

/// The first of these packages that another one links.
fn linked(package: &str, refused: &[&str]) -> Result<Option<String>> {
    let tree = output(cargo().args(["tree", "--package", package, "--edges", "normal", "--prefix", "none"]))?;
    let is_refused = |line: &&str| refused.iter().any(|name| line.split(' ').next() == Some(name));
    Ok(tree.lines().find(is_refused).map(str::to_owned))
}

/// Installs what checks dependencies.
pub fn ensure_deny() -> Result<()> {
    setup::ensure_tool("cargo-deny", CARGO_DENY_VERSION, "it checks dependencies; takes a minute, once")
}

fn dependencies() -> Result<()> {
    ensure_deny()?;
    run(deny().args(["check", "licenses", "sources", "bans"]))?;
    // Not every network reaches the repository of the advisories. They are no property of this tree, so their absence is
    // reported and is no failure.
    if output(deny().args(["fetch", "db"])).is_err() {
        say::note("the advisory database cannot be fetched from here: advisories are not checked");
        return Ok(());
    }
    run(deny().args(["check", "advisories"]))
}

fn deny() -> Command {
    let mut deny = command(paths::tool("cargo-deny"));
    deny.args(["--workspace", "--all-features", "--log-level", "error"]);
    deny
}
