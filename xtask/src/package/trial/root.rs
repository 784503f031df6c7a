//! A clean Debian with systemd and Docker, made by debootstrap from the machine's own archive, and kept.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pod_steer_tests::host::Host;

use crate::archive;
use crate::cmd::{command, run};
use crate::package::dir;
use crate::{debian, say};

const RELEASE: &str = "bookworm";
/// Beside what every Debian has.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,iptables,docker.io,ca-certificates,rpm";

/// The directory of the clean Debian.
pub fn get() -> Result<PathBuf> {
    let dir = dir()?.join("trial");
    let (root, made, packages) = (dir.join("root"), dir.join("made"), dir.join("packages"));
    if root.is_dir() && fs::read_to_string(&packages).is_ok_and(|made_of| made_of == PACKAGES) {
        return Ok(root);
    }
    let _ = fs::remove_dir_all(&root);
    debian::ensure_for_packages()?;
    say::heading(&format!("making a Debian {RELEASE}"));
    let _ = fs::remove_dir_all(&made);
    fs::create_dir_all(&made).with_context(|| format!("cannot make {}", made.display()))?;
    run(command("debootstrap")
        .args(["--variant=minbase", &format!("--include={PACKAGES}"), RELEASE])
        .arg(&made)
        .arg(archive::address()?)
        .stdout(std::process::Stdio::null()))?;
    // Only a complete one has this name.
    fs::rename(&made, &root)?;
    fs::write(packages, PACKAGES)?;
    Ok(root)
}

/// Puts files into the layer above the clean Debian, which the host's machine writes.
pub fn lay_out(host: &Host, files: &[(PathBuf, String)]) -> Result<()> {
    for (from, to) in files {
        let to = layer(host).join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap_or(Path::new("/")))?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}

/// The directory of what the machine writes.
pub fn layer(host: &Host) -> PathBuf {
    host.dir().join("upper")
}
