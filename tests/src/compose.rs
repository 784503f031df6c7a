//! A Compose project of two services, of which `pod-steer up` replaces the one that is steered.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    daemon::Stage,
    engine::{Engine, Options},
    host::Host,
    image::Image,
    load::{Load, Running},
    process::{output, run},
    rollouts::{clients, none_lost},
    scale, tools,
};

/// Clients come to port 80 of the host.
const TARGET: &str = "127.0.0.1:80";

/// A program named Compose. Each is a real one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compose {
    /// `docker-compose` of the machine.
    One,
    /// A plugin of `docker`.
    Two(PathBuf),
}

impl Compose {
    /// The second one. In `cargo xtask soak` the first one, each command of which takes a second of a processor.
    pub fn usual() -> Self {
        scale::of(Self::two(), Self::One)
    }

    /// The plugin that `POD_STEER_TESTS_COMPOSE` names, or the one that `cargo xtask test` unpacks.
    pub fn two() -> Self {
        let unpacked = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/compose/docker-compose");
        Self::Two(env::var_os("POD_STEER_TESTS_COMPOSE").map_or_else(unpacked, PathBuf::from))
    }

    /// Whether tests with it can run.
    pub fn is_there(&self) -> Result<(), String> {
        tools::docker()?;
        match self {
            Self::One => tools::root_and(&["docker-compose"]),
            Self::Two(plugin) if plugin.is_file() => Ok(()),
            Self::Two(plugin) => Err(format!("{} is missing: `cargo xtask test` unpacks it", plugin.display())),
        }
    }
}

/// The project `shop`, whose service `web` is steered and needs `db`.
pub struct Project {
    /// Its host.
    pub stage: Stage,
    compose: Compose,
    dir: PathBuf,
    /// A directory that comes first in the search path.
    programs: Option<PathBuf>,
}

impl Project {
    /// A project whose containers use the host's network.
    pub fn new(compose: Compose) -> Result<Self> {
        Self::on(Stage::with_docker()?, compose)
    }

    /// A project whose containers have networks of their own.
    pub fn bridged(compose: Compose) -> Result<Self> {
        let host = Arc::new(Host::new()?);
        let engine = Engine::start_with(&host, Options::publishing())?;
        Self::on(Stage::with(host, Some(engine))?, compose)
    }

    fn on(stage: Stage, compose: Compose) -> Result<Self> {
        stage.engine().import(Image::Named)?;
        let dir = stage.host.dir().join("shop");
        fs::create_dir_all(&dir)?;
        let project = Self { stage, compose, dir, programs: None };
        if let Compose::Two(plugin) = &project.compose {
            let plugins = project.docker_config().join("cli-plugins");
            fs::create_dir_all(&plugins)?;
            let plugin = plugin.canonicalize().with_context(|| format!("resolving {}", plugin.display()))?;
            symlink(plugin, plugins.join("docker-compose"))?;
        }
        Ok(project)
    }

    fn docker_config(&self) -> PathBuf {
        self.stage.engine().docker().socket().with_file_name("docker-config")
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name of a container, which the two kinds of Compose write in their own ways.
    pub fn name(&self, service: &str, number: u32) -> String {
        match self.compose {
            Compose::One => format!("shop_{service}_{number}"),
            Compose::Two(_) => format!("shop-{service}-{number}"),
        }
    }

    /// Writes a file of its directory.
    pub fn write_file(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Writes the Compose file. `web` is the rest of the steered service.
    pub fn write(&self, web: &str) -> Result<()> {
        self.write_file("compose.yaml", &text(web))
    }

    /// A version that serves.
    pub fn write_version(&self, name: &str) -> Result<()> {
        self.write(&web(&format!("pod-steer.version: {name}, pod-steer.ports: '80:8080'"), &serves(name), ""))
    }

    /// Has a shell script run instead of `docker`, which it finds as `$DOCKER`.
    pub fn replace_docker(&mut self, script: &str) -> Result<()> {
        let programs = self.dir.join("programs");
        fs::create_dir_all(&programs)?;
        let docker = tools::find("docker").context("docker is not installed")?;
        let text = format!("#!/bin/sh\nDOCKER={}\n{script}\nexec $DOCKER \"$@\"\n", docker.display());
        let path = programs.join("docker");
        fs::write(&path, text)?;
        run(Command::new("chmod").arg("+x").arg(&path))?;
        self.programs = Some(programs);
        Ok(())
    }

    /// Removes that script.
    pub fn restore_docker(&mut self) {
        self.programs = None;
    }

    /// A program in a directory below the project's, which a command of the host leaves for its root when it changes its mount namespace.
    fn command_in(&self, dir: &Path, program: &Path, args: &[&str]) -> Result<Command> {
        let mut command = self.stage.host.command("sh")?;
        command.args(["-c", "cd \"$0\" && exec \"$@\""]).arg(dir).arg(program).args(args);
        command.env("DOCKER_HOST", self.stage.engine().docker().url()).env("DOCKER_CONFIG", self.docker_config());
        command.env("POD_STEER_SOCKET", self.stage.daemon.socket()).env("NO_COLOR", "1");
        if let Some(programs) = &self.programs {
            let path = env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{path}", programs.display()));
        }
        Ok(command)
    }

    /// `pod-steer up`.
    pub fn up_command(&self, args: &[&str]) -> Result<Command> {
        self.up_command_in(&self.dir, args)
    }

    /// The same, in another directory.
    pub fn up_command_in(&self, dir: &Path, args: &[&str]) -> Result<Command> {
        self.command_in(dir, &tools::pod_steer()?, &[&["up"], args].concat())
    }

    /// Runs `pod-steer up`.
    pub fn up(&self, args: &[&str]) -> Result<Output> {
        output(&mut self.up_command(args)?)
    }

    /// It has to succeed.
    pub fn up_done(&self, args: &[&str]) -> Result<String> {
        let done = self.up(args)?;
        ensure!(done.status.success(), "{done:?}\n{}", self.stage.daemon.log_tail());
        Ok(String::from_utf8(done.stdout)?)
    }

    /// It has to be refused with this code, and this part of its message; no container comes or goes.
    pub fn up_refused(&self, args: &[&str], code: i32, part: &str) -> Result<()> {
        let before = self.running()?;
        let done = self.up(args)?;
        ensure!(done.status.code() == Some(code) && said(&done).contains(part), "{done:?}");
        ensure!(self.running()? == before, "{before:?}\n{:?}", self.running()?);
        Ok(())
    }

    /// Runs Compose itself.
    pub fn compose(&self, args: &[&str]) -> Result<String> {
        let (program, first) = match self.compose {
            Compose::One => ("docker-compose", &[][..]),
            Compose::Two(_) => ("docker", &["compose"][..]),
        };
        run(&mut self.command_in(&self.dir, Path::new(program), &[first, args].concat())?)
    }

    /// Runs `docker`.
    pub fn docker(&self, args: &[&str]) -> Result<String> {
        self.stage.engine().docker().run(args)
    }

    /// The names of all containers, in order.
    pub fn containers(&self) -> Result<Vec<String>> {
        self.listed(&["ps", "--all", "--format", "{{.Names}}"])
    }

    /// Their names and ids, with whether each runs.
    pub fn running(&self) -> Result<Vec<String>> {
        self.listed(&["ps", "--all", "--format", "{{.Names}} {{.ID}} {{.State}}"])
    }

    fn listed(&self, args: &[&str]) -> Result<Vec<String>> {
        let names = self.docker(args)?;
        let mut names: Vec<String> = names.lines().map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// Clients that ask on and on.
    pub fn load(&self) -> Result<Running> {
        clients().threads(2).start(self.stage.host.net())
    }

    /// The one version that answers.
    pub fn answered_by(&self) -> Result<String> {
        let tally = Load::to(TARGET.parse()?).count(20).run(self.stage.host.net())?;
        none_lost(&tally)?;
        let mut names = tally.by_name.keys();
        let name = names.next().context("nothing answers")?.clone();
        ensure!(names.next().is_none(), "several versions answer: {tally}");
        Ok(name)
    }
}

/// A Compose file. `web` is the rest of the steered service.
pub fn text(web: &str) -> String {
    let image = Image::Named.name();
    format!(
        "services:\n  db:\n    image: {image}\n    network_mode: host\n    \
         command: [/named-server, --name, db, --listen, '127.0.0.1:9000']\n  web:\n    depends_on: [db]\n{web}"
    )
}

/// The command of a server of this name.
pub fn serves(name: &str) -> String {
    format!("[/named-server, --name, {name}, --listen, '127.0.0.1:8080']")
}

/// The rest of a service in the host's network.
pub fn web(labels: &str, command: &str, more: &str) -> String {
    let image = Image::Named.name();
    format!(
        "    image: {image}\n    network_mode: host\n    labels: {{ pod-steer.service: web, {labels} }}\n    command: {command}\n{more}"
    )
}

/// What a command has said on standard error.
pub fn said(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}
