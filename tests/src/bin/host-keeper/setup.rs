//! Makes the host: a cgroup, and mount, network and cgroup namespaces that look like a machine with cgroup v2 alone.

use std::{fs, os::fd::OwnedFd, process::Command};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::cgroup2;
use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount},
    thread::{UnshareFlags, unshare_unsafe},
};

/// The cgroup of the host, by descriptors, since its path leads elsewhere in the new mount namespace.
pub struct Host {
    /// The cgroup in which the host's cgroup was made.
    pub parent: OwnedFd,
    pub cgroup: OwnedFd,
    pub name: String,
}

/// Makes the cgroup.
pub fn cgroup(name: &str) -> Result<Host> {
    let root = cgroup2::mount_point()?;
    let cgroup = root.join(name);
    fs::create_dir(&cgroup).with_context(|| format!("making cgroup {}", cgroup.display()))?;
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(Host {
        parent: open(&root, directory, Mode::empty())?,
        cgroup: open(&cgroup, directory, Mode::empty())?,
        name: name.to_owned(),
    })
}

/// Makes the namespaces, with the host's cgroup as the root of the cgroup namespace.
pub fn namespaces(host: &Host) -> Result<()> {
    let root = cgroup2::mount_point()?;
    let own = root.join(cgroup2::own_path()?);
    let cgroup = root.join(&host.name);
    // Opened while both cgroups are visible: the kernel checks a move with the credentials and cgroup namespace of the opener.
    let way_back = open(own.join("cgroup.procs"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    fs::write(cgroup.join("cgroup.procs"), "0").context("entering the host's cgroup")?;
    // SAFETY: this process has one thread and shares neither its descriptors nor its memory with another.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWCGROUP) }
        .context("making namespaces (root is needed)")?;
    // The root of a cgroup namespace may have no processes of its own once controllers are enabled below it.
    fs::create_dir(cgroup.join(cgroup2::PROCESSES)).context("making the cgroup of the host's processes")?;
    rustix::io::write(&way_back, b"0").context("leaving the host's cgroup")?;
    mounts()?;
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("running ip")?;
    ensure!(status.success(), "ip link set lo up: {status}");
    // Thousands of short connections to one address and port must not run out of source ports.
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10240 65535")?;
    // The ports that tests claim in that range. A client on the host to which the kernel gave one of them as its own would connect
    // to itself if it asked for that port, and a server could not bind it.
    fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "18000-21999,30000-31999,40404")?;
    Ok(())
}

fn mounts() -> Result<()> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).context("making mounts private")?;
    // Hybrid machines have a tmpfs with the hierarchies of cgroup v1 here.
    unmount("/sys/fs/cgroup", UnmountFlags::DETACH).context("unmounting /sys/fs/cgroup")?;
    mount("none", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None).context("mounting cgroup2")?;
    match unmount("/sys/fs/bpf", UnmountFlags::DETACH) {
        // INVAL: nothing was mounted here.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno).context("unmounting /sys/fs/bpf"),
    }
    // A file system of its own: pins that a test forgets vanish with the mount namespace.
    mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None).context("mounting bpffs")?;
    // Engines leave sockets and keys at fixed places.
    for dir in ["/run", "/etc/docker"] {
        fs::create_dir_all(dir)?;
        mount("tmpfs", dir, "tmpfs", MountFlags::empty(), Some(c"mode=755"))
            .with_context(|| format!("mounting {dir}"))?;
    }
    Ok(())
}
