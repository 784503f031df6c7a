//! Access to the API: operators may give all orders, viewers may read, and the kernel keeps every other user out.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::Backend,
    load::Load,
    orders::Ordered,
    process::Process,
    require,
    roles::{OPERATORS, User, VIEWERS},
    rollouts::web,
    tools, wait,
};
use serde_json::{Value, json};

fn stage() -> Result<(Stage, [Backend; 2])> {
    let stage = Stage::configured(&format!("group = '{OPERATORS}'\nviewers = '{VIEWERS}'\n"))?;
    let both = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    Ok((stage, both))
}

/// The command is refused with one line that contains all of these parts.
fn refused(ordered: Ordered, said: &[&str]) -> Result<()> {
    let Ordered { command, stderr, .. } = ordered.expect(1)?;
    ensure!(stderr.trim_end().lines().count() == 1, "{command}: {stderr}");
    ensure!(said.iter().all(|said| stderr.contains(said)), "{command}: {stderr}");
    Ok(())
}

#[test]
fn an_operator_may_order_what_root_may() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv", "curl"]));
    let (stage, servers) = stage()?;
    let operator = User::with_groups(&[OPERATORS]);
    let order = |args: &str| operator.run(&stage, args)?.expect(0).map(drop);
    // Backends of root, on port 80.
    order("shift web v2=1")?;
    ensure!(stage.daemon.decision("web")?["traffic"]["weights"] == json!({ "v2": 1 }));
    let (_, history) = stage.daemon.api("/v1/history?service=web", None)?;
    let who = history[0]["who"].as_str().context("no name")?.to_owned();
    ensure!(who.starts_with(&format!("uid {} (pid ", operator.uid())), "{who}");
    order("drain web --backend v1-1")?;
    order("resume web --backend v1-1")?;
    let pid = format!("named-server[{}]", servers[0].process.pid());
    let sockets = operator.run(&stage, "sockets --live")?.expect(0)?.stdout;
    ensure!(sockets.contains(&pid) && sockets.contains("0 connections"), "{sockets}");
    // A process of root on a privileged port.
    let mut server = stage.host.command(tools::named_server()?)?;
    let server: Process = stage.host.start("root-1", server.args(["--name", "root-1", "--listen", "0.0.0.0:9090"]))?;
    wait::until("the server to listen", || server.stdout().contains("listening").then_some(()))?;
    order(&format!("register --pid {} --service root --ports 81:9090 --name root-1", server.pid()))?;
    stage.daemon.wait_ready("root", 1)?;
    let tally = Load::to("127.0.0.1:81".parse()?).count(20).run(stage.host.net())?;
    ensure!(tally.answered_by("root-1") == 20, "{tally}");
    let mut stage = stage;
    let unloaded = operator.post(&stage, "/v1/unload", "{}")?;
    ensure!(unloaded.ends_with("\n200"), "{unloaded}");
    ensure!(stage.daemon.exit_code()? == Some(0), "{}", stage.daemon.log_tail());
    Ok(())
}

#[test]
fn a_viewer_may_read_and_nothing_else() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv", "curl"]));
    let (stage, _servers) = stage()?;
    let viewer = User::with_groups(&[VIEWERS]);
    ensure!(viewer.run(&stage, "status")?.expect(0)?.stdout.contains("v1-1"));
    stage.daemon.order_done("shift web v2=1")?;
    ensure!(viewer.run(&stage, "history web")?.expect(0)?.stdout.contains("shift"));
    let sockets: Value = serde_json::from_str(&viewer.run(&stage, "sockets --json")?.expect(0)?.stdout)?;
    let list = sockets["sockets"].as_array().context("sockets")?;
    let is_hidden = |socket: &Value| socket["uid"].is_null() && socket["holders"].is_null();
    ensure!(list.len() == 2 && list.iter().all(|socket| is_hidden(socket) && socket["backlog"] != 0), "{sockets}");
    ensure!(list.iter().all(|socket| socket["processes"] == json!([])), "{sockets}");
    for live in ["sockets --live", "sockets --live --json --service web"] {
        refused(viewer.run(&stage, live)?, &["may not list connections", "as root", "run --group"])?;
    }
    let before = (stage.daemon.decision("web")?, stage.daemon.status()?.services.len());
    let pid = stage.daemon.pid();
    for order in [
        "pause web".to_owned(),
        "shift web v1=1".to_owned(),
        "drain web --version v2".to_owned(),
        "deploy web v1 --stop-old".to_owned(),
        "exec --service mine --ports 8090 -- true".to_owned(),
        format!("register --pid {pid} --service mine --ports 8090"),
    ] {
        refused(viewer.run(&stage, &order)?, &["may only read", "as root", "run --group"])?;
    }
    let unload = viewer.post(&stage, "/v1/unload", "{}")?;
    ensure!(unload.contains("may only read") && unload.ends_with("\n403"), "{unload}");
    ensure!((stage.daemon.decision("web")?, stage.daemon.status()?.services.len()) == before, "nothing has changed");
    Ok(())
}

/// The kernel refuses the connection before the daemon sees it.
#[test]
fn another_user_does_not_reach_the_daemon() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let (stage, _servers) = stage()?;
    let stranger = User::with_groups(&[]);
    let way_out = ["may not use", "as root", "run --group", "--viewers"];
    for order in ["status", "pause web", "events"] {
        refused(stranger.run(&stage, order)?, &way_out)?;
    }
    ensure!(!stage.daemon.log().contains("refused a client"), "{}", stage.daemon.log_tail());
    // If the socket's mode is changed, the daemon refuses them.
    fs::set_permissions(stage.daemon.runtime_dir().join("api.sock"), Permissions::from_mode(0o666))?;
    for order in ["status", "pause web", "events"] {
        refused(stranger.run(&stage, order)?, &way_out)?;
    }
    ensure!(stage.daemon.log().contains("refused a client"), "{}", stage.daemon.log_tail());
    let viewer = User::with_groups(&[VIEWERS]);
    refused(viewer.run(&stage, "pause web")?, &["may only read"])
}
