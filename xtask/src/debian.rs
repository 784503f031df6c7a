//! Debian's packages that demo, tests and benchmarks need. Installing one must not start its service, such as a second Docker engine or
//! an nginx on port 80.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{self, Command, Stdio};

use anyhow::{Context, Result};

use crate::cmd::{command, output, run};
use crate::paths::which;
use crate::say;

/// A program, and the package that has it.
type Need = (&'static str, &'static str);

const NEEDS: [Need; 40] = [
    ("apparmor_parser", "apparmor"),
    ("bpftool", "bpftool"),
    ("busybox", "busybox-static"),
    ("caddy", "caddy"),
    ("checkmodule", "checkpolicy"),
    ("chromedriver", "chromium-driver"),
    ("chromium", "chromium"),
    // Without a font, Chromium shows no letters.
    ("chromium", "fonts-dejavu-core"),
    ("conmon", "conmon"),
    ("crun", "crun"),
    ("curl", "curl"),
    ("dbus-daemon", "dbus"),
    ("docker", DOCKER_CLIENT),
    ("docker-compose", "docker-compose"),
    ("dockerd", "docker.io"),
    // An sshd without a service, unlike openssh-server.
    ("dropbear", "dropbear-bin"),
    ("faketime", "faketime"),
    ("firewalld", "firewalld"),
    ("g++", "g++"),
    ("gunicorn", "gunicorn"),
    ("h2load", "nghttp2-client"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("mke2fs", "e2fsprogs"),
    ("mount", "mount"),
    ("nft", "nftables"),
    ("nginx", "nginx"),
    ("node", "nodejs"),
    ("nsenter", "util-linux"),
    ("podman", "podman"),
    ("prometheus", "prometheus"),
    ("python3", "python3"),
    ("python3", "python3-grpcio"),
    ("python3", "python3-venv"),
    ("python3", "python3-websockets"),
    ("semodule_package", "semodule-utils"),
    ("ssh", "openssh-client"),
    ("systemctl", "systemd"),
    ("unshare", "util-linux"),
    ("wrk", "wrk"),
];

/// Debian 13 has the client in this package, Debian 12 in docker.io.
const DOCKER_CLIENT: &str = "docker-cli";

/// Programs of benchmarks that the tests need too.
const BENCH_SHARES: [&str; 12] = [
    "bpftool", "busybox", "docker", "dockerd", "h2load", "ip", "iptables", "mount", "nginx", "nsenter", "unshare",
    "wrk",
];

/// Programs that only the benchmarks need.
const BENCH_NEEDS: [Need; 4] =
    [("haproxy", "haproxy"), ("ipvsadm", "ipvsadm"), ("nginx", "libnginx-mod-stream"), ("openssl", "openssl")];

/// Programs that only `package` needs.
const PACKAGE_NEEDS: [Need; 3] = [("debootstrap", "debootstrap"), ("lintian", "lintian"), ("rpm", "rpm")];

/// Installs what checks and tries packages.
pub fn ensure_for_packages() -> Result<()> {
    install(&PACKAGE_NEEDS)
}

/// Installs the requirements of the tests.
pub fn ensure_for_tests() -> Result<()> {
    ensure(&NEEDS.map(|(program, _)| program))
}

/// Installs the requirements of the benchmarks without other projects' programs.
pub fn ensure_for_program_bench() -> Result<()> {
    ensure(&["bpftool", "ip"])
}

/// Installs the requirements of the benchmarks.
pub fn ensure_for_bench() -> Result<()> {
    let mut needs = named(&BENCH_SHARES);
    needs.extend(BENCH_NEEDS);
    install(&needs)
}

/// Installs the packages of those programs that this machine lacks.
pub fn ensure(programs: &[&str]) -> Result<()> {
    install(&named(programs))
}

fn named(programs: &[&str]) -> Vec<Need> {
    NEEDS.into_iter().filter(|(program, _)| programs.contains(program)).collect()
}

fn install(needs: &[Need]) -> Result<()> {
    NoServices::remove_left_over()?;
    let mut lacking = missing(needs);
    if lacking.is_empty() {
        return Ok(());
    }
    if which("apt-get").is_none() {
        let names: Vec<_> = lacking.iter().map(|(program, _)| *program).collect();
        say::note(&format!("this machine lacks {}, and has no apt-get: install them yourself", names.join(", ")));
        return Ok(());
    }
    let _no_services = NoServices::begin()?;
    run(apt_get().args(["update", "-qq"]))?;
    let known = |package: &str| output(command("apt-cache").args(["show", package])).is_ok();
    lacking.retain(|(_, package)| *package != DOCKER_CLIENT || known(package));
    let packages: Vec<_> = lacking.iter().map(|(_, package)| *package).collect();
    say::note(&format!("installing Debian's {}", packages.join(", ")));
    run(apt_get().args(["install", "-qq", "-y", "--no-install-recommends"]).args(&packages))?;
    for (program, package) in missing(needs) {
        say::note(&format!("{package} is installed, and still there is no {program}"));
    }
    Ok(())
}

/// Checks packages where the machine has dpkg, because the tests build images from their files: another busybox or python3 in `PATH`
/// is not enough.
fn missing(needs: &[Need]) -> Vec<Need> {
    let installed = which("dpkg-query").map(|_| installed_packages());
    let is_missing = |(program, package): &Need| match &installed {
        Some(installed) if *package != DOCKER_CLIENT => !installed.iter().any(|name| name == package),
        _ => which(program).is_none(),
    };
    needs.iter().copied().filter(is_missing).collect()
}

fn installed_packages() -> Vec<String> {
    let listed = output(command("dpkg-query").args(["-W", "-f", "${db:Status-Status} ${Package}\\n"]));
    let listed = listed.unwrap_or_default();
    listed.lines().filter_map(|line| line.strip_prefix("installed ")).map(str::to_owned).collect()
}

fn apt_get() -> Command {
    let mut apt_get = command("apt-get");
    // Its output is long and of no interest for running tests; errors go to stderr.
    apt_get.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
    apt_get
}

/// While this is held, installing a package starts no service. A policy that the machine already has is left unchanged.
struct NoServices {
    ours: bool,
}

impl NoServices {
    const POLICY: &'static str = "/usr/sbin/policy-rc.d";
    /// Marks the file, with the process that made it: an interrupted run leaves the file, which must not count as the machine's own.
    const MARKER: &'static str = "# Of cargo xtask, while it installs packages; process ";

    fn begin() -> Result<Self> {
        if Path::new(Self::POLICY).exists() {
            return Ok(Self { ours: false });
        }
        // 101: "action forbidden by policy".
        let text = format!("#!/bin/sh\n{}{}\nexit 101\n", Self::MARKER, process::id());
        fs::write(Self::POLICY, text).with_context(|| format!("cannot write {}", Self::POLICY))?;
        let policy = Self { ours: true };
        fs::set_permissions(Self::POLICY, Permissions::from_mode(0o755))?;
        Ok(policy)
    }

    /// Whether an interrupted xtask has left it.
    fn remove_left_over() -> Result<()> {
        let text = fs::read_to_string(Self::POLICY).unwrap_or_default();
        if Self::is_left_over(&text, |pid| Path::new("/proc").join(pid).exists()) {
            say::note(&format!("removing {}, which an interrupted run left", Self::POLICY));
            fs::remove_file(Self::POLICY).with_context(|| format!("cannot remove {}", Self::POLICY))?;
        }
        Ok(())
    }

    fn is_left_over(policy: &str, lives: impl Fn(&str) -> bool) -> bool {
        policy.lines().find_map(|line| line.strip_prefix(Self::MARKER)).is_some_and(|pid| !lives(pid))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours && fs::remove_file(Self::POLICY).is_err() {
            eprintln!("cannot remove {}: remove it, or services will not start when they are installed", Self::POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_policy_of_ours_is_left_over() {
        let ours = format!("#!/bin/sh\n{}4711\nexit 101\n", NoServices::MARKER);
        assert!(NoServices::is_left_over(&ours, |pid| pid != "4711"));
        assert!(!NoServices::is_left_over(&ours, |pid| pid == "4711"));
        assert!(!NoServices::is_left_over("#!/bin/sh\nexit 101\n", |_| false));
        assert!(!NoServices::is_left_over("", |_| false));
    }
}
