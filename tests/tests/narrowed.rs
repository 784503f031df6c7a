//! Ports that may not be claimed any more after a restart are not served any more.

use std::{
    fs,
    io::{Read as _, Write as _},
};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::Exec,
    load::Load,
    require,
    rollouts::{hold, web},
    tools,
};

#[test]
fn allow_ports_narrowed_at_a_restart() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::configured("allow-ports = '80,81,8080'\n")?;
    // The second listens on the very port that it claims.
    let _web = web(&stage, "v1-1").start(&stage)?;
    let _api = Exec::new("api-1", "api", "81:8081", "0.0.0.0:8081").start(&stage)?;
    let _own = Exec::new("own-1", "own", "8080:8082,8082", "0.0.0.0:8082").launch(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.wait_ready("api", 1)?;
    let to = |port: u16| Load::to(format!("127.0.0.1:{port}").parse().expect("an address")).count(20);
    ensure!(to(80).run(stage.host.net())?.answered_by("v1-1") == 20, "it is served at first");
    let mut held = hold(stage.host.net())?;

    stage.daemon.terminate()?;
    fs::write(stage.host.dir().join("pod-steer.toml"), "allow-ports = '81'\n")?;
    stage.daemon.restart()?;
    stage.daemon.wait_state("web", "v1-1", "not-steered")?;
    let said = stage.daemon.status()?.said_about("v1-1").join("\n");
    ensure!(said.contains("port 80 is not allowed") && said.contains("--allow-ports"), "{said}");
    let refused = to(80).run(stage.host.net())?;
    ensure!(refused.refused() == 20, "the kernel's own lookup finds nobody on port 80: {refused}");
    ensure!(to(8080).run(stage.host.net())?.answered_by("v1-1") == 20, "its own port is its own again");
    ensure!(to(81).run(stage.host.net())?.answered_by("api-1") == 20, "what is still allowed is served");
    // Connections that exist go on.
    held.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    held.read_to_string(&mut answer)?;
    ensure!(answer.contains("v1-1"), "{answer}");

    // And back.
    stage.daemon.terminate()?;
    fs::write(stage.host.dir().join("pod-steer.toml"), "allow-ports = '80-81'\n")?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    ensure!(to(80).run(stage.host.net())?.answered_by("v1-1") == 20, "allowed again, served again");
    Ok(())
}

#[test]
fn a_paused_service_loses_a_port_that_is_not_allowed() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let _web = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.order_done("pause web")?;
    stage.daemon.terminate()?;
    fs::write(stage.host.dir().join("pod-steer.toml"), "allow-ports = '81'\n")?;
    stage.daemon.restart()?;
    stage.daemon.wait_state("web", "v1-1", "not-steered")?;
    let refused = Load::to("127.0.0.1:80".parse()?).count(5).run(stage.host.net())?;
    ensure!(refused.refused() == 5, "refused at once, not left to wait: {refused}");
    Ok(())
}
