//! A real Docker engine in a test's own host.

use std::{collections::BTreeSet, fs, sync::Mutex};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    container::{Container, Docker, Spec},
    host::Host,
    image::Image,
    process::{Process, output},
    wait,
};

/// Where an engine keeps its containers, in its host: in memory, where a container is made and removed in a fraction of the time.
const DATA: &str = "/run/docker-data";

/// The containers of a host's engine that have ended, with their exit codes and what they wrote to standard error. For messages: it
/// says why a server is not there.
pub fn ended_containers(host: &Host) -> String {
    let mut text = String::new();
    for dir in
        fs::read_dir(host.path(DATA).join("containers")).into_iter().flatten().flatten().map(|entry| entry.path())
    {
        let config = fs::read(dir.join("config.v2.json")).unwrap_or_default();
        let Ok(config) = serde_json::from_slice::<Value>(&config) else { continue };
        let state = &config["State"];
        if state["Running"] != false || state["FinishedAt"].as_str().is_none_or(|at| at.starts_with("0001-")) {
            continue;
        }
        text += &format!("\ncontainer {} ended with {}", config["Name"], state["ExitCode"]);
        let log = dir.file_name().map(|id| dir.join(format!("{}-json.log", id.display())));
        let log = log.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        for line in lines.filter(|line| line["stream"] == "stderr") {
            text += &format!(": {}", line["log"].as_str().unwrap_or_default().trim_end());
        }
    }
    text
}

/// `dockerd`, with data, sockets and configuration of its own.
#[derive(Debug)]
pub struct Engine {
    process: Process,
    docker: Docker,
    /// Whether it publishes ports, by iptables and docker-proxy, as an engine out of the box does.
    publishes: bool,
    imported: Mutex<BTreeSet<Image>>,
}

impl Engine {
    /// Starts an engine in a host and waits until it answers.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_as(host, false)
    }

    /// The same. Containers on its bridge reach other networks and can publish ports (`-p`).
    pub fn start_publishing(host: &Host) -> Result<Self> {
        Self::start_as(host, true)
    }

    fn start_as(host: &Host, publishes: bool) -> Result<Self> {
        let dir = host.dir().join("docker");
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("daemon.json"), "{}")?;
        let docker = Docker::new(dir.join("docker.sock"), &[]);
        let process = Self::launch(host, &docker, publishes)?;
        let engine = Self { process, docker, publishes, imported: Mutex::default() };
        engine.wait_until_ready()?;
        Ok(engine)
    }

    /// Stops the engine and starts it again, as an upgrade does. Its containers keep running meanwhile (`--live-restore`).
    pub fn restart(&mut self, host: &Host) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        self.process.wait(wait::STUCK)?;
        self.process = Self::launch(host, &self.docker, self.publishes)?;
        self.wait_until_ready()
    }

    /// Sends the engine a signal: SIGSTOP makes it hang, SIGKILL ends it. Its containers keep running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    fn wait_until_ready(&self) -> Result<()> {
        wait::until_ok("dockerd to answer", || {
            let answer = output(self.docker.command().args(["version"]))?;
            Ok(answer.status.success().then_some(()))
        })
        .with_context(|| self.process.stderr())
    }

    fn launch(host: &Host, docker: &Docker, publishes: bool) -> Result<Process> {
        let dir = host.dir().join("docker");
        let mut command = host.command("dockerd")?;
        command.arg("--config-file").arg(dir.join("daemon.json"));
        command.args(["--data-root", DATA, "--exec-root"]).arg(dir.join("exec"));
        command.arg("--pidfile").arg(dir.join("pid")).arg("--host").arg(docker.url());
        if !publishes {
            // The host's only networks are its own; nothing is published or translated.
            command.arg("--iptables=false");
        }
        command.args(["--ip6tables=false", "--live-restore", "--log-level", "warn"]);
        host.start("dockerd", &mut command)
    }

    /// The engine's own pid, of which its docker-proxies are children.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The `docker` command for this engine.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// The engine's address: `unix:///...`.
    pub fn url(&self) -> String {
        self.docker.url()
    }

    /// Makes an image known, once.
    pub fn import(&self, image: Image) -> Result<()> {
        let mut imported = self.imported.lock().expect("no thread panics while it imports");
        if imported.insert(image) {
            self.docker.import(image)?;
        }
        Ok(())
    }

    /// Creates a container, importing its image if need be.
    pub fn create_container(&self, spec: &Spec) -> Result<Container> {
        self.import(spec.image())?;
        self.docker.create(spec)
    }

    /// Starts a container, importing its image if need be.
    pub fn start_container(&self, spec: &Spec) -> Result<Container> {
        let container = self.create_container(spec)?;
        container.start()?;
        Ok(container)
    }
}
