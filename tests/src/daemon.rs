//! The daemon in a test's own host, and its command line.

use std::{
    fs,
    os::unix::{net::UnixStream, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::{
    engine::{Engine, ended_containers},
    host::Host,
    process::{Process, output, run},
    refusals::{Refusal, limit_files, refuse},
    status::{Service, Status},
    tools, wait,
};

/// The daemon's directory of pins, in the host's own bpffs.
pub const BPFFS: &str = "/sys/fs/bpf/pod-steer";
/// The daemon's runtime directory: on a tmpfs, as on a machine.
const RUNTIME_DIR: &str = "/run/pod-steer";

/// A host with the daemon, and with a Docker engine if asked for. The fields are dropped in this order.
#[derive(Debug)]
pub struct Stage {
    /// The daemon.
    pub daemon: Daemon,
    /// The engine, if there is one.
    engine: Option<Engine>,
    /// The host.
    pub host: Arc<Host>,
}

impl Stage {
    /// A daemon without a container engine.
    pub fn without_engine() -> Result<Self> {
        Self::with(Arc::new(Host::new()?), None)
    }

    /// The same, with settings.
    pub fn configured(settings: &str) -> Result<Self> {
        Self::configured_under(settings, Conditions::default())
    }

    /// A daemon without a container engine, with settings, whose wall clock can be shifted.
    pub fn with_wall_clock(settings: &str) -> Result<Self> {
        let host = Arc::new(Host::new()?);
        fs::write(config(&host), settings)?;
        fs::write(wall_clock(&host), "+0\n")?;
        Self::with(host, None)
    }

    /// Sets the daemon's wall clock to be wrong by so many seconds.
    pub fn shift_wall_clock(&self, by_s: i64) -> Result<()> {
        // A reader sees the old shift or the new one.
        let part = wall_clock(&self.host).with_extension("part");
        fs::write(&part, format!("{by_s:+}\n"))?;
        fs::rename(part, wall_clock(&self.host)).context("shifting the wall clock")
    }

    /// The same, with settings, under these conditions.
    pub fn configured_under(settings: &str, conditions: Conditions) -> Result<Self> {
        let host = Arc::new(Host::new()?);
        fs::write(config(&host), settings)?;
        Ok(Self { daemon: Daemon::start_under(&host, &[], conditions)?, engine: None, host })
    }

    /// A daemon that follows a Docker engine.
    pub fn with_docker() -> Result<Self> {
        Self::with_docker_configured("")
    }

    /// The same, with settings.
    pub fn with_docker_configured(settings: &str) -> Result<Self> {
        let host = Arc::new(Host::new()?);
        fs::write(config(&host), settings)?;
        let engine = Engine::start(&host)?;
        Self::with(host, Some(engine))
    }

    /// A daemon without a container engine, under these conditions.
    pub fn under(conditions: Conditions) -> Result<Self> {
        let host = Arc::new(Host::new()?);
        Ok(Self { daemon: Daemon::start_under(&host, &[], conditions)?, engine: None, host })
    }

    /// A daemon in a host that is there already.
    pub fn with(host: Arc<Host>, engine: Option<Engine>) -> Result<Self> {
        let urls: Vec<_> = engine.iter().map(Engine::url).collect();
        let urls: Vec<_> = urls.iter().map(String::as_str).collect();
        Ok(Self { daemon: Daemon::start(&host, &urls)?, engine, host })
    }

    /// A daemon that follows the engine at this address.
    pub fn beside(host: Arc<Host>, engine: &str) -> Result<Self> {
        Ok(Self { daemon: Daemon::start(&host, &[engine])?, engine: None, host })
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("this stage was made with an engine")
    }

    /// Stops the engine and starts it again; containers go on.
    pub fn restart_engine(&mut self) -> Result<()> {
        self.engine.as_mut().expect("this stage was made with an engine").restart(&self.host)
    }
}

/// `pod-steer run`. Dropping it kills the process; what it pinned goes with the host's bpffs.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    host: Arc<Host>,
    engines: Vec<String>,
    /// The conditions of the next start.
    pub conditions: Conditions,
}

/// The conditions under which a daemon is started.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// Variables of its environment.
    pub env: Vec<(&'static str, String)>,
    /// System calls that fail for it.
    pub refused: Vec<Refusal>,
    /// Its limit of open files; `None` for that of the test.
    pub files: Option<u64>,
    /// The program, if it is another build than the one that is tested.
    pub program: Option<PathBuf>,
}

impl Daemon {
    /// Starts the daemon and waits until it is ready. Without engines it follows none.
    pub fn start(host: &Arc<Host>, engines: &[&str]) -> Result<Self> {
        Self::start_under(host, engines, Conditions::default())
    }

    /// The same, under these conditions.
    pub fn start_under(host: &Arc<Host>, engines: &[&str], conditions: Conditions) -> Result<Self> {
        let engines: Vec<String> = engines.iter().map(ToString::to_string).collect();
        let process = launch(host, &engines, None, &conditions)?;
        let mut daemon = Self { process, host: Arc::clone(host), engines, conditions };
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Ends it with SIGTERM; it must exit with 0.
    pub fn terminate(&mut self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        let status = self.process.wait(wait::STUCK)?;
        if !status.success() {
            bail!("the daemon ended with {status} on SIGTERM\n{}", self.log());
        }
        Ok(())
    }

    /// Starts it again after it has ended, and waits until it is ready.
    pub fn restart(&mut self) -> Result<()> {
        self.process = launch(&self.host, &self.engines, None, &self.conditions)?;
        self.wait_until_ready()
    }

    /// The same, under other conditions than before.
    pub fn restart_under(&mut self, conditions: Conditions) -> Result<()> {
        self.conditions = conditions;
        self.restart()
    }

    /// The same. The daemon will end itself, as if killed, when it reaches this point of its work.
    pub fn restart_to_die(&mut self, point: &str) -> Result<()> {
        self.process = launch(&self.host, &self.engines, Some(point), &self.conditions)?;
        self.wait_until_ready()
    }

    /// Starts it and waits until it has ended itself at that point; it may get there before it is ready.
    pub fn run_until_dead(&mut self, point: &str) -> Result<()> {
        self.process = launch(&self.host, &self.engines, Some(point), &self.conditions)?;
        self.wait_until_dead()
    }

    /// Waits until it has ended itself at such a point.
    pub fn wait_until_dead(&mut self) -> Result<()> {
        match self.process.wait(wait::STUCK)?.signal() {
            Some(libc::SIGKILL) => Ok(()),
            other => bail!("the daemon was to end itself by SIGKILL, not by {other:?}\n{}", self.log_tail()),
        }
    }

    /// Starts it again after it has ended, with its log in this file, pipe or device.
    pub fn restart_with_log(&mut self, log: &Path) -> Result<()> {
        let mut shell = self.host.command("sh")?;
        shell.args(["-c", r#"exec "$0" "$@" 2>>"$LOG""#]).arg(tools::pod_steer()?).env("LOG", log);
        self.process = launch_by(shell, &self.host, &self.engines, None, &self.conditions)?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        wait::until_ok("the daemon to be ready", || {
            let answer = output(self.cli()?.arg("status"))?;
            if !answer.status.success() && self.process.has_ended()? {
                bail!("the daemon has ended");
            }
            Ok(answer.status.success().then_some(()))
        })
        .with_context(|| self.log())
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its log, from every start.
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// Its standard output, which should be empty.
    pub fn stdout(&self) -> String {
        self.process.stdout()
    }

    /// Waits until the process has ended by itself, and returns its exit code.
    pub fn exit_code(&mut self) -> Result<Option<i32>> {
        Ok(self.process.wait(wait::STUCK)?.code())
    }

    /// The path of the API socket, for processes of the host.
    pub fn socket(&self) -> PathBuf {
        Path::new(RUNTIME_DIR).join("api.sock")
    }

    /// A connection to the API.
    pub fn connect(&self) -> Result<UnixStream> {
        UnixStream::connect(self.runtime_dir().join("api.sock")).context("connecting to the API")
    }

    /// Directory of the state files.
    pub fn runtime_dir(&self) -> PathBuf {
        self.host.path(RUNTIME_DIR)
    }

    /// Directory of the decisions and the history.
    pub fn state_dir(&self) -> PathBuf {
        state_dir(&self.host)
    }

    /// `pod-steer`, as a process of the host, pointed at this daemon.
    pub fn cli(&self) -> Result<Command> {
        let mut command = self.host.command(tools::pod_steer()?)?;
        command.env("POD_STEER_SOCKET", self.socket()).env("NO_COLOR", "1");
        Ok(command)
    }

    /// `pod-steer unload`.
    pub fn unload(&self) -> Result<String> {
        let mut unload = self.cli()?;
        unload.args(["unload", "--bpffs", BPFFS, "--runtime-dir", RUNTIME_DIR, "--state-dir"]).arg(self.state_dir());
        run(&mut unload)
    }

    /// The status now.
    pub fn status(&self) -> Result<Status> {
        let text = run(self.cli()?.args(["status", "-o", "json"])).with_context(|| self.log_tail())?;
        serde_json::from_str(&text).with_context(|| format!("reading the status {text}"))
    }

    /// The last lines of the log, for messages.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Waits until the status is as described.
    pub fn wait_for<T>(&self, what: &str, mut ask: impl FnMut(&Status) -> Option<T>) -> Result<T> {
        let mut last = None;
        let answer = wait::until_ok(what, || {
            let status = self.status()?;
            let answer = ask(&status);
            last = Some(status);
            if answer.is_none() {
                // Each query is a process. On a small machine, more of them would slow down what the test waits for.
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(answer)
        });
        answer.with_context(|| {
            let last = last.map_or_else(|| "no status".to_owned(), |last| last.to_string());
            format!("last status:\n{last}{}{}", self.log_tail(), ended_containers(&self.host))
        })
    }

    /// Waits until so many backends of a service are ready, each with a listening socket; returns the service.
    pub fn wait_ready(&self, service: &str, backends: usize) -> Result<Service> {
        self.wait_for(&format!("{backends} ready backends of {service}"), |status| {
            status.service(service).filter(|service| service.ready() == backends).cloned()
        })
    }

    /// The service that a backend belongs to, by their names.
    pub fn service_of(&self, backend: &str) -> Result<Option<String>> {
        let status = self.status()?;
        let mut services = status.services.into_iter();
        let found = services.find(|service| service.backends.iter().any(|one| one.name == backend));
        Ok(found.map(|service| service.name))
    }

    /// Waits until a backend is in a state.
    pub fn wait_state(&self, service: &str, backend: &str, state: &str) -> Result<()> {
        self.wait_for(&format!("{backend} to be {state}"), |status| {
            let backends = &status.service(service)?.backends;
            backends.iter().any(|one| one.name == backend && one.state == state).then_some(())
        })
    }

    /// Waits until every connection of a service has been counted as closed; returns the service then.
    pub fn wait_idle(&self, service: &str) -> Result<Service> {
        self.wait_for(&format!("the connections of {service} to be closed"), |status| {
            status.service(service).filter(|service| service.backends.iter().all(|backend| backend.live == 0)).cloned()
        })
    }
}

fn state_dir(host: &Host) -> PathBuf {
    host.dir().join("state")
}

/// The daemon's settings, if a test has written any.
fn config(host: &Host) -> PathBuf {
    host.dir().join("pod-steer.toml")
}

/// The file with the shift of the daemon's wall clock, if a test shifts it.
fn wall_clock(host: &Host) -> PathBuf {
    host.dir().join("wall-clock")
}

fn launch(host: &Host, engines: &[String], dies_at: Option<&str>, conditions: &Conditions) -> Result<Process> {
    let program = conditions.program.clone().map_or_else(tools::pod_steer, Ok)?;
    launch_by(host.command(program)?, host, engines, dies_at, conditions)
}

/// The same by a command that runs `pod-steer` with the arguments that it is given.
fn launch_by(
    mut command: Command,
    host: &Host,
    engines: &[String],
    dies_at: Option<&str>,
    conditions: &Conditions,
) -> Result<Process> {
    // A benchmark wants the log that users have.
    let level = std::env::var("POD_STEER_TESTS_LOG_LEVEL").unwrap_or_else(|_| "debug".to_owned());
    command
        .args(["run", "--bpffs", BPFFS, "--log-level", &level, "--runtime-dir", RUNTIME_DIR, "--state-dir"])
        .arg(state_dir(host));
    let none = ["none".to_owned()];
    for engine in if engines.is_empty() { &none[..] } else { engines } {
        command.args(["--engine", engine]);
    }
    if config(host).exists() {
        command.arg("--config").arg(config(host));
    }
    if wall_clock(host).exists() {
        command.env("LD_PRELOAD", tools::faketime_library()?).env("FAKETIME_TIMESTAMP_FILE", wall_clock(host));
        // Only the wall clock is shifted, and at once.
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1").env("FAKETIME_NO_CACHE", "1");
    }
    if let Some(point) = dies_at {
        command.env("POD_STEER_ABORT_AT", point);
    }
    command.envs(conditions.env.iter().map(|(name, value)| (name, value)));
    for refusal in &conditions.refused {
        refuse(&mut command, *refusal);
    }
    if let Some(files) = conditions.files {
        limit_files(&mut command, files);
    }
    host.start("pod-steer", command.env("NO_COLOR", "1"))
}
