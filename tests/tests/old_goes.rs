//! The old version ends under load, in the ways in which people end containers, with and without a deploy first. The new version
//! serves the connections that the old one had not accepted; after a deploy the old one has no connection left to lose.

use std::{fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::Container,
    daemon::Stage,
    image::Image,
    journal::Killed,
    load::{Load, Tally},
    process::run,
    report, require, server, tools,
};

/// How often each way is tried, with and without a deploy first.
const ROUNDS: usize = 3;
/// How long the load runs before the old version ends, and after it.
const AROUND: Duration = Duration::from_millis(200);
/// A slow server, so that connections always wait in its queue.
const ACCEPT_DELAY: [&str; 2] = ["--accept-delay-ms", "1"];

/// A way to start and to end the old version.
trait Old {
    /// Starts it under the name that it answers.
    fn start(&mut self, stage: &Stage, name: &str) -> Result<()>;
    /// Ends it; returns when it is gone.
    fn go(&mut self, stage: &Stage) -> Result<()>;
    /// Journals of servers that were killed and could not finish the connections that they had accepted.
    fn killed(&self) -> &[PathBuf] {
        &[]
    }
}

/// A container that a `docker` command ends.
struct Command {
    args: &'static [&'static str],
    /// It gets SIGKILL, so the connections that it had accepted are lost with it.
    kills: bool,
    container: Option<Container>,
    journals: Vec<PathBuf>,
}

impl Command {
    fn new(args: &'static [&'static str], kills: bool) -> Self {
        Self { args, kills, container: None, journals: Vec::new() }
    }
}

impl Old for Command {
    fn start(&mut self, stage: &Stage, name: &str) -> Result<()> {
        let journals = stage.host.dir().join("journals");
        fs::create_dir_all(&journals)?;
        let journal = format!("/journals/{name}");
        let args = [&["--listen", "0.0.0.0:8080", "--journal", &journal], &ACCEPT_DELAY[..]].concat();
        let spec = server::named_with(name, &args).service("web", "8080:8080").version("v1");
        self.container = Some(stage.engine().start_container(&spec.mount(&journals, "/journals"))?);
        if self.kills {
            self.journals.push(journals.join(name));
        }
        Ok(())
    }

    fn go(&mut self, stage: &Stage) -> Result<()> {
        let container = self.container.as_ref().context("it has not been started")?;
        stage.engine().docker().run(&[self.args, &[&container.id]].concat()).map(drop)
    }

    fn killed(&self) -> &[PathBuf] {
        &self.journals
    }
}

/// A service of a Compose project that is scaled to nothing.
struct Compose;

impl Compose {
    fn scale(stage: &Stage, name: &str, count: usize) -> Result<()> {
        let file = stage.host.dir().join("compose.yaml");
        if count > 0 {
            stage.engine().import(Image::Named)?;
            fs::write(&file, compose_file(name))?;
        }
        let docker = stage.engine().docker();
        let mut compose = stage.host.command("docker-compose")?;
        compose.env("DOCKER_HOST", docker.url()).env("DOCKER_CONFIG", docker.socket().with_file_name("docker-config"));
        compose.arg("--file").arg(&file).args(["up", "-d", "--no-deps", "--scale"]);
        run(compose.arg(format!("old={count}")).arg("old")).map(drop)
    }
}

fn compose_file(name: &str) -> String {
    let command = ["/named-server", "--name", name, "--listen", "0.0.0.0:8080", ACCEPT_DELAY[0], ACCEPT_DELAY[1]];
    format!(
        r#"version: "3"
services:
  old:
    image: {}
    network_mode: host
    labels: {{ pod-steer.service: web, pod-steer.ports: "8080:8080", pod-steer.version: v1 }}
    command: {command:?}
"#,
        Image::Named.name()
    )
}

impl Old for Compose {
    fn start(&mut self, stage: &Stage, name: &str) -> Result<()> {
        Self::scale(stage, name, 1)
    }

    fn go(&mut self, stage: &Stage) -> Result<()> {
        Self::scale(stage, "", 0)
    }
}

fn goes(label: &str, mut old: impl Old) -> Result<()> {
    let stage = Stage::with_docker()?;
    let new = server::named_with("v2", &[&["--listen", "0.0.0.0:8080"], &ACCEPT_DELAY[..]].concat());
    let _new = stage.engine().start_container(&new.service("web", "8080:8080").version("v2"))?;
    stage.daemon.wait_ready("web", 1)?;
    let (mut without, mut with) = (Tally::default(), Tally::default());
    for round in 0..ROUNDS {
        without.merge(one_round(&stage, &mut old, &format!("v1-{round}"), false)?);
    }
    // Those that were told to stop have answered what they had accepted.
    let killed = if old.killed().is_empty() { Killed::told(ROUNDS) } else { Killed::read(old.killed())? };
    let moved = stage.daemon.status()?.backend("web", "v2").moved_in;
    for round in ROUNDS..2 * ROUNDS {
        with.merge(one_round(&stage, &mut old, &format!("v1-{round}"), true)?);
    }
    let lost =
        format!("{} lost, {} of them not accepted by any server", without.losses.len(), killed.not_accepted(&without));
    report::figure(
        &format!("{label}, {ROUNDS} times, both versions serving"),
        format!("{moved} moved, {lost}; {without}"),
    );
    report::figure(&format!("{label}, {ROUNDS} times, after a deploy"), &with);
    killed.accounts_for(&without)?;
    ensure!(without.refused() == 0 && with.losses.is_empty(), "{without}; after a deploy {with}");
    let service = stage.daemon.wait_idle("web")?;
    ensure!(service.counter("refused_no_backend") == 0, "{service:#?}");
    Ok(())
}

/// The old version starts, serves, and ends under load.
fn one_round(stage: &Stage, old: &mut impl Old, name: &str, deploy: bool) -> Result<Tally> {
    stage.daemon.order_done("shift web --balance")?;
    old.start(stage, name)?;
    stage.daemon.wait_ready("web", 2)?;
    // More clients than the servers accept at a time.
    let load = Load::to("127.0.0.1:8080".parse()?).threads(16).start(stage.host.net())?;
    thread::sleep(AROUND);
    if deploy {
        stage.daemon.order_done("deploy web v2")?;
        let left = stage.daemon.status()?;
        let left = left.service("web").and_then(|service| service.backends.iter().find(|one| one.version == "v1"));
        ensure!(left.is_some_and(|old| old.live == 0 && old.opened > 0), "after the deploy: {left:?}");
    }
    old.go(stage)?;
    thread::sleep(AROUND);
    let tally = load.stop()?;
    ensure!(tally.answered_by(name) > 0 && tally.answered_by("v2") > 0, "both are to serve: {tally}");
    stage
        .daemon
        .wait_for("the old version to be gone", |status| (status.service("web")?.ready() == 1).then_some(()))?;
    Ok(tally)
}

#[test]
fn by_docker_stop() -> Result<()> {
    require!(tools::docker());
    goes("docker stop", Command::new(&["stop", "--time", "10"], false))
}

#[test]
fn by_docker_kill() -> Result<()> {
    require!(tools::docker());
    goes("docker kill -s KILL", Command::new(&["kill", "-s", "KILL"], true))
}

#[test]
fn by_docker_rm() -> Result<()> {
    require!(tools::docker());
    goes("docker rm -f", Command::new(&["rm", "-f"], true))
}

#[test]
fn by_compose() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["docker-compose"]));
    goes("docker compose up --scale", Compose)
}
