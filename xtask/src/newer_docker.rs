//! `cargo xtask newer-docker`: fetches the newest Docker of Debian's archive, unpacks it into a root directory of its own, and runs the
//! integration tests of forwarding that need it. Nothing is installed, and all fetched files are below `target/newer-docker`. Not part of
//! `cargo xtask test`, since it needs Debian's archive.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::archive::Archive;
use crate::cmd::{cargo, run};
use crate::{build, debian, paths, say};

/// The release with the newest packages.
const SUITE: &str = "sid";
/// The engine, with the programs that it runs.
const PACKAGES: [&str; 3] = ["docker.io", "iptables", "nftables"];

/// The `newer-docker` task.
pub fn newer_docker() -> Result<ExitCode> {
    let dir = paths::target().join("newer-docker");
    let root = dir.join("root");
    debian::ensure_for_tests()?;
    if !root.join("usr/sbin/dockerd").is_file() {
        say::heading(&format!("fetching Docker from Debian {SUITE}"));
        let unpacked = dir.join("unpacked");
        let archive = Archive::open(dir.join("archive"), &[SUITE])?;
        fs::create_dir_all(&unpacked).with_context(|| format!("cannot make {}", unpacked.display()))?;
        archive.unpack_with_dependencies(&PACKAGES, &unpacked)?;
        set_up(&unpacked)?;
        // Only a complete one has this name.
        fs::rename(&unpacked, &root)?;
    }
    say::heading("integration tests with it");
    let (pod_steer, named_server) = (build::pod_steer(true)?, build::named_server()?);
    build::test_programs()?;
    let mut tests = cargo();
    tests.args(["run", "--package", "pod-steer-tests", "--example", "newer-docker"]);
    tests.env("POD_STEER_BIN", pod_steer).env("POD_STEER_NAMED_SERVER", named_server);
    run(tests.env("POD_STEER_DOCKER_ROOT", &root))?;
    Ok(ExitCode::SUCCESS)
}

/// What the packages' own scripts do when they are installed.
fn set_up(root: &Path) -> Result<()> {
    let links = [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")];
    let programs = ["iptables", "ip6tables"].map(|program| (format!("usr/sbin/{program}"), format!("{program}-nft")));
    let programs = programs.iter().map(|(link, target)| (link.as_str(), target.as_str()));
    for (link, target) in links.into_iter().chain(programs) {
        if fs::symlink_metadata(root.join(link)).is_err() {
            symlink(target, root.join(link)).with_context(|| format!("cannot link {link} to {target}"))?;
        }
    }
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    Ok(())
}
