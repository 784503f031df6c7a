//! The mount point of cgroup v2, from the mount table: on hybrid machines it is not at `/sys/fs/cgroup`.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

/// Cgroup of a test host's processes, below the host's own.
pub const PROCESSES: &str = "host";

/// Where the calling process sees the cgroup v2 hierarchy.
pub fn mount_point() -> Result<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("reading mountinfo")?;
    // Fields before " - " are positional, the first after it is the type of the file system.
    let mounts = mountinfo.lines().filter_map(|line| line.split_once(" - "));
    let of_cgroup2 = mounts.filter(|(_, after)| after.starts_with("cgroup2 "));
    let mut points = of_cgroup2.filter_map(|(before, _)| before.split(' ').nth(4));
    points.next().map(PathBuf::from).context("no cgroup2 mount in mountinfo")
}

/// The calling process's own cgroup, relative to the mount point.
pub fn own_path() -> Result<PathBuf> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?;
    let own =
        cgroups.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup v2 in /proc/self/cgroup")?;
    Ok(PathBuf::from(own))
}
