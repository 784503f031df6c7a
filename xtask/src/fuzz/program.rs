//! The program with all targets, built with LLVM's coverage counters, which the stable compiler supports too.

use std::path::PathBuf;

use anyhow::Result;

use crate::cmd::{cargo, run};
use crate::paths::which;
use crate::{build, debian, paths, say, setup};

/// The instrumentation for libFuzzer: a counter for each edge, its address, and the operands of comparisons.
const FLAGS: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Installs a C++ compiler if there is none: libFuzzer is written in C++.
fn ensure_compiler() -> Result<()> {
    if which("c++").is_some() { Ok(()) } else { debian::ensure(&["g++"]) }
}

/// Sets up and builds the program; returns where it is.
pub fn build() -> Result<PathBuf> {
    setup::ensure()?;
    ensure_compiler()?;
    let host = build::host_triple()?;
    let target = paths::target().join("fuzz/build");
    if !target.exists() {
        say::note("building pod-steer and its dependencies with coverage counters, into target/fuzz: once");
    }
    run(cargo()
        .args(["build", "--package", "pod-steer-fuzz", "--features", "linked", "--profile", "fuzz"])
        // With `--target`, even the host's own, the flags do not reach build scripts and procedural macros.
        .args(["--target", &host, "--target-dir"])
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")))?;
    Ok(target.join(host).join("fuzz/fuzz"))
}
