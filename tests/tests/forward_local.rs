//! Clients of a forwarded port that are on the same machine: on the host, in other containers, and the backend itself.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::{Container, Spec},
    daemon::Stage,
    exec::Exec,
    load::{Load, Tally},
    netns::NetNs,
    require, server, tools,
};

fn on(spec: Spec, network: &str) -> Spec {
    spec.service("web", "80:8080").network(network)
}

fn ask(from: &NetNs, target: SocketAddr, count: u64) -> Result<Tally> {
    Load::to(target).threads(2).count(count).timeout(Duration::from_secs(5)).run(from)
}

/// All clients are answered, by these servers.
fn answered(from: &NetNs, target: SocketAddr, by: &[&str]) -> Result<Tally> {
    let tally = ask(from, target, 100).with_context(|| format!("to {target}"))?;
    ensure!(tally.losses.is_empty() && tally.answered() == 100, "{target}: {tally}");
    let names: BTreeSet<&str> = tally.by_name.keys().map(String::as_str).collect();
    ensure!(names == by.iter().copied().collect(), "{target}: {tally}");
    Ok(tally)
}

/// The addresses that servers saw in place of the client's.
fn seen(tally: &Tally) -> BTreeSet<String> {
    tally.disguised.iter().map(|(_, seen)| seen.ip().to_string()).collect()
}

fn inside(container: &Container) -> Result<NetNs> {
    NetNs::of_pid(container.pid()?)
}

#[test]
fn clients_of_the_host_and_of_other_containers_are_served() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let (host, client) = (stage.host.net(), stage.host.new_client()?);
    host.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    let docker = stage.engine().docker();
    docker.run(&["network", "create", "--ipv6", "--subnet", "10.88.0.0/24", "--subnet", "fd88::/64", "shop"])?;
    docker.run(&["network", "create", "--ipv6", "--subnet", "10.89.0.0/24", "--subnet", "fd89::/64", "other"])?;
    let servers =
        ["web-1", "web-2"].map(|name| stage.engine().start_container(&on(server::named(name, "[::]:8080"), "shop")));
    let [first, second] = servers;
    let (first, _second) = (first?, second?);
    let beside = stage.engine().start_container(&server::named("beside", "[::]:9000").network("shop"))?;
    let other = stage.engine().start_container(&server::named("other", "[::]:9000").network("other"))?;
    stage.daemon.wait_ready("web", 2)?;
    let both = ["web-1", "web-2"];
    let at = |ip: &str| -> Result<SocketAddr> { Ok(SocketAddr::new(ip.parse()?, 80)) };

    // From the host to its own addresses: the server sees them, but for those of the loopback device.
    for ip in [client.host_ip4, client.host_ip6] {
        ensure!(seen(&answered(host, SocketAddr::new(ip, 80), &both)?).is_empty());
    }
    ensure!(seen(&answered(host, at("127.0.0.1")?, &both)?) == BTreeSet::from(["10.88.0.1".to_owned()]));
    ensure!(seen(&answered(host, at("::1")?, &both)?) == BTreeSet::from(["fd88::1".to_owned()]));
    // From a container on another bridge: its own address.
    ensure!(seen(&answered(&inside(&other)?, SocketAddr::new(client.host_ip4, 80), &both)?).is_empty());
    // From one on the same bridge, and from a backend itself: the host's address there.
    for from in [&beside, &first] {
        let inside = inside(from)?;
        let tally = answered(&inside, SocketAddr::new(client.host_ip4, 80), &both)?;
        ensure!(seen(&tally) == BTreeSet::from(["10.88.0.1".to_owned()]), "{}: {tally}", from.name);
        let tally = answered(&inside, SocketAddr::new(client.host_ip6, 80), &both)?;
        ensure!(seen(&tally) == BTreeSet::from(["fd88::1".to_owned()]), "{}: {tally}", from.name);
    }
    // Connections to the container itself are left alone.
    let direct: SocketAddr = "10.88.0.2:8080".parse()?;
    let tally = ask(host, direct, 50)?;
    ensure!(tally.losses.is_empty() && tally.disguised.is_empty() && tally.by_name.len() == 1, "{tally}");
    Ok(())
}

#[test]
fn a_backend_on_the_host_is_served_by_itself_beside_a_forwarded_one() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let host = stage.host.net();
    let _bridged = stage.engine().start_container(&on(server::named("web-in", "0.0.0.0:8080"), "bridge"))?;
    let outside = Exec::new("web-out", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    answered(host, "127.0.0.1:80".parse()?, &["web-in", "web-out"])?;
    // A backend's connection to the port that it serves comes to itself.
    let mut own = outside.command(&stage, "python3")?;
    let program = "import urllib.request\nprint({urllib.request.urlopen('http://127.0.0.1:80').read().split()[0] for _ in range(40)})";
    let said = pod_steer_tests::process::run(own.args(["-c", program]))?;
    ensure!(said.trim() == "{b'web-out'}", "{said}");
    Ok(())
}
