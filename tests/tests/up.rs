//! `pod-steer up`: a Compose service is replaced under load; what fails is put back.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    image::Image,
    load::{Load, Running},
    process::{output, run},
    report, require,
    rollouts::{clients, none_lost},
    tools, wait,
};
use rustix::process::{Pid, Signal, kill_process};

/// Clients come to port 80 of the host.
const TARGET: &str = "127.0.0.1:80";

/// A project of two services, of which one is steered.
struct Project {
    stage: Stage,
    dir: PathBuf,
}

impl Project {
    fn new() -> Result<Self> {
        let stage = Stage::with_docker()?;
        stage.engine().import(Image::Named)?;
        let dir = stage.host.dir().join("shop");
        fs::create_dir_all(&dir)?;
        Ok(Self { stage, dir })
    }

    /// Writes the Compose file. `web` is the rest of the steered service.
    fn write(&self, web: &str) -> Result<()> {
        let image = Image::Named.name();
        let text = format!(
            "services:\n  db:\n    image: {image}\n    network_mode: host\n    \
             command: [/named-server, --name, db, --listen, '127.0.0.1:9000']\n  web:\n    depends_on: [db]\n{web}"
        );
        Ok(fs::write(self.dir.join("compose.yaml"), text)?)
    }

    /// A version that serves.
    fn write_version(&self, name: &str) -> Result<()> {
        self.write(&web(&format!("pod-steer.version: {name}, pod-steer.ports: '80:8080'"), &serves(name), ""))
    }

    /// A program in the project's directory, which a command of the host leaves for its root when it changes its mount namespace.
    fn command(&self, program: &Path, args: &[&str]) -> Result<Command> {
        let docker = self.stage.engine().docker();
        let mut command = self.stage.host.command("sh")?;
        command.args(["-c", "cd \"$0\" && exec \"$@\""]).arg(&self.dir).arg(program).args(args);
        command.env("DOCKER_HOST", docker.url()).env("DOCKER_CONFIG", docker.socket().with_file_name("docker-config"));
        command.env("POD_STEER_SOCKET", self.stage.daemon.socket()).env("NO_COLOR", "1");
        Ok(command)
    }

    fn up_command(&self, args: &[&str]) -> Result<Command> {
        self.command(&tools::pod_steer()?, &[&["up"], args].concat())
    }

    fn up(&self, args: &[&str]) -> Result<Output> {
        output(&mut self.up_command(args)?)
    }

    /// It has to succeed.
    fn up_done(&self, args: &[&str]) -> Result<String> {
        let done = self.up(args)?;
        ensure!(done.status.success(), "{done:?}\n{}", self.stage.daemon.log_tail());
        Ok(String::from_utf8(done.stdout)?)
    }

    /// The names of all containers, in order.
    fn containers(&self) -> Result<Vec<String>> {
        let names = self.stage.engine().docker().run(&["ps", "--all", "--format", "{{.Names}}"])?;
        let mut names: Vec<String> = names.lines().map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    fn load(&self) -> Result<Running> {
        clients().threads(2).start(self.stage.host.net())
    }

    fn answered_by(&self) -> Result<String> {
        let tally = Load::to(TARGET.parse()?).count(20).run(self.stage.host.net())?;
        none_lost(&tally)?;
        let mut names = tally.by_name.keys();
        let name = names.next().context("nothing answers")?.clone();
        ensure!(names.next().is_none(), "several versions answer: {tally}");
        Ok(name)
    }
}

fn serves(name: &str) -> String {
    format!("[/named-server, --name, {name}, --listen, '127.0.0.1:8080']")
}

fn web(labels: &str, command: &str, more: &str) -> String {
    let image = Image::Named.name();
    format!(
        "    image: {image}\n    network_mode: host\n    labels: {{ pod-steer.service: web, {labels} }}\n    command: {command}\n{more}"
    )
}

fn said(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

#[test]
fn a_service_is_replaced_under_load() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["docker-compose"]));
    let project = Project::new()?;
    project.write_version("v1")?;
    let first = project.up_done(&["web"])?;
    ensure!(first.contains("web: none runs: start 1 container\n"), "{first}");
    ensure!(project.containers()? == ["shop_db_1", "shop_web_1"] && project.answered_by()? == "v1");

    let load = project.load()?;
    let same = project.up_done(&[])?;
    ensure!(same == "web is up to date\n" && project.containers()? == ["shop_db_1", "shop_web_1"], "{same}");
    project.write_version("v2")?;
    let plan = project.up_done(&["--dry-run"])?;
    ensure!(plan.contains("the configuration has changed") && plan.lines().count() == 1, "{plan}");
    for round in 2..=3 {
        let version = format!("v{round}");
        project.write_version(&version)?;
        let done = project.up_done(&[])?;
        ensure!(done.ends_with(&format!("web: version {version} serves, shop_web_{} removed\n", round - 1)), "{done}");
        ensure!(project.containers()?.len() == 2 && project.answered_by()? == version);
    }
    // A version of the same name: its configuration tells it apart.
    project.write(&web(
        "pod-steer.version: v3, pod-steer.ports: '80:8080'",
        &serves("other"),
        "    environment: { A: b }\n",
    ))?;
    let done = project.up_done(&[])?;
    ensure!(done.contains("web: version v3-") && project.answered_by()? == "other", "{done}");
    ensure!(project.up_done(&[])? == "web is up to date\n");
    // The service's policy would deploy it too.
    project.write(&web(
        "pod-steer.version: v4, pod-steer.ports: '80:8080', pod-steer.rollout: latest",
        &serves("v4"),
        "",
    ))?;
    project.up_done(&[])?;
    ensure!(project.containers()?.len() == 2 && project.answered_by()? == "v4");
    // More containers of it, and fewer.
    project.up_done(&["--scale", "2"])?;
    ensure!(project.containers()?.len() == 3, "{:?}", project.containers()?);
    project.up_done(&["--scale", "1"])?;
    ensure!(project.containers()?.len() == 2, "{:?}", project.containers()?);
    let tally = load.stop()?;
    none_lost(&tally)?;
    report::figure("a Compose service, replaced six times by `up`", &tally);
    Ok(())
}

#[test]
fn a_broken_version_is_put_back() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["docker-compose"]));
    let project = Project::new()?;
    project.write_version("v1")?;
    project.up_done(&["web"])?;
    let before = project.containers()?;
    let load = project.load()?;
    let (ports, version) = ("pod-steer.ports: '80:8080'", "pod-steer.version: v2");
    let good = format!("{version}, {ports}");
    let missing = web(&good, &serves("v2"), "").replace(Image::Named.name(), "pod-steer-no-such-image");
    for (what, text, code, part) in [
        ("its image is missing", missing, 1, "registry-1.docker.io"),
        ("its program is missing", web(&good, "[/missing]", ""), 1, "missing"),
        ("it exits at once", web(&good, "[/named-server, --no-such-flag]", ""), 1, "v2"),
        ("it never listens", web(&good, "[/named-server, --name, v2, --listen, '127.0.0.1:8081']", ""), 1, "v2"),
        ("a label is wrong", web(&format!("{version}, pod-steer.ports: '80:x'"), &serves("v2"), ""), 1, "80:x"),
        ("its fixed name is in use", web(&good, &serves("v2"), "    container_name: shop_db_1\n"), 1, "shop_db_1"),
        (
            "it publishes a port",
            web(&good, &serves("v2"), "    ports: ['127.0.0.1:7777:80']\n")
                .replace("network_mode: host", "restart: 'no'"),
            2,
            "publishes port 7777",
        ),
        ("the file is no YAML", "    image: [\n".to_owned(), 2, "compose.yaml"),
    ] {
        project.write(&text)?;
        let done = project.up(&["--timeout", "2s"])?;
        ensure!(done.status.code() == Some(code) && said(&done).contains(part), "{what}: {done:?}");
        ensure!(
            project.containers()? == before && project.answered_by()? == "v1",
            "{what}: {:?}",
            project.containers()?
        );
    }
    project.write_version("v1")?;
    for (args, part) in [
        (&["nothing"][..], "no service nothing"),
        (&["--timeout", "soon"], "--timeout"),
        (&["-f", "missing.yaml"], "missing.yaml"),
    ] {
        let done = project.up(args)?;
        ensure!(done.status.code() == Some(2) && said(&done).contains(part), "{done:?}");
    }
    none_lost(&load.stop()?)
}

#[test]
fn an_interrupt_puts_back_and_a_kill_is_mended_by_the_next_run() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["docker-compose"]));
    let project = Project::new()?;
    project.write_version("v1")?;
    project.up_done(&["web"])?;
    let load = project.load()?;
    // A version that does not listen: the command waits for it.
    let silent = "[/named-server, --name, v2, --listen, '127.0.0.1:8081']";
    project.write(&web("pod-steer.version: v2, pod-steer.ports: '80:8080'", silent, ""))?;
    for (signal, left) in [(Signal::INT, 2), (Signal::KILL, 3)] {
        let mut up = project.up_command(&[])?;
        let mut up = up.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let began = wait::until_ok("the deploy to begin", || {
            let status = project.stage.daemon.status()?;
            Ok(status.service("web").is_some_and(|service| service.backends.len() == 2).then_some(()))
        });
        std::thread::sleep(Duration::from_millis(1_500));
        kill_process(Pid::from_child(&up), signal)?;
        let done = up.wait()?;
        began?;
        ensure!(done.code() == if signal == Signal::INT { Some(130) } else { None }, "{done:?}");
        ensure!(project.containers()?.len() == left, "{signal:?}: {:?}", project.containers()?);
    }
    // What the killed one left runs and gets no traffic.
    project.stage.daemon.order_done("rollback web")?;
    project.write_version("v1")?;
    let mended = project.up_done(&[])?;
    ensure!(mended.contains("which gets no traffic"), "{mended}");
    ensure!(project.containers()?.len() == 2 && project.answered_by()? == "v1");
    none_lost(&load.stop()?)
}

/// Compose starts a service that `up` has replaced no second time.
#[test]
fn compose_finds_what_up_has_made() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["docker-compose"]));
    let project = Project::new()?;
    project.write_version("v1")?;
    project.up_done(&["web"])?;
    project.write_version("v2")?;
    project.up_done(&[])?;
    let before = project.containers()?;
    run(&mut project.command(Path::new("docker-compose"), &["up", "-d"])?)?;
    ensure!(project.containers()? == before && project.answered_by()? == "v2");
    Ok(())
}
