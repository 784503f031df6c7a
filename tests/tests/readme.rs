//! Runs every command of the README and of its pages as written, block by block. Only what a test cannot have (registries, `sudo`, paths
//! of an installation) is replaced, and an unknown command fails the test. Clients connect all the time while a recipe is carried out,
//! and none of them may be lost.

use std::{collections::BTreeMap, fs, path::Path, process::Command, sync::Arc};

use anyhow::{Context as _, Result, bail, ensure};
use pod_steer_tests::{
    container::Docker,
    daemon::Stage,
    engine::Engine,
    exec::Exec,
    host::Host,
    image::Image,
    load::{Load, Running, Tally},
    process::run,
    report, require, tools, wait,
};
use serde_json::Value;

/// Connections that are opened after a recipe.
const AFTERWARDS: u64 = 200;

/// The README and the examples it points to.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace")
}

/// The pages with commands.
const PAGES: [&str; 2] = ["README.md", "docs/processes.md"];

/// The lines of the pages' `sh` blocks, one list a block.
fn blocks() -> Result<Vec<Vec<String>>> {
    let pages = PAGES.map(|page| fs::read_to_string(root().join(page)));
    let text = pages.into_iter().collect::<std::io::Result<Vec<String>>>()?.concat();
    let mut blocks = Vec::new();
    for block in text.split("```sh\n").skip(1) {
        // A continued line is part of one command.
        let block = block.split("```").next().context("a block without an end")?.replace("\\\n", "");
        blocks.push(block.lines().map(str::to_owned).collect());
    }
    Ok(blocks)
}

/// Commands that run this test or that it does not need: the stage has already started the daemon, with paths of its own.
fn runs_elsewhere(line: &str) -> bool {
    let here = ["cargo xtask demo", "cargo xtask test", "cargo xtask bench", "cargo xtask package deb"];
    // `cargo xtask package deb --try` installs the package.
    here.contains(&line) || line.starts_with("sudo apt install ./target/package/deb/")
}

/// The images that the README names, made of the test server.
fn name_images(docker: &Docker) -> Result<()> {
    for tag in ["stable", "mainline"] {
        let tar = Image::Named.tar()?;
        let command = format!(r#"CMD ["/named-server", "--name", "{tag}", "--listen", "0.0.0.0:80"]"#);
        let tar = tar.to_str().context("a path that is not text")?;
        docker.run(&["import", "--change", &command, tar, &format!("nginx:{tag}")])?;
    }
    // The command of a pod's sandbox. The tests' image has no link for each applet.
    let tar = Image::Busybox.tar()?;
    let tar = tar.to_str().context("a path that is not text")?;
    docker.run(&["import", "--change", r#"ENTRYPOINT ["/bin/busybox"]"#, tar, "busybox:latest"]).map(drop)
}

/// A line as a shell command of the stage's host, with the variables that lines before it have set.
fn shell(stage: &Stage, variables: &[String], line: &str) -> Result<Command> {
    let steer = tools::pod_steer()?.display().to_string();
    let line = line.replace("sudo pod-steer", &steer);
    let line = line.strip_prefix("pod-steer ").map(|rest| format!("{steer} {rest}")).unwrap_or(line);
    let line = line.replace("docker compose ", "docker-compose ");
    // A process that enters another mount namespace starts at its root.
    let line = format!("{}cd '{}' && {line}", variables.concat(), root().display());
    let mut command = stage.host.command("sh")?;
    command.args(["-c", &line]).env("POD_STEER_SOCKET", stage.daemon.socket());
    Ok(command)
}

/// One block's recipe with an engine: a version, its successor, and how the successor takes over.
fn recipe(block: &[String]) -> Result<()> {
    let host = Arc::new(Host::new()?);
    // Everywhere else a bridge is on the way, as the engine sets it up by default.
    let on_host = block.iter().any(|line| line.contains("--network host"));
    let engine = if on_host { Engine::start(&host)? } else { Engine::start_publishing(&host)? };
    let stage = Stage::with(host, Some(engine))?;
    // Packets from another machine are rewritten without changing the client's address.
    let client = stage.host.new_client()?;
    let (clients_ns, port) =
        if on_host { (stage.host.net(), "127.0.0.1:80".parse()?) } else { (&client.ns, (client.host_ip4, 80).into()) };
    let docker = stage.engine().docker();
    name_images(docker)?;
    let config = docker.socket().with_file_name("docker-config");
    let (mut variables, mut wanted) = (Vec::new(), BTreeMap::new());
    let mut clients: Option<Running> = None;
    for line in block {
        if line.split_once("=\"").is_some_and(|(name, _)| name.chars().all(char::is_alphanumeric)) {
            variables.push(format!("{line}; "));
            continue;
        }
        let mut command = shell(&stage, &variables, line)?;
        let printed = run(command.env("DOCKER_HOST", docker.url()).env("DOCKER_CONFIG", &config))?;
        if let Some((service, copies)) = scale(line)? {
            wanted.insert(service, copies);
            serving(&stage, wanted.values().sum())?;
        } else if line.contains(" -p 80:80 ") {
            // The pod's sandbox, which is no server.
            continue;
        } else if line.starts_with("docker run ") {
            wanted.insert(line.clone(), 1);
            serving(&stage, wanted.values().sum())?;
        } else {
            ensure!(line.starts_with("sudo pod-steer "), "no test knows how to run {line}");
            ensure!(!printed.is_empty(), "{line} prints nothing");
        }
        if clients.is_none() {
            clients = Some(Load::to(port).threads(2).start(clients_ns)?);
        }
    }
    let clients = clients.context("a recipe without commands")?;
    if block.last().is_some_and(|line| line.starts_with("docker run ")) {
        // No command moves the traffic: the policy of the next version does.
        wait::until_ok("the next version to take over", || {
            let all = Load::to(port).count(20).run(clients_ns)?;
            Ok((all.answered_by("mainline") == 20).then_some(()))
        })?;
        let answered = clients.answered();
        wait::until("its connections", || (clients.answered() > answered + AFTERWARDS).then_some(()))?;
    }
    let tally = clients.stop()?;
    nothing_lost(&block[block.len() - 1], &tally)?;
    ensure!(["stable", "mainline"].iter().all(|name| tally.answered_by(name) > 0), "not both served: {tally}");
    let after = Load::to(port).count(AFTERWARDS).run(clients_ns)?;
    ensure!(after.disguised.is_empty(), "a client's address was rewritten: {:?}", after.disguised);
    ensure!(after.answered_by("mainline") == AFTERWARDS, "the new version has not taken over: {after}");
    Ok(())
}

/// The service and the number of `docker compose … --scale SERVICE=NUMBER`.
fn scale(line: &str) -> Result<Option<(String, usize)>> {
    let Some((_, rest)) = line.split_once(" --scale ").filter(|_| line.starts_with("docker compose ")) else {
        return Ok(None);
    };
    let (service, copies) = rest.split(' ').next().and_then(|rest| rest.split_once('=')).context("no number")?;
    Ok(Some((service.to_owned(), copies.parse()?)))
}

/// Waits until so many backends are ready or on standby.
fn serving(stage: &Stage, wanted: usize) -> Result<()> {
    stage.daemon.wait_for(&format!("{wanted} backends that could serve"), |status| {
        let could = |state: &str| ["ready", "standby"].contains(&state);
        let backends = &status.service("web")?.backends;
        (backends.iter().filter(|backend| could(&backend.state)).count() == wanted).then_some(())
    })
}

fn nothing_lost(what: &str, tally: &Tally) -> Result<()> {
    report::figure(&format!("README, until `{what}`"), tally);
    ensure!(tally.losses.is_empty(), "clients were lost: {tally}");
    Ok(())
}

/// Runs the commands that move traffic between two versions, one after the other.
fn hot_swap(block: &[String]) -> Result<()> {
    let stage = Stage::without_engine()?;
    let version = |name| Exec::new(name, "web", "80:8080", "0.0.0.0:8080").flags(&["--version", name]).start(&stage);
    let _servers = [version("v1")?, version("v2")?];
    stage.daemon.wait_ready("web", 2)?;
    let clients = Load::to("127.0.0.1:80".parse()?).threads(2).start(stage.host.net())?;
    for line in block {
        ensure!(line.starts_with("pod-steer "), "no test knows how to run {line}");
        run(&mut shell(&stage, &[], line)?)?;
    }
    nothing_lost(&block[block.len() - 1], &clients.stop()?)?;
    let history: Vec<Value> = serde_json::from_str(&run(stage.daemon.cli()?.args(["history", "-o", "json"]))?)?;
    for (operation, line) in history.iter().zip(block) {
        // The rollback after it ends the canary.
        let expected = if line.contains(" canary ") { "aborted" } else { "done" };
        ensure!(operation["end"]["outcome"] == expected, "{line}: {operation}");
    }
    ensure!(history.len() + 1 == block.len(), "not every command is in the history: {history:?}");
    Ok(())
}

fn exec_or_register(line: &str) -> Result<()> {
    let stage = Stage::without_engine()?;
    let _server = if line.starts_with("pod-steer register") {
        let mut server = stage.host.command(tools::named_server()?)?;
        let server = stage.host.start("old", server.args(["--name", "old", "--listen", "0.0.0.0:8080"]))?;
        let line = line.replace("4711", &server.pid().to_string());
        wait::until_ok("the process to be adopted", || Ok(run(&mut shell(&stage, &[], &line)?).ok()))?;
        server
    } else if line.starts_with("systemd-socket-activate ") {
        let steer = format!(" {} exec ", tools::pod_steer()?.display());
        let server = format!("{} --name activated --fds 1", tools::named_server()?.display());
        let line = line.replace("/run/pod-steer/api.sock", &stage.daemon.socket().display().to_string());
        let line = line.replace(" pod-steer exec ", &steer).replace("./server", &server);
        let activated = stage.host.start("activated", &mut shell(&stage, &[], &line)?)?;
        // The first client makes systemd start it.
        let client = Load::to("127.0.0.1:8080".parse()?).count(1);
        wait::until_ok("the server to be started", || {
            Ok((client.clone().run(stage.host.net())?.answered() == 1).then_some(()))
        })?;
        activated
    } else {
        stage.host.start("exec", &mut shell(&stage, &[], line)?)?
    };
    stage.daemon.wait_ready("web", 1).map(drop)
}

#[test]
fn every_command_works() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["docker-compose", "python3"]));
    let (mut commands, mut recipes) = (0, 0);
    for block in blocks()? {
        commands += block.len();
        let rest: Vec<String> = block.into_iter().filter(|line| !runs_elsewhere(line)).collect();
        let begins = |start: &str| rest.iter().any(|line| line.starts_with(start));
        if begins("docker ") {
            recipe(&rest)?;
            recipes += 1;
        } else if begins("pod-steer shift ") {
            hot_swap(&rest)?;
        } else {
            for line in &rest {
                if ["pod-steer exec ", "pod-steer register ", "systemd-socket-activate "]
                    .iter()
                    .any(|start| line.starts_with(start))
                {
                    exec_or_register(line)?;
                } else if line == "sudo pod-steer doctor" {
                    let printed = run(&mut shell(&Stage::without_engine()?, &[], line)?)?;
                    ensure!(!printed.is_empty(), "{line} prints nothing");
                } else {
                    bail!("the README has a command that no test runs: {line}");
                }
            }
        }
    }
    assert!(commands >= 35 && recipes >= 4, "{commands} commands, {recipes} recipes");
    Ok(())
}
