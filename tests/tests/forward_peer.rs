//! `pod-steer.via=peer`: packets are handed over into the container's namespace, past the host's firewall and routing.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bridged::Kept,
    check,
    container::Spec,
    daemon::Stage,
    engine::Engine,
    host::{Client, Host},
    load::Load,
    process::run,
    require, server, tools,
    tunnel::Tunnel,
    wait,
};

fn bridged(name: &str, via: &str) -> Spec {
    server::named(name, "0.0.0.0:8080").service("web", "80:8080").network("bridge").label("pod-steer.via", via)
}

#[test]
fn two_servers_share_a_port_and_see_their_clients_past_a_closed_firewall() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["iptables"]));
    let host = Arc::new(Host::new()?);
    let engine = Engine::start_publishing(&host)?;
    let stage = Stage::with(host, Some(engine))?;
    let client = stage.host.new_client()?;
    let iptables = |rule: &str| run(stage.host.command("iptables")?.args(rule.split(' ')));
    iptables("-I FORWARD -j DROP")?;
    let weights = [("web-1", 1), ("web-2", 3)];
    let start = |(name, weight): &(&str, u64)| stage.engine().start_container(&bridged(name, "peer").weight(*weight));
    let _servers = weights.iter().map(start).collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 2)?;
    let load = Load::to((client.host_ip4, 80).into()).threads(4);
    check::measured_shares("peer, port 80 to 8080", &stage.daemon, &client.ns, &load, &weights)?;
    replies_pass_no_bridge(&stage, &client)?;
    // Neither way of such a connection passes there.
    let dropped = run(stage.host.command("iptables")?.args(["-nvxL", "FORWARD", "1"]))?;
    ensure!(dropped.split_whitespace().next() == Some("0"), "FORWARD has seen packets: {dropped}");
    Ok(())
}

/// Clients are answered, and the engine's bridge gets fewer packets than there are clients: each would be four replies or more.
fn replies_pass_no_bridge(stage: &Stage, client: &Client) -> Result<()> {
    let received = || -> Result<u64> {
        let shown = run(stage.host.command("ip")?.args(["-s", "-j", "link", "show", "docker0"]))?;
        let links: serde_json::Value = serde_json::from_str(&shown)?;
        links[0]["stats64"]["rx"]["packets"].as_u64().with_context(|| shown.clone())
    };
    let target = (client.host_ip4, 80).into();
    wait::until_ok("the programs of the containers' ports", || {
        let before = received()?;
        let tally = Load::to(target).count(100).run(&client.ns)?;
        ensure!(tally.losses.is_empty() && tally.requests() == 100, "{tally}");
        Ok((received()? - before < 100).then_some(()))
    })
}

#[test]
fn a_container_that_leaves_and_joins_its_network_keeps_its_connections() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let docker = stage.engine().docker();
    docker.run(&["network", "create", "--subnet", "10.88.0.0/24", "shop"])?;
    let web = bridged("web-1", "peer").network("shop").options(&["--ip=10.88.0.9"]);
    let web = stage.engine().start_container(&web)?;
    stage.daemon.wait_ready("web", 1)?;
    let target = (client.host_ip4, 80).into();
    let mut kept = Kept::open(&client.ns, target)?;
    for _ in 0..3 {
        kept.goes_on()?;
        docker.run(&["network", "disconnect", "shop", &web.id])?;
        // A new pair of devices, the same address and socket.
        docker.run(&["network", "connect", "--ip", "10.88.0.9", "shop", &web.id])?;
    }
    kept.goes_on()?;
    wait::until_ok("new clients", || {
        let tally = Load::to(target).count(20).timeout(Duration::from_secs(2)).run(&client.ns)?;
        Ok((tally.answered_by("web-1") == 20).then_some(()))
    })
}

#[test]
fn a_deploy_from_forwarded_to_handed_over_and_back_loses_nothing() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let version = |name: &str, version: &str, via: &str| bridged(name, via).version(version);
    let manual = |spec: Spec| spec.label("pod-steer.rollout", "manual");
    let _v1 = stage.engine().start_container(&manual(version("web-1", "v1", "forward")))?;
    stage.daemon.wait_ready("web", 1)?;
    let target = (client.host_ip4, 80).into();
    let short = Load::to(target).threads(2).start(&client.ns)?;
    let kept = Load::to(target).threads(2).requests(200).pause(Duration::from_millis(2)).start(&client.ns)?;
    let _v2 = stage.engine().start_container(&manual(version("web-2", "v2", "peer")))?;
    stage.daemon.wait_state("web", "web-2", "standby")?;
    for (to, name) in [("v2", "web-2"), ("v1", "web-1"), ("v2", "web-2")] {
        let before = short.answered();
        stage.daemon.order_done(&format!("deploy web {to}"))?;
        wait::until(&format!("{name} to serve on"), || (short.answered() > before + 200).then_some(()))?;
    }
    // Neither way depends on the daemon.
    stage.daemon.kill()?;
    let before = short.answered();
    wait::until("clients without a daemon", || (short.answered() > before + 200).then_some(()))?;
    for tally in [short.stop()?, kept.stop()?] {
        ensure!(tally.losses.is_empty() && tally.disguised.is_empty(), "{tally}");
        ensure!(tally.answered_by("web-1") > 0 && tally.answered_by("web-2") > 0, "{tally}");
    }
    Ok(())
}

#[test]
fn a_connection_goes_on_when_its_packets_come_by_a_tunnel() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let _web = stage.engine().start_container(&bridged("web-1", "peer"))?;
    stage.daemon.wait_ready("web", 1)?;
    // An address of the host to which two ways lead.
    let address = Ipv4Addr::new(10, 99, 0, 1);
    stage.host.net().ip(&format!("address add {address}/32 dev lo"))?;
    let _tunnel = Tunnel::new(stage.host.net(), &client.ns, "tun0")?;
    let by_tunnel = || client.ns.ip(&format!("route replace {address} dev tun0 src {}", client.ip4));
    let by_ethernet = || client.ns.ip(&format!("route replace {address} via {}", client.host_ip4));
    let target = (address, 80).into();
    // The tunnel has its programs when connections are opened by it.
    by_tunnel()?;
    wait::until_ok("new connections by the tunnel", || {
        let tally = Load::to(target).count(1).timeout(Duration::from_millis(500)).run(&client.ns)?;
        Ok((tally.answered_by("web-1") == 1).then_some(()))
    })?;
    by_ethernet()?;
    let mut kept = Kept::open(&client.ns, target)?;
    kept.goes_on()?;
    by_tunnel()?;
    kept.goes_on()?;
    by_ethernet()?;
    kept.goes_on()
}
