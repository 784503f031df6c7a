//! A server that is deployed to over ssh: a host with sshd, Docker as it comes out of the box, the daemon, and a user `deploy` that may use
//! both.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    accounts::{self, Account},
    daemon::Stage,
    engine::Engine,
    host::{Client, Host},
    image::Image,
    load::{Load, Running},
    process::run,
    ssh::Sshd,
    tools,
};

/// The user that ssh logs in as.
const DEPLOY: Account = Account { name: "deploy", id: 64_781, groups: &["docker", "pod-steer"] };
/// A user without any right there, who has the client's key.
const RUNNER: Account = Account { name: "runner", id: 64_782, groups: &[] };
/// Programs of the machine, in the host.
const PROGRAMS: &str = "/usr/local/bin";

/// Such a server. The fields are dropped in this order.
#[derive(Debug)]
pub struct Remote {
    /// Its sshd.
    pub sshd: Sshd,
    /// Its daemon and its engine.
    pub stage: Stage,
    /// A client of its services, on another machine.
    pub client: Client,
}

impl Remote {
    /// The requirements of tests with one.
    pub fn needed() -> Result<(), String> {
        tools::docker().and_then(|()| crate::ssh::needed()).and_then(|()| tools::root_and(&["flock", "setpriv"]))
    }

    /// Starts one. `scripts` are installed in its `/usr/local/bin`, as (name, text); `options` stand before the key of the client that may
    /// log in.
    pub fn new(scripts: &[(&str, &str)], options: &str) -> Result<Self> {
        let host = Arc::new(Host::new()?);
        accounts::add(&host, &[DEPLOY, RUNNER])?;
        run(host.command("mount")?.args(["-t", "tmpfs", "-o", "mode=755", "none", PROGRAMS]))?;
        let installed = |name: &str| host.path(&format!("{PROGRAMS}/{name}"));
        for (name, program) in [("pod-steer", tools::pod_steer()?), ("docker", find("docker")?)] {
            fs::write(installed(name), "")?;
            run(host.command("mount")?.arg("--bind").arg(program).arg(format!("{PROGRAMS}/{name}")))?;
        }
        fs::write(host.dir().join("pod-steer.toml"), "group = 'pod-steer'\n")?;
        let engine = Engine::start_publishing(&host)?;
        std::os::unix::fs::symlink(engine.docker().socket(), host.path("/run/docker.sock"))?;
        let sshd = Sshd::start(&host, &DEPLOY, options)?;
        let stage = Stage::with(host, Some(engine))?;
        let client = stage.host.new_client()?;
        let remote = Self { sshd, stage, client };
        scripts.iter().try_for_each(|(name, text)| remote.install(name, text))?;
        Ok(remote)
    }

    /// Installs a script in its `/usr/local/bin`.
    pub fn install(&self, name: &str, text: &str) -> Result<()> {
        let path = self.stage.host.path(&format!("{PROGRAMS}/{name}"));
        fs::write(&path, text)?;
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
    }

    /// An image of its engine, of another one's files, with a command.
    pub fn image(&self, of: Image, name: &str, command: &[&str]) -> Result<()> {
        let tar = of.tar()?;
        let command = format!("CMD {}", serde_json::to_string(command)?);
        let tar = tar.to_str().context("a path that is not text")?;
        self.stage.engine().docker().run(&["import", "--change", &command, tar, name]).map(drop)
    }

    /// A command of the runner, with no variables but these.
    pub fn runner(&self, program: &Path, variables: &[(&str, &str)]) -> Result<std::process::Command> {
        let home = self.runner_home();
        let mut command = self.stage.host.command("setpriv")?;
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", &home).envs(variables.iter().copied());
        command.args(["--reuid", RUNNER.name, "--regid", RUNNER.name, "--clear-groups", "--"]);
        command.arg(program);
        Ok(command)
    }

    /// The home directory of the runner.
    pub fn runner_home(&self) -> PathBuf {
        RUNNER.home(&self.stage.host)
    }

    /// Writes a file of the runner's, readable by it alone.
    pub fn write(&self, path: &Path, text: &str) -> Result<()> {
        let dir = path.parent().context("a file in no directory")?;
        fs::create_dir_all(dir)?;
        fs::write(path, text)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        for path in [dir, path] {
            std::os::unix::fs::chown(path, Some(RUNNER.id), Some(RUNNER.id))?;
        }
        Ok(())
    }

    /// Clients of port 80.
    pub fn clients(&self) -> Load {
        Load::to((self.client.host_ip4, 80).into()).pause(std::time::Duration::from_millis(5))
    }

    /// Clients that come all the time.
    pub fn load(&self) -> Result<Running> {
        self.clients().threads(2).start(&self.client.ns)
    }

    /// All clients are answered by this version now.
    pub fn all_by(&self, version: &str) -> Result<()> {
        let tally = self.clients().count(50).run(&self.client.ns)?;
        ensure!(
            tally.answered_by(version) == 50,
            "{version} is to serve all: {tally}\n{}",
            self.stage.daemon.status()?
        );
        Ok(())
    }

    /// The names of its running containers, in order.
    pub fn running(&self) -> Result<Vec<String>> {
        self.containers(&[])
    }

    /// The names of all its containers, in order.
    pub fn all(&self) -> Result<Vec<String>> {
        self.containers(&["--all"])
    }

    fn containers(&self, options: &[&str]) -> Result<Vec<String>> {
        let names = self.stage.engine().docker().run(&[&["ps", "--format", "{{.Names}}"], options].concat())?;
        let mut names: Vec<String> = names.lines().map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }
}

fn find(name: &str) -> Result<PathBuf> {
    tools::find(name).with_context(|| format!("{name} is not installed"))
}
