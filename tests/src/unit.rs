//! A cgroup of a service manager, like those of systemd's units, with a restriction.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use rustix::fs::{XattrFlags, setxattr};

use crate::{
    host::Host,
    programs::{attach, instruction, load},
};

const BPF_PROG_TYPE_CGROUP_SOCK: u32 = 9;
const BPF_CGROUP_INET_SOCK_CREATE: u32 = 2;
/// Where `type` is in `struct bpf_sock`.
const TYPE: i16 = 8;

/// A unit in which no process may create a datagram socket.
#[derive(Debug)]
pub struct Unit {
    dir: PathBuf,
    /// The link of the program.
    _ban: OwnedFd,
}

impl Unit {
    /// Makes it below the cgroup of the host, which removes it with all others.
    pub fn new(host: &Host, name: &str) -> Result<Self> {
        let dir = host.cgroup().join(name);
        fs::create_dir_all(dir.join("app")).with_context(|| format!("making {}", dir.display()))?;
        let program = [
            // r0 = whether its type is not SOCK_DGRAM.
            instruction(0x61, 2, 1, TYPE, 0),
            instruction(0xb7, 0, 0, 0, 1),
            instruction(0x55, 2, 0, 1, libc::SOCK_DGRAM),
            instruction(0xb7, 0, 0, 0, 0),
            instruction(0x95, 0, 0, 0, 0),
        ];
        let program = load(BPF_PROG_TYPE_CGROUP_SOCK, BPF_CGROUP_INET_SOCK_CREATE, &program).context("loading it")?;
        let cgroup = File::open(&dir)?;
        let ban = attach(&program, cgroup.as_fd(), BPF_CGROUP_INET_SOCK_CREATE).context("attaching it")?;
        Ok(Self { dir, _ban: ban })
    }

    /// Marks it as systemd does for `Delegate=yes`.
    pub fn delegated(self) -> Result<Self> {
        setxattr(&self.dir, "user.delegate", b"1", XattrFlags::empty()).context("marking a cgroup as delegated")?;
        Ok(self)
    }

    /// The cgroup below it in which its processes start.
    pub fn app(&self) -> PathBuf {
        self.dir.join("app")
    }

    /// Lets a command of a host start in it.
    pub fn enter(&self, command: &mut Command) -> Result<()> {
        let path = self.app().join("cgroup.procs");
        let procs = File::options().write(true).open(&path).with_context(|| path.display().to_string())?;
        // SAFETY: one system call: it neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || rustix::io::write(&procs, b"0").map(drop).map_err(Into::into));
        }
        Ok(())
    }

    /// Removes it, as systemd does when no process is left. Its processes must have been told to end.
    pub fn remove(self) -> Result<()> {
        fn remove(dir: &Path) -> std::io::Result<()> {
            for entry in fs::read_dir(dir)?.flatten().filter(|entry| entry.path().is_dir()) {
                remove(&entry.path())?;
            }
            fs::remove_dir(dir)
        }
        crate::wait::until("the unit to be removed", || remove(&self.dir).ok())
    }
}
