//! The daemon and every backend of a service have ended: the kernel's own lookup decides again, so an unmanaged server gets the clients
//! of the port. While a socket listens that clients must not reach, they are refused.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::{Backend, Exec, listening_ns},
    load::{Load, Tally},
    process::Process,
    require, tools, wait,
};

/// An unmanaged server.
fn unmanaged(stage: &Stage, port: u16) -> Result<Process> {
    let mut command = stage.host.command(tools::named_server()?)?;
    command.args(["--name", "unmanaged", "--listen", &format!("0.0.0.0:{port}")]);
    let server = stage.host.start("unmanaged", &mut command)?;
    wait::until("the server to listen", || listening_ns(&server.stdout())).with_context(|| server.stderr())?;
    Ok(server)
}

fn connect(stage: &Stage, port: u16) -> Result<Tally> {
    Load::to(SocketAddr::from(([127, 0, 0, 1], port))).count(50).run(stage.host.net())
}

fn all_answered(stage: &Stage, port: u16, name: &str) -> Result<()> {
    let tally = connect(stage, port)?;
    ensure!(tally.answered_by(name) == 50, "port {port} is to be {name}'s: {tally}");
    Ok(())
}

fn all_refused(stage: &Stage, port: u16) -> Result<()> {
    let tally = connect(stage, port)?;
    ensure!(tally.refused() == 50, "port {port} is to refuse: {tally}");
    Ok(())
}

fn web(stage: &Stage, ports: &str) -> Result<Backend> {
    let backend = Exec::new("web-1", "web", ports, "0.0.0.0:8080").start(stage)?;
    stage.daemon.wait_ready("web", 1)?;
    Ok(backend)
}

#[test]
fn a_claim_outlives_its_backends_only_with_a_daemon() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    for port in [80, 8080] {
        let mut stage = Stage::without_engine()?;
        let mut web = web(&stage, &format!("{port}:8080"))?;
        stage.daemon.kill()?;
        all_answered(&stage, port, "web-1")?;
        web.process.kill()?;
        let _server = unmanaged(&stage, port)?;
        all_answered(&stage, port, "unmanaged")?;
        // The next daemon finds no backend, so it claims nothing.
        stage.daemon.restart()?;
        all_answered(&stage, port, "unmanaged")?;
    }
    Ok(())
}

#[test]
fn a_drained_backend_gets_no_client_when_the_daemon_dies() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let mut web = web(&stage, "8080:8080")?;
    stage.daemon.order_done("drain web")?;
    all_refused(&stage, 8080)?;
    stage.daemon.kill()?;
    all_refused(&stage, 8080)?;
    stage.daemon.restart()?;
    all_refused(&stage, 8080)?;
    let counted = stage.daemon.status()?;
    let service = counted.service("web").context("web is known")?;
    ensure!(service.counter("refused_no_backend") == 150 && service.counter("passed_no_daemon") == 0, "{counted}");
    stage.daemon.kill()?;
    web.process.kill()?;
    let _server = unmanaged(&stage, 8080)?;
    all_answered(&stage, 8080, "unmanaged")
}

#[test]
fn passed_lookups_are_counted() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let mut doomed = web(&stage, "80:8080")?;
    let _other = Exec::new("web-2", "web", "81:8081", "0.0.0.0:8081").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.kill()?;
    doomed.process.kill()?;
    // The kernel's own lookup refuses them.
    all_refused(&stage, 80)?;
    all_answered(&stage, 81, "web-2")?;
    stage.daemon.restart()?;
    let status = stage.daemon.status()?;
    let service = status.service("web").context("web is known")?;
    ensure!(service.counter("passed_no_daemon") == 50 && service.counter("refused_no_backend") == 0, "{status}");
    Ok(())
}

#[test]
fn a_hidden_port_is_refused_as_long_as_its_socket_listens() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let mut stage = Stage::without_engine()?;
    let _first = web(&stage, "80:8080")?;
    let before = stage.host.net().listening_ports()?;
    let second = Exec::new("web-2", "web", "80:8080", "0.0.0.0:8080").user(4711);
    let mut second = second.start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    let now = stage.host.net().listening_ports()?;
    let hidden = *now.difference(&before).next().context("a hidden port")?;
    all_refused(&stage, hidden)?;
    stage.daemon.kill()?;
    all_refused(&stage, hidden)?;
    second.process.kill()?;
    let _server = unmanaged(&stage, hidden)?;
    all_answered(&stage, hidden, "unmanaged")
}

/// The rule names the only backend that may serve. Its newest listener gets clients for which no table has a socket. The decision
/// excludes that backend, and the daemon dies before it has rewritten the rule.
#[test]
fn a_waiting_version_gets_no_client_when_the_daemon_dies_at_the_switch() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::configured("[service.web]\nrollout = 'manual'\n")?;
    let start =
        |name: &str| Exec::new(name, "web", "80:8080", "0.0.0.0:8080").flags(&["--version", name]).start(&stage);
    let _one = start("v1")?;
    stage.daemon.wait_ready("web", 1)?;
    let mut two = start("v2")?;
    stage.daemon.wait_state("web", "v2", "standby")?;
    stage.daemon.kill()?;
    stage.daemon.restart_to_die("switched")?;
    stage.daemon.wait_state("web", "v2", "standby")?;
    let shift = stage.daemon.order("shift web v2=1")?;
    ensure!(shift.code != Some(0), "the daemon dies: {shift:?}");
    stage.daemon.wait_until_dead()?;
    all_answered(&stage, 80, "v2")?;
    two.process.kill()?;
    all_refused(&stage, 80)?;
    // The next daemon writes the rule according to the decision.
    stage.daemon.restart()?;
    all_refused(&stage, 80)?;
    let _again = Exec::new("v2-2", "web", "80:8080", "0.0.0.0:8080").flags(&["--version", "v2"]).start(&stage)?;
    stage.daemon.wait_state("web", "v2-2", "ready")?;
    all_answered(&stage, 80, "v2-2")
}
