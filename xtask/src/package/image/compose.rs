//! The file of the daemon in Docker Compose 2, which knows `cgroup:`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use pod_steer_tests::engine::Engine;
use pod_steer_tests::host::Host;
use pod_steer_tests::process::run;

use crate::{compose, paths};

/// The file that is tried, as users have it.
const FILE: &str = "examples/daemon.compose.yaml";

/// Compose in a host, for the file of the daemon.
pub struct Compose<'a> {
    host: &'a Host,
    engine: &'a Engine,
    program: PathBuf,
}

impl<'a> Compose<'a> {
    pub fn new(host: &'a Host, engine: &'a Engine) -> Result<Self> {
        Ok(Self { host, engine, program: compose::get()? })
    }

    /// `docker compose ARGS`; returns what it prints.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let mut compose = self.host.command(&self.program)?;
        compose.arg("-f").arg(paths::root().join(FILE)).args(args);
        let config = self.engine.docker().socket().with_file_name("docker-config");
        run(compose.env("DOCKER_HOST", self.engine.url()).env("DOCKER_CONFIG", config))
            .with_context(|| self.log().unwrap_or_default())
    }

    /// `pod-steer ARGS` in the daemon's container.
    pub fn steer(&self, args: &[&str]) -> Result<String> {
        self.run(&[&["exec", "-T", "pod-steer", "/pod-steer"], args].concat())
    }

    /// The log of the daemon.
    pub fn log(&self) -> Result<String> {
        self.engine
            .docker()
            .run(&["ps", "--all", "--filter", "label=com.docker.compose.service=pod-steer", "-q"])
            .and_then(|id| {
                let mut logs = self.engine.docker().command();
                let printed = logs.args(["logs", &id]).output()?;
                Ok(String::from_utf8_lossy(&printed.stderr).into_owned())
            })
    }
}
