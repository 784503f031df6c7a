//! Forwarded packets and the host's firewall: they pass where Docker drops what is not published, and an operator's drops hold.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    bridged,
    daemon::Stage,
    engine::Engine,
    host::{Client, Host},
    load::Load,
    process::run,
    require, server,
    status::Status,
    tools, wait,
};

/// How long to wait for clients that must not be answered.
const AT_ONCE: Duration = Duration::from_millis(800);

/// A host whose engine sets its own rules, as out of the box.
fn publishing() -> Result<(Stage, Client)> {
    let host = Arc::new(Host::new()?);
    let engine = Engine::start_publishing(&host)?;
    let stage = Stage::with(host, Some(engine))?;
    let client = stage.host.new_client()?;
    Ok((stage, client))
}

fn iptables(stage: &Stage, args: &str) -> Result<String> {
    run(stage.host.command("iptables")?.args(["-w", "5"]).args(args.split(' ')))
}

fn ours(stage: &Stage, args: &str) -> Result<usize> {
    Ok(iptables(stage, args)?.lines().filter(|line| line.contains("pod-steer")).count())
}

/// The number of three clients that are answered within this time.
fn answered(client: &Client, within: Duration) -> Result<u64> {
    let target: SocketAddr = (client.host_ip4, 80).into();
    Ok(Load::to(target).count(3).threads(3).timeout(within).run(&client.ns)?.answered())
}

/// Whether every client is answered.
fn passes(client: &Client) -> Result<bool> {
    Ok(answered(client, Duration::from_secs(20))? == 3)
}

/// Whether no client is answered.
fn is_dropped(client: &Client) -> Result<bool> {
    Ok(answered(client, AT_ONCE)? == 0)
}

#[test]
fn packets_pass_docker_s_rules_and_an_operator_s_drops_hold() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["iptables"]));
    let (mut stage, client) = publishing()?;
    ensure!(iptables(&stage, "-S FORWARD")?.contains("-P FORWARD DROP"), "the engine drops what it does not know");
    let server = stage.engine().start_container(&bridged::web("web-1"))?;
    stage.daemon.wait_ready("web", 1)?;
    wait::until_ok("our rule", || Ok((ours(&stage, "-S DOCKER-USER")? == 1).then_some(())))?;
    ensure!(passes(&client)?, "{}", iptables(&stage, "-S")?);
    ensure!(ours(&stage, "-t raw -S PREROUTING")? == 0, "this engine drops nothing there");

    // An operator's drop by source, and by the port of the container.
    for drop in [format!("-s {} -j DROP", client.ip4), "-p tcp --dport 8080 -j DROP".to_owned()] {
        iptables(&stage, &format!("-I DOCKER-USER {drop}"))?;
        ensure!(is_dropped(&client)?, "{drop}");
        iptables(&stage, &format!("-D DOCKER-USER {drop}"))?;
        ensure!(passes(&client)?, "after {drop}");
    }

    // Flushed by another program: the daemon sees that no connection opens.
    iptables(&stage, "-F DOCKER-USER")?;
    wait::until_ok("the rule to be set again", || {
        // Some of these clients may come just before the rule.
        answered(&client, AT_ONCE)?;
        Ok((ours(&stage, "-S DOCKER-USER")? == 1).then_some(()))
    })?;
    ensure!(passes(&client)?);
    stage.daemon.wait_for("the condition to end", |status| {
        (!status.backend("web", "web-1").reasons().contains(&"forward-unanswered")).then_some(())
    })?;

    // The last forwarded backend takes the rule along.
    stage.engine().docker().run(&["rm", "--force", &server.id])?;
    let removed = |stage: &Stage| Ok((ours(stage, "-S DOCKER-USER")? == 0).then_some(()));
    wait::until_ok("the rule to be removed", || removed(&stage))?;

    // As a daemon leaves it that is killed after it has detached and before it has removed the rule.
    stage.daemon.kill()?;
    iptables(&stage, "-A DOCKER-USER -m mark --mark 0x40000000/0x40000000 -m comment --comment pod-steer -j ACCEPT")?;
    stage.daemon.restart()?;
    wait::until_ok("the rule to be removed by the next daemon", || removed(&stage))
}

#[test]
fn packets_pass_drops_in_the_raw_table_and_unload_removes_the_rules() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["iptables"]));
    let (stage, client) = publishing()?;
    // As Docker 28 does for each container.
    iptables(&stage, "-t raw -A PREROUTING -d 172.17.0.0/16 ! -i docker0 -j DROP")?;
    let _server = stage.engine().start_container(&bridged::web("web-1"))?;
    stage.daemon.wait_ready("web", 1)?;
    wait::until_ok("both rules", || {
        Ok((ours(&stage, "-S DOCKER-USER")? + ours(&stage, "-t raw -S PREROUTING")? == 2).then_some(()))
    })?;
    ensure!(passes(&client)?, "{}", iptables(&stage, "-t raw -S")?);
    stage.daemon.unload()?;
    ensure!(ours(&stage, "-S DOCKER-USER")? + ours(&stage, "-t raw -S PREROUTING")? == 0, "unload removes our rules");
    ensure!(iptables(&stage, "-t raw -S PREROUTING")?.contains("-d 172.17.0.0/16"), "and no others");
    Ok(())
}

#[test]
fn a_closed_chain_without_docker_stays_closed() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["iptables"]));
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    iptables(&stage, "-P FORWARD DROP")?;
    // What is handed over passes no such chain.
    let spec = server::named("web-0", "0.0.0.0:8080").service("web", "80:8080").network("bridge");
    let handed_over = stage.engine().start_container(&spec.label("pod-steer.via", "peer"))?;
    stage.daemon.wait_ready("web", 1)?;
    ensure!(passes(&client)?);
    let is_named = |status: &Status| status.conditions.iter().any(|of| of.condition.reason == "firewall-drops");
    ensure!(!is_named(&stage.daemon.status()?), "{:?}", stage.daemon.status()?.conditions);
    stage.engine().docker().run(&["rm", "--force", &handed_over.id])?;

    let _server = stage.engine().start_container(&bridged::web("web-1"))?;
    stage.daemon.wait_ready("web", 1)?;
    // The rules are compared every 30 s, and by the next daemon.
    let mut stage = stage;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    let said = stage.daemon.wait_for("the condition of the firewall", |status| {
        status.conditions.iter().map(|of| &of.condition).find(|condition| condition.reason == "firewall-drops").cloned()
    })?;
    ensure!(said.message.contains("IPv4") && said.remedy.contains("docs/forwarding.md"), "{said:?}");
    stage.daemon.wait_ready("web", 1)?;
    ensure!(is_dropped(&client)?, "what the host drops stays dropped");
    iptables(&stage, "-A FORWARD -m mark --mark 0x40000000/0x40000000 -j ACCEPT")?;
    iptables(&stage, "-A FORWARD -i docker0 -j ACCEPT")?;
    ensure!(passes(&client)?, "as docs/forwarding.md says");
    // The next comparison finds the rule: at the latest with the next daemon.
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_for("the condition to end", |status| (!is_named(status)).then_some(()))
}
