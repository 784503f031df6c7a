//! Containers of Podman on its default bridge, whose packets are forwarded.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    check,
    container::{Container, Spec},
    daemon::Daemon,
    host::{Client, Host},
    image::Image,
    load::Load,
    podman::Podman,
    report, require,
    rollouts::none_lost,
    server, tools,
};

/// Clients at the same time.
const CLIENTS: u64 = 2;

/// Fields are dropped in this order.
struct Scene {
    containers: Vec<Container>,
    daemon: Daemon,
    podman: Podman,
    client: Client,
    _host: Arc<Host>,
}

impl Scene {
    /// Two servers with these weights.
    fn new(weights: [(&str, u64); 2]) -> Result<Self> {
        let host = Arc::new(Host::new()?);
        let client = host.new_client()?;
        let podman = Podman::start(&host)?;
        podman.import(Image::Named)?;
        let daemon = Daemon::start(&host, &[&podman.url()])?;
        let start = |(name, weight)| podman.start_announced(&daemon, &bridged(name).weight(weight));
        let containers = weights.into_iter().map(start).collect::<Result<_>>()?;
        daemon.wait_ready("web", 2)?;
        Ok(Self { containers, daemon, podman, client, _host: host })
    }

    fn target(&self) -> SocketAddr {
        (self.client.host_ip4, 80).into()
    }

    /// The address of a backend on its bridge.
    fn address(&self, name: &str) -> Result<String> {
        let bridge = self.daemon.status()?.backend("web", name).bridge.clone().context("no bridge")?;
        bridge.addresses.first().cloned().context("no address")
    }

    /// Both servers answer, and see their client.
    fn both_serve(&self) -> Result<()> {
        let tally = Load::to(self.target()).threads(CLIENTS).count(400).run(&self.client.ns)?;
        none_lost(&tally)?;
        ensure!(["web-1", "web-2"].iter().all(|name| tally.answered_by(name) > 50), "{tally}");
        Ok(())
    }
}

fn bridged(name: &str) -> Spec {
    server::named(name, "0.0.0.0:8080").service("web", "80:8080").network("bridge").label("pod-steer.via", "forward")
}

fn needed() -> Result<(), String> {
    tools::root_and(&["podman", "conmon", "docker", "busybox", "ip", "tar", "iptables"])
}

#[test]
fn containers_on_podman_s_bridge_share_by_weight_and_see_their_clients() -> Result<()> {
    require!(needed());
    let weights = [("web-1", 1), ("web-2", 3)];
    let scene = Scene::new(weights)?;
    let load = Load::to(scene.target()).threads(4);
    // The clients' addresses are compared too.
    let service =
        check::measured_shares("two servers on Podman's bridge", &scene.daemon, &scene.client.ns, &load, &weights)?;
    ensure!(service.backends.iter().all(|backend| backend.bridge.is_some()), "{service:#?}");
    Ok(())
}

#[test]
fn a_container_of_podman_is_restarted_under_load() -> Result<()> {
    require!(needed());
    let scene = Scene::new([("web-1", 1), ("web-2", 1)])?;
    let docker = |args: &[&str]| scene.podman.docker().run(args);
    let first = &scene.containers[0];
    let addresses = [scene.address("web-1")?, scene.address("web-2")?];
    ensure!(addresses[0] != addresses[1], "{addresses:?}");

    // After a drain no client notices.
    let load = Load::to(scene.target()).threads(CLIENTS).start(&scene.client.ns)?;
    scene.daemon.order_done("drain web --backend web-1")?;
    docker(&["restart", &first.id])?;
    scene.daemon.order_done("resume web --backend web-1")?;
    scene.daemon.wait_ready("web", 2)?;
    scene.both_serve()?;
    let tally = load.stop()?;
    none_lost(&tally)?;
    report::figure("restart of a drained container on Podman's bridge", &tally);

    // Without one, only the connections in its accept queue are lost: at most one of each client.
    let load = Load::to(scene.target()).threads(CLIENTS).start(&scene.client.ns)?;
    docker(&["restart", &first.id])?;
    scene.daemon.wait_ready("web", 2)?;
    scene.both_serve()?;
    let tally = load.stop()?;
    ensure!(tally.losses.len() as u64 <= CLIENTS && tally.disguised.is_empty(), "{tally}");
    report::figure("restart of a container on Podman's bridge", &tally);
    let service = scene.daemon.wait_idle("web")?;
    ensure!(service.counter("not_forwarded") == 0 && service.counter("no_destination") == 0, "{service:#?}");
    Ok(())
}
