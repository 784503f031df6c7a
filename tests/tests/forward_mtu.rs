//! Forwarded connections where the uplink and the bridge take packets of different sizes: every byte arrives, in both directions.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage, engine::Engine, host::Host, netns::NetNs, process::run, report, require, server, tools,
};

const BYTES: usize = 16 << 20;

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

fn echo(client: &NetNs, host: IpAddr) -> Result<()> {
    let mut stream = client.run(|| TcpStream::connect_timeout(&(host, 80).into(), Duration::from_secs(10)))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    let sent: Vec<u8> = (0..BYTES).map(|byte| byte as u8).collect();
    stream.write_all(&sent).context("sending")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("receiving")?;
    let line = answer.iter().position(|byte| *byte == b'\n').context("no first line")? + 1;
    let first = String::from_utf8_lossy(&answer[..line]).into_owned();
    ensure!(first.starts_with(&format!("{BYTES} ")), "{first}");
    ensure!(answer[line..] == sent[..], "the answer has other bytes");
    Ok(())
}

/// A counter of the kernel in a namespace (`/proc/net/snmp`).
fn counter(net: &NetNs, protocol: &str, name: &str) -> Result<u64> {
    let text = run(net.command("cat")?.arg("/proc/net/snmp"))?;
    let lines = text.lines().filter(|line| line.starts_with(&format!("{protocol}:")));
    let fields: Vec<Vec<&str>> = lines.map(|line| line.split(' ').collect()).collect();
    let at = fields[0].iter().position(|field| *field == name).context("the kernel does not count it")?;
    Ok(fields[1][at].parse()?)
}

/// TCP segments with a wrong checksum.
fn checksum_errors(net: &NetNs) -> Result<u64> {
    counter(net, "Tcp", "InCsumErrors")
}

/// Clients behind a router, whose link to them takes packets of at most `mtu` bytes. They offer segments for 1,500, as a client does that does
/// not know its path.
fn behind_router(stage: &Stage, mtu: u32) -> Result<Far> {
    let (host, router, client) = (stage.host.net(), NetNs::new()?, NetNs::new()?);
    for (net, v6) in [(&router, "1"), (host, "1")] {
        net.sysctl("net.ipv4.ip_forward", "1")?;
        net.sysctl("net.ipv6.conf.all.forwarding", v6)?;
    }
    host.connect("uplink0", &["10.70.0.1/24", "fd70::1/64"], &router, "north", &["10.70.0.2/24", "fd70::2/64"])?;
    router.connect("south", &["10.71.0.1/24", "fd71::1/64"], &client, "eth0", &["10.71.0.2/24", "fd71::2/64"])?;
    host.ip("route add 10.71.0.0/24 via 10.70.0.2")?;
    host.ip("route add fd71::/64 via fd70::2")?;
    router.ip(&format!("link set south mtu {mtu}"))?;
    client.ip(&format!("link set eth0 mtu {mtu}"))?;
    client.ip("route add default via 10.71.0.1 advmss 1460")?;
    client.ip("route add default via fd71::1 advmss 1440")?;
    Ok(Far { client, router })
}

struct Far {
    client: NetNs,
    router: NetNs,
}

#[test]
fn every_byte_arrives_whichever_link_takes_the_smaller_packets() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["python3", "iptables"]));
    let ways =
        [("auto", 1500, 1500), ("auto", 1400, 1500), ("auto", 1500, 1400), ("peer", 1400, 1500), ("peer", 1500, 1400)];
    for (via, path, bridge) in ways {
        let stage = Stage::with_docker()?;
        if via == "peer" {
            // Errors about packets that are too large pass it too.
            run(stage.host.command("iptables")?.args(["-I", "FORWARD", "-j", "DROP"]))?;
            run(stage.host.command("ip6tables")?.args(["-I", "FORWARD", "-j", "DROP"]))?;
        }
        let far = behind_router(&stage, path)?;
        let docker = stage.engine().docker();
        let v6 = ["--ipv6", "--subnet", "10.88.0.0/24", "--subnet", "fd88::/64"];
        let name = ["--opt", "com.docker.network.bridge.name=br-shop", "shop"];
        docker.run(&[&["network", "create"], &v6[..], &name].concat())?;
        let spec = server::python_program("echo-1", ECHO).service("echo", "80:8080").network("shop");
        let server = stage.engine().start_container(&spec.label("pod-steer.via", via))?;
        stage.daemon.wait_ready("echo", 1)?;
        stage.host.net().ip(&format!("link set br-shop mtu {bridge}"))?;
        for host in ["10.70.0.1", "fd70::1"] {
            echo(&far.client, host.parse()?).with_context(|| format!("{host}, {via}: path {path}, bridge {bridge}"))?;
            report::figure(&format!("{host}, {via}, path {path}, bridge {bridge}"), format!("{BYTES} bytes both ways"));
        }
        let inside = NetNs::of_pid(server.pid()?)?;
        ensure!((checksum_errors(&inside)?, checksum_errors(&far.client)?) == (0, 0), "checksums");
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
        let far = behind_router(&stage, 1500)?;
        // The link between them takes smaller packets than both ends send, which do not look for the path's limit.
        stage.host.net().ip("link set uplink0 mtu 1400")?;
        far.router.ip("link set north mtu 1400")?;
        far.client.sysctl("net.ipv4.ip_no_pmtu_disc", "1")?;
        let spec = server::python_program("echo-1", ECHO).service("echo", "80:8080").network("bridge");
        let spec = spec.options(&["--sysctl=net.ipv4.ip_no_pmtu_disc=1"]);
        let server = stage.engine().start_container(&spec)?;
        stage.daemon.wait_ready("echo", 1)?;
        echo(&far.client, "10.70.0.1".parse()?).with_context(|| format!("connection tracking: {tracks}"))?;
        let fragments = (counter(&far.router, "Ip", "FragCreates")?, counter(stage.host.net(), "Ip", "FragCreates")?);
        ensure!(fragments.0 > 1_000 && fragments.1 > 1_000, "the packets were not cut: {fragments:?}");
        let inside = NetNs::of_pid(server.pid()?)?;
        ensure!((checksum_errors(&inside)?, checksum_errors(&far.client)?) == (0, 0), "checksums");
        report::figure(
            &format!("connection tracking: {tracks}"),
            format!("{BYTES} bytes both ways in {fragments:?} fragments"),
        );
    }
    Ok(())
}
