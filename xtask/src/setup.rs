//! The requirements of a build beyond the toolchain of `rust-toolchain.toml`. Prints nothing and is fast if all are met.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};

use crate::cmd::{cargo, command, output, run};
use crate::{paths, say};

/// The newest version that links with the compiler's own LLVM; later ones want LLVM's development files.
const BPF_LINKER_VERSION: &str = "0.9.15";

/// The `setup` task: installs what is missing, and prints the result.
pub fn setup() -> Result<()> {
    ensure()?;
    say::note(&format!("ready: rust-src is there, and bpf-linker {BPF_LINKER_VERSION} in target/tools"));
    Ok(())
}

/// Installs what is missing.
pub fn ensure() -> Result<()> {
    ensure_rust_src()?;
    ensure_tool("bpf-linker", BPF_LINKER_VERSION, "it links the kernel programs; takes half a minute to a minute, once")
}

/// The kernel programs need `core` for the BPF target, which is built from its source.
fn ensure_rust_src() -> Result<()> {
    let sysroot = output(command("rustc").args(["--print", "sysroot"])).context("is Rust installed?")?;
    if Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
        return Ok(());
    }
    say::note("the source of Rust's core library (rust-src) is missing: adding it to the toolchain");
    run(command("rustup").args(["component", "add", "rust-src"]))
        .context("the kernel programs need rust-src; without rustup, install it as your distribution has it")
}

/// Rust's standard library for another target than the machine's own.
pub fn ensure_target(target: &str) -> Result<()> {
    let libraries = output(command("rustc").args(["--print", "target-libdir", "--target", target]))?;
    if Path::new(libraries.trim()).is_dir() {
        return Ok(());
    }
    say::note(&format!("adding the target {target} to the toolchain"));
    run(command("rustup").args(["target", "add", target])).with_context(|| {
        format!("without rustup, install Rust's standard library for {target} as your distribution has it")
    })
}

/// A program from crates.io in `target/tools`, at exactly this version. Without optimization it is built in a third of the time, and
/// each runs for seconds at most.
pub fn ensure_tool(name: &str, version: &str, why: &str) -> Result<()> {
    // Another process may be installing it now.
    fs::create_dir_all(paths::tools()).with_context(|| format!("cannot make {}", paths::tools().display()))?;
    let lock = paths::tools().join(format!(".{name}.lock"));
    let lock = File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
    lock.lock().with_context(|| format!("cannot wait for another installation of {name}"))?;
    let installed = fs::read_to_string(paths::tools().join(".crates.toml")).unwrap_or_default();
    if paths::tool(name).is_file() && is_recorded(&installed, name, version) {
        return Ok(());
    }
    say::note(&format!("installing {name} {version} into target/tools: {why}"));
    run(cargo()
        .args(["install", "--debug", "--locked", "--force", "--version", version, "--root"])
        .arg(paths::tools())
        .arg(name)
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        // Otherwise its objects would be mixed with ours.
        .env_remove("CARGO_TARGET_DIR"))
}

/// Whether cargo's record of what it has installed has this version. Not every tool tells its version.
fn is_recorded(record: &str, name: &str, version: &str) -> bool {
    let entry = format!("\"{name} {version} (");
    record.lines().any(|line| line.starts_with(&entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_installed_in_one_version() {
        let record = "[v1]\n\"bpf-linker 0.9.15 (registry+index)\" = [\"bpf-linker\"]\n";
        assert!(is_recorded(record, "bpf-linker", "0.9.15"));
        assert!(!is_recorded(record, "bpf-linker", "0.9.1") && !is_recorded(record, "linker", "0.9.15"));
        assert!(!is_recorded("", "bpf-linker", "0.9.15"));
    }
}
