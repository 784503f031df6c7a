//! Ports that may no longer be claimed are no longer served: after a restart, and as soon as the settings are reloaded.

use std::fs;

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::Exec,
    load::Load,
    require,
    rollouts::{hold, web},
    settings::{goes_on, reload, reload_wrong, write},
    status::{Service, Status},
    tools, wait,
};
use rustix::process::Signal;

fn clients(port: u16) -> Load {
    Load::to(([127, 0, 0, 1], port).into()).count(20)
}

/// Waits until `v1-1` is not steered, and returns its condition.
fn refused_because(stage: &Stage) -> Result<String> {
    stage.daemon.wait_state("web", "v1-1", "not-steered")?;
    Ok(stage.daemon.status()?.said_about("v1-1").join("\n"))
}

#[test]
fn allow_ports_narrowed_at_a_restart() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::configured("allow-ports = '80,81,8080'\n")?;
    // The second one listens on the port that it claims.
    let _web = web(&stage, "v1-1").start(&stage)?;
    let _api = Exec::new("api-1", "api", "81:8081", "0.0.0.0:8081").start(&stage)?;
    let _own = Exec::new("own-1", "own", "8080:8082,8082", "0.0.0.0:8082").launch(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.wait_ready("api", 1)?;
    ensure!(clients(80).run(stage.host.net())?.answered_by("v1-1") == 20, "it is served at first");
    let mut held = hold(stage.host.net())?;

    stage.daemon.terminate()?;
    write(&stage, "allow-ports = '81'\n")?;
    stage.daemon.restart()?;
    let said = refused_because(&stage)?;
    ensure!(said.contains("port 80 is not allowed") && said.contains("--allow-ports"), "{said}");
    let refused = clients(80).run(stage.host.net())?;
    ensure!(refused.refused() == 20, "the kernel's own lookup finds no listener on port 80: {refused}");
    ensure!(clients(8080).run(stage.host.net())?.answered_by("v1-1") == 20, "its own port is its own again");
    ensure!(clients(81).run(stage.host.net())?.answered_by("api-1") == 20, "what is still allowed is served");
    goes_on(&mut held, "v1-1")?;

    // Widened again.
    stage.daemon.terminate()?;
    write(&stage, "allow-ports = '80-81'\n")?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    ensure!(clients(80).run(stage.host.net())?.answered_by("v1-1") == 20, "allowed again, served again");
    Ok(())
}

#[test]
fn a_paused_service_loses_a_port_that_is_not_allowed() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let _web = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.order_done("pause web")?;
    stage.daemon.terminate()?;
    fs::write(stage.host.dir().join("pod-steer.toml"), "allow-ports = '81'\n")?;
    stage.daemon.restart()?;
    stage.daemon.wait_state("web", "v1-1", "not-steered")?;
    let refused = Load::to("127.0.0.1:80".parse()?).count(5).run(stage.host.net())?;
    ensure!(refused.refused() == 5, "refused at once, not left to wait: {refused}");
    Ok(())
}

#[test]
fn allow_ports_narrowed_at_once() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::configured("allow-ports = '80,81'\n")?;
    let _web = web(&stage, "v1-1").start(&stage)?;
    let _api = Exec::new("api-1", "api", "81:8081", "0.0.0.0:8081").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.wait_ready("api", 1)?;
    let net = stage.host.net();
    let mut held = hold(net)?;
    reload(&stage, "allow-ports = '81'\n")?;
    let said = refused_because(&stage)?;
    ensure!(said.contains("port 80 is not allowed") && said.contains("--allow-ports"), "{said}");
    let refused = clients(80).run(net)?;
    ensure!(refused.refused() == 20, "no server listens on port 80: {refused}");
    ensure!(clients(81).run(net)?.answered_by("api-1") == 20, "what is still allowed is served");
    goes_on(&mut held, "v1-1")?;
    reload(&stage, "allow-ports = '80-81'\n")?;
    stage.daemon.wait_ready("web", 1)?;
    ensure!(clients(80).run(net)?.answered_by("v1-1") == 20, "allowed again, served again");
    Ok(())
}

#[test]
fn allow_ports_of_a_service() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    const ALLOWED: &str = "[service.web]\nallow-ports = '80'\n['service'.'*']\nallow-ports = '81'\n";
    const NARROWED: &str = "[service.web]\nallow-ports = '8000-8999'\n['service'.'*']\nallow-ports = '81'\n";
    let mut stage = Stage::configured(ALLOWED)?;
    let _web = web(&stage, "v1-1").start(&stage)?;
    let _api = Exec::new("api-1", "api", "81:8081", "0.0.0.0:8081").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.wait_ready("api", 1)?;
    // Refused by its own table, and by that of all services.
    for (service, ports, table) in [("web", "81:8090", "[service.web]"), ("api", "80:8090", "[service.\"*\"]")] {
        let refused = Exec::new("thief", service, ports, "0.0.0.0:8090").start(&stage).expect_err("it is refused");
        let said = format!("{refused:#}");
        ensure!(said.contains(&format!("is not in `allow-ports` of {table}")), "{said}");
    }
    let mut held = hold(stage.host.net())?;
    let narrowed = |stage: &Stage| -> Result<()> {
        let said = refused_because(stage)?;
        ensure!(said.contains("port 80 is not in `allow-ports` of [service.web]"), "{said}");
        ensure!(clients(80).run(stage.host.net())?.refused() == 20);
        ensure!(clients(81).run(stage.host.net())?.answered_by("api-1") == 20, "another service is not concerned");
        Ok(())
    };
    reload(&stage, NARROWED)?;
    narrowed(&stage)?;
    goes_on(&mut held, "v1-1")?;
    reload(&stage, ALLOWED)?;
    stage.daemon.wait_ready("web", 1)?;
    ensure!(clients(80).run(stage.host.net())?.answered_by("v1-1") == 20, "allowed again, served again");
    stage.daemon.terminate()?;
    write(&stage, NARROWED)?;
    stage.daemon.restart()?;
    narrowed(&stage)?;
    // Both restrictions apply.
    reload(&stage, &format!("allow-ports = '81'\n{ALLOWED}"))?;
    let said = refused_because(&stage)?;
    ensure!(said.contains("port 80 is not allowed; allow it with `run --allow-ports`"), "{said}");
    Ok(())
}

#[test]
fn settings_that_are_wrong_change_nothing() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::configured("allow-ports = '80'\n")?;
    let _web = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let serves = || -> Result<()> {
        ensure!(clients(80).run(stage.host.net())?.answered_by("v1-1") == 20);
        ensure!(stage.daemon.status()?.service("web").is_some_and(|web| web.ready() == 1));
        Ok(())
    };
    let wrong = "allow-ports = '81'\n[service.web]\nallow-ports = '80-'\nwieght = 1\n";
    let said = reload_wrong(&stage, wrong)?;
    for word in
        ["pod-steer.toml", "service.web.allow-ports=\"80-\"", "not a list of ports", "service.web.wieght is unknown"]
    {
        ensure!(said.contains(word), "{word}: {said}");
    }
    serves()?;
    // A missing file allows nothing.
    fs::remove_file(stage.host.dir().join("pod-steer.toml"))?;
    stage.daemon.signal(Signal::HUP)?;
    stage.daemon.wait_for("a condition of the file", |status| {
        status.said_about("the settings").iter().any(|said| said.contains("cannot be read")).then_some(())
    })?;
    serves()?;
    fs::write(stage.host.dir().join("pod-steer.toml"), "")?;
    let over = |status: &Status| status.warnings().is_empty().then_some(());
    reload(&stage, "allow-ports = '80'\n")?;
    stage.daemon.wait_for("the condition to end", over)?;
    // Settings that cannot change at run time are reported, and the others change.
    reload(&stage, "allow-ports = '81'\nmax-backends = 7\ngroup = '7'\n")?;
    let said = stage.daemon.status()?.said_about("the settings").join("\n");
    ensure!(said.contains("group differs") && said.contains("restart the daemon to apply"), "{said}");
    ensure!(said.contains("max-backends differs") && said.contains("`pod-steer unload`"), "{said}");
    refused_because(&stage)?;
    reload(&stage, "allow-ports = '80'\n")?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.wait_for("the condition to end", over)
}

#[test]
fn settings_of_services_are_followed_at_once() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::configured("log-level = 'info'\n")?;
    let events = stage.host.start("events", stage.daemon.cli()?.arg("events"))?;
    let _first = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    // No server listens on the port of this check.
    reload(
        &stage,
        "[service.web]\nrollout = 'manual'\n[service.web.health]\nkind = 'tcp'\nport = 9999\ninterval = '20ms'\n",
    )?;
    stage.daemon.wait_state("web", "v1-1", "starting")?;
    let all = "health in [service.web]";
    wait::until("an event that names what has changed", || {
        let told = events.stdout();
        (told.contains("settings-read") && told.contains("rollout in [service.web]") && told.contains(all))
            .then_some(())
    })?;
    reload(&stage, "[service.web]\nrollout = 'manual'\n")?;
    stage.daemon.wait_ready("web", 1)?;
    let _second = web(&stage, "v2-1").start(&stage)?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    reload(&stage, "[service.web]\nrollout = 'latest'\n")?;
    stage.daemon.wait_state("web", "v1-1", "standby")
}

/// A listener with two tables loses one of them with a port that may no longer be claimed. Its queue still moves to the members of the
/// other table.
#[test]
fn a_queue_moves_after_one_of_two_ports_was_narrowed() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::configured("allow-ports = '80-81'\n")?;
    let listen = |name: &'static str| Exec::new(name, "web", "80:9000,81:9000", "0.0.0.0:9000");
    let deaf = listen("deaf").server(&["--accept-delay-ms", "600000"]).start(&stage)?;
    let _good = listen("good").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    reload(&stage, "allow-ports = '81'\n")?;
    wait::until_ok("port 80 to have no service", || {
        Ok((clients(80).run(stage.host.net())?.refused() == 20).then_some(()))
    })?;
    // Some clients of port 80 may have been served until then.
    let before = stage.daemon.status()?;
    let opened = |status: &Status| status.service("web").map_or(0, Service::opened);
    let waiting = clients(81).threads(20).start(stage.host.net())?;
    stage.daemon.wait_for("all clients to be connected", |status| {
        let deaf = status.backend("web", "deaf").opened > before.backend("web", "deaf").opened;
        (deaf && opened(status) == opened(&before) + 20).then_some(())
    })?;
    deaf.process.signal(Signal::KILL)?;
    let tally = waiting.stop()?;
    ensure!(tally.answered_by("good") == 20, "{tally}");
    Ok(())
}
