//! Namespaces and a cgroup of the demo's own. All processes inside are in that cgroup, so that killing the cgroup ends all of them,
//! however the demo itself ended. Mounts, pins and links end with the namespaces.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cmd::{command, run};
use crate::say;

/// Longest time for killed processes to end.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// The ephemeral ports of the clients.
const CLIENT_PORTS: &str = "10000 64999";
/// The whole demo takes a minute at most, with a Docker engine and on a slow machine.
const PLAY_MAX: Duration = Duration::from_secs(180);

/// The resources outside the namespaces: a cgroup and a directory. Dropping this removes both.
pub struct Sandbox {
    cgroup: PathBuf,
    dir: PathBuf,
}

impl Sandbox {
    pub fn new() -> Result<Self> {
        let name = format!("pod-steer-demo-{}", std::process::id());
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let cgroups = cgroup2_mount(&mounts).context("cgroup v2 is not mounted: mount it, or boot with it")?;
        let sandbox = Self { cgroup: Path::new(cgroups).join(&name), dir: Path::new("/tmp").join(&name) };
        fs::create_dir(&sandbox.cgroup)
            .with_context(|| format!("cannot make the cgroup {}", sandbox.cgroup.display()))?;
        fs::create_dir(&sandbox.dir).with_context(|| format!("cannot make {}", sandbox.dir.display()))?;
        Ok(sandbox)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs the inner half to its end, or until a signal or the time limit ends it.
    pub fn play(self, args: &[OsString]) -> Result<ExitCode> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        let enter = "echo $$ > \"$0/cgroup.procs\" && exec unshare --net --mount --cgroup -- \"$@\"";
        let mut inner = command("sh");
        inner.args(["-c", enter]).arg(&self.cgroup).arg(std::env::current_exe()?).arg("demo-inside").args(args);
        let mut inner = inner.spawn().context("cannot start the inner half of the demo")?;
        let start = Instant::now();
        loop {
            if interrupted.load(Ordering::Relaxed) {
                println!("\ninterrupted: ending everything that the demo started");
                self.end()?;
                inner.wait()?;
                return Ok(ExitCode::from(130));
            }
            if let Some(status) = inner.try_wait()? {
                self.end()?;
                return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            if start.elapsed() > PLAY_MAX {
                bail!("the demo did not end within {}", say::elapsed(PLAY_MAX));
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// Ends every process inside, and removes the resources outside. A second call does nothing.
    fn end(&self) -> Result<()> {
        if self.cgroup.exists() {
            fs::write(self.cgroup.join("cgroup.kill"), "1").context("cannot kill what the demo started")?;
            let start = Instant::now();
            while let Err(error) = remove_cgroups(&self.cgroup) {
                if start.elapsed() > GONE_WITHIN {
                    return Err(error).with_context(|| format!("{} stays", self.cgroup.display()));
                }
                sleep(Duration::from_millis(10));
            }
        }
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir).with_context(|| format!("{} stays", self.dir.display()))?;
        }
        Ok(())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{} {error:#}", say::red("not cleaned up:"));
        }
    }
}

/// Removes cgroups from the leaves up; their files are removed with them.
fn remove_cgroups(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// The mount point of cgroup v2. On machines with both versions it is not the usual one.
fn cgroup2_mount(mountinfo: &str) -> Option<&str> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4))?
    })
}

/// The inner half's first step: the namespaces become those of a small machine. Its cgroups begin at the demo's own.
pub fn settle() -> Result<()> {
    // On some machines nothing is mounted there.
    let _ = Command::new("umount").args(["--recursive", "--quiet", "/sys/fs/cgroup"]).status();
    run(command("mount").args(["-t", "cgroup2", "none", "/sys/fs/cgroup"]))?;
    run(command("mount").args(["-t", "bpf", "none", "/sys/fs/bpf"]))?;
    // The machine's own engine and that of the demo must not share these directories.
    for dir in ["/run", "/etc/docker"] {
        if Path::new(dir).is_dir() {
            run(command("mount").args(["-t", "tmpfs", "none", dir]))?;
        }
    }
    // A container engine enables controllers for its cgroups, which a cgroup with processes of its own cannot do.
    fs::create_dir("/sys/fs/cgroup/main")?;
    fs::write("/sys/fs/cgroup/main/cgroup.procs", "0")?;
    // The default is 28,000 ports, fewer than the demo's two loads may need.
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", CLIENT_PORTS)?;
    run(command("ip").args(["link", "set", "lo", "up"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_v2_is_found_by_type() {
        let both = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(both), Some("/sys/fs/cgroup/unified"));
        assert_eq!(cgroup2_mount("32 31 0:29 / /sys/fs/cgroup rw - cgroup cgroup rw,cpu\n"), None);
    }
}
