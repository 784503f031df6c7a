//! A limit is reached: the backend that needs more is not steered and has a condition, others are not affected, and it recovers when
//! there is room.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use pod_steer_tests::{
    bpf,
    daemon::{BPFFS, Stage},
    exec::{Backend, Exec},
    load::Load,
    process::run,
    require, tools, wait,
};

/// A service with one backend, for clients of `port`.
fn service<'a>(name: &str, port: u16) -> Exec<'a> {
    let target = port + 8000;
    Exec::new(&format!("{name}-1"), name, &format!("{port}:{target}"), &format!("0.0.0.0:{target}"))
}

fn answers(stage: &Stage, port: u16, name: &str) -> Result<()> {
    let tally = Load::to(SocketAddr::from(([127, 0, 0, 1], port))).count(50).run(stage.host.net())?;
    ensure!(tally.answered_by(name) == 50, "port {port}: {tally}\n{}", stage.daemon.log_tail());
    Ok(())
}

/// Waits until the backend is not steered, and checks the words of its condition.
fn not_steered(stage: &Stage, service: &str, words: &[&str]) -> Result<()> {
    stage.daemon.wait_state(service, &format!("{service}-1"), "not-steered")?;
    let said = stage.daemon.status()?.backend(service, &format!("{service}-1")).warnings().join("\n");
    ensure!(words.iter().all(|word| said.contains(word)), "{said}");
    Ok(())
}

/// `full` finds no room and says so with these words. `a` is still served, and `full` gets its place when `a` has ended.
fn recovers(stage: &Stage, words: &[&str], mut a: Backend, full: &Backend) -> Result<()> {
    not_steered(stage, "full", words)?;
    answers(stage, 81, "a-1")?;
    a.process.kill()?;
    stage.daemon.wait_ready("full", 1)?;
    answers(stage, 82, &full.name)?;
    stage.daemon.wait_for("no condition", |status| status.warnings().is_empty().then_some(()))
}

#[test]
fn slot_tables_and_rules() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    // A service with one port and IPv4 listeners has one rule and one table.
    for (limit, what) in [("SLOT_TABLES=1", "slot tables"), ("RULES=1", "RULES")] {
        let stage = Stage::limited(limit)?;
        let a = service("a", 81).start(&stage)?;
        stage.daemon.wait_ready("a", 1)?;
        let full = service("full", 82).start(&stage)?;
        not_steered(&stage, "full", &[what, "all 1 are in use"])?;
        // A change of the service that has its table still takes effect.
        let second = Exec::new("a-2", "a", "81:8081", "0.0.0.0:8081").start(&stage)?;
        stage.daemon.wait_ready("a", 2)?;
        stage.daemon.order_done("drain a --backend a-1")?;
        answers(&stage, 81, "a-2")?;
        stage.daemon.order_done("resume a --backend a-1")?;
        stage.daemon.order_done("drain a --backend a-2")?;
        drop((a, second));
        stage.daemon.wait_ready("full", 1)?;
        answers(&stage, 82, &full.name)?;
        stage.daemon.wait_for("no condition", |status| status.warnings().is_empty().then_some(()))?;
    }
    Ok(())
}

#[test]
fn ports_of_backends() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    // Each backend has one entry for the block of its clients' port and one for its own port.
    let stage = Stage::limited("MANAGED_PORTS=2")?;
    let a = service("a", 81).start(&stage)?;
    stage.daemon.wait_ready("a", 1)?;
    let mut full = service("full", 82).launch(&stage)?;
    ensure!(!full.process.wait(wait::STUCK)?.success(), "an exec without room is refused");
    let said = full.process.stderr();
    ensure!(said.contains("MANAGED_PORTS") && said.contains("all 2 are in use"), "{said}");
    answers(&stage, 81, "a-1")?;
    drop(a);
    stage.daemon.wait_for("a to be gone", |status| status.service("a").is_none().then_some(()))?;
    let full = service("full", 82).start(&stage)?;
    stage.daemon.wait_ready("full", 1)?;
    answers(&stage, 82, &full.name)
}

#[test]
fn services_and_backends() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::limited("SERVICES=1")?;
    let a = service("a", 81).start(&stage)?;
    stage.daemon.wait_ready("a", 1)?;
    let full = service("full", 82).start(&stage)?;
    recovers(&stage, &["services", "all 1 are in use"], a, &full)
}

#[test]
fn places_in_the_socket_map() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    // The daemon's own socket takes one place.
    let stage = Stage::limited("LISTENERS=2")?;
    let a = service("a", 81).start(&stage)?;
    stage.daemon.wait_ready("a", 1)?;
    let full = service("full", 82).start(&stage)?;
    recovers(&stage, &["the socket map is full", "all 2"], a, &full)
}

#[test]
fn networks_of_clients() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::limited("SOURCES=1")?;
    let start = |version: &str| {
        let name = format!("web-{version}");
        Exec::new(&name, "web", "81:8081", "0.0.0.0:8081").flags(&["--version", version]).start(&stage)
    };
    let _servers = [start("v1")?, start("v2")?];
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("shift web v1=1")?;
    let refused = stage.daemon.order("shift web --from 10.0.0.0/8=v2 --from 10.1.0.0/16=v1")?;
    ensure!(refused.code != Some(0), "{refused:?}");
    answers(&stage, 81, "web-v1")?;
    let other = service("other", 82).start(&stage)?;
    stage.daemon.wait_ready("other", 1)?;
    answers(&stage, 82, &other.name)
}

#[test]
fn descriptions_of_sockets() -> Result<()> {
    require!(tools::root_and(&["ip", "bpftool"]));
    let mut stage = Stage::limited("SOCKETS=1")?;
    let a = service("a", 81).start(&stage)?;
    stage.daemon.wait_ready("a", 1)?;
    let full = service("full", 82).start(&stage)?;
    stage.daemon.wait_ready("full", 1)?;
    answers(&stage, 82, &full.name)?;
    let said = stage
        .daemon
        .wait_for("the condition", |status| Some(status.said_about("map SOCKETS")).filter(|said| !said.is_empty()))?;
    ensure!(said[0].contains("all 1 are in use") && said[0].contains("1 so far"), "{said:?}");
    // A resync removes nothing, and the next daemon reports it again.
    for _ in 0..2 {
        stage.daemon.kill()?;
        stage.daemon.restart()?;
        stage.daemon.wait_ready("full", 1)?;
        answers(&stage, 82, &full.name)?;
        answers(&stage, 81, "a-1")?;
    }
    drop(a);
    stage.daemon.wait_for("the condition to end", |status| status.warnings().is_empty().then_some(()))?;
    answers(&stage, 82, &full.name)?;
    // The next daemon writes a removed entry again.
    run(stage.host.command("sh")?.args([
        "-c",
        &format!(
            "key=$(bpftool --json map dump pinned {BPFFS}/maps/SOCKETS | grep -o '\"key\":\\[[^]]*' | head -1 | grep -o '0x..' | tr '\\n' ' ') \
             && bpftool map delete pinned {BPFFS}/maps/SOCKETS key hex $(echo $key | sed 's/0x//g')"
        ),
    ]))?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("full", 1)?;
    answers(&stage, 82, &full.name)
}

/// Whether the socket map has the daemon's own socket, whose key is zero.
fn has_daemon(stage: &Stage) -> Result<bool> {
    let own = serde_json::json!(["0x00", "0x00", "0x00", "0x00", "0x00", "0x00", "0x00", "0x00"]);
    Ok(bpf::entries(&stage.host, "LISTENERS")?.iter().any(|entry| entry["key"] == own))
}

#[test]
fn the_daemons_own_place_in_the_socket_map() -> Result<()> {
    require!(tools::root_and(&["ip", "bpftool", "python3"]));
    let mut stage = Stage::limited("LISTENERS=2")?;
    let a = service("a", 81).start(&stage)?;
    stage.daemon.wait_ready("a", 1)?;
    ensure!(has_daemon(&stage)?, "it is there as a rule");
    // While no daemon runs, a second listener of the backend takes the place of the daemon's socket.
    stage.daemon.kill()?;
    let mut second = a.command(&stage, "python3")?;
    second.args([
        "-I",
        "-u",
        "-c",
        "import socket\ns = socket.create_server(('', 8081))\nprint('listens')\ns.accept()",
    ]);
    let mut second = stage.host.start("second", &mut second)?;
    wait::until("it to listen", || second.stdout().contains("listens").then_some(()))?;
    stage.daemon.restart()?;
    let said = stage
        .daemon
        .wait_for("the condition", |status| Some(status.said_about("map LISTENERS")).filter(|said| !said.is_empty()))?;
    ensure!(said[0].contains("all 2 are in use"), "{said:?}");
    second.kill()?;
    stage.daemon.wait_for("the condition to end", |status| status.warnings().is_empty().then_some(()))?;
    ensure!(has_daemon(&stage)?, "it has entered");
    answers(&stage, 81, "a-1")?;
    // A resync inserts it again.
    run(stage
        .host
        .command("bpftool")?
        .args(["map", "delete", "pinned", &format!("{BPFFS}/maps/LISTENERS")])
        .args(["key", "hex", "00", "00", "00", "00", "00", "00", "00", "00"]))?;
    wait::until_ok("it to be there again", || Ok(has_daemon(&stage)?.then_some(())))
}

#[test]
fn own_listeners() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    // A listener has two entries: one with its backend and one without.
    let stage = Stage::limited("OWN_LISTENERS=1")?;
    let mut server = stage.host.command(tools::named_server()?)?;
    server.args(["--name", "early", "--listen", "0.0.0.0:8081"]);
    let early = stage.host.start("early", &mut server)?;
    wait::until("the server to listen", || early.stdout().contains("listening ").then_some(()))?;
    let mut register = stage.daemon.cli()?;
    register.args(["register", "--pid", &early.pid().to_string(), "--name", "early", "--service", "web"]);
    run(register.args(["--ports", "81:8081"]))?;
    stage.daemon.wait_ready("web", 1)?;
    answers(&stage, 81, "early")?;
    let said = stage.daemon.wait_for("the condition", |status| {
        Some(status.said_about("map OWN_LISTENERS")).filter(|said| !said.is_empty())
    })?;
    ensure!(said[0].contains("all 1 are in use"), "{said:?}");
    Ok(())
}
