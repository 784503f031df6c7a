//! Commands at a daemon that does not answer: stopped, or absent.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    process::{output, run},
    require,
    rollouts::{all_by, web},
    tools, wait,
};
use rustix::process::Signal;

fn begin(mut command: Command, args: &str) -> Result<(String, Child)> {
    command.args(args.split(' ')).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok((args.to_owned(), command.spawn().context("starting a command")?))
}

#[test]
fn a_stopped_daemon_is_reported_with_the_reason() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("shift web v1=1")?;
    // A command that is under way when the daemon stops.
    let following = [begin(stage.daemon.cli()?, "events")?];
    std::thread::sleep(Duration::from_millis(500));
    stage.daemon.signal(Signal::STOP)?;
    let began = Instant::now();
    let commands = [
        "status",
        "status web -o json",
        "history web",
        "deploy web v2",
        "shift web v1=1 v2=1",
        "exec --service x --ports 82:8082 -- true",
        "register --pid 1 --service x --ports 82:8082",
    ];
    let mut begun = Vec::from(following);
    for args in commands {
        begun.push(begin(stage.daemon.cli()?, args)?);
    }
    let mut waited = Vec::new();
    for (args, child) in begun {
        let ended = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&ended.stderr).trim_end().to_owned();
        ensure!(ended.status.code() == Some(1), "{args}: {:?} {said}", ended.status);
        ensure!(said.lines().count() == 1 && said.contains("does not answer within 10 s"), "{args}: {said}");
        let pid = stage.daemon.pid();
        ensure!(said.contains("is stopped") && said.contains(&format!("kill -CONT {pid}")), "{args}: {said}");
        if args.starts_with("deploy") || args.starts_with("shift") {
            ensure!(said.contains("may still carry out the order") && said.contains("history web"), "{args}: {said}");
        }
        waited.push(began.elapsed());
    }
    // Traffic does not need the daemon.
    all_by(stage.host.net(), 20, "v1").or_else(|_| all_by(stage.host.net(), 20, "v2"))?;
    stage.daemon.signal(Signal::CONT)?;
    wait::until_ok("the daemon to answer again", || {
        Ok(output(stage.daemon.cli()?.arg("status"))?.status.success().then_some(()))
    })
}

#[test]
fn a_deploy_is_followed_through_a_pause_of_the_daemon() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _old = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let _new = web(&stage, "v2-1").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    let mut deploy = stage.daemon.cli()?;
    deploy.args(["deploy", "web", "v2", "--backends", "2", "--timeout", "90s"]);
    let mut deploy = stage.host.start("deploy", &mut deploy)?;
    wait::until_ok("the deploy to begin", || {
        Ok(stage.daemon.history("web")?.iter().any(|operation| operation.order == "deploy").then_some(()))
    })?;
    stage.daemon.signal(Signal::STOP)?;
    wait::until("the deploy to wait for the daemon", || {
        deploy.stderr().contains("waiting 30 s for the daemon").then_some(())
    })?;
    stage.daemon.signal(Signal::CONT)?;
    let _second = web(&stage, "v2-2").start(&stage)?;
    let status = deploy.wait(wait::STUCK)?;
    let said = deploy.stderr();
    ensure!(status.success() && said.contains("answers again"), "{status:?} {said}");
    all_by(stage.host.net(), 20, "v2").map(drop)
}

#[test]
fn without_a_daemon_every_command_says_how_to_start_one() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let refused = run(stage.host.command("sh")?.args(["-c", "touch /run/pod-steer/plain"]));
    refused?;
    for (socket, reason) in
        [("/run/pod-steer/none.sock", "no such file"), ("/run/pod-steer/plain", "connection refused")]
    {
        for args in ["status", "events", "history", "pause web", "exec --service x --ports 82:8082 -- true"] {
            let ended = output(stage.daemon.cli()?.args(args.split(' ')).env("POD_STEER_SOCKET", socket))?;
            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
            ensure!(ended.status.code() == Some(1) && said.lines().count() == 1, "{args}: {:?} {said}", ended.status);
            let expected = format!("pod-steer is not running (`{socket}`: {reason}). Start it with `pod-steer run`.");
            ensure!(said.contains(&expected), "{args}: {said}");
        }
    }
    Ok(())
}
