//! Containers behind a bridge, whose packets are forwarded: clients of another machine come to the host's port.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bridged::{self, Kept, kept},
    check,
    daemon::Stage,
    exec::Exec,
    host::Host,
    load::Load,
    netns::NetNs,
    process::{output, run},
    require, server, tools, wait,
};

const PINS: &str = "/sys/fs/bpf/pod-steer";

/// Programs of network devices, as `bpftool` shows them in the host.
fn device_programs(host: &Host) -> Result<String> {
    run(host.command("bpftool")?.args(["net", "show"]))
}

#[test]
fn bridged_servers_share_the_host_s_port_and_see_their_clients() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let weights = [("web-1", 1), ("web-2", 3)];
    let servers = weights.map(|(name, weight)| stage.engine().start_container(&bridged::web(name).weight(weight)));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 2)?;
    let load = Load::to((client.host_ip4, 80).into()).threads(4);
    let service = check::measured_shares("two bridged servers, one port", &stage.daemon, &client.ns, &load, &weights)?;
    ensure!(service.counter("not_forwarded") == 0 && service.counter("refused_no_backend") == 0, "{service:#?}");
    // Each server names the address and port of its client, which are the client's own.
    let all = load.count(200).run(&client.ns)?;
    ensure!(all.answered() == 200 && all.disguised.is_empty(), "{all}");
    drop(servers);
    Ok(())
}

#[test]
fn clients_come_over_ipv6_too() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    stage.host.net().sysctl("net.ipv6.conf.all.forwarding", "1")?;
    let docker = stage.engine().docker();
    docker.run(&["network", "create", "--ipv6", "--subnet", "10.88.0.0/24", "--subnet", "fd88::/64", "shop"])?;
    let servers = ["web-1", "web-2"].map(|name| {
        let spec = server::named(name, "[::]:8080").service("web", "80:8080").network("shop");
        stage.engine().start_container(&spec)
    });
    let _servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 2)?;
    for host in [client.host_ip4, client.host_ip6] {
        let all = Load::to((host, 80).into()).threads(2).count(400).run(&client.ns)?;
        ensure!(all.losses.is_empty() && all.disguised.is_empty() && all.answered() == 400, "{host}: {all}");
        ensure!(all.answered_by("web-1") > 100 && all.answered_by("web-2") > 100, "{host}: {all}");
    }
    Ok(())
}

#[test]
fn a_server_on_the_host_shares_a_port_with_one_behind_a_bridge() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let _inside = stage.engine().start_container(&bridged::web("web-in").version("v2"))?;
    let _outside = Exec::new("web-out", "web", "80:8080", "0.0.0.0:8080").flags(&["--version=v1"]).start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let load = Load::to(target).threads(4);
    let weights = [("web-in", 1), ("web-out", 1)];
    check::measured_shares("one on the host, one bridged", &stage.daemon, &client.ns, &load, &weights)?;
    let mut held = kept(&client, target, 2)?;
    // From one kind to the other and back, under load.
    let running = Load::to(target).threads(4).start(&client.ns)?;
    for version in ["v2", "v1", "v2", "v1", "v2"] {
        // No deploy: it would wait for the connections that are held.
        stage.daemon.order_done(&format!("shift web {version}=1"))?;
        let all = Load::to(target).count(200).run(&client.ns)?;
        let wanted = if version == "v2" { "web-in" } else { "web-out" };
        ensure!(all.answered_by(wanted) == 200, "{version}: {all}");
        held.iter_mut().try_for_each(Kept::goes_on)?;
    }
    let tally = running.stop()?;
    ensure!(tally.losses.is_empty() && tally.disguised.is_empty() && tally.connections() > 500, "{tally}");
    Ok(())
}

#[test]
fn a_listener_that_is_gone_is_passed_over_without_a_daemon() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let servers = ["web-1", "web-2"].map(|name| stage.engine().start_container(&bridged::web(name)));
    let [first, second] = servers;
    let (first, _second) = (first?, second?);
    stage.daemon.wait_ready("web", 2)?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let mut held = kept(&client, target, 2)?;
    stage.daemon.kill()?;
    held.iter_mut().try_for_each(Kept::goes_on)?;
    let before = Load::to(target).count(400).run(&client.ns)?;
    ensure!(
        before.losses.is_empty() && before.answered_by("web-1") > 50 && before.answered_by("web-2") > 50,
        "{before}"
    );
    first.kill("KILL")?;
    wait::until("the first to end", || {
        first.pid().is_err().then_some(()).or_else(|| first.pid().ok().filter(|pid| *pid == 0).map(drop))
    })?;
    let after = Load::to(target).count(400).run(&client.ns)?;
    ensure!(after.losses.is_empty() && after.answered_by("web-2") == 400, "{after}");
    held.retain(|kept| kept.server == "web-2");
    held.iter_mut().try_for_each(Kept::goes_on)?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    held.iter_mut().try_for_each(Kept::goes_on)?;
    let service = stage.daemon.status()?.service("web").context("no service")?.clone();
    ensure!(service.counter("refused_no_backend") == 0, "{service:#?}");
    Ok(())
}

#[test]
fn connections_outlive_the_loss_of_their_entries() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["bpftool"]));
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let servers = ["web-1", "web-2", "web-3"].map(|name| stage.engine().start_container(&bridged::web(name)));
    let _servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 3)?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let mut held = kept(&client, target, 3)?;
    bridged::forget(&stage.host)?;
    held.iter_mut().try_for_each(Kept::goes_on)?;
    let service = stage.daemon.status()?.service("web").context("no service")?.clone();
    ensure!(service.counter("adopted") == held.len() as u64, "{service:#?}");
    // A draining backend is in no table, and keeps its connections all the same.
    stage.daemon.order_done("drain web --backend web-1")?;
    bridged::forget(&stage.host)?;
    held.iter_mut().try_for_each(Kept::goes_on)?;
    let service = stage.daemon.status()?.service("web").context("no service")?.clone();
    ensure!(service.counter("adopted") == 2 * held.len() as u64, "{service:#?}");
    Ok(())
}

#[test]
fn a_container_on_a_taken_address_gets_none_of_the_other_s_clients() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let first = stage.engine().start_container(&bridged::web("web-1"))?;
    let _second = stage.engine().start_container(&bridged::web("web-2"))?;
    stage.daemon.wait_ready("web", 2)?;
    let address = first.ip()?;
    let mut held = kept(&client, (client.host_ip4, 80).into(), 2)?;
    held.retain(|kept| kept.server == "web-1");
    // No daemon tells the kernel.
    stage.daemon.kill()?;
    first.kill("KILL")?;
    wait::until("the address to be free", || first.ip().is_err().then_some(()))?;
    let stranger = server::named("stranger", "0.0.0.0:8080").network("bridge");
    let stranger = stage.engine().start_container(&stranger)?;
    ensure!(stranger.ip()? == address, "the engine gives the address to the next container");
    let all = Load::to((client.host_ip4, 80).into()).count(400).run(&client.ns)?;
    ensure!(all.losses.is_empty() && all.answered_by("web-2") == 400, "{all}");
    // Neither do established connections of the one that has ended go on there.
    std::thread::sleep(Duration::from_millis(1_200));
    ensure!(held.iter_mut().all(|kept| kept.ask().is_err()), "a connection of web-1 is answered");
    Ok(())
}

#[test]
fn a_container_without_a_default_route_is_left_alone() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let server = stage.engine().start_container(&bridged::web("web-1"))?;
    stage.daemon.wait_ready("web", 1)?;
    NetNs::of_pid(server.pid()?)?.ip("route del default")?;
    // The engine describes it again, and the daemon looks.
    stage.engine().docker().run(&["rename", &server.id, "renamed"])?;
    stage.daemon.wait_for("the reason", |status| {
        let own = status.service("web")?.backends.first()?.conditions.iter().find(|own| own.reason == "own-network")?;
        own.message.contains("internal").then_some(())
    })
}

#[test]
fn devices_that_come_later_are_attached_and_unload_leaves_nothing() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["bpftool"]));
    let stage = Stage::with_docker()?;
    let _server = stage.engine().start_container(&bridged::web("web-1"))?;
    stage.daemon.wait_ready("web", 1)?;
    // An uplink that appears later.
    let client = stage.host.new_client()?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    wait::until_ok("the new uplink to forward", || {
        let tally = Load::to(target).count(1).timeout(Duration::from_millis(500)).run(&client.ns)?;
        Ok((tally.answered_by("web-1") == 1).then_some(()))
    })?;
    let unload = format!("unload --bpffs {PINS} --state-dir {}", stage.daemon.state_dir().display());
    let said = stage.daemon.order_done(&unload)?.stderr;
    ensure!(
        said.contains("programs of network devices") && said.contains("but for those that were forwarded"),
        "{said}"
    );
    ensure!(!device_programs(&stage.host)?.contains("wire"), "{}", device_programs(&stage.host)?);
    let left = output(stage.host.command("ls")?.arg(PINS))?;
    ensure!(!left.status.success(), "{}", String::from_utf8_lossy(&left.stdout));
    Ok(())
}

#[test]
fn half_closed_connections_carry_all_their_bytes() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let program = "import socket\n\
        s = socket.create_server(('0.0.0.0', 8080))\n\
        while True:\n\
        \x20   c, a = s.accept(); n = 0\n\
        \x20   while True:\n\
        \x20       d = c.recv(65536); n += len(d)\n\
        \x20       if not d: break\n\
        \x20   c.sendall((str(n) + ' ' + a[0] + '\\n').encode() + b'x' * n); c.close()";
    let spec = server::python_program("echo-1", program).service("echo", "81:8080").network("bridge");
    let _server = stage.engine().start_container(&spec)?;
    stage.daemon.wait_ready("echo", 1)?;
    const BYTES: usize = 20 << 20;
    let mut stream = client.ns.run(|| TcpStream::connect((client.host_ip4, 81)))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(&vec![b'y'; BYTES])?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let line = format!("{BYTES} {}\n", client.ip4);
    ensure!(answer.starts_with(line.as_bytes()) && answer.len() == BYTES + line.len(), "{} bytes", answer.len());
    Ok(())
}
