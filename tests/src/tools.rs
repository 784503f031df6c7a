//! Requirements of tests, and the paths of this workspace's programs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

/// Root, and these programs in the search path.
pub fn root_and(programs: &[&str]) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("root is needed: run the tests with sudo".into());
    }
    match programs.iter().find(|program| find(program).is_none()) {
        Some(missing) => Err(format!("{missing} is not installed")),
        None => Ok(()),
    }
}

/// The requirements of tests with Docker containers.
pub fn docker() -> Result<(), String> {
    root_and(&["dockerd", "docker", "containerd", "runc", "ip", "tar", "busybox"])
}

/// A kernel with MPTCP that is switched on.
pub fn mptcp() -> Result<(), String> {
    match std::fs::read_to_string("/proc/sys/net/mptcp/enabled") {
        Ok(enabled) if enabled.trim() == "1" => Ok(()),
        Ok(_) => Err("net.mptcp.enabled is 0".to_owned()),
        Err(_) => Err("the kernel has no MPTCP".to_owned()),
    }
}

/// The library of faketime(1), which shifts the wall clock of the process that loads it, and no other clock.
pub fn faketime_library() -> Result<PathBuf> {
    let dirs = std::fs::read_dir("/usr/lib").context("listing /usr/lib")?.flatten();
    let found = dirs.map(|dir| dir.path().join("faketime/libfaketime.so.1")).find(|path| path.is_file());
    found.context("faketime is installed, and its library is not below /usr/lib")
}

/// Full path of an installed program. Debian's own comes first: a version manager's wrapper does not run elsewhere.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    system.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// The directory with this build's programs: that of the test binary, or the one above it.
pub fn build_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding the test's own path")?;
    let dir = exe.parent().context("the test has no directory")?;
    let dir = if dir.ends_with("deps") || dir.ends_with("examples") {
        dir.parent().context("it has no parent")?
    } else {
        dir
    };
    Ok(dir.to_owned())
}

/// The test server. `POD_STEER_NAMED_SERVER` names a static build; without it the one beside the tests is taken.
pub fn named_server() -> Result<PathBuf> {
    program("POD_STEER_NAMED_SERVER", &[build_dir()?.join("named-server")])
}

/// The program that keeps test hosts.
pub fn host_keeper() -> Result<PathBuf> {
    program("POD_STEER_HOST_KEEPER", &[build_dir()?.join("host-keeper")])
}

/// The program that gives TCP clients a unix socket.
pub fn relay() -> Result<PathBuf> {
    program("POD_STEER_RELAY", &[build_dir()?.join("relay")])
}

/// Schemathesis, which `cargo xtask test` installs.
pub fn schemathesis() -> Result<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/schemathesis/bin/schemathesis");
    ensure!(installed.is_file(), "schemathesis is not installed: `cargo xtask test` installs it");
    Ok(installed)
}

/// The settings of Schemathesis.
pub fn openapi_settings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/schemathesis.toml")
}

/// pod-steer itself: what `POD_STEER_BIN` names, else the release build, else the debug build.
pub fn pod_steer() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let built = ["release", "debug"].map(|profile| workspace.join(profile).join("pod-steer"));
    program("POD_STEER_BIN", &built)
}

/// A later release of pod-steer, by the name of the feature with which `cargo xtask test` builds it.
pub fn later_release(feature: &str) -> Result<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/later-releases");
    let dir = std::env::var_os("POD_STEER_LATER_RELEASES").map_or(default, PathBuf::from);
    let path = dir.join(feature);
    path.canonicalize().with_context(|| format!("{}: `cargo xtask test` builds it", path.display()))
}

fn program(variable: &str, defaults: &[PathBuf]) -> Result<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let candidates = named.as_ref().map_or(defaults, std::slice::from_ref);
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => path.canonicalize().with_context(|| format!("resolving {}", path.display())),
        None => bail!("none of {candidates:?} exists; build it or set {variable}"),
    }
}
