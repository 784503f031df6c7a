//! Clients that a container would answer past the host: those on its other networks, and all on the host if its default route leads to another
//! router.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bridged::Kept,
    container::Container,
    daemon::Stage,
    engine::Engine,
    host::Host,
    load::{Load, Tally},
    netns::NetNs,
    require, server, tools,
    wait::until_ok,
};

fn with_rules() -> Result<Stage> {
    let host = Arc::new(Host::new()?);
    let engine = Engine::start_publishing(&host)?;
    Stage::with(host, Some(engine))
}

fn inside(container: &Container) -> Result<NetNs> {
    NetNs::of_pid(container.pid()?)
}

/// All clients are answered; returns the addresses that the server saw in place of theirs.
fn answered(from: &NetNs, target: SocketAddr) -> Result<BTreeSet<String>> {
    let tally = Load::to(target).threads(2).count(60).run(from)?;
    ensure!(tally.losses.is_empty() && tally.answered_by("web-1") == 60, "{target}: {tally}");
    Ok(seen(&tally))
}

fn seen(tally: &Tally) -> BTreeSet<String> {
    tally.disguised.iter().map(|(_, seen)| seen.ip().to_string()).collect()
}

#[test]
fn clients_on_each_network_of_a_container_are_served() -> Result<()> {
    require!(tools::docker());
    let stage = with_rules()?;
    let (docker, client) = (stage.engine().docker(), stage.host.new_client()?);
    for (name, net) in [("first", "10.88.0"), ("second", "10.89.0"), ("third", "10.90.0")] {
        docker.run(&["network", "create", "--subnet", &format!("{net}.0/24"), name])?;
    }
    let spec = server::named("web-1", "0.0.0.0:8080").service("web", "80:8080").network("first");
    let web = stage.engine().start_container(&spec)?;
    let on = |name: &str| stage.engine().start_container(&server::named(name, "0.0.0.0:9000").network(name));
    let clients = [on("first")?, on("second")?, on("third")?];
    let [first, second, third] = [inside(&clients[0])?, inside(&clients[1])?, inside(&clients[2])?];
    stage.daemon.wait_ready("web", 1)?;
    let target = SocketAddr::new(client.host_ip4, 80);
    let gateway = BTreeSet::from(["10.88.0.1".to_owned()]);
    for round in 0..2 {
        // The daemon hears of the disconnection from the engine. Until then, the source is rewritten.
        until_ok("a container on another network to be seen by its own address", || {
            Ok(answered(&second, target)?.is_empty().then_some(()))
        })
        .with_context(|| format!("round {round}"))?;
        docker.run(&["network", "connect", "second", &web.id])?;
        // A SYN that comes before the daemon knows is repeated, and chosen for again.
        let tally = Load::to(target).threads(4).count(40).run(&second)?;
        ensure!(tally.losses.is_empty(), "round {round}: {tally}");
        ensure!(answered(&second, target)? == gateway, "round {round}");
        ensure!(answered(&second, "10.89.0.1:80".parse()?)? == gateway, "round {round}: its own bridge's address");
        ensure!(answered(&first, target)? == gateway, "round {round}");
        ensure!(answered(&third, target)?.is_empty(), "round {round}");
        ensure!(answered(&client.ns, target)?.is_empty(), "round {round}");
        ensure!(answered(&inside(&web)?, target)? == gateway, "round {round}: the backend itself");
        let mut kept = Kept::open(&second, target)?;
        docker.run(&["network", "disconnect", "second", &web.id])?;
        kept.goes_on().with_context(|| format!("round {round}: after the network was disconnected"))?;
    }
    Ok(())
}

#[test]
fn clients_on_the_link_of_a_container_with_another_router_are_served() -> Result<()> {
    require!(tools::docker());
    let stage = with_rules()?;
    let (docker, host, client) = (stage.engine().docker(), stage.host.net(), stage.host.new_client()?);
    // The bridge is a LAN's: the router is another machine, and the host has another address.
    let name = "com.docker.network.bridge.name=br-lan";
    docker.run(&["network", "create", "--subnet", "10.91.0.0/24", "--gateway", "10.91.0.254", "-o", name, "lan"])?;
    host.ip("addr del 10.91.0.254/24 dev br-lan")?;
    host.ip("addr add 10.91.0.250/24 dev br-lan")?;
    let spec = server::named("web-1", "0.0.0.0:8080").service("web", "80:8080").network("lan");
    let web = stage.engine().start_container(&spec)?;
    let beside = stage.engine().start_container(&server::named("beside", "0.0.0.0:9000").network("lan"))?;
    stage.daemon.wait_ready("web", 1)?;
    let own = BTreeSet::from(["10.91.0.250".to_owned()]);
    for ip in ["10.91.0.250", "127.0.0.1", "10.77.0.1"] {
        ensure!(answered(host, SocketAddr::new(ip.parse()?, 80))? == own, "{ip}");
    }
    for from in [&beside, &web] {
        ensure!(answered(&inside(from)?, "10.91.0.250:80".parse()?)? == own, "{}", from.name);
    }
    drop(client);
    Ok(())
}
