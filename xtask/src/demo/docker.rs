//! A Docker engine of the demo's own, with one image: the static server, and nothing else.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::stage::{PORT, SERVICE, wait_until};
use crate::cmd::{command, output, run};

const IMAGE: &str = "named-server";

pub struct Docker {
    url: String,
}

impl Docker {
    /// Starts the engine and imports the image. The sandbox ends it.
    pub fn start(dir: &Path, named_server: &Path) -> Result<Self> {
        let docker = Self { url: format!("unix://{}", dir.join("docker.sock").display()) };
        let log = File::create(dir.join("dockerd.log"))?;
        let mut engine = command("dockerd")
            .args(["--host", &docker.url, "--data-root"])
            .arg(dir.join("data"))
            .arg("--exec-root")
            .arg(dir.join("exec"))
            .arg("--pidfile")
            .arg(dir.join("dockerd.pid"))
            // Containers in the host's network need neither.
            .args(["--bridge", "none", "--iptables=false", "--ip6tables=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start dockerd")?;
        wait_until("the Docker engine answers", || {
            if let Some(status) = engine.try_wait()? {
                let log = fs::read_to_string(dir.join("dockerd.log"))?;
                anyhow::bail!("dockerd ended: {status}\n{log}");
            }
            Ok(output(docker.client().arg("version")).ok().map(drop))
        })?;
        docker.import(dir, named_server)?;
        Ok(docker)
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    fn client(&self) -> Command {
        let mut client = command("docker");
        client.args(["--host", &self.url]);
        client
    }

    fn import(&self, dir: &Path, named_server: &Path) -> Result<()> {
        let root = dir.join("image");
        fs::create_dir(&root)?;
        fs::copy(named_server, root.join("named-server"))?;
        let archive = dir.join("image.tar");
        run(command("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."))?;
        output(self.client().arg("import").arg(&archive).arg(IMAGE))?;
        Ok(())
    }

    /// Starts a container as its owner would, with labels; returns its first process.
    pub fn run(&self, name: &str, version: &str, journal: &Path) -> Result<u32> {
        let label = |key: &str, value: &str| format!("--label=pod-steer.{key}={value}");
        let mut run = self.client();
        run.args(["run", "--detach", "--name", name, "--network", "host"])
            .args([label("service", SERVICE), label("ports", &format!("{PORT}:{PORT}")), label("version", version)])
            .arg(label("rollout", "manual"))
            .arg("--volume")
            .arg(format!("{}:/journal", journal.display()))
            .args([IMAGE, "/named-server", "--name", name, "--journal", "/journal"])
            .args(["--listen", &format!("0.0.0.0:{PORT}")]);
        output(&mut run)?;
        let pid = output(self.client().args(["inspect", "--format", "{{.State.Pid}}", name]))?;
        pid.trim().parse().with_context(|| format!("the pid of container {name}"))
    }

    /// The output of the container's process.
    pub fn show_log(&self, name: &str) {
        eprintln!("-- the log of container {name}:");
        // Only for the message of another error, which an error here would hide.
        let _ = self.client().args(["logs", name]).status();
    }
}
