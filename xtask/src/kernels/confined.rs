//! The daemon under its AppArmor profile: the outer half compiles the profile, the guest loads it, starts the daemon in it, and looks for
//! denials in the kernel's log. Debian's kernels have AppArmor built in, and on by default.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::BUSYBOX;
use crate::cmd::{command, output, run};
use crate::{debian, paths, say};

/// The compiled profile in the guest.
pub const PROFILE: &str = "profile.bin";
/// The features of AppArmor that the profile is compiled for.
const FEATURES: &str = "/etc/apparmor.d/abi/3.0";
/// What the stage has outside of the places of an installed daemon.
const LOCAL: &str = "/tmp/** rwk,\n/dev/ttyS0 rw,\n/dev/console rw,\n/bin/busybox mrix,\n";
/// Maximum number of denials that are shown.
const SHOWN: usize = 20;
const FILES: &str = "/sys/kernel/security/apparmor";

/// Compiles the profile into `dir`.
pub fn compile(dir: &Path) -> Result<PathBuf> {
    debian::ensure(&["apparmor_parser"])?;
    let (local, compiled) = (dir.join("apparmor/local"), dir.join(PROFILE));
    fs::create_dir_all(&local)?;
    fs::write(local.join("pod-steer"), LOCAL)?;
    let _ = fs::remove_file(&compiled);
    run(command("apparmor_parser")
        .args(["--quiet", "--skip-kernel-load", "--skip-cache", "-M", FEATURES, "--Include"])
        .arg(dir.join("apparmor"))
        .arg("--ofile")
        .arg(&compiled)
        .arg(paths::root().join("packaging/apparmor/pod-steer")))?;
    Ok(compiled)
}

/// Loads it in the guest. False if the kernel has no AppArmor.
pub fn load() -> Result<bool> {
    run(command(format!("/{BUSYBOX}")).args(["mount", "-t", "securityfs", "none", "/sys/kernel/security"]))?;
    if !Path::new(FILES).exists() {
        say::note("this kernel has no AppArmor: the daemon runs unconfined");
        return Ok(false);
    }
    let profile = fs::read(format!("/{PROFILE}")).context("the image has no profile")?;
    fs::write(format!("{FILES}/.replace"), profile).context("AppArmor does not take the profile")?;
    Ok(true)
}

/// Fails if the profile has denied anything, and shows what.
pub fn check() -> Result<()> {
    let log = output(command(format!("/{BUSYBOX}")).arg("dmesg"))?;
    let denied: Vec<&str> = log.lines().filter(|line| line.contains("apparmor=\"DENIED\"")).collect();
    denied.iter().take(SHOWN).for_each(|line| println!("{line}"));
    if !denied.is_empty() {
        bail!("{} denials by the AppArmor profile", denied.len());
    }
    say::note("the AppArmor profile of the daemon denied nothing");
    Ok(())
}
