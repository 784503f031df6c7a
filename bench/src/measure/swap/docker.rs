//! A swap with Docker alone: stop the old container, then run the new one on the free port.

use std::fs;

use anyhow::{Context as _, Result};
use pod_steer_tests::{
    container::{Container, Docker},
    image::Image,
    process::{Process, output},
    server, wait,
};

use super::contestant::{Contestant, PORT, Site};

/// One container behind a bridge, published with `-p`.
#[derive(Debug)]
pub struct DockerP {
    current: Container,
    docker: Docker,
    _engine: Process,
    site: Site,
}

impl DockerP {
    /// An engine with its bridge and rules, as by default, and the first version.
    pub fn start(version: &str) -> Result<Self> {
        let site = Site::new()?;
        let (docker, engine) = engine(&site)?;
        docker.import(Image::Named)?;
        let current = run(&docker, version)?;
        Ok(Self { current, docker, _engine: engine, site })
    }
}

impl Contestant for DockerP {
    fn site(&self) -> &Site {
        &self.site
    }

    fn replace(&mut self, version: &str) -> Result<Container> {
        self.current.stop()?;
        let new = run(&self.docker, version)?;
        Ok(std::mem::replace(&mut self.current, new))
    }
}

fn run(docker: &Docker, version: &str) -> Result<Container> {
    let published = format!("{PORT}:{PORT}");
    let spec = server::named(version, &format!("0.0.0.0:{PORT}")).network("bridge");
    docker.run_detached(&spec.options(&["--publish", &published]))
}

fn engine(site: &Site) -> Result<(Docker, Process)> {
    let dir = site.host.dir().join("docker");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("daemon.json"), "{}")?;
    let docker = Docker::new(dir.join("docker.sock"), &[]);
    let mut command = site.host.command("dockerd")?;
    command.arg("--config-file").arg(dir.join("daemon.json"));
    // In memory, like the engines of the other contestants.
    command.args(["--data-root", "/run/docker-data", "--exec-root"]).arg(dir.join("exec"));
    command.arg("--pidfile").arg(dir.join("pid")).arg("--host").arg(docker.url());
    command.args(["--live-restore", "--log-level", "warn"]);
    let process = site.host.start("dockerd", &mut command)?;
    wait::until_ok("dockerd with a bridge to answer", || {
        let answer = output(docker.command().arg("version"))?;
        Ok(answer.status.success().then_some(()))
    })
    .with_context(|| process.stderr())?;
    Ok((docker, process))
}
