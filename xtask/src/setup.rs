//! The requirements of a build beyond the toolchain of `rust-toolchain.toml`. Prints nothing and is fast if all are met.

use std::path::{Path, PathBuf};

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

/// A program from crates.io in `target/tools`, at exactly this version. Without optimization it is built in a third of the time, and
/// each runs for seconds at most.
pub fn ensure_tool(name: &str, version: &str, why: &str) -> Result<()> {
    if installed_version(&paths::tool(name)).as_deref() == Some(version) {
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

/// The last word of the first line of `--version`.
fn installed_version(program: &PathBuf) -> Option<String> {
    let said = program.is_file().then(|| output(command(program).arg("--version")))?.ok()?;
    Some(said.lines().next()?.split_whitespace().last()?.to_owned())
}
