//! Backends as processes, by `pod-steer exec`: the same kernel path as a container's, at a fraction of its cost.

use std::{
    ffi::OsString,
    fs::{self, File},
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    cgroup2,
    daemon::Stage,
    load::{End, attempt},
    netns::NetNs,
    process::Process,
    tools,
    unit::Unit,
    wait,
};

/// What `pod-steer exec` starts: the test server, with a name.
#[derive(Debug)]
pub struct Exec<'a> {
    name: String,
    flags: Vec<String>,
    server_args: Vec<OsString>,
    net: Option<&'a NetNs>,
    user: Option<u32>,
    unit: Option<&'a Unit>,
}

impl<'a> Exec<'a> {
    /// A backend of `service`; its server listens on `listen`.
    pub fn new(name: &str, service: &str, ports: &str, listen: &str) -> Self {
        let flags = ["--service", service, "--ports", ports, "--name", name].map(str::to_owned).to_vec();
        let server_args = ["--listen", listen].map(OsString::from).to_vec();
        Self { name: name.into(), flags, server_args, net: None, user: None, unit: None }
    }

    /// Further flags of `pod-steer exec`.
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(ToString::to_string));
        self
    }

    /// Further arguments of the server.
    pub fn server(mut self, args: &[&str]) -> Self {
        self.server_args.extend(args.iter().map(OsString::from));
        self
    }

    /// Records accepted connections.
    pub fn journal(mut self, path: &Path) -> Self {
        self.server_args.extend([OsString::from("--journal"), path.into()]);
        self
    }

    /// In another network namespace than the host's.
    pub fn inside(self, net: &'a NetNs) -> Self {
        Self { net: Some(net), ..self }
    }

    /// As another user than root.
    pub fn user(self, uid: u32) -> Self {
        Self { user: Some(uid), ..self }
    }

    /// Started by a process of this unit.
    pub fn by(self, unit: &'a Unit) -> Self {
        Self { unit: Some(unit), ..self }
    }

    /// Starts it and waits until it listens.
    pub fn start(self, stage: &Stage) -> Result<Backend> {
        let mut backend = self.launch(stage)?;
        wait::until_ok("the server to listen", || backend.listening()).with_context(|| stage.daemon.log_tail())?;
        Ok(backend)
    }

    /// Starts it and does not wait.
    pub fn launch(self, stage: &Stage) -> Result<Backend> {
        let mut command = stage.host.command_in(self.net.unwrap_or(stage.host.net()), tools::pod_steer()?)?;
        if let Some(unit) = self.unit {
            unit.enter(&mut command)?;
        }
        command.env("POD_STEER_SOCKET", stage.daemon.socket()).arg("exec").args(&self.flags).arg("--");
        if let Some(uid) = self.user {
            let uid = uid.to_string();
            command.args(["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups", "--"]);
        }
        command.arg(tools::named_server()?).args(["--name", &self.name]).args(&self.server_args);
        Ok(Backend { process: stage.host.start(&self.name, &mut command)?, name: self.name })
    }
}

/// Starts a backend whose server is a Python program, named `SERVICE-1`, and does not wait.
pub fn python(stage: &Stage, service: &str, ports: &str, program: &str) -> Result<Process> {
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", service, "--ports", ports, "--name", &format!("{service}-1"), "--"]);
    stage.host.start(service, command.args(["python3", "-u", "-c", program]))
}

/// A process that is a backend; killed when dropped.
#[derive(Debug)]
pub struct Backend {
    /// The process.
    pub process: Process,
    /// Its name, which it answers.
    pub name: String,
}

impl Backend {
    /// Its cgroup, from the root of the whole hierarchy.
    pub fn cgroup(&self) -> Result<PathBuf> {
        let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", self.process.pid()))?;
        let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/")).context("it has no cgroup v2")?;
        Ok(cgroup2::mount_point()?.join(path))
    }

    /// A command that runs as a further process of the backend: in its cgroup, as an engine's health check does.
    pub fn command(&self, stage: &Stage, program: &str) -> Result<Command> {
        let procs = self.cgroup()?.join("cgroup.procs");
        let procs = File::options().write(true).open(&procs).with_context(|| procs.display().to_string())?;
        let mut command = stage.host.command(program)?;
        // SAFETY: one system call: it neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || rustix::io::write(&procs, b"0").map(drop).map_err(Into::into));
        }
        Ok(command)
    }

    /// When `listen` returned, in nanoseconds of the monotonic clock, once it has; an error if the server has ended.
    pub fn listening(&mut self) -> Result<Option<u64>> {
        let stdout = self.process.stdout();
        if let Some(time) = listening_ns(&stdout) {
            return Ok(Some(time));
        }
        if self.process.has_ended()? {
            bail!("{} has ended without listening: {}", self.name, self.process.stderr());
        }
        Ok(None)
    }
}

/// The addresses that getsockname(2) has given a test server, from its lines `socket-name ADDRESS`.
pub fn socket_names(output: &str) -> Vec<&str> {
    output.lines().filter_map(|line| line.strip_prefix("socket-name ")).collect()
}

/// Reads the time from a test server's `listening NANOSECONDS ...`: the last one, of the last start.
pub fn listening_ns(output: &str) -> Option<u64> {
    // Without its end a line may be incomplete.
    let complete = output.rsplit_once('\n')?.0;
    let line = complete.lines().rev().find_map(|line| line.strip_prefix("listening "))?;
    line.split(' ').next()?.parse().ok()
}

/// Now, in nanoseconds of the monotonic clock.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Connects repeatedly until `name` answers. Returns when the connection that it answered was opened.
pub fn first_answer(target: SocketAddr, name: &str) -> Result<u64> {
    wait::until(&format!("the first answer of {name}"), || {
        // Without the pause of the wait: the time between two attempts limits the precision of the figure.
        for _ in 0..1000 {
            let opened = now_ns();
            match attempt(target, 1, Duration::from_secs(5)) {
                End::Answered(answer) if answer.name == name => return Some(opened),
                _ => thread::sleep(Duration::from_micros(20)),
            }
        }
        None
    })
}
