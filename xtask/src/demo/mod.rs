//! `cargo xtask demo`: several servers on one port, one of them killed with `-9` under load, another joining; then, in `deploy`, a new
//! version takes over and is rolled back. The outer half (`sandbox`) makes the namespaces and removes them; the inner half plays: `stage`
//! has the daemon and the servers, `load` is the client, `screen` and `report` are the output. Nothing here may reach beyond those
//! namespaces.

mod deploy;
mod docker;
pub mod journal;
pub mod load;
pub mod report;
mod sandbox;
mod screen;
pub mod stage;
mod status;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{build, debian, say};
use load::Load;
use screen::{Bar, Screen};
use stage::Stage;

/// How long each scene is played.
const SCENE: Duration = Duration::from_secs(2);
/// The servers of the first act.
const COPIES: [Bar; 3] = [("v1a", &["v1a"]), ("v1b", &["v1b"]), ("v1c", &["v1c"])];

/// The arguments of the inner half.
#[derive(clap::Args)]
pub struct Inside {
    /// Directory of all files that the demo writes
    #[arg(long)]
    pub dir: PathBuf,
    #[command(flatten)]
    pub with: With,
}

/// The `demo` task.
pub fn demo(docker: bool) -> Result<ExitCode> {
    say::heading("building pod-steer and the demo's server");
    let pod_steer = build::pod_steer(true)?;
    let named_server = build::named_server()?;
    play_with(&With { pod_steer, named_server, docker })
}

/// What a demo is played with.
#[derive(clap::Args)]
pub struct With {
    #[arg(long)]
    pub pod_steer: PathBuf,
    #[arg(long)]
    pub named_server: PathBuf,
    #[arg(long)]
    pub docker: bool,
}

/// Plays it with programs that are built already.
pub fn play_with(With { pod_steer, named_server, docker }: &With) -> Result<ExitCode> {
    debian::ensure(if *docker { &["ip", "unshare", "dockerd", "docker"] } else { &["ip", "unshare"] })?;
    let sandbox = sandbox::Sandbox::new()?;
    let mut args = vec!["--dir".into(), sandbox.dir().as_os_str().to_owned()];
    args.extend(["--pod-steer".into(), pod_steer.into(), "--named-server".into(), named_server.into()]);
    if *docker {
        args.push("--docker".into());
    }
    sandbox.play(&args)
}

/// The task that `demo` starts inside the sandbox.
pub fn inside(inside: &Inside) -> Result<ExitCode> {
    sandbox::settle()?;
    say::heading(if inside.with.docker { "starting: a Docker engine, the daemon" } else { "starting: the daemon" });
    let mut stage = Stage::new(inside)?;
    let played = play(&mut stage);
    if played.is_err() {
        stage.show_logs();
    }
    played.map(|good| if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Both acts. True if all went well.
fn play(stage: &mut Stage) -> Result<bool> {
    stage.start_daemon()?;
    for name in ["v1a", "v1b"] {
        let ready_after = stage.start_server(name, "v1")?;
        report::server_started(stage.server(name)?, ready_after);
    }
    report::explain();
    let good = kill_and_join(stage)? & deploy::play(stage)?;
    stage.unload()?;
    report::unloaded();
    Ok(good)
}

/// The first act: copies of one version come and go.
fn kill_and_join(stage: &mut Stage) -> Result<bool> {
    let load = Load::start((Ipv4Addr::LOCALHOST, stage::PORT).into())?;
    let screen = Screen::new(&COPIES);
    screen.scene("v1a and v1b share the port");
    screen.watch(&load, SCENE)?;

    load.next_scene();
    let killed = stage.kill("v1b")?;
    screen.scene(&format!("v1b (pid {killed}) is killed with -9, under load"));
    screen.watch(&load, SCENE)?;

    let ready_after = stage.start_server("v1c", "v1")?;
    load.next_scene();
    let started = report::joined(stage.server("v1c")?, ready_after);
    screen.scene(&started);
    screen.watch(&load, SCENE)?;

    let scenes = load.stop();
    let status = stage.status().context("the daemon's counters at the end")?;
    Ok(report::summary(&scenes, &status, &journal::read(&stage.journal("v1b"))?))
}
