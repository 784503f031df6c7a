//! Clients of a forwarded port that are on the same machine: on the host, in other containers, and the backend itself.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bridged::{self, Kept},
    container::{Container, Spec},
    daemon::Stage,
    engine::{Engine, Options},
    exec::Exec,
    host::Host,
    load::{Load, Tally},
    netns::NetNs,
    process::run,
    require, server, tools,
};

const MARK: &str = "0x40000000/0x40000000";

fn on(spec: Spec, network: &str) -> Spec {
    spec.service("web", "80:8080").network(network)
}

fn ask(from: &NetNs, target: SocketAddr, count: u64) -> Result<Tally> {
    Load::to(target).threads(2).count(count).run(from)
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

/// The firewall's rules, for messages.
fn rules(stage: &Stage) -> String {
    let save = |program: &str| stage.host.command(program).and_then(|mut save| run(save.arg("-c")));
    ["iptables-save", "ip6tables-save"].map(|program| save(program).unwrap_or_default()).concat()
}

fn inside(container: &Container) -> Result<NetNs> {
    NetNs::of_pid(container.pid()?)
}

/// As an engine is out of the box, for both families: it translates the source of what leaves a bridge, and keeps networks apart.
fn with_rules() -> Options {
    Options::publishing().arguments(&["--experimental", "--ip6tables=true"])
}

#[test]
fn clients_of_the_host_and_of_other_containers_are_served() -> Result<()> {
    require!(tools::docker());
    clients_are_served(Options::default())
}

#[test]
fn clients_are_served_past_docker_s_rules() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["iptables", "ip6tables"]));
    clients_are_served(with_rules())
}

fn clients_are_served(options: Options) -> Result<()> {
    let host = Arc::new(Host::new()?);
    let engine = Engine::start_with(&host, options)?;
    let stage = Stage::with(host, Some(engine))?;
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
    if rules(&stage).contains("MASQUERADE") {
        // This engine has no DOCKER-USER for IPv6.
        run(stage.host.command("ip6tables")?.args(["-I", "FORWARD", "-m", "mark", "--mark", MARK, "-j", "ACCEPT"]))?;
    }
    let both = ["web-1", "web-2"];
    let at = |ip: &str| -> Result<SocketAddr> { Ok(SocketAddr::new(ip.parse()?, 80)) };

    // From the host to its own addresses: the server sees them, but for those of the loopback device.
    for ip in [client.host_ip4, client.host_ip6] {
        ensure!(seen(&answered(host, SocketAddr::new(ip, 80), &both)?).is_empty());
    }
    let tally = answered(host, at("127.0.0.1")?, &both)?;
    ensure!(seen(&tally) == BTreeSet::from(["10.88.0.1".to_owned()]));
    // No program that connects to a container directly gets one of these ports from the kernel.
    ensure!(tally.disguised.iter().all(|(_, seen)| seen.port() > 60_999), "{:?}", tally.disguised);
    ensure!(seen(&answered(host, at("::1")?, &both)?) == BTreeSet::from(["fd88::1".to_owned()]));
    // The addresses of a bridge too, whose source Docker's rules translate.
    for ip in ["10.88.0.1", "fd88::1", "10.89.0.1"] {
        answered(host, at(ip)?, &both).with_context(|| rules(&stage))?;
    }
    // From a container on another bridge: its own address, whichever address of the host it connects to.
    for ip in [client.host_ip4, client.host_ip6, "10.88.0.1".parse()?, "10.89.0.1".parse()?, "fd89::1".parse()?] {
        let tally = answered(&inside(&other)?, SocketAddr::new(ip, 80), &both).with_context(|| rules(&stage))?;
        // Its port may be in use at a server, by a connection to another address of the host.
        let own = if ip.is_ipv4() { "10.89.0.2" } else { "fd89::2" };
        ensure!(seen(&tally).iter().all(|seen| seen == own), "{ip}: {:?}", tally.disguised);
    }
    // From one on the same bridge, and from a backend itself: the host's address there.
    for from in [&beside, &first] {
        let inside = inside(from)?;
        let tally = answered(&inside, SocketAddr::new(client.host_ip4, 80), &both)?;
        ensure!(seen(&tally) == BTreeSet::from(["10.88.0.1".to_owned()]), "{}: {tally}", from.name);
        let tally = answered(&inside, SocketAddr::new(client.host_ip6, 80), &both)?;
        ensure!(seen(&tally) == BTreeSet::from(["fd88::1".to_owned()]), "{}: {tally}", from.name);
    }
    // Bridged frames pass no rules of iptables without br_netfilter, which an engine need not load.
    if host.sysctl("net.bridge.bridge-nf-call-iptables", "0").is_ok() {
        answered(&inside(&other)?, SocketAddr::new(client.host_ip4, 80), &both)?;
        answered(&inside(&beside)?, SocketAddr::new(client.host_ip4, 80), &both)?;
        answered(host, at("127.0.0.1")?, &both)?;
    }
    // Connections to the container itself are left alone. The host's conntrack may choose another port: a connection whose source its rules
    // have translated may have had the same one.
    let direct: SocketAddr = "10.88.0.2:8080".parse()?;
    let tally = ask(host, direct, 50)?;
    ensure!(tally.losses.is_empty() && tally.by_name.len() == 1, "{tally}");
    ensure!(seen(&tally).iter().all(|seen| seen == "10.88.0.1"), "{:?}", tally.disguised);
    Ok(())
}

#[test]
fn a_client_on_another_bridge_keeps_its_connection_and_an_operator_s_drops_hold() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["iptables", "bpftool"]));
    let host = Arc::new(Host::new()?);
    let engine = Engine::start_publishing(&host)?;
    let mut stage = Stage::with(host, Some(engine))?;
    let client = stage.host.new_client()?;
    let _server = stage.engine().start_container(&bridged::web("web-1"))?;
    stage.engine().docker().run(&["network", "create", "--subnet", "10.89.0.0/24", "other"])?;
    let other = stage.engine().start_container(&server::named("other", "0.0.0.0:9000").network("other"))?;
    stage.daemon.wait_ready("web", 1)?;
    let (inside, target) = (inside(&other)?, SocketAddr::new(client.host_ip4, 80));
    let mut kept = Kept::open(&inside, target)?;
    // Without a daemon, and when the entries of connections are lost.
    stage.daemon.kill()?;
    kept.goes_on()?;
    bridged::forget(&stage.host)?;
    kept.goes_on()?;
    answered(&inside, target, &["web-1"])?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    kept.goes_on()?;

    let rule = |change: &str, rest: &str| {
        let mut command = stage.host.command("iptables")?;
        run(command.args(["-w", "5", change, "DOCKER-USER"]).args(rest.split(' ')).args(["-j", "DROP"]))
    };
    for drop in ["-s 10.89.0.0/24", "-p tcp --dport 8080"] {
        rule("-I", drop)?;
        let tally = Load::to(target).count(2).threads(2).timeout(Duration::from_millis(800)).run(&inside)?;
        ensure!(tally.answered() == 0, "{drop}: {tally}");
        rule("-D", drop)?;
        answered(&inside, target, &["web-1"]).with_context(|| format!("after {drop}"))?;
    }
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
    let said = run(own.args(["-c", program]))?;
    ensure!(said.trim() == "{b'web-out'}", "{said}");
    Ok(())
}
