//! A socket activator keeps the listener of the commands that it starts by `pod-steer exec`, one after the other.

use anyhow::{Context as _, Result};
use pod_steer_tests::{
    daemon::Stage,
    exec::Exec,
    load::Load,
    process::Process,
    report, require,
    rollouts::{all_by, clients, none_lost},
    tools, wait,
};
use rustix::process::{Pid, Signal, kill_process};

/// Opens a listener, and starts a server with it whenever a client waits and no server runs, as systemd does with a socket unit.
const ACTIVATOR: &str = r#"
import os, select, socket, sys, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", 8080))
listener.listen(1024)
# Processes are told apart by when they started, to a hundredth of a second.
time.sleep(0.05)
while True:
    select.select([listener], [], [])
    server = os.fork()
    if not server:
        os.dup2(listener.fileno(), 3)
        os.set_inheritable(3, True)
        os.execv(sys.argv[1], sys.argv[1:])
    print("server", server, flush=True)
    os.waitpid(server, 0)
"#;

struct Activated {
    stage: Stage,
    activator: Process,
}

impl Activated {
    /// An activator whose first client has come.
    fn new() -> Result<Self> {
        let stage = Stage::without_engine()?;
        let python = tools::find("python3").context("python3 is not installed")?;
        let mut command = stage.host.command(python)?;
        command.env("POD_STEER_SOCKET", stage.daemon.socket()).args(["-c", ACTIVATOR]).arg(tools::pod_steer()?);
        command.args(["exec", "--service", "web", "--ports", "80:8080", "--version", "v1", "--name", "v1-1", "--"]);
        command.arg(tools::named_server()?).args(["--name", "v1-1", "--fds", "1"]);
        let activator = stage.host.start("activator", &mut command)?;
        let first = Load::to("127.0.0.1:8080".parse()?).count(1);
        wait::until_ok("the first client, who starts the server", || {
            Ok((first.clone().run(stage.host.net())?.answered() == 1).then_some(()))
        })?;
        stage.daemon.wait_ready("web", 1)?;
        Ok(Self { stage, activator })
    }

    /// The pids of all servers so far.
    fn servers(&self) -> Vec<i32> {
        let said = self.activator.stdout();
        said.lines().filter_map(|line| line.strip_prefix("server ")?.parse().ok()).collect()
    }

    /// Ends the running server.
    fn end_server(&self) -> Result<()> {
        let last = *self.servers().last().context("no server was started")?;
        Ok(kill_process(Pid::from_raw(last).context("a pid")?, Signal::TERM)?)
    }
}

#[test]
fn clients_wait_for_the_next_server() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let mut scene = Activated::new()?;
    let load = clients().threads(2).start(scene.stage.host.net())?;
    for round in 2..=4 {
        let before = load.answered();
        wait::until("clients", || (load.answered() > before + 50).then_some(()))?;
        scene.end_server()?;
        wait::until("the next server", || (scene.servers().len() == round).then_some(()))?;
        scene.stage.daemon.wait_ready("web", 1)?;
    }
    let tally = load.stop()?;
    report::figure("a socket-activated server that ended three times", &tally);
    none_lost(&tally)?;

    // Without clients none runs: the activator holds the listener, also for the next daemon.
    scene.end_server()?;
    let followed = |scene: &Activated| scene.stage.daemon.log().matches("which is followed").count();
    wait::until("the activator to be followed", || (followed(&scene) > 0).then_some(()))?;
    scene.stage.daemon.kill()?;
    scene.stage.daemon.restart()?;
    all_by(scene.stage.host.net(), 50, "v1")?;
    assert_eq!(scene.servers().len(), 5, "{}", scene.activator.stdout());
    let service = scene.stage.daemon.wait_for("the new server to have the listener", |status| {
        let service = status.service("web")?;
        (service.backends.len() == 1 && service.backends[0].sockets == 1).then(|| service.clone())
    })?;
    assert!(service.backends[0].warnings().is_empty(), "{service:?}");
    assert_eq!(service.counter("refused_no_backend"), 0);

    // The listener ends with the activator.
    scene.activator.kill()?;
    scene.end_server()?;
    scene.stage.daemon.wait_for("the service to be gone", |status| status.service("web").is_none().then_some(()))
}

#[test]
fn a_deploy_stops_the_server_and_not_its_activator() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let mut scene = Activated::new()?;
    scene.stage.daemon.order_done("shift web v1=1")?;
    let load = clients().threads(2).start(scene.stage.host.net())?;
    let _new = Exec::new("v2-1", "web", "80:8080", "0.0.0.0:8080").flags(&["--version", "v2"]).start(&scene.stage)?;
    scene.stage.daemon.wait_state("web", "v2-1", "standby")?;
    scene.stage.daemon.order_done("deploy web v2 --stop-old")?;
    scene
        .stage
        .daemon
        .wait_for("the old version to be gone", |status| (status.service("web")?.backends.len() == 1).then_some(()))?;
    all_by(scene.stage.host.net(), 100, "v2")?;
    none_lost(&load.stop()?)?;
    assert_eq!(scene.servers().len(), 1, "no client came to the activator");
    assert!(!scene.activator.has_ended()?, "it was not told to stop");

    // The same if no server of the old version runs, and the activator alone holds the listener.
    let mut scene = Activated::new()?;
    scene.stage.daemon.order_done("shift web v1=1")?;
    scene.end_server()?;
    wait::until("the activator to be followed", || {
        scene.stage.daemon.log().contains("which is followed").then_some(())
    })?;
    let _new = Exec::new("v2-1", "web", "80:8080", "0.0.0.0:8080").flags(&["--version", "v2"]).start(&scene.stage)?;
    scene.stage.daemon.wait_state("web", "v2-1", "standby")?;
    scene.stage.daemon.order_done("deploy web v2 --stop-old")?;
    all_by(scene.stage.host.net(), 100, "v2")?;
    assert!(!scene.activator.has_ended()? && scene.servers().len() == 1, "{}", scene.activator.stdout());
    assert_eq!(scene.stage.daemon.status()?.service("web").context("web")?.backends.len(), 1);
    Ok(())
}
