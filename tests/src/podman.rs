//! A real Podman, serving the Docker API on a socket, in a test's own host.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use rustix::process::{Resource, getrlimit};

use crate::{
    container::{Container, Docker, Spec},
    daemon::Daemon,
    host::Host,
    image::Image,
    process::{Process, output, run},
    wait,
};

/// The directory of the CNI plug-ins. A host has one of its own.
const ADDRESSES: &str = "/var/lib/cni";

/// `podman system service`, with storage and sockets of its own.
#[derive(Debug)]
pub struct Podman {
    process: Process,
    docker: Docker,
}

impl Podman {
    /// Starts the service in a host and waits until it answers.
    pub fn start(host: &Host) -> Result<Self> {
        let dir = host.dir().join("podman");
        fs::create_dir_all(&dir)?;
        // The CNI plug-ins keep the addresses that they have given to containers here, whatever Podman's own directories are.
        fs::create_dir_all(ADDRESSES)?;
        run(host.command("mount")?.args(["-t", "tmpfs", "none", ADDRESSES]))?;
        let docker = Self::client(dir.join("podman.sock"));
        let mut command = Self::command(host)?;
        command.args(["--log-level", "warn", "system", "service", "--time", "0"]).arg(docker.url());
        // Podman runs health checks by systemd timers. A test's host has none, so the tests run each check themselves.
        command.env("DISABLE_HC_SYSTEMD", "true");
        let process = host.start("podman", &mut command)?;
        let podman = Self { process, docker };
        wait::until_ok("podman to answer", || {
            let answer = output(podman.docker.command().args(["version"]))?;
            Ok(answer.status.success().then_some(()))
        })
        .with_context(|| podman.process.stderr())?;
        Ok(podman)
    }

    /// The `docker` command for a Podman service.
    pub fn client(socket: PathBuf) -> Docker {
        // Podman asks for the highest limits, which a machine may not allow.
        Docker::new(socket, &["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"])
    }

    /// `podman`, as a process of the host, with the same storage, for operations that Docker's API does not have.
    pub fn command(host: &Host) -> Result<Command> {
        let mut command = host.command("podman")?;
        // In memory, like that of the Docker engine.
        command.args(["--root", "/run/podman-data", "--runroot", "/run/podman-run", "--tmpdir", "/run/podman-tmp"]);
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", runtime()]);
        command.arg("--network-config-dir").arg(host.dir().join("podman/networks"));
        Ok(command)
    }

    /// The `docker` command for this engine.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Runs a container's health check once, as its timer would.
    pub fn check_health(&self, host: &Host, container: &str) -> Result<String> {
        let mut curl = host.command("curl")?;
        curl.args(["--silent", "--show-error", "--max-time", "60", "--unix-socket"]).arg(self.docker.socket());
        run(curl.arg(format!("http://podman/v4.0.0/libpod/containers/{container}/healthcheck")))
    }

    /// The engine's address: `unix:///...`.
    pub fn url(&self) -> String {
        self.docker.url()
    }

    /// Creates a container, and starts it when the daemon knows it. Podman announces a container about 100 ms after its creation; one
    /// that is started at once may bind before.
    pub fn start_announced(&self, daemon: &Daemon, spec: &Spec) -> Result<Container> {
        let container = self.docker.create(spec)?;
        daemon.wait_for("the container to be announced", |status| {
            status.services.iter().flat_map(|service| &service.backends).find(|b| b.id == container.id).map(drop)
        })?;
        container.start()?;
        Ok(container)
    }

    /// Makes an image known.
    pub fn import(&self, image: Image) -> Result<()> {
        self.docker.import(image)
    }
}

/// `crun` lifts the limit of locked memory to infinity for its device filter, and fails where that is not allowed.
fn runtime() -> &'static str {
    if getrlimit(Resource::Memlock).maximum.is_none() { "crun" } else { "runc" }
}
