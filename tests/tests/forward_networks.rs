//! A container behind a bridge gets another device and another address under load: it is moved to another network, or it is restarted.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bridged::{self, Kept, kept},
    container::{Container, Spec},
    daemon::Stage,
    load::Load,
    report, require,
    rollouts::none_lost,
    scale, tools, wait,
};
use rustix::process::Signal;

/// Networks of the engine, and their addresses.
const NETWORKS: [(&str, &str); 2] = [("first", "10.88.0"), ("second", "10.89.0")];

fn on_first(name: &str) -> Spec {
    bridged::web(name).network("first")
}

fn make_networks(stage: &Stage) -> Result<()> {
    NETWORKS.into_iter().try_for_each(|(name, net)| {
        let subnet = format!("{net}.0/24");
        stage.engine().docker().run(&["network", "create", "--subnet", &subnet, name]).map(drop)
    })
}

/// Moves a container from one of the networks to the other.
fn move_to(stage: &Stage, container: &Container, to: usize) -> Result<()> {
    let docker = stage.engine().docker();
    docker.run(&["network", "connect", NETWORKS[to].0, &container.id])?;
    docker.run(&["network", "disconnect", NETWORKS[1 - to].0, &container.id]).map(drop)
}

/// Waits until a server is known by its address on a network.
fn is_known_on(stage: &Stage, name: &str, network: usize) -> Result<()> {
    stage.daemon.wait_for(&format!("{name} to be found on {}", NETWORKS[network].0), |status| {
        let backend = status.service("web")?.backends.iter().find(|one| one.name == name)?;
        backend.bridge.as_ref()?.addresses.iter().any(|ip| ip.starts_with(NETWORKS[network].1)).then_some(())
    })
}

#[test]
fn a_drained_container_moves_to_another_network_under_load() -> Result<()> {
    require!(tools::docker());
    let moves = scale::of(2, 10);
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    make_networks(&stage)?;
    let moved = stage.engine().start_container(&on_first("moved"))?;
    let _other = stage.engine().start_container(&on_first("other"))?;
    stage.daemon.wait_ready("web", 2)?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let mut held = kept(&client, target, 2)?;
    held.retain(|kept| kept.server == "other");
    let short = Load::to(target).threads(3).start(&client.ns)?;
    let long = Load::to(target).threads(2).requests(50).pause(Duration::from_millis(2)).start(&client.ns)?;
    for number in 0..moves {
        stage.daemon.order_done("drain web --backend moved")?;
        stage
            .daemon
            .wait_for("its connections to end", |status| (status.backend("web", "moved").live == 0).then_some(()))?;
        let to = (number + 1) % 2;
        move_to(&stage, &moved, to)?;
        is_known_on(&stage, "moved", to)?;
        stage.daemon.order_done("resume web --backend moved")?;
        let all = Load::to(target).threads(2).count(200).run(&client.ns)?;
        none_lost(&all)?;
        ensure!(all.answered_by("moved") > 50 && all.answered_by("other") > 50, "move {number}: {all}");
        held.iter_mut().try_for_each(Kept::goes_on)?;
    }
    let (short, long) = (short.stop()?, long.stop()?);
    report::figure(
        "a drained container moved to another network under load",
        format!("{moves} moves; {short}; {long}"),
    );
    none_lost(&short)?;
    none_lost(&long)?;
    let service = stage.daemon.status()?.service("web").context("no service")?.clone();
    ensure!(service.counter("refused_no_backend") == 0 && service.counter("flows_full") == 0, "{service:#?}");
    Ok(())
}

#[test]
fn a_repeated_syn_does_not_go_to_an_address_that_is_gone() -> Result<()> {
    require!(tools::docker());
    const CLIENTS: u64 = 24;
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    make_networks(&stage)?;
    let moved = stage.engine().start_container(&on_first("moved"))?;
    let _other = stage.engine().start_container(&on_first("other"))?;
    stage.daemon.wait_ready("web", 2)?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    // The daemon does not hear of the move before the first SYNs.
    stage.daemon.signal(Signal::STOP)?;
    move_to(&stage, &moved, 1)?;
    let before = client.ns.connects()?;
    let clients = Load::to(target).threads(CLIENTS).count(CLIENTS).start(&client.ns)?;
    wait::until_ok("the first SYN of each", || Ok((client.ns.connects()? == before + CLIENTS).then_some(())))?;
    stage.daemon.signal(Signal::CONT)?;
    is_known_on(&stage, "moved", 1)?;
    let tally = clients.stop()?;
    none_lost(&tally)?;
    let repeated = client.ns.tcp_counter("TCPSynRetrans")?;
    report::figure("SYNs to an address that is gone", format!("{repeated} were repeated; {tally}"));
    let service = stage.daemon.wait_idle("web")?;
    ensure!(service.opened() == CLIENTS && tally.answered() == CLIENTS, "{service:#?} {tally}");
    // A server is chosen again for a SYN that is repeated when the new address is known.
    let steered: u64 = service.by_name(|backend| backend.steered).values().sum();
    ensure!(steered > CLIENTS && steered <= CLIENTS + repeated, "{steered} choices, {repeated} repeated SYNs: {tally}");
    Ok(())
}

#[test]
fn a_container_is_restarted_under_load() -> Result<()> {
    require!(tools::docker());
    let restarts = scale::of(3, 20);
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    // It accepts for a moment after SIGTERM. The engine tells of the signal, and new connections go elsewhere at once.
    let restarted = bridged::web_with("restarted", &["--stop-delay-ms", "2000"]);
    let restarted = stage.engine().start_container(&restarted)?;
    let _other = stage.engine().start_container(&bridged::web("other"))?;
    stage.daemon.wait_ready("web", 2)?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let mut held = kept(&client, target, 2)?;
    held.retain(|kept| kept.server == "other");
    let short = Load::to(target).threads(3).start(&client.ns)?;
    let long = Load::to(target).threads(2).requests(50).pause(Duration::from_millis(2)).start(&client.ns)?;
    for number in 0..restarts {
        stage.engine().docker().run(&["restart", "--time", "10", &restarted.id])?;
        stage.daemon.wait_ready("web", 2)?;
        let all = Load::to(target).threads(2).count(200).run(&client.ns)?;
        none_lost(&all)?;
        ensure!(all.answered_by("restarted") > 50 && all.answered_by("other") > 50, "restart {number}: {all}");
        held.iter_mut().try_for_each(Kept::goes_on)?;
    }
    let (short, long) = (short.stop()?, long.stop()?);
    report::figure("a container restarted under load", format!("{restarts} restarts; {short}; {long}"));
    none_lost(&short)?;
    none_lost(&long)?;
    let service = stage.daemon.status()?.service("web").context("no service")?.clone();
    ensure!(service.counter("refused_no_backend") == 0, "{service:#?}");
    Ok(())
}
