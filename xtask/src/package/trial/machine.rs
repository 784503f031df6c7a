//! A machine: namespaces of a test host in which systemd is process 1, with a root of its own. What it writes is kept between two boots.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use pod_steer_tests::{
    host::Host,
    process::{Process, output, run},
    wait,
};

use super::root::layer;

/// Mounts what a kernel and a first RAM disk would: the root, and new `/proc`, `/sys`, `/run` and `/dev`. The settings of the kernel can
/// only be read, but for those of the network namespace. Docker's layers need another file system than an overlay.
const BOOT: &str = r#"
set -e
clean=$1; upper=$2; dir=$3
mount --make-rprivate /
mkdir -p "$upper" "$dir/work" "$dir/root" "$dir/docker"
mount -t overlay none -o "lowerdir=$clean,upperdir=$upper,workdir=$dir/work" "$dir/root"
cd "$dir/root"
mount -t proc none proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
mount -t sysfs none sys
mount -t cgroup2 none sys/fs/cgroup
mount -t bpf none sys/fs/bpf
mount -t tmpfs -o mode=755 none run
mount -t tmpfs -o mode=755 none dev
mkdir dev/pts dev/shm
for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done
mount -t devpts -o newinstance,ptmxmode=0666 none dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 none dev/shm
mkdir -p var/lib/docker
mount --bind "$dir/docker" var/lib/docker
pivot_root . mnt
umount -l /mnt
exec env -i container=pod-steer-trial PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --log-target=null --show-status=no
"#;

/// A running machine. Dropping it ends every process in it.
pub struct Machine<'a> {
    host: &'a Host,
    process: Process,
    init: u32,
}

impl<'a> Machine<'a> {
    /// Boots it, and waits until systemd has reached its target.
    pub fn boot(host: &'a Host, clean: &Path) -> Result<Self> {
        let mut command = host.command("unshare")?;
        command.args(["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child", "sh", "-c", BOOT]);
        command.arg("boot").arg(clean).arg(layer(host)).arg(host.dir());
        let mut process = host.start("machine", &mut command)?;
        let init = wait::until_ok("the first process of the machine", || {
            if process.has_ended()? {
                bail!("the machine has ended: {}", process.stderr());
            }
            let children = format!("/proc/{0}/task/{0}/children", process.pid());
            Ok(fs::read_to_string(children)?.split_whitespace().next().and_then(|pid| pid.parse().ok()))
        })?;
        let machine = Self { host, process, init };
        wait::until_ok("systemd to have started", || {
            // Its namespaces are complete only when the shell has ended.
            let comm = fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default();
            Ok((comm == "systemd\n" && machine.succeeds("systemctl is-active multi-user.target")?).then_some(()))
        })
        .with_context(|| machine.process.stderr())?;
        Ok(machine)
    }

    /// A shell command, as root on the console.
    fn shell(&self, line: &str) -> Result<Command> {
        let mut command = self.host.command("nsenter")?;
        command.arg(format!("--target={}", self.init));
        command.args(["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--", "sh", "-c", line]);
        command.env("DEBIAN_FRONTEND", "noninteractive").env("NO_COLOR", "1").env("LC_ALL", "C");
        Ok(command)
    }

    /// Runs a command; it is shown with what it prints.
    pub fn run(&self, line: &str) -> Result<()> {
        println!("   # {line}");
        for printed in self.read(line)?.lines() {
            println!("   {printed}");
        }
        Ok(())
    }

    /// Runs a command, and returns what it prints.
    pub fn read(&self, line: &str) -> Result<String> {
        run(&mut self.shell(line)?).with_context(|| self.journal())
    }

    /// Whether a command succeeds.
    pub fn succeeds(&self, line: &str) -> Result<bool> {
        Ok(output(&mut self.shell(line)?)?.status.success())
    }

    /// Waits until a command succeeds.
    pub fn wait_until(&self, what: &str, line: &str) -> Result<()> {
        wait::until_ok(what, || Ok(self.succeeds(line)?.then_some(()))).with_context(|| self.journal())
    }

    /// The daemon's process, by its number in the machine.
    pub fn main_pid(&self) -> Result<String> {
        Ok(self.read("systemctl show --property MainPID --value pod-steer")?.trim().to_owned())
    }

    /// The end of the journal, for messages.
    fn journal(&self) -> String {
        let tail = self.shell("journalctl --no-pager --lines 40").and_then(|mut command| output(&mut command));
        tail.map(|tail| String::from_utf8_lossy(&tail.stdout).into_owned()).unwrap_or_default()
    }
}
