//! What a host has of the daemon: nothing before it is started, and nothing after it is unloaded.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use pod_steer_tests::host::Host;
use pod_steer_tests::process::run;

use crate::say;

/// Pins (the kernel's own end in `.debug`), cgroups, rules of the firewall, filters of devices, and files. A program attached by a link ends
/// with the link's pin. The two directories of files are Compose's, which makes them to mount them.
const LIST: &str = "\
ls -A /sys/fs/bpf | grep -v '\\.debug$' | sed 's/^/pin /'
find /sys/fs/cgroup -type d -name '*pod-steer*' | sed 's/^/cgroup /'
{ iptables-save; ip6tables-save; } | grep -i '0x40000000' | sed 's/^/rule /'
for device in /sys/class/net/*; do
    for way in ingress egress; do tc filter show dev ${device##*/} $way; done
done 2>/dev/null | sed 's/^/filter /'
find /run/pod-steer /var/lib/pod-steer -mindepth 1 2>/dev/null | sed 's/^/file /'
true";

/// A list of it.
pub struct Left(BTreeSet<String>);

impl Left {
    pub fn look(host: &Host) -> Result<Self> {
        let printed = run(host.command("sh")?.args(["-c", LIST]))?;
        Ok(Self(printed.lines().map(str::to_owned).collect()))
    }

    /// Checks that nothing has come since.
    pub fn compare(&self, after: &Self) -> Result<()> {
        let left: Vec<_> = after.0.difference(&self.0).collect();
        ensure!(left.is_empty(), "the daemon has left {left:#?}");
        println!("   {} no pin, cgroup, rule, filter or file is left", say::green("✓"));
        Ok(())
    }
}
