//! The daemon and the servers: starts them, kills them and queries them.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::Inside;
use super::docker::Docker;
use super::status::Status;
use crate::cmd::{command, output};

/// The port that all servers share.
pub const PORT: u16 = 8080;
/// The service's name.
pub const SERVICE: &str = "web";
/// Longest time for the daemon, or a server, to become ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How much of a log is shown when something fails.
const LOG_LINES: usize = 25;

/// A running server.
pub struct Server {
    pub name: String,
    pub pid: u32,
    /// `None` for a container, whose parent belongs to the engine.
    process: Option<Child>,
}

pub struct Stage {
    dir: PathBuf,
    pod_steer: PathBuf,
    named_server: PathBuf,
    docker: Option<Docker>,
    /// The address of another engine that the daemon follows.
    engine: Option<String>,
    /// The clients' port, and the port that each server listens on.
    ports: (u16, SocketAddr),
    /// The daemon runs under its AppArmor profile.
    confined: bool,
    daemon: Option<Child>,
    servers: Vec<Server>,
}

impl Stage {
    pub fn new(inside: &Inside) -> Result<Self> {
        let docker = inside.with.docker.then(|| Docker::start(&inside.dir, &inside.with.named_server)).transpose()?;
        Ok(Self {
            dir: inside.dir.clone(),
            pod_steer: inside.with.pod_steer.clone(),
            named_server: inside.with.named_server.clone(),
            docker,
            engine: None,
            ports: (PORT, (Ipv4Addr::UNSPECIFIED, PORT).into()),
            confined: false,
            daemon: None,
            servers: Vec::new(),
        })
    }

    /// Servers that listen on another port than that of the clients.
    pub fn with_ports(self, asked: u16, listen: SocketAddr) -> Self {
        Self { ports: (asked, listen), ..self }
    }

    /// A daemon that follows the engine at this address; servers are started without it.
    pub fn with_engine(self, url: String) -> Self {
        Self { engine: Some(url), ..self }
    }

    /// Whether the daemon runs under its AppArmor profile, which has been loaded.
    pub fn confined(self, confined: bool) -> Self {
        Self { confined, ..self }
    }

    /// `pod-steer` as the demo's user would run it.
    pub fn pod_steer(&self, args: &[&str]) -> Command {
        self.with_places(command(&self.pod_steer), args)
    }

    fn with_places(&self, mut pod_steer: Command, args: &[&str]) -> Command {
        pod_steer.args(args).env("POD_STEER_SOCKET", self.dir.join("run/api.sock"));
        pod_steer.env("POD_STEER_STATE_DIR", self.dir.join("state"));
        pod_steer
    }

    /// `pod-steer` as the daemon.
    fn daemon(&self, args: &[&str]) -> Command {
        if !self.confined {
            return self.pod_steer(args);
        }
        let mut shell = command("/bin/busybox");
        let into = "echo exec pod-steer > /proc/self/attr/apparmor/exec && exec \"$0\" \"$@\"";
        shell.args(["sh", "-c", into]).arg(&self.pod_steer);
        self.with_places(shell, args)
    }

    pub fn start_daemon(&mut self) -> Result<()> {
        let engine = self.docker.as_ref().map(Docker::url).or_else(|| self.engine.clone());
        let engine = engine.unwrap_or_else(|| "none".to_owned());
        let daemon = self
            .daemon(&["run", "--engine", &engine, "--bpffs", "/sys/fs/bpf/pod-steer", "--runtime-dir"])
            .arg(self.dir.join("run"))
            .arg("--config")
            .arg(self.settings()?)
            .stdin(Stdio::null())
            .stderr(File::create(self.log("daemon"))?)
            .spawn()
            .context("cannot start the daemon")?;
        self.daemon = Some(daemon);
        wait_until("the daemon answers", || {
            let daemon = self.daemon.as_mut().context("it was started")?;
            if let Some(status) = daemon.try_wait()? {
                bail!("the daemon ended: {status}");
            }
            Ok(self.status().ok().map(drop))
        })?;
        let pid = self.daemon.as_ref().map(Child::id).unwrap_or_default();
        let profile = fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap_or_default();
        if self.confined && !profile.starts_with("pod-steer (enforce)") {
            bail!("the daemon is not under its AppArmor profile, but under {profile:?}");
        }
        Ok(())
    }

    /// Settings that are labels for containers, and that `exec` has no flag for.
    fn settings(&self) -> Result<PathBuf> {
        let file = self.dir.join("pod-steer.toml");
        fs::write(&file, format!("[service.{SERVICE}]\nrollout = \"manual\"\n"))?;
        Ok(file)
    }

    /// Starts a server of a version and waits until the kernel steers to it, or would if the version had a share; returns
    /// how long that took.
    pub fn start_server(&mut self, name: &str, version: &str) -> Result<Duration> {
        let start = Instant::now();
        let journal = self.journal(name);
        File::create(&journal)?;
        let server = match &self.docker {
            Some(docker) => Server { name: name.to_owned(), pid: docker.run(name, version, &journal)?, process: None },
            None => self.exec(name, version, &journal)?,
        };
        self.servers.push(server);
        wait_until(&format!("{name} is ready"), || {
            if let Some(process) = self.servers.last_mut().and_then(|server| server.process.as_mut())
                && let Some(status) = process.try_wait()?
            {
                bail!("{name} ended: {status}");
            }
            Ok(self.status()?.backend(name).filter(|backend| backend.is_ready()).map(drop))
        })?;
        Ok(start.elapsed())
    }

    fn exec(&self, name: &str, version: &str, journal: &Path) -> Result<Server> {
        let (asked, listen) = self.ports;
        let ports = format!("{asked}:{}", listen.port());
        let log = File::create(self.log(name))?;
        let process = self
            .pod_steer(&["exec", "--service", SERVICE, "--ports", &ports, "--version", version, "--name", name, "--"])
            .arg(&self.named_server)
            .args(["--name", name, "--listen", &listen.to_string(), "--journal"])
            .arg(journal)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Server { name: name.to_owned(), pid: process.id(), process: Some(process) })
    }

    pub fn server(&self, name: &str) -> Result<&Server> {
        self.servers.iter().find(|server| server.name == name).with_context(|| format!("{name} was not started"))
    }

    /// `kill -9`: no warning, no clean-up. Without the engine, so that the daemon cannot learn of it first.
    pub fn kill(&mut self, name: &str) -> Result<u32> {
        let pid = self.server(name)?.pid;
        let process = Pid::from_raw(pid.cast_signed()).context("a process has a pid")?;
        kill_process(process, Signal::KILL).with_context(|| format!("cannot kill {name}"))?;
        Ok(pid)
    }

    /// `kill -9`, and no daemon until it is started again.
    pub fn kill_daemon(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        daemon.kill().context("cannot kill the daemon")?;
        daemon.wait()?;
        Ok(())
    }

    pub fn status(&self) -> Result<Status> {
        Status::parse(&output(&mut self.pod_steer(&["status", "-o", "json"]))?)
    }

    /// A server's record of the connections that it accepts.
    pub fn journal(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.journal"))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// Unloads pod-steer as a user would, although the sandbox would remove everything too.
    pub fn unload(&mut self) -> Result<()> {
        let mut unload = self.pod_steer(&["unload", "--bpffs", "/sys/fs/bpf/pod-steer", "--runtime-dir"]);
        output(unload.arg(self.dir.join("run")))?;
        if Path::new("/sys/fs/bpf/pod-steer").exists() {
            bail!("`pod-steer unload` left /sys/fs/bpf/pod-steer");
        }
        Ok(())
    }

    /// The daemon's complete status, for error messages.
    pub fn show_status(&self) {
        // The daemon itself may have failed.
        let _ = self.pod_steer(&["status", "-o", "json"]).status();
    }

    /// The ends of all logs, for error messages.
    pub fn show_logs(&self) {
        let servers = self.servers.iter().map(|server| server.name.as_str());
        for name in ["dockerd", "daemon"].into_iter().chain(servers) {
            let Ok(log) = fs::read_to_string(self.log(name)) else { continue };
            let lines: Vec<_> = log.lines().collect();
            eprintln!("-- the end of the log of {name}:");
            lines.iter().skip(lines.len().saturating_sub(LOG_LINES)).for_each(|line| eprintln!("{line}"));
        }
        if let Some(docker) = &self.docker {
            self.servers.iter().for_each(|server| docker.show_log(&server.name));
        }
    }
}

/// Asks repeatedly until there is an answer.
pub fn wait_until<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if start.elapsed() > READY_WITHIN {
            bail!("waited {} s in vain until {what}", READY_WITHIN.as_secs());
        }
        sleep(Duration::from_millis(5));
    }
}
