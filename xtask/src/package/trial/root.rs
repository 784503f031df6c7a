//! A clean Debian with systemd and Docker.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pod_steer_tests::host::Host;

use crate::debootstrap;
use crate::package::dir;

/// Beside what every Debian has.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,iptables,docker.io,ca-certificates,rpm";

/// The directory of the clean Debian.
pub fn get() -> Result<PathBuf> {
    debootstrap::root(&dir()?.join("trial"), PACKAGES)
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
