//! What must hold while the package is installed.

use anyhow::{Result, ensure};

use super::machine::Machine;
use super::packager::Packager;
use crate::say;

/// Highest exposure that `systemd-analyze security` may report.
const EXPOSURE_MAX: f32 = 4.0;

/// Commands that succeed.
const HOLDS: [(&str, &str); 7] = [
    ("the daemon runs", "systemctl is-active pod-steer"),
    ("the daemon starts at boot", "systemctl is-enabled pod-steer"),
    (
        "systemd finds no fault in the unit",
        "! systemd-analyze verify --man=no pod-steer.service 2>&1 | grep pod-steer >&2",
    ),
    ("the settings are valid", "pod-steer config check"),
    ("the group may use the API", "test \"$(stat -c %G /run/pod-steer/api.sock)\" = pod-steer"),
    ("the group has no members", "test -z \"$(getent group pod-steer | cut -d: -f4)\""),
    ("the log has no error", "! journalctl --boot --no-pager -u pod-steer | grep ' ERROR ' >&2"),
];

/// Checks it, and prints each sentence.
pub fn check(machine: &Machine, packager: &Packager) -> Result<()> {
    machine.wait_until("the daemon", "systemctl is-active pod-steer")?;
    for (sentence, line) in HOLDS.into_iter().chain([("every file is as packed", packager.verify)]) {
        if !machine.succeeds(line)? {
            // With what it prints.
            machine.read(line)?;
        }
        println!("   {} {sentence}", say::green("✓"));
    }
    let said = machine.read("systemd-analyze security pod-steer | tail -1")?;
    let exposure = said.split_whitespace().find_map(|word| word.parse::<f32>().ok());
    ensure!(exposure.is_some_and(|exposure| exposure <= EXPOSURE_MAX), "systemd-analyze security: {said}");
    println!("   {} {}", say::green("✓"), said.trim().trim_start_matches('→').trim());
    Ok(())
}
