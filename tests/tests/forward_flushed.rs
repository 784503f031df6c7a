//! Another program flushes the host's firewall, as a reload of firewalld does: the rules for forwarded packets come back, and what
//! pod-steer cannot set again is a condition.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::{Container, Spec},
    daemon::Stage,
    engine::Engine,
    host::{Client, Host},
    load::{Load, Loss},
    process::run,
    report, require, server, tools, wait,
};

/// docs/forwarding.md: the rules are compared every 30 s, and a comparison takes some time.
const BACK_MAX: Duration = Duration::from_secs(45);
/// How long to wait for clients that must not be answered.
const AT_ONCE: Duration = Duration::from_millis(800);
/// How long to wait for clients that must be answered.
const PATIENCE: Duration = Duration::from_secs(20);

struct Scene {
    _server: Container,
    stage: Stage,
    client: Client,
}

impl Scene {
    /// A server behind the bridge of an engine that sets its own rules, as out of the box. Packets pass, and need both rules for that.
    fn new() -> Result<Self> {
        let host = Arc::new(Host::new()?);
        let engine = Engine::start_publishing(&host)?;
        let stage = Stage::with(host, Some(engine))?;
        let client = stage.host.new_client()?;
        drop_direct(&stage.host)?;
        let server = stage.engine().start_container(&bridged("web-1"))?;
        stage.daemon.wait_ready("web", 1)?;
        let scene = Self { _server: server, stage, client };
        scene.wait_for_rules()?;
        ensure!(scene.answered(PATIENCE)? == 4, "{}", scene.iptables("-S")?);
        Ok(scene)
    }

    fn target(&self) -> SocketAddr {
        (self.client.host_ip4, 80).into()
    }

    fn iptables(&self, args: &str) -> Result<String> {
        iptables(&self.stage.host, args)
    }

    fn wait_for_rules(&self) -> Result<()> {
        let ours = |args: &str| -> Result<bool> { Ok(self.iptables(args)?.contains("--comment pod-steer")) };
        let both = || Ok((ours("-S DOCKER-USER")? && ours("-t raw -S PREROUTING")?).then_some(()));
        wait::until_within(2 * wait::STUCK, "both rules", both)
    }

    /// The number of four clients that are answered within this time.
    fn answered(&self, within: Duration) -> Result<u64> {
        Ok(Load::to(self.target()).count(4).threads(4).timeout(within).run(&self.client.ns)?.answered())
    }
}

fn iptables(host: &Host, args: &str) -> Result<String> {
    run(host.command("iptables")?.args(["-w", "5"]).args(args.split(' ')))
}

/// Drops packets as Docker 28 does with a rule for each container.
fn drop_direct(host: &Host) -> Result<()> {
    iptables(host, "-t raw -A PREROUTING -d 172.17.0.0/16 ! -i docker0 -j DROP").map(drop)
}

fn bridged(name: &str) -> Spec {
    server::named(name, "0.0.0.0:8080").service("web", "80:8080").network("bridge").label("pod-steer.via", "forward")
}

#[test]
fn flushed_rules_come_back_under_load() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["iptables"]));
    let scene = Scene::new()?;
    let load = Load::to(scene.target()).threads(4).pause(Duration::from_millis(5)).start(&scene.client.ns)?;
    wait::until("some clients to be answered", || (load.answered() > 100).then_some(()))?;
    scene.iptables("-F DOCKER-USER")?;
    scene.iptables("-t raw -F")?;
    // Docker sets its own rules when firewalld has reloaded.
    drop_direct(&scene.stage.host)?;
    let (flushed, before) = (Instant::now(), load.answered());
    scene.wait_for_rules()?;
    let back = flushed.elapsed();
    wait::until("clients to be answered again", || (load.answered() > before + 100).then_some(()))?;
    let tally = load.stop()?;
    report::figure("forwarding after a flush of the firewall", format!("{} ms; {tally}", back.as_millis()));
    ensure!(back < BACK_MAX, "{back:?}");
    // A client that waits longer than its own limit has given up. None is refused or reset.
    let others = tally.lost(|loss| !matches!(loss, Loss::ConnectTimedOut | Loss::AnswerTimedOut(_)));
    ensure!(others == 0 && tally.losses.len() <= 4 && tally.disguised.is_empty(), "{tally}");
    Ok(())
}

#[test]
fn a_forward_chain_that_was_flushed_is_a_condition_until_docker_is_restarted() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["iptables"]));
    let mut scene = Scene::new()?;
    scene.iptables("-F")?;
    ensure!(scene.iptables("-S FORWARD")?.trim() == "-P FORWARD DROP" && scene.answered(AT_ONCE)? == 0);
    let condition = scene.stage.daemon.wait_for("the condition of the firewall", |status| {
        // Connections that do not open are the sooner of two reasons to compare.
        let _ = scene.answered(AT_ONCE);
        let mut all = status.conditions.iter().map(|of| &of.condition);
        all.find(|condition| condition.reason == "firewall-drops").cloned()
    })?;
    ensure!(condition.message.contains("does not lead to DOCKER-USER"), "{condition:?}");
    ensure!(condition.remedy.contains("restart Docker"), "{condition:?}");

    // As the remedy says. Docker 20.10 with live-restore does not lead to DOCKER-USER again.
    scene.stage.restart_engine()?;
    if !scene.iptables("-S FORWARD")?.contains("-j DOCKER-USER") {
        ensure!(condition.remedy.contains("`iptables -I FORWARD -j DOCKER-USER`"), "{condition:?}");
        scene.iptables("-I FORWARD -j DOCKER-USER")?;
    }
    wait::until_ok("clients to be answered again", || Ok((scene.answered(PATIENCE)? == 4).then_some(())))
        .with_context(|| scene.iptables("-S").unwrap_or_default())?;
    // The next comparison finds it: at the latest with the next daemon.
    scene.stage.daemon.kill()?;
    scene.stage.daemon.restart()?;
    scene.stage.daemon.wait_for("the condition to end", |status| {
        status.conditions.iter().all(|of| of.condition.reason != "firewall-drops").then_some(())
    })
}
