//! Forwarding with a newer Docker than the machine's, which drops more: from 28 in the raw table, from 29 with nftables. Run by
//! `cargo xtask newer-docker`, which fetches the engine and names its root directory in `POD_STEER_DOCKER_ROOT`.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::{Container, Spec},
    daemon::Stage,
    engine::{Engine, Options},
    host::{Client, Host},
    load::{Load, Tally},
    process::run,
    report, require,
    rollouts::none_lost,
    server, wait,
};

/// Clients at the same time.
const CLIENTS: u64 = 2;
/// The default bridge has IPv6 too.
const IPV6: [&str; 3] = ["--ipv6", "--fixed-cidr-v6", "fd99::/64"];
/// With these, Docker's nftables rules let forwarded packets pass.
const OPTIONS: [&str; 2] = ["--bridge-accept-fwmark=0x40000000/0x40000000", "--allow-direct-routing"];

/// A service with a server on the default bridge and one on a network of its own. Fields are dropped in this order.
struct Scene {
    servers: Vec<Container>,
    stage: Stage,
    client: Client,
}

impl Scene {
    fn new(arguments: &[&str]) -> Result<Self> {
        let root = std::env::var_os("POD_STEER_DOCKER_ROOT").context("run this by `cargo xtask newer-docker`")?;
        let host = Arc::new(Host::new()?);
        // With nftables, Docker asks the operator for both.
        host.net().sysctl("net.ipv4.ip_forward", "1")?;
        host.net().sysctl("net.ipv6.conf.all.forwarding", "1")?;
        let options = Options::publishing().root(PathBuf::from(root)).arguments(&IPV6).arguments(arguments);
        let engine = Engine::start_with(&host, options)?;
        let stage = Stage::with(host, Some(engine))?;
        let client = stage.host.new_client()?;
        let docker = stage.engine().docker();
        report::figure("newer Docker", docker.run(&["version", "--format", "{{.Server.Version}}"])?);
        let subnets = ["--ipv6", "--subnet", "10.88.0.0/24", "--subnet", "fd88::/64"];
        docker.run(
            &[&["network", "create", "--opt", "com.docker.network.bridge.name=br-shop"], &subnets[..], &["shop"]]
                .concat(),
        )?;
        let servers = [("web-1", "bridge"), ("web-2", "shop")];
        let servers = servers.map(|(name, network)| stage.engine().start_container(&web(name, network)));
        let servers = servers.into_iter().collect::<Result<_>>()?;
        stage.daemon.wait_ready("web", 2)?;
        Ok(Self { servers, stage, client })
    }

    /// The release of the engine: 28 of `28.5.2`.
    fn release(&self) -> Result<u32> {
        let version = self.stage.engine().docker().run(&["version", "--format", "{{.Server.Version}}"])?;
        let number = version.split('.').next().unwrap_or_default();
        number.parse().with_context(|| format!("version {version:?}"))
    }

    fn docker(&self, args: &[&str]) -> Result<String> {
        self.stage.engine().docker().run(args)
    }

    fn iptables(&self, args: &str) -> Result<String> {
        run(self.stage.host.command("iptables")?.args(["-w", "5"]).args(args.split(' ')))
    }

    fn nft_rules(&self) -> Result<String> {
        run(self.stage.host.command("nft")?.args(["list", "ruleset"]))
    }

    fn load(&self) -> Load {
        Load::to((self.client.host_ip4, 80).into()).threads(CLIENTS)
    }

    /// Connections over both families; each server answers, and sees its client.
    fn both_serve(&self) -> Result<()> {
        for host in [self.client.host_ip4, self.client.host_ip6] {
            let tally = Load::to((host, 80).into()).threads(CLIENTS).count(200).run(&self.client.ns)?;
            none_lost(&tally).with_context(|| self.iptables("-S").unwrap_or_default())?;
            ensure!(["web-1", "web-2"].iter().all(|name| tally.answered_by(name) > 20), "{host}: {tally}");
        }
        Ok(())
    }

    fn answered_at_once(&self) -> Result<u64> {
        Ok(self.load().count(4).timeout(Duration::from_millis(800)).run(&self.client.ns)?.answered())
    }

    /// A load during a change, after which both serve.
    fn under_load(&mut self, what: &str, change: impl FnOnce(&mut Self) -> Result<()>) -> Result<Tally> {
        let load = self.load().start(&self.client.ns)?;
        wait::until("some clients to be answered", || (load.answered() > 50).then_some(()))?;
        change(self).with_context(|| what.to_owned())?;
        self.stage.daemon.wait_ready("web", 2)?;
        self.both_serve().with_context(|| format!("after {what}"))?;
        let tally = load.stop()?;
        report::figure(what, &tally);
        Ok(tally)
    }

    /// What the condition of the firewall says to do.
    fn remedy(&self) -> Result<Option<String>> {
        let all = self.stage.daemon.status()?.conditions;
        let found = all.into_iter().find(|of| of.condition.reason == "firewall-drops");
        Ok(found.map(|found| found.condition.remedy))
    }
}

fn web(name: &str, network: &str) -> Spec {
    server::named(name, "[::]:8080").service("web", "80:8080").network(network).label("pod-steer.via", "forward")
}

fn main() -> Result<()> {
    packets_pass_the_rules_of_iptables().context("the rules of iptables")?;
    packets_pass_the_rules_of_nftables_with_the_options_of_the_condition().context("the rules of nftables")
}

fn packets_pass_the_rules_of_iptables() -> Result<()> {
    let mut scene = Scene::new(&[])?;
    let raw = scene.iptables("-t raw -S PREROUTING")?;
    ensure!(raw.contains(" ! -i docker0 -j DROP"), "this engine drops nothing in the raw table: {raw}");
    scene.both_serve()?;

    // An operator's drop holds.
    let dropped = format!("DOCKER-USER -s {} -j DROP", scene.client.ip4);
    scene.iptables(&format!("-I {dropped}"))?;
    ensure!(scene.answered_at_once()? == 0);
    scene.iptables(&format!("-D {dropped}"))?;
    scene.both_serve()?;

    // A published port beside it.
    let spec = server::named("beside", "0.0.0.0:9000").network("bridge").options(&["--publish", "8081:9000"]);
    let _beside = scene.stage.engine().start_container(&spec)?;
    let target: SocketAddr = (scene.client.host_ip4, 8081).into();
    let published = Load::to(target).count(50).run(&scene.client.ns)?;
    ensure!(published.answered_by("beside") == 50, "{published}");

    let tally = scene.under_load("networks that are made and removed", |scene| {
        scene.docker(&["network", "create", "more"])?;
        scene.docker(&["network", "connect", "more", &scene.servers[1].id])?;
        scene.docker(&["network", "disconnect", "more", &scene.servers[1].id])?;
        scene.docker(&["network", "rm", "more"]).map(drop)
    })?;
    none_lost(&tally)?;
    let tally = scene.under_load("restart of dockerd", |scene| scene.stage.restart_engine())?;
    none_lost(&tally)?;
    // Only what is in its accept queue is lost: at most a connection of each client.
    let tally = scene
        .under_load("restart of a container", |scene| scene.docker(&["restart", &scene.servers[0].id]).map(drop))?;
    ensure!(tally.losses.len() as u64 <= CLIENTS && tally.disguised.is_empty(), "{tally}");
    ensure!(scene.remedy()?.is_none(), "{:?}", scene.remedy()?);

    scene.stage.daemon.unload()?;
    for chain in ["-S DOCKER-USER", "-t raw -S PREROUTING"] {
        let rules = scene.iptables(chain)?;
        ensure!(!rules.contains("pod-steer"), "{rules}");
    }
    Ok(())
}

fn packets_pass_the_rules_of_nftables_with_the_options_of_the_condition() -> Result<()> {
    let started = Scene::new(&["--firewall-backend=nftables"]);
    if let Err(error) = &started
        && format!("{error:#}").contains("unknown flag: --firewall-backend")
    {
        require!(Err::<(), _>("this Docker is older than 29".to_owned()));
    }
    let mut scene = started?;
    ensure!(scene.release()? >= 29);
    let remedy = scene.stage.daemon.wait_for("the condition of the firewall", |_| scene.remedy().ok()?)?;
    ensure!(OPTIONS.iter().all(|option| remedy.contains(option)), "{remedy}");
    ensure!(scene.answered_at_once()? == 0);

    scene.stage.engine().set_arguments(&[&IPV6[..], &["--firewall-backend=nftables"], &OPTIONS].concat());
    scene.stage.restart_engine()?;
    scene.both_serve().with_context(|| scene.nft_rules().unwrap_or_default())?;
    // Other packets do not pass: a port that is not published stays closed.
    let direct = scene.docker(&[
        "inspect",
        "--format",
        "{{.NetworkSettings.Networks.bridge.IPAddress}}",
        &scene.servers[0].id,
    ])?;
    let direct = Load::to(SocketAddr::new(direct.parse()?, 8080)).count(2).timeout(Duration::from_millis(800));
    ensure!(direct.run(&scene.client.ns)?.answered() == 0, "a client reaches the container's own address");
    // The next comparison finds that nothing is dropped.
    scene.stage.daemon.kill()?;
    scene.stage.daemon.restart()?;
    scene.stage.daemon.wait_for("the condition to end", |_| scene.remedy().ok()?.is_none().then_some(()))
}
