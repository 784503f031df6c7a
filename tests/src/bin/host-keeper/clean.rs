//! Removes the host: its processes, mounts, directory and cgroups.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, openat, unlinkat},
    io::Errno,
    mount::{UnmountFlags, unmount},
};

use crate::setup::Host;

/// A killed process with many resources needs a moment to end.
const GONE_MAX: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(5);

pub fn remove(host: &Host, dir: &Path) -> Result<()> {
    kill_all(host).context("killing the host's processes")?;
    for mount in mounts_below(dir)? {
        unmount(&mount, UnmountFlags::DETACH).with_context(|| format!("unmounting {}", mount.display()))?;
    }
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("removing {}", dir.display()));
    }
    remove_cgroups(&host.cgroup).context("removing the host's cgroups")?;
    unlinkat(&host.parent, host.name.as_str(), AtFlags::REMOVEDIR)
        .with_context(|| format!("removing cgroup {}", host.name))
}

/// Kills all processes in the host's cgroup, which are those that were started in the host.
fn kill_all(host: &Host) -> Result<()> {
    let kill = openat(&host.cgroup, "cgroup.kill", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&kill, b"1")?;
    let deadline = Instant::now() + GONE_MAX;
    while populated(host)? {
        if Instant::now() > deadline {
            bail!("processes are still there after {GONE_MAX:?}");
        }
        thread::sleep(STEP);
    }
    Ok(())
}

fn populated(host: &Host) -> Result<bool> {
    let events = openat(&host.cgroup, "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [0; 128];
    let n = rustix::io::read(&events, &mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..n]).contains("populated 1"))
}

/// Mount points below the host's directory in this namespace, the innermost first.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("reading mountinfo")?;
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    below.reverse();
    Ok(below)
}

/// Removes every cgroup below `parent`.
fn remove_cgroups(parent: impl rustix::fd::AsFd) -> Result<()> {
    let mut children = Vec::new();
    for entry in Dir::read_from(&parent)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type().is_dir() && name != c"." && name != c".." {
            children.push(name.to_owned());
        }
    }
    for name in children {
        let child = openat(&parent, &name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        remove_cgroups(&child)?;
        drop(child);
        let deadline = Instant::now() + GONE_MAX;
        // A cgroup whose last process has just died may be busy for a moment more.
        while let Err(errno) = unlinkat(&parent, &name, AtFlags::REMOVEDIR) {
            if errno != Errno::BUSY || Instant::now() > deadline {
                return Err(errno).with_context(|| format!("removing cgroup {name:?}"));
            }
            thread::sleep(STEP);
        }
    }
    Ok(())
}
