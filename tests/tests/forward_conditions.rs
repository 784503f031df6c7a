//! What keeps clients from a forwarded backend is told, and ends with its cause.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use pod_steer_tests::{bridged, daemon::Stage, listeners, load::Load, require, server, tools, wait};
use rustix::process::Signal;

/// How long to wait for clients that must be answered.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_device_that_forwards_nothing_is_told() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let _server = stage.engine().start_container(&bridged::web("web-1"))?;
    stage.daemon.wait_ready("web", 1)?;
    let is_told = |stage: &Stage| -> Result<bool> {
        let said = stage.daemon.status()?.said_about("firewall");
        Ok(said.iter().any(|said| said.contains("`net/ipv4/conf/client0/forwarding` is 0")))
    };
    let answered = |within: Duration| -> Result<u64> {
        let target: SocketAddr = (client.host_ip4, 80).into();
        Ok(Load::to(target).count(2).timeout(within).run(&client.ns)?.answered())
    };
    for (value, reaches, within) in [("0", 0, Duration::from_millis(500)), ("1", 2, PATIENCE)] {
        stage.host.net().sysctl("net.ipv4.conf.client0.forwarding", value)?;
        ensure!(answered(within)? == reaches, "{value}");
        // The settings are compared every 30 s, and by the next daemon.
        stage.daemon.kill()?;
        stage.daemon.restart()?;
        wait::until_ok("the condition of the device", || Ok((is_told(&stage)? == (reaches == 0)).then_some(())))?;
    }
    Ok(())
}

#[test]
fn labels_and_addresses_that_have_no_effect_are_told() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let via = server::named("on-host", "0.0.0.0:8812").service("web", "80:8812").label("pod-steer.via", "forward");
    let _on_host = stage.engine().start_container(&via.network("host"))?;
    stage.daemon.wait_ready("web", 1)?;
    let infos = stage.daemon.status()?.backend("web", "on-host").infos().join("\n");
    ensure!(infos.contains("`pod-steer.via=forward` has no effect"), "{infos}");
    let inner = bridged::forwarded(server::named("inner", "127.0.0.1:8080").service("inner", "81:8080"));
    let _inner = stage.engine().start_container(&inner)?;
    stage.daemon.wait_for("the condition of the address", |status| {
        let reasons = status.service("inner")?.backends.first()?.reasons();
        (reasons == ["not-reachable"]).then_some(())
    })
}

#[test]
fn a_port_is_claimed_as_soon_as_another_server_leaves_it() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let mut other = listeners::unmanaged(&stage, stage.host.net(), "other", &["0.0.0.0:80"])?;
    let _server = stage.engine().start_container(&bridged::web("web-1"))?;
    stage.daemon.wait_for("the condition of the port", |status| {
        status.backend("web", "web-1").reasons().contains(&"port-in-use").then_some(())
    })?;
    let answered_by = |name: &str| -> Result<bool> {
        let tally = Load::to(target).count(3).timeout(Duration::from_secs(1)).run(&client.ns)?;
        Ok(tally.answered_by(name) == 3)
    };
    let tally = Load::to(target).count(3).timeout(PATIENCE).run(&client.ns)?;
    ensure!(tally.answered_by("other@0.0.0.0:80") == 3, "the port is its own: {tally} {}", stage.daemon.status()?);
    other.signal(Signal::TERM)?;
    other.wait(wait::STUCK)?;
    let gone = Instant::now();
    wait::until_ok("the claim", || Ok(answered_by("web-1")?.then_some(())))?;
    ensure!(gone.elapsed() < Duration::from_secs(15), "{:?}", gone.elapsed());
    Ok(())
}
