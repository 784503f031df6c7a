//! Every command of the README is run, as it stands there. What cannot be in a test (registries, `sudo`, paths of an
//! installation) is put in its place and nothing else: an unknown command fails the test.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use pod_steer_tests::{container::Docker, daemon::Stage, image::Image, process::run, require, tools, wait};

/// The README and the examples it points to.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace")
}

/// The lines of the README's `sh` blocks, one list a block.
fn blocks() -> Result<Vec<Vec<String>>> {
    let text = fs::read_to_string(root().join("README.md"))?;
    let mut blocks = Vec::new();
    for block in text.split("```sh\n").skip(1) {
        let block = block.split("```").next().context("a block without an end")?;
        blocks.push(block.lines().map(str::to_owned).collect());
    }
    Ok(blocks)
}

/// What runs before or around this test: it would only run itself.
fn runs_elsewhere(line: &str) -> bool {
    ["cargo xtask demo", "cargo xtask test", "cargo xtask build --release"].contains(&line)
}

/// The images that the README names, made of the test server.
fn name_images(docker: &Docker) -> Result<()> {
    for tag in ["stable", "mainline"] {
        let tar = Image::Named.tar()?;
        let command = format!(r#"CMD ["/named-server", "--name", "{tag}", "--listen", "0.0.0.0:80"]"#);
        let tar = tar.to_str().context("a path that is not text")?;
        docker.run(&["import", "--change", &command, tar, &format!("nginx:{tag}")])?;
    }
    Ok(())
}

/// A line as a shell command of the stage's host.
fn shell(stage: &Stage, line: &str) -> Result<Command> {
    let steer = tools::pod_steer()?.display().to_string();
    let line = line.replace("sudo target/release/pod-steer", &steer);
    let line = line.strip_prefix("pod-steer ").map(|rest| format!("{steer} {rest}")).unwrap_or(line);
    let line = line.replace("docker compose ", "docker-compose ");
    // Whoever enters another mount namespace is at its root.
    let line = format!("cd '{}' && {line}", root().display());
    let mut command = stage.host.command("sh")?;
    command.args(["-c", &line]).env("POD_STEER_SOCKET", stage.daemon.socket());
    Ok(command)
}

fn with_docker(stage: &Stage, line: &str) -> Result<String> {
    let docker = stage.engine().docker();
    let config = docker.socket().with_file_name("docker-config");
    run(shell(stage, line)?.env("DOCKER_HOST", docker.url()).env("DOCKER_CONFIG", config)).context(line.to_owned())
}

fn without_engine(line: &str) -> Result<()> {
    let stage = Stage::without_engine()?;
    let _server = if line.starts_with("pod-steer register") {
        let mut server = stage.host.command(tools::named_server()?)?;
        let server = stage.host.start("old", server.args(["--name", "old", "--listen", "0.0.0.0:8080"]))?;
        let line = line.replace("4711", &server.pid().to_string());
        wait::until_ok("the process to be adopted", || Ok(run(&mut shell(&stage, &line)?).ok()))?;
        server
    } else {
        stage.host.start("exec", &mut shell(&stage, line)?)?
    };
    stage.daemon.wait_ready("web", 1).map(drop)
}

#[test]
fn every_command_works() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["docker-compose", "python3"]));
    let stage = Stage::with_docker()?;
    name_images(stage.engine().docker())?;
    let (mut containers, mut commands) = (0, 0);
    for line in blocks()?.into_iter().flatten() {
        commands += 1;
        if runs_elsewhere(&line) || line == "sudo target/release/pod-steer run" {
            // The stage has started the daemon, with paths of its own.
            continue;
        }
        if line.starts_with("docker run ") {
            with_docker(&stage, &line)?;
            containers += 1;
            stage.daemon.wait_ready("web", containers)?;
        } else if line.starts_with("docker compose ") {
            with_docker(&stage, &line)?;
            containers += 3;
            stage.daemon.wait_ready("web", containers)?;
        } else if line.starts_with("sudo target/release/pod-steer ") {
            let printed = with_docker(&stage, &line)?;
            ensure!(!printed.is_empty(), "{line} prints nothing");
        } else if line.starts_with("pod-steer exec ") || line.starts_with("pod-steer register ") {
            without_engine(&line)?;
        } else {
            bail!("the README has a command that no test runs: {line}");
        }
    }
    assert!(commands >= 10 && containers >= 5, "{commands} commands, {containers} containers");
    Ok(())
}
