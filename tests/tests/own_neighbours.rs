//! A backend connects to a port number of its own, at an address where another service or an unmanaged server listens.

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    asked::{TRIES, ensure_asked},
    bpf,
    daemon::Stage,
    exec::{self, Backend, Exec},
    process::{Process, run},
    require, tools, wait,
};

fn needs() -> Result<(), String> {
    tools::root_and(&["ip", "curl", "python3"])
}

fn start(stage: &Stage, name: &str, service: &str, ports: &str, listen: &str) -> Result<Backend> {
    Exec::new(name, service, ports, listen).flags(&["--version", name]).start(stage)
}

fn unmanaged(stage: &Stage, listen: &str) -> Result<Process> {
    let mut command = stage.host.command(tools::named_server()?)?;
    command.args(["--name", "unmanaged", "--listen", listen]);
    let server = stage.host.start("unmanaged", &mut command)?;
    wait::until("the server to listen", || exec::listening_ns(&server.stdout())).with_context(|| server.stderr())?;
    Ok(server)
}

/// A further process of the backend, which runs a Python script.
fn script(stage: &Stage, backend: &Backend, script: &str) -> Result<Process> {
    let mut command = backend.command(stage, "python3")?;
    stage.host.start("script", command.args(["-I", "-u", "-c", script]))
}

/// The kernel's own lookup prefers a listener on one address to one on every address, and so does a claim.
#[test]
fn a_listener_on_every_address_gives_way_to_another_services_address() -> Result<()> {
    require!(needs());
    let stage = Stage::without_engine()?;
    let api = start(&stage, "api-1", "api", "127.0.0.4:8080", "127.0.0.4:8080")?;
    let next = start(&stage, "next-1", "next", "91:9090", "127.0.0.4:9090")?;
    let web = Exec::new("web-1", "web", "127.0.0.2:8080,90:9090", "0.0.0.0:8080");
    let web = web.server(&["--listen", "0.0.0.0:9090"]).start(&stage)?;
    for service in ["api", "next", "web"] {
        stage.daemon.wait_ready(service, 1)?;
    }
    for address in ["127.0.0.2:8080", "127.0.0.5:8080", "127.0.0.5:9090", "127.0.0.4:90"] {
        ensure_asked(&stage, &web, &[], address, "web-1")?;
    }
    ensure_asked(&stage, &web, &[], "127.0.0.4:9090", "next-1")?;
    ensure_asked(&stage, &next, &[], "127.0.0.4:9090", "next-1")?;
    ensure_asked(&stage, &api, &[], "127.0.0.4:8080", "api-1")?;
    let none = stage.daemon.wait_idle("api")?;
    ensure!(none.backends[0].opened == 0, "its connections to itself are not counted: {none:?}");
    // It is a client of the other service, which is counted.
    ensure_asked(&stage, &web, &[], "127.0.0.4:8080", "api-1")?;
    let counted = stage.daemon.wait_idle("api")?.backends[0].clone();
    ensure!((counted.opened, counted.closed) == (TRIES as u64, TRIES as u64), "{counted:?}");
    Ok(())
}

/// A connection in the accept queue of another service's closing listener is moved like that of any client.
#[test]
fn a_client_of_another_service_moves_with_the_queue() -> Result<()> {
    require!(needs());
    let stage = Stage::without_engine()?;
    let api = |name: &str, args: &[&str]| {
        Exec::new(name, "api", "127.0.0.4:8080", "127.0.0.4:8080").server(args).start(&stage)
    };
    let mut deaf = api("deaf", &["--accept-delay-ms", "600000"])?;
    let web = start(&stage, "web-1", "web", "127.0.0.2:8080", "0.0.0.0:8080")?;
    stage.daemon.wait_ready("api", 1)?;
    stage.daemon.wait_ready("web", 1)?;
    let mut curl = web.command(&stage, "curl")?;
    let mut curl = stage.host.start("curl", curl.args(["--silent", "--max-time", "60", "http://127.0.0.4:8080/"]))?;
    stage
        .daemon
        .wait_for("the client to be counted", |status| (status.backend("api", "deaf").opened == 1).then_some(()))?;
    let _good = api("good", &[])?;
    stage.daemon.wait_ready("api", 2)?;
    deaf.process.kill()?;
    ensure!(curl.wait(wait::STUCK)?.success(), "the client was reset: {}", curl.stderr());
    ensure!(curl.stdout().starts_with("good"), "{}", curl.stdout());
    Ok(())
}

/// The kernel gives no IPv4 client to a listener that takes IPv6 only, so an unmanaged server keeps those of its address.
#[test]
fn a_listener_for_ipv6_only_refuses_no_ipv4_connection() -> Result<()> {
    require!(needs());
    let stage = Stage::without_engine()?;
    let _unmanaged = unmanaged(&stage, "127.0.0.3:8080")?;
    let web = start(&stage, "web-1", "web", "80:8080", "[::]:8080,v6only")?;
    stage.daemon.wait_ready("web", 1)?;
    for address in ["[::1]:80", "[::1]:8080"] {
        ensure_asked(&stage, &web, &[], address, "web-1")?;
    }
    ensure_asked(&stage, &web, &[], "127.0.0.3:8080", "unmanaged")?;
    for address in ["127.0.0.1:80", "127.0.0.1:8080"] {
        ensure_asked(&stage, &web, &[], address, "7")?;
    }
    Ok(())
}

/// `fallback = pass` also applies to a backend that does not listen. No other backend answers it.
#[test]
fn the_fallback_holds_for_a_backend_that_does_not_listen() -> Result<()> {
    require!(needs());
    let stage = Stage::without_engine()?;
    let _unmanaged = unmanaged(&stage, "0.0.0.0:80")?;
    let passing = |name: &str, listen: &str| {
        Exec::new(name, "web", "80:8080", listen).flags(&["--fallback", "pass"]).start(&stage)
    };
    let one = passing("one", "0.0.0.0:8080")?;
    stage.daemon.wait_ready("web", 1)?;
    let late = passing("late", "0.0.0.0:9999")?;
    ensure_asked(&stage, &one, &[], "127.0.0.1:80", "one")?;
    ensure_asked(&stage, &late, &[], "127.0.0.1:80", "unmanaged")?;
    ensure_asked(&stage, &late, &[], "127.0.0.1:8080", "7")
}

/// The newest listener of a backend has closed, and no daemon runs that could name another one.
#[test]
fn an_older_listener_is_found_without_a_daemon() -> Result<()> {
    require!(needs());
    let mut stage = Stage::without_engine()?;
    let web = start(&stage, "web-1", "web", "80:8080", "0.0.0.0:8080")?;
    stage.daemon.wait_ready("web", 1)?;
    let listen = "import socket, time\ns = socket.create_server(('0.0.0.0', 8080))\nprint('listens')\ntime.sleep(600)";
    let mut newest = script(&stage, &web, listen)?;
    wait::until("it to listen", || newest.stdout().contains("listens").then_some(()))
        .with_context(|| newest.stderr())?;
    stage.daemon.wait_for("both sockets", |status| (status.backend("web", "web-1").sockets == 2).then_some(()))?;
    stage.daemon.kill()?;
    newest.kill()?;
    ensure_asked(&stage, &web, &[], "127.0.0.1:80", "web-1")
}

/// The lookup program runs for UDP too, and a UDP packet may have the addresses and ports of an own connection.
#[test]
fn udp_is_left_alone() -> Result<()> {
    require!(needs());
    let stage = Stage::without_engine()?;
    let web = start(&stage, "web-1", "web", "80:8080", "0.0.0.0:8080")?;
    stage.daemon.wait_ready("web", 1)?;
    let udp = r"
import socket
connection = socket.socket()
connection.bind(('127.0.0.1', 40404))
connection.connect(('127.0.0.1', 80))
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(('127.0.0.1', 80))
server.settimeout(20)
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.bind(('127.0.0.1', 40404))
client.sendto(b'ping', ('127.0.0.1', 80))
print(server.recv(9).decode())
";
    let said = run(web.command(&stage, "python3")?.args(["-I", "-c", udp]))?;
    ensure!(said.trim() == "ping", "{said}");
    Ok(())
}

/// A proxy connects to other machines on a port that it listens on itself. Only connections to an address of this machine are tracked
/// as own connections.
#[test]
fn connections_to_other_machines_are_not_kept() -> Result<()> {
    require!(tools::root_and(&["ip", "curl", "python3", "bpftool"]));
    let stage = Stage::without_engine()?;
    let client = stage.host.new_client()?;
    for range in ["local 10.88.0.0/24 dev lo", "local fd88::/64 dev lo"] {
        stage.host.net().ip(&format!("route add {range}"))?;
    }
    stage.host.net().ip("addr add 10.77.0.9/24 dev client0")?;
    let mut remote = stage.host.command_in(&client.ns, tools::named_server()?)?;
    remote.args(["--name", "remote", "--listen", "[::]:8080"]);
    let remote = stage.host.start("remote", &mut remote)?;
    wait::until("the server to listen", || exec::listening_ns(&remote.stdout())).with_context(|| remote.stderr())?;
    let web = start(&stage, "web-1", "web", "80:8080", "[::]:8080")?;
    stage.daemon.wait_ready("web", 1)?;
    let own = ["127.0.0.1", "10.77.0.1", "10.77.0.9", "10.88.0.5", "::1", "fd77::1", "fd88::5", "::ffff:10.77.0.1"];
    let others = ["10.77.0.2", "fd77::2", "::ffff:10.77.0.2"];
    let hold = format!(
        "import socket, time\nheld = [socket.create_connection((host, 8080)) for host in {:?}]\nprint('held')\ntime.sleep(600)",
        own.iter().chain(&others).collect::<Vec<_>>()
    );
    let mut holder = script(&stage, &web, &hold)?;
    wait::until("the connections", || holder.stdout().contains("held").then_some(()))
        .with_context(|| holder.stderr())?;
    let kept = || anyhow::Ok(bpf::entries(&stage.host, "OWN_CONNECTIONS")?.len());
    ensure!(kept()? == own.len(), "{} are kept", kept()?);
    for host in own {
        let address = if host.contains(':') { format!("[{host}]:8080") } else { format!("{host}:8080") };
        ensure_asked(&stage, &web, &[], &address, "web-1")?;
    }
    ensure_asked(&stage, &web, &[], "10.77.0.2:8080", "remote")?;
    let counted = stage.daemon.wait_idle("web")?.backends[0].clone();
    ensure!((counted.opened, counted.live) == (0, 0), "connections to itself are counted: {counted:?}");
    holder.kill()?;
    wait::until_ok("own connections to end", || Ok((kept()? == 0).then_some(())))
}
