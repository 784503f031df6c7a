//! Containers, managed by the `docker` command through an engine's socket.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{image::Image, process::run, wait};

/// The `docker` command, pointed at one engine.
#[derive(Clone, Debug)]
pub struct Docker {
    socket: PathBuf,
    /// Given to every `create`.
    create_args: Vec<String>,
}

impl Docker {
    /// For the engine behind a unix socket; `create_args` go with every new container.
    pub fn new(socket: PathBuf, create_args: &[&str]) -> Self {
        Self { socket, create_args: create_args.iter().map(ToString::to_string).collect() }
    }

    /// The engine's address as users write it: `unix:///...`.
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `docker ARGS`, not yet run.
    pub fn command(&self) -> Command {
        let mut command = Command::new("docker");
        // The configuration of the user who runs the tests must have no effect.
        let config = self.socket.with_file_name("docker-config");
        command.env("DOCKER_HOST", self.url()).env("DOCKER_CONFIG", config);
        command
    }

    /// Runs `docker ARGS` and returns what it prints, without the newline at the end.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        Ok(run(self.command().args(args))?.trim_end().to_owned())
    }

    /// Makes an image known to the engine.
    pub fn import(&self, image: Image) -> Result<()> {
        let tar = image.tar()?;
        let mut import = self.command();
        import.arg("import").args(image.changes().iter().flat_map(|change| ["--change", change]));
        run(import.arg(tar).arg(image.name())).map(drop)
    }

    /// Starts a container with the test server, and waits until that listens.
    pub fn start_listening(&self, spec: &Spec) -> Result<Container> {
        let container = self.start(spec)?;
        wait::until_ok("the server to listen", || Ok(container.logs()?.contains("listening ").then_some(())))?;
        Ok(container)
    }

    /// Creates a container and does not start it.
    pub fn create(&self, spec: &Spec) -> Result<Container> {
        self.make(&["create"], spec)
    }

    /// Creates and starts a container in one command: `docker run --detach`.
    pub fn run_detached(&self, spec: &Spec) -> Result<Container> {
        self.make(&["run", "--detach"], spec)
    }

    fn make(&self, how: &[&str], spec: &Spec) -> Result<Container> {
        let mut command = self.command();
        command.args(how).args(["--name", &spec.name, "--network", &spec.network]).args(&self.create_args);
        for (key, value) in &spec.labels {
            command.arg("--label").arg(format!("{key}={value}"));
        }
        for (source, target) in &spec.mounts {
            command.arg("--volume").arg(format!("{}:{target}", source.display()));
        }
        let printed = run(command.args(&spec.options).arg(spec.image.name()).args(&spec.args))?;
        // Warnings come before the id.
        let id =
            printed.lines().last().with_context(|| format!("docker {} printed nothing", how[0]))?.trim().to_owned();
        Ok(Container { docker: self.clone(), id, name: spec.name.clone() })
    }

    /// Creates a container and starts it.
    pub fn start(&self, spec: &Spec) -> Result<Container> {
        let container = self.create(spec)?;
        container.start()?;
        Ok(container)
    }
}

/// What a container is made from.
#[derive(Clone, Debug)]
pub struct Spec {
    image: Image,
    name: String,
    network: String,
    labels: Vec<(String, String)>,
    mounts: Vec<(PathBuf, String)>,
    options: Vec<String>,
    args: Vec<String>,
}

impl Spec {
    /// A container on the host's network.
    pub fn new(image: Image, name: &str) -> Self {
        let (name, network) = (name.into(), "host".into());
        Self { image, name, network, labels: vec![], mounts: vec![], options: vec![], args: vec![] }
    }

    /// Its image.
    pub fn image(&self) -> Image {
        self.image
    }

    /// Labels that make it a backend of `service` with `ports`.
    pub fn service(self, service: &str, ports: &str) -> Self {
        self.label("pod-steer.service", service).label("pod-steer.ports", ports)
    }

    /// One label.
    pub fn label(mut self, key: &str, value: impl ToString) -> Self {
        self.labels.push((key.into(), value.to_string()));
        self
    }

    /// The label of its version.
    pub fn version(self, version: &str) -> Self {
        self.label("pod-steer.version", version)
    }

    /// The label of its weight.
    pub fn weight(self, weight: u64) -> Self {
        self.label("pod-steer.weight", weight)
    }

    /// Another network: `bridge`, `none`, `container:ID`.
    pub fn network(self, network: impl Into<String>) -> Self {
        Self { network: network.into(), ..self }
    }

    /// A directory of the host's in the container.
    pub fn mount(mut self, source: &Path, target: &str) -> Self {
        self.mounts.push((source.to_owned(), target.into()));
        self
    }

    /// Options of `docker create`.
    pub fn options(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(ToString::to_string));
        self
    }

    /// The command and its arguments.
    pub fn args<S: ToString>(mut self, args: &[S]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }
}

/// A container; removed when dropped.
#[derive(Debug)]
pub struct Container {
    docker: Docker,
    /// Its full id.
    pub id: String,
    /// Its name.
    pub name: String,
}

impl Container {
    /// `docker start`.
    pub fn start(&self) -> Result<()> {
        self.docker.run(&["start", &self.id]).map(drop)
    }

    /// `docker stop`: SIGTERM, and SIGKILL after ten seconds.
    pub fn stop(&self) -> Result<()> {
        self.docker.run(&["stop", "--time", "10", &self.id]).map(drop)
    }

    /// `docker kill --signal SIGNAL`.
    pub fn kill(&self, signal: &str) -> Result<()> {
        self.docker.run(&["kill", "--signal", signal, &self.id]).map(drop)
    }

    /// `docker pause`.
    pub fn pause(&self) -> Result<()> {
        self.docker.run(&["pause", &self.id]).map(drop)
    }

    /// `docker unpause`.
    pub fn unpause(&self) -> Result<()> {
        self.docker.run(&["unpause", &self.id]).map(drop)
    }

    /// Its standard output and standard error.
    pub fn logs(&self) -> Result<String> {
        // Both streams, each where docker writes it.
        let output = crate::process::output(self.docker.command().args(["logs", &self.id]))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    }

    /// Waits until its output has something: the engine writes it down with a delay.
    pub fn said<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        wait::until_ok(what, || Ok(find(&self.logs()?))).with_context(|| self.logs().unwrap_or_default())
    }

    /// The number of its first process in the initial namespace of processes.
    pub fn pid(&self) -> Result<u32> {
        let pid = self.docker.run(&["inspect", "--format", "{{.State.Pid}}", &self.id])?;
        pid.parse().with_context(|| format!("pid {pid:?}"))
    }

    /// Its address on a bridge.
    pub fn ip(&self) -> Result<std::net::IpAddr> {
        let ip = self.docker.run(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", &self.id])?;
        ip.parse().with_context(|| format!("address {ip:?}"))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Best effort: the engine and all its containers end with their host anyway.
        let _ = crate::process::output(self.docker.command().args(["rm", "--force", "--volumes", &self.id]));
    }
}
