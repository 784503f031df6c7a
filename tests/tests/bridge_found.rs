//! How a container with a network namespace of its own is connected: `status` shows the bridge and the address, or why no bridge leads to
//! it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::{Container, Spec},
    daemon::{Daemon, Stage},
    engine::Engine,
    host::Host,
    image::Image,
    netns::NetNs,
    podman::Podman,
    report, require, server,
    status::{Backend, Status},
    tools,
};

/// Far below the 30 s between two resyncs, which find a change that was not told.
const TOLD_MAX: Duration = Duration::from_secs(20);

/// A server on this network that wants no forwarding, so its condition says how it is connected.
fn web(name: &str, network: &str) -> Spec {
    server::named(name, "0.0.0.0:8080").service("web", "80:8080").network(network).label("pod-steer.via", "socket")
}

/// The address that an engine has given a container on a network.
fn address(stage: &Stage, container: &Container, network: &str) -> Result<String> {
    let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
    stage.engine().docker().run(&["inspect", "--format", &format, &container.id])
}

fn backend<'a>(status: &'a Status, name: &str) -> Option<&'a Backend> {
    status.service("web")?.backends.iter().find(|backend| backend.name == name)
}

/// Waits until `status` has a container behind a bridge of this name, with exactly these addresses. Returns how long that took.
fn wait_behind(daemon: &Daemon, name: &str, bridge: &str, addresses: &[&str]) -> Result<Duration> {
    let begun = Instant::now();
    daemon.wait_for(&format!("{name} behind {bridge} with {addresses:?}"), |status| {
        let own = backend(status, name)?;
        let found = own.bridge.as_ref()?;
        // The condition says the same.
        let condition = own.conditions.iter().find(|condition| condition.reason == "own-network")?;
        let says = |part: &str| condition.message.contains(part);
        let is_right = found.name == bridge && found.addresses == addresses && own.state == "not-steered";
        (is_right && says(bridge) && addresses.iter().all(|address| says(address))).then_some(())
    })?;
    Ok(begun.elapsed())
}

/// Waits until a container has this reason and no bridge.
fn wait_unreached(daemon: &Daemon, name: &str, reason: &str) -> Result<()> {
    daemon.wait_for(&format!("{reason} of {name}"), |status| {
        let own = backend(status, name)?;
        let condition = own.conditions.iter().find(|condition| condition.reason == reason)?;
        let is_complete = own.bridge.is_none() && own.state == "not-steered" && !condition.remedy.is_empty();
        is_complete.then_some(())
    })
}

/// A container without a network. What the test then gives it stands for what an engine or a CNI plug-in makes.
fn bare(stage: &Stage, name: &str) -> Result<(Container, NetNs)> {
    let container = stage.engine().start_container(&web(name, "none"))?;
    wait_unreached(&stage.daemon, name, "no-network")?;
    let inside = NetNs::of_pid(container.pid()?)?;
    Ok((container, inside))
}

/// Has the daemon look at a container: an engine that describes it again is a reason to.
fn describe(stage: &Stage, container: &Container) -> Result<()> {
    stage.engine().docker().run(&["rename", &container.id, "renamed"])?;
    stage.engine().docker().run(&["rename", &container.id, &container.name]).map(drop)
}

#[test]
fn the_address_follows_restarts_and_networks() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let docker = stage.engine().docker();
    let (daemon, name) = (&stage.daemon, "web-1");
    let container = stage.engine().start_container(&web(name, "bridge"))?;
    let first = address(&stage, &container, "bridge")?;
    wait_behind(daemon, name, "docker0", &[&first])?;
    let wide = daemon.order_done("status -o wide")?.stdout;
    ensure!(wide.contains("docker0") && wide.contains(&first) && wide.contains("BRIDGE"), "{wide}");

    // Another container gets its address while it is stopped.
    container.stop()?;
    daemon.wait_for("a stopped container to have no address", |status| {
        backend(status, name)?.bridge.is_none().then_some(())
    })?;
    let other = stage.engine().start_container(&web("web-2", "bridge"))?;
    ensure!(address(&stage, &other, "bridge")? == first, "the engine gives the address to the next container");
    wait_behind(daemon, "web-2", "docker0", &[&first])?;
    container.start()?;
    let second = address(&stage, &container, "bridge")?;
    ensure!(second != first, "{second}");
    let restarted = wait_behind(daemon, name, "docker0", &[&second])?;

    // A network of its own, with IPv6, in place of the default one.
    let subnets = ["--ipv6", "--subnet", "10.88.0.0/24", "--subnet", "fd88::/64"];
    docker.run(
        &[&["network", "create", "--opt", "com.docker.network.bridge.name=br-shop"], &subnets[..], &["shop"]].concat(),
    )?;
    docker.run(&["network", "connect", "--ip", "10.88.0.7", "--ip6", "fd88::7", "shop", &container.id])?;
    docker.run(&["network", "disconnect", "bridge", &container.id])?;
    let connected = wait_behind(daemon, name, "br-shop", &["10.88.0.7", "fd88::7"])?;
    docker.run(&["network", "disconnect", "shop", &container.id])?;
    let disconnected = Instant::now();
    wait_unreached(daemon, name, "no-network")?;
    for (what, took) in [("restart", restarted), ("connect", connected), ("disconnect", disconnected.elapsed())] {
        report::figure(&format!("the address after a {what}"), format!("{} ms", took.as_millis()));
        ensure!(took < TOLD_MAX, "{what}: only a resync found it, after {took:?}");
    }
    Ok(())
}

#[test]
fn an_internal_network_and_two_networks() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let docker = stage.engine().docker();
    let create = |name: &str, subnet: &str, more: &[&str]| {
        let bridge = format!("com.docker.network.bridge.name=br-{name}");
        docker.run(&[&["network", "create", "--subnet", subnet, "--opt", &bridge], more, &[name]].concat())
    };
    create("inside", "10.86.0.0/24", &["--internal"])?;
    create("front", "10.87.0.0/24", &[])?;
    let inside = stage.engine().start_container(&web("web-1", "inside"))?;
    wait_behind(&stage.daemon, "web-1", "br-inside", &[&address(&stage, &inside, "inside")?])?;
    // That of the default route counts.
    docker.run(&["network", "connect", "front", &inside.id])?;
    wait_behind(&stage.daemon, "web-1", "br-front", &[&address(&stage, &inside, "front")?]).map(drop)
}

#[test]
fn containers_that_ran_before_the_daemon() -> Result<()> {
    require!(tools::docker());
    let host = Arc::new(Host::new()?);
    let engine = Engine::start(&host)?;
    let container = engine.start_container(&web("web-1", "bridge"))?;
    let none = engine.start_container(&web("web-2", "none"))?;
    let ip = container.ip()?.to_string();
    let mut daemon = Daemon::start(&host, &[&engine.url()])?;
    wait_behind(&daemon, "web-1", "docker0", &[&ip])?;
    wait_unreached(&daemon, "web-2", "no-network")?;
    // The next daemon knows it without its engine.
    daemon.kill()?;
    engine.signal(rustix::process::Signal::STOP)?;
    daemon.restart()?;
    let known =
        wait_behind(&daemon, "web-1", "docker0", &[&ip]).and_then(|_| wait_unreached(&daemon, "web-2", "no-network"));
    engine.signal(rustix::process::Signal::CONT)?;
    drop(none);
    known
}

#[test]
fn a_macvlan_network() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let neighbour = NetNs::new()?;
    stage.host.net().connect("lan0", &[], &neighbour, "eth0", &["10.85.0.1/24"])?;
    let docker = stage.engine().docker();
    docker.run(&["network", "create", "-d", "macvlan", "--subnet", "10.85.0.0/24", "-o", "parent=lan0", "lan"])?;
    let container = stage.engine().start_container(&web("web-1", "lan"))?;
    wait_unreached(&stage.daemon, "web-1", "macvlan-network")?;
    // With a bridge beside it, the default route decides.
    docker.run(&["network", "connect", "bridge", &container.id])?;
    docker.run(&["network", "disconnect", "lan", &container.id])?;
    wait_behind(&stage.daemon, "web-1", "docker0", &[&container.ip()?.to_string()]).map(drop)
}

/// As the devices of rootless engines, and of engines in containers, appear.
#[test]
fn devices_that_no_bridge_leads_to() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let (container, inside) = bare(&stage, "web-1")?;

    // slirp4netns and pasta.
    for args in ["tuntap add tap0 mode tap", "addr add 10.0.2.100/24 dev tap0", "link set tap0 up"] {
        inside.ip(args)?;
    }
    describe(&stage, &container)?;
    wait_unreached(&stage.daemon, "web-1", "user-mode-network")?;
    inside.ip("link del tap0")?;

    // An overlay network, or a bridge in the namespace of a rootless engine.
    let hidden = NetNs::new()?;
    inside.connect("eth0", &["10.84.0.2/24"], &hidden, "veth0", &["10.84.0.1/24"])?;
    describe(&stage, &container)?;
    wait_unreached(&stage.daemon, "web-1", "bridge-elsewhere")?;
    inside.ip("link del eth0")?;

    inside.ip("link add ifb0 type ifb")?;
    inside.ip("addr add 10.83.0.2/24 dev ifb0")?;
    inside.ip("link set ifb0 up")?;
    describe(&stage, &container)?;
    wait_unreached(&stage.daemon, "web-1", "other-network-device")?;
    inside.ip("link del ifb0")?;

    inside.connect("eth0", &[], stage.host.net(), "ptp0", &["10.82.0.1/24"])?;
    describe(&stage, &container)?;
    wait_unreached(&stage.daemon, "web-1", "no-address")?;
    // A pair without a bridge, as the CNI plug-in `ptp` makes it.
    inside.ip("addr add 10.82.0.2/24 dev eth0")?;
    describe(&stage, &container)?;
    wait_behind(&stage.daemon, "web-1", "ptp0", &["10.82.0.2"]).map(drop)
}

#[test]
fn a_change_that_no_engine_tells() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let (_container, inside) = bare(&stage, "web-1")?;
    inside.connect("eth0", &["10.79.0.2/24"], stage.host.net(), "ptp0", &["10.79.0.1/24"])?;
    // A resync finds it.
    wait_behind(&stage.daemon, "web-1", "ptp0", &["10.79.0.2"]).map(drop)
}

/// A device may have a name that is no text.
#[test]
fn a_container_that_names_its_device_strangely() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let (container, inside) = bare(&stage, "web-1")?;
    inside.ip("tuntap add \u{1b}[2J mode tap")?;
    inside.ip("link set \u{1b}[2J up")?;
    describe(&stage, &container)?;
    wait_unreached(&stage.daemon, "web-1", "user-mode-network")?;
    let status = stage.daemon.status()?;
    let own = backend(&status, "web-1").context("a backend")?;
    ensure!(own.warnings().iter().all(|said| !said.contains('\u{1b}')), "{:?}", own.warnings());
    ensure!(own.warnings().concat().contains("\\u{1b}[2J"), "{:?}", own.warnings());
    Ok(())
}

#[test]
fn a_network_of_podman() -> Result<()> {
    require!(tools::root_and(&["podman", "conmon", "docker", "busybox", "ip", "tar", "iptables"]));
    let host = Arc::new(Host::new()?);
    let podman = Podman::start(&host)?;
    podman.import(Image::Named)?;
    let daemon = Daemon::start(&host, &[&podman.url()])?;
    let docker = podman.docker();
    docker.run(&["network", "create", "--subnet", "10.81.0.0/24", "shop"])?;
    docker.run(&["network", "create", "--subnet", "10.80.0.0/24", "more"])?;
    let container = docker.start(&web("web-1", "shop"))?;
    let bridge =
        |network: &str| docker.run(&["network", "inspect", "--format", "{{index .Options \"x\"}}{{.Id}}", network]);
    bridge("shop")?;
    let of = |status: &Status| backend(status, "web-1")?.bridge.clone();
    let first = daemon.wait_for("a bridge", of)?;
    ensure!(first.addresses == ["10.81.0.2"], "{first:?}");
    docker.run(&["network", "connect", "more", &container.id])?;
    docker.run(&["network", "disconnect", "shop", &container.id])?;
    let begun = Instant::now();
    daemon.wait_for("the other network", |status| of(status).filter(|found| found.addresses == ["10.80.0.2"]))?;
    report::figure("the address after a connect with Podman", format!("{} ms", begun.elapsed().as_millis()));
    ensure!(begun.elapsed() < TOLD_MAX, "only a resync found it");
    Ok(())
}
