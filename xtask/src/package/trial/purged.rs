//! What must hold when the package is gone: nothing is left of it.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::machine::Machine;
use crate::say;

/// Files, but for those that every installation and every container changes, then groups, pins (the kernel's own end in `.debug`),
/// cgroups and rules of the firewall.
const SNAPSHOT: &str = "\
find / -xdev -not -path '/var/lib/dpkg/*' -not -path '/var/lib/apt/*' -not -path '/var/log/*' -not -path '/var/cache/*' \
    -not -path '/tmp/*' -not -path '/var/tmp/*' -not -path '/roo?/*' -not -path '/var/lib/docker/*' -not -path '/var/lib/containerd/*' \
    -not -path '/var/lib/systemd/*' -not -path '/packages/*' | sed 's/^/file /'
ls -A /run | grep pod-steer | sed 's/^/run /'
getent group | sed 's/^/group /'
ls -A /sys/fs/bpf | grep -v '\\.debug$' | sed 's/^/pin /'
ls -d /sys/fs/cgroup/*/ | grep pod-steer | sed 's/^/cgroup /'
{ iptables-save; ip6tables-save; } | grep -i '0x40000000' | sed 's/^/rule /'
for device in /sys/class/net/*; do tc filter show dev ${device##*/} ingress; done 2>/dev/null | sed 's/^/filter /'
true";

/// What there is.
pub fn snapshot(machine: &Machine) -> Result<BTreeSet<String>> {
    Ok(machine.read(SNAPSHOT)?.lines().map(str::to_owned).collect())
}

/// Checks that removing the package has ended all steering.
pub fn steers_nothing(machine: &Machine) -> Result<()> {
    let there = snapshot(machine)?;
    let kinds = ["pin ", "cgroup ", "rule ", "filter "];
    let left: Vec<_> = there.iter().filter(|line| kinds.iter().any(|kind| line.starts_with(kind))).collect();
    ensure!(left.is_empty(), "removing the package has left {left:?}");
    ensure!(!machine.succeeds("systemctl is-active pod-steer")?, "the daemon still runs");
    println!("   {} no pin, no cgroup, no rule of the firewall, no filter of a device is left", say::green("✓"));
    Ok(())
}

/// Checks that everything is as it was before the package was installed.
pub fn check(machine: &Machine, before: &BTreeSet<String>) -> Result<()> {
    steers_nothing(machine)?;
    let after = snapshot(machine)?;
    let left: Vec<_> = after.difference(before).collect();
    ensure!(left.is_empty(), "purging the package has left {left:#?}");
    println!("   {} of {} files and groups, none is new", say::green("✓"), after.len());
    Ok(())
}
