//! Paths. Everything that xtask creates is below `target`.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// The top of the repository for which cargo runs xtask, since two may share a target directory.
pub fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(xtask).parent().expect("xtask lies in the repository's top directory").to_owned()
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The root for `cargo install --root`. The build of the kernel programs uses bpf-linker from here, whatever `CARGO_TARGET_DIR` is.
pub fn tools() -> PathBuf {
    root().join("target/tools")
}

/// A program that `setup` installed.
pub fn tool(name: &str) -> PathBuf {
    tools().join("bin").join(name)
}

/// `PATH` with the project's own tools first, and last the directories that a root shell made by sudo may lack.
pub fn path_with_tools() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let dirs = std::iter::once(tools().join("bin")).chain(env::split_paths(&path)).chain(system);
    env::join_paths(dirs).unwrap_or(path)
}

/// The first file of this name in that `PATH`.
pub fn which(program: &str) -> Option<PathBuf> {
    env::split_paths(&path_with_tools()).map(|dir| dir.join(program)).find(|file| file.is_file())
}
