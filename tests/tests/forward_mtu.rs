//! Forwarded connections where the uplink and the bridge take packets of different sizes: every byte arrives, in both directions.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage, engine::Engine, host::Host, netns::NetNs, process::run, report, require, scale, server, tools,
};

/// In each direction.
fn bytes() -> usize {
    scale::of(4 << 20, 100 << 20)
}

/// Answers with as many bytes as it got, preceded by their sum and the client's address.
const ECHO: &str = "import socket\n\
    s = socket.create_server(('::', 8080), family=socket.AF_INET6, dualstack_ipv6=True)\n\
    while True:\n\
    \x20   c, a = s.accept(); n = 0; total = 0\n\
    \x20   while True:\n\
    \x20       d = c.recv(1 << 20)\n\
    \x20       if not d: break\n\
    \x20       n += len(d); total += sum(d[::4096])\n\
    \x20   c.sendall(f'{n} {a[0]}\\n'.encode() + bytes(range(256)) * (n // 256)); c.close()";

fn echo(client: &NetNs, target: SocketAddr) -> Result<()> {
    let mut stream = client.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(10)))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    let sent: Vec<u8> = (0..bytes()).map(|byte| byte as u8).collect();
    stream.write_all(&sent).context("sending")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("receiving")?;
    let line = answer.iter().position(|byte| *byte == b'\n').context("no first line")? + 1;
    let first = String::from_utf8_lossy(&answer[..line]).into_owned();
    ensure!(first.starts_with(&format!("{} ", sent.len())), "{first}");
    ensure!(answer[line..] == sent[..], "the answer has other bytes");
    Ok(())
}

/// TCP segments with a wrong checksum.
fn checksum_errors(net: &NetNs) -> Result<u64> {
    net.snmp("Tcp", "InCsumErrors")
}

/// Clients behind a router, whose link to them takes packets of at most `mtu` bytes. They offer segments for 1,500, as a client does that does
/// not know its path. `number` tells several routers apart.
fn behind_router(stage: &Stage, number: u8, mtu: u32) -> Result<Far> {
    let (host, router, client) = (stage.host.net(), NetNs::new()?, NetNs::new()?);
    for net in [&router, host] {
        net.sysctl("net.ipv4.ip_forward", "1")?;
        net.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    }
    let at = |side: u8, end: u8| [format!("10.7{side}.{number}.{end}/24"), format!("fd7{side}:{number}::{end}/64")];
    let connect = |a: &NetNs, name: &str, b: &NetNs, other: &str, side: u8| {
        let [ours, theirs] = [at(side, 1), at(side, 2)];
        a.connect(name, &ours.each_ref().map(String::as_str), b, other, &theirs.each_ref().map(String::as_str))
    };
    connect(host, &format!("uplink{number}"), &router, "north", 0)?;
    connect(&router, "south", &client, "eth0", 1)?;
    host.ip(&format!("route add 10.71.{number}.0/24 via 10.70.{number}.2"))?;
    host.ip(&format!("route add fd71:{number}::/64 via fd70:{number}::2"))?;
    router.ip(&format!("link set south mtu {mtu}"))?;
    client.ip(&format!("link set eth0 mtu {mtu}"))?;
    client.ip(&format!("route add default via 10.71.{number}.1 advmss 1460"))?;
    client.ip(&format!("route add default via fd71:{number}::1 advmss 1440"))?;
    let hosts = [format!("10.70.{number}.1").parse()?, format!("fd70:{number}::1").parse()?];
    Ok(Far { client, router, hosts })
}

struct Far {
    client: NetNs,
    router: NetNs,
    /// The host's addresses for them.
    hosts: [IpAddr; 2],
}

const SIZES: [u32; 2] = [1500, 1400];

#[test]
fn every_byte_arrives_whichever_link_takes_the_smaller_packets() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["python3", "iptables"]));
    let stage = Stage::with_docker()?;
    let far = [behind_router(&stage, 0, SIZES[0])?, behind_router(&stage, 1, SIZES[1])?];
    let docker = stage.engine().docker();
    for (i, size) in SIZES.iter().enumerate() {
        let v6 = ["--ipv6", "--subnet", &format!("10.88.{i}.0/24"), "--subnet", &format!("fd88:{i}::/64")];
        let name = ["--opt", &format!("com.docker.network.bridge.name=br-{size}"), &format!("net-{size}")];
        docker.run(&[&["network", "create"], &v6[..], &name].concat())?;
    }
    let mut servers = Vec::new();
    let mut services = Vec::new();
    for (via, size) in ["auto", "peer"].into_iter().flat_map(|via| SIZES.map(|size| (via, size))) {
        let (name, port) = (format!("{via}-{size}"), 81 + services.len() as u16);
        let spec = server::python_program(&name, ECHO).service(&name, &format!("{port}:8080"));
        let spec = spec.network(format!("net-{size}")).label("pod-steer.via", via);
        servers.push(stage.engine().start_container(&spec)?);
        stage.daemon.wait_ready(&name, 1)?;
        services.push((via, size, port));
    }
    for size in SIZES {
        stage.host.net().ip(&format!("link set br-{size} mtu {size}"))?;
    }
    let mut is_closed = false;
    for (via, bridge, port) in services {
        if via == "peer" && !is_closed {
            // Errors about packets that are too large pass it too.
            run(stage.host.command("iptables")?.args(["-I", "FORWARD", "-j", "DROP"]))?;
            run(stage.host.command("ip6tables")?.args(["-I", "FORWARD", "-j", "DROP"]))?;
            is_closed = true;
        }
        for (far, path) in far.iter().zip(SIZES) {
            for host in far.hosts {
                let case = format!("{host}, {via}, path {path}, bridge {bridge}");
                echo(&far.client, (host, port).into()).with_context(|| case.clone())?;
                report::figure(&case, format!("{} bytes both ways", bytes()));
            }
        }
    }
    for server in &servers {
        ensure!(checksum_errors(&NetNs::of_pid(server.pid()?)?)? == 0, "checksums at a server");
    }
    for far in &far {
        ensure!(checksum_errors(&far.client)? == 0, "checksums at a client");
    }
    Ok(())
}

#[test]
fn every_fragment_arrives() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["python3"]));
    // With an engine that publishes ports, connection tracking puts fragments together on the way.
    for tracks in [false, true] {
        let host = Arc::new(Host::new()?);
        let engine = if tracks { Engine::start_publishing(&host)? } else { Engine::start(&host)? };
        let stage = Stage::with(host, Some(engine))?;
        let far = behind_router(&stage, 0, 1500)?;
        // The link between them takes smaller packets than both ends send, which do not look for the path's limit.
        stage.host.net().ip("link set uplink0 mtu 1400")?;
        far.router.ip("link set north mtu 1400")?;
        far.client.sysctl("net.ipv4.ip_no_pmtu_disc", "1")?;
        let spec = server::python_program("echo-1", ECHO).service("echo", "80:8080").network("bridge");
        let spec = spec.options(&["--sysctl=net.ipv4.ip_no_pmtu_disc=1"]);
        let server = stage.engine().start_container(&spec)?;
        stage.daemon.wait_ready("echo", 1)?;
        echo(&far.client, (far.hosts[0], 80).into()).with_context(|| format!("connection tracking: {tracks}"))?;
        let fragments = (far.router.snmp("Ip", "FragCreates")?, stage.host.net().snmp("Ip", "FragCreates")?);
        ensure!(fragments.0 > 1_000 && fragments.1 > 1_000, "the packets were not cut: {fragments:?}");
        let inside = NetNs::of_pid(server.pid()?)?;
        ensure!((checksum_errors(&inside)?, checksum_errors(&far.client)?) == (0, 0), "checksums");
        report::figure(
            &format!("connection tracking: {tracks}"),
            format!("{} bytes both ways in {fragments:?} fragments", bytes()),
        );
    }
    Ok(())
}
