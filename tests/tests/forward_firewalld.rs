//! Forwarding beside a real firewalld, which rejects what no zone or policy accepts: that is a condition, and with the policy that
//! docs/forwarding.md names packets pass, also when firewalld reloads its rules under load.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bridged,
    daemon::Stage,
    engine::Engine,
    host::{Client, Host},
    load::{Load, Loss},
    process::{Process, output, run},
    report, require, tools, wait,
};

/// docs/forwarding.md: the rules are compared so often.
const BACK_MAX: Duration = Duration::from_secs(30);

const DOCS: &str = include_str!("../../docs/forwarding.md");

/// D-Bus and firewalld, as they come out of the box, but for firewalld's files, which are the host's own.
fn start_firewalld(host: &Host) -> Result<[Process; 2]> {
    run(host.command("mkdir")?.arg("/run/dbus"))?;
    let dbus = host.start("dbus", host.command("dbus-daemon")?.args(["--system", "--nofork", "--nopidfile"]))?;
    wait::until("D-Bus", || host.path("/run/dbus/system_bus_socket").exists().then_some(()))?;
    let dir = host.dir().join("firewalld");
    for of in ["zones", "services", "policies", "icmptypes", "ipsets", "helpers"] {
        std::fs::create_dir_all(dir.join(of))?;
    }
    let mut firewalld = host.command("firewalld")?;
    firewalld.args(["--nofork", "--nopid", "--log-target", "console", "--system-config"]).arg(&dir);
    let firewalld = host.start("firewalld", &mut firewalld)?;
    wait::until_ok("firewalld", || {
        let state = output(host.command("firewall-cmd")?.arg("--state"))?;
        Ok(state.status.success().then_some(()))
    })
    .with_context(|| firewalld.stderr())?;
    Ok([dbus, firewalld])
}

/// The number of four clients that are answered at once.
fn answered(client: &Client) -> Result<u64> {
    let target: SocketAddr = (client.host_ip4, 80).into();
    let load = Load::to(target).count(4).threads(4).timeout(Duration::from_millis(800));
    Ok(load.run(&client.ns)?.answered())
}

fn rules(host: &Host) -> String {
    let list = |program: &str, args: &[&str]| run(host.command(program)?.args(args));
    list("iptables", &["-S"]).unwrap_or_default()
        + &list("nft", &["list", "table", "inet", "firewalld"]).unwrap_or_default()
}

#[test]
fn what_firewalld_rejects_is_a_condition_and_its_policy_lets_packets_pass() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["firewalld", "firewall-cmd", "dbus-daemon", "iptables", "nft"]));
    let host = Arc::new(Host::new()?);
    let _firewalld = start_firewalld(&host)?;
    let engine = Engine::start_publishing(&host)?;
    let mut stage = Stage::with(host.clone(), Some(engine))?;
    let client = stage.host.new_client()?;
    let _server = stage.engine().start_container(&bridged::web("web-1"))?;
    stage.daemon.wait_ready("web", 1)?;

    let condition = stage.daemon.wait_for("the condition of the firewall", |status| {
        let mut all = status.conditions.iter().map(|of| &of.condition);
        all.find(|condition| condition.reason == "firewall-drops").cloned()
    })?;
    ensure!(condition.message.contains("firewalld rejects forwarded packets from "), "{condition:?}");
    ensure!(condition.remedy.contains("docs/forwarding.md"), "{condition:?}");
    ensure!(answered(&client)? == 0, "firewalld lets packets pass that no policy accepts: {}", rules(&host));

    // As the document says.
    let commands = DOCS.lines().filter_map(|line| line.strip_prefix("    firewall-cmd "));
    for command in commands {
        run(host.command("firewall-cmd")?.args(command.split(' ')))?;
    }
    // firewalld tells Docker of it, which sets its own rules again.
    wait::until_ok("clients to be answered", || Ok((answered(&client)? == 4).then_some(())))
        .with_context(|| rules(&host))?;

    let target: SocketAddr = (client.host_ip4, 80).into();
    let load = Load::to(target).threads(4).pause(Duration::from_millis(5)).start(&client.ns)?;
    wait::until("some clients to be answered", || (load.answered() > 100).then_some(()))?;
    run(host.command("firewall-cmd")?.arg("--reload"))?;
    let (reloaded, before) = (Instant::now(), load.answered());
    wait::until("clients to be answered again", || (load.answered() > before + 100).then_some(()))
        .with_context(|| rules(&host))?;
    let back = reloaded.elapsed();
    let tally = load.stop()?;
    report::figure("forwarding after a reload of firewalld", format!("{} ms; {tally}", back.as_millis()));
    ensure!(back < BACK_MAX, "{back:?}");
    // While it reloads, it lets nothing pass, or its zones reject before its policy accepts. A client that waits longer than its own limit
    // has given up.
    let others = tally.lost(|loss| !matches!(loss, Loss::ConnectTimedOut | Loss::AnswerTimedOut(_) | Loss::Rejected));
    ensure!(others == 0 && tally.disguised.is_empty(), "{tally}");

    // The next comparison finds it: at the latest with the next daemon.
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_for("the condition to end", |status| {
        status.conditions.iter().all(|of| of.condition.reason != "firewall-drops").then_some(())
    })
}
