//! A real systemd as process 1 of a test's own host: PID, mount, cgroup, UTS and IPC namespaces below the host's. It loads
//! the units that the test gives it and no others.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    host::Host,
    process::{Process, output, run},
    status::Status,
    tools, wait,
};

/// Its path on Debian and Fedora.
const SYSTEMD: &str = "/lib/systemd/systemd";
/// The directory of the distribution's units, of which only the journal's are used.
const UNITS: &str = "/lib/systemd/system";
/// The only directory of units that this systemd reads.
const OWN_UNITS: &str = "/etc/systemd/system";

/// The requirements of these tests.
pub fn needed() -> Result<(), String> {
    tools::root_and(&["unshare", "nsenter", "systemctl", "journalctl", "ip", "mount"])?;
    Path::new(SYSTEMD).exists().then_some(()).ok_or_else(|| format!("{SYSTEMD} is not installed"))
}

/// The machine as systemd sees it. `/run` and the network are the host's; `/var`, `/tmp`, `/etc/systemd` and `/usr/local/bin`
/// are empty file systems of its own; `/usr/local/bin` has pod-steer and the test server, which may be built below `/tmp`. No
/// process may write the root of its cgroups, as on a machine.
const SET_UP: &str = r#"
set -e
mount --make-rprivate /
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
chmod 0555 /sys/fs/cgroup
mount -t proc proc /proc
for dir in /var /usr/local/bin /etc/systemd; do mount -t tmpfs -o mode=755 tmpfs $dir; done
mkdir -p /var/lib /var/log /var/cache /var/tmp /etc/systemd/system
chmod 1777 /var/tmp
ln -s /run /var/run
touch /usr/local/bin/pod-steer /usr/local/bin/named-server
mount --bind "$1" /usr/local/bin/pod-steer
mount --bind "$2" /usr/local/bin/named-server
cp "$3"/. -r /etc/systemd/system
cp "$4"/systemd-journald*.service "$4"/systemd-journald*.socket /etc/systemd/system
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nForwardToSyslog=no\n' > /etc/systemd/journald.conf
mount -t tmpfs -o mode=1777 tmpfs /tmp
exec "$5" --system --unit=multi-user.target --log-target=console --show-status=no
"#;

/// Targets that units of a whole system are ordered by.
const TARGETS: [&str; 6] = ["sysinit", "basic", "network", "sockets", "shutdown", "umount"];

/// A running systemd. Dropping it kills everything in its PID namespace.
#[derive(Debug)]
pub struct Systemd<'a> {
    host: &'a Host,
    process: Process,
    init: u32,
}

impl<'a> Systemd<'a> {
    /// Starts it with these units, as (file name, text), and waits until it has reached its target.
    pub fn start(host: &'a Host, units: &[(&str, &str)]) -> Result<Self> {
        let staging = host.dir().join("units");
        fs::create_dir_all(&staging)?;
        for target in TARGETS {
            fs::write(staging.join(format!("{target}.target")), "[Unit]\nDefaultDependencies=no\n")?;
        }
        fs::write(
            staging.join("multi-user.target"),
            "[Unit]\nDefaultDependencies=no\nWants=systemd-journald.socket\nAfter=systemd-journald.socket\n",
        )?;
        for (name, text) in units {
            let path = staging.join(name);
            fs::create_dir_all(path.parent().context("a unit in no directory")?)?;
            fs::write(path, text)?;
        }
        let mut command = host.command("unshare")?;
        command.args(["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child", "sh", "-c", SET_UP]);
        command.arg("systemd").args([tools::pod_steer()?, tools::named_server()?]);
        command.arg(&staging).args([UNITS, SYSTEMD]);
        // `container` tells systemd that it runs in one; the other two exclude the machine's own units and generators.
        command.env("container", "pod-steer-test");
        command.env("SYSTEMD_UNIT_PATH", OWN_UNITS).env("SYSTEMD_GENERATOR_PATH", "/run/no-generators");
        let mut process = host.start("systemd", &mut command)?;
        let init = wait::until_ok("the first process of systemd's namespace", || {
            if process.has_ended()? {
                bail!("systemd has ended: {}", process.stderr());
            }
            let children = format!("/proc/{0}/task/{0}/children", process.pid());
            Ok(fs::read_to_string(children)?.split_whitespace().next().and_then(|pid| pid.parse().ok()))
        })?;
        let systemd = Self { host, process, init };
        wait::until_ok("systemd to have started", || {
            // Its namespaces are complete only when the set-up has ended.
            let comm = fs::read_to_string(format!("/proc/{}/comm", systemd.init)).unwrap_or_default();
            let active = comm == "systemd\n"
                && output(systemd.command("systemctl")?.args(["is-active", "multi-user.target"]))?.status.success();
            Ok(active.then_some(()))
        })
        .with_context(|| systemd.process.stderr())?;
        Ok(systemd)
    }

    /// A command that will run beside systemd's services, outside any unit, like that of an operator.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = self.host.command("nsenter")?;
        command.arg(format!("--target={}", self.init));
        command.args(["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--", program]).env("NO_COLOR", "1");
        Ok(command)
    }

    /// `systemctl ARGS`; fails as it does, with the journal.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let said = run(self.command("systemctl")?.args(args));
        said.with_context(|| self.journal(&[]).unwrap_or_default())
    }

    /// `journalctl ARGS`.
    pub fn journal(&self, args: &[&str]) -> Result<String> {
        run(self.command("journalctl")?.args(["--no-pager", "--quiet", "--output=short-precise"]).args(args))
    }

    /// The status of the daemon, once it answers.
    pub fn status(&self) -> Result<Option<Status>> {
        let answered = output(self.command("pod-steer")?.args(["status", "-o", "json"]))?;
        Ok(serde_json::from_slice(&answered.stdout).ok())
    }

    /// One property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        Ok(self.ctl(&["show", "--property", name, "--value", unit])?.trim().to_owned())
    }

    /// The main process of a service, by its number in systemd's namespace; `None` while there is none.
    pub fn main_pid(&self, unit: &str) -> Result<Option<String>> {
        Ok(Some(self.property(unit, "MainPID")?).filter(|pid| pid != "0"))
    }

    /// A file as systemd's processes see it.
    pub fn read(&self, path: &str) -> Result<String> {
        run(self.command("cat")?.arg(path))
    }
}
