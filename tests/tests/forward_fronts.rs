//! Two ports and two addresses of the host lead to one port of each container, and clients use a few ports for all of them. A container
//! still has such a port in TIME_WAIT from another front, and would not answer a SYN from there. No SYN may have to be repeated.

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::Range,
};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    bridged::{Kept, forwarded},
    daemon::Stage,
    fixed_ports::Clients,
    report, require, scale, server, tools,
};

const CLIENTS: u16 = 4;
/// Ports of each client.
const PORTS: u16 = 100;
/// A second address of the host on the way to its clients.
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);

fn ports(client: u16) -> Range<u16> {
    40_000 + client * PORTS..40_000 + (client + 1) * PORTS
}

#[test]
fn clients_with_few_ports_wait_for_no_retransmission() -> Result<()> {
    require!(tools::docker());
    let connections = scale::of(8_000, 100_000);
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    stage.host.net().ip(&format!("addr add {SECOND}/24 dev client0"))?;
    let servers = [("web-1", "v1"), ("web-2", "v2")].map(|(name, version)| {
        let spec = server::named(name, "0.0.0.0:8080").service("web", "80:8080,8081:8080").version(version);
        stage.engine().start_container(&forwarded(spec))
    });
    let _servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 2)?;
    let fronts = [client.host_ip4, SECOND.into()].into_iter().flat_map(|ip| [80, 8081].map(|port| (ip, port)));
    let targets: Vec<SocketAddr> = fronts.map(SocketAddr::from).collect();
    // The ports of other connections.
    client.ns.sysctl("net.ipv4.ip_local_port_range", "10240 39999")?;
    let mut held = targets.iter().map(|front| Kept::open(&client.ns, *front)).collect::<Result<Vec<_>>>()?;
    let count = connections / u64::from(CLIENTS);
    let clients = Clients { source: client.ip4, ports: (0..CLIENTS).map(ports).collect(), targets, count };
    let before = client.ns.tcp_counter("TCPSynRetrans")?;
    let running = clients.start(&client.ns)?;
    let mut flips = 0;
    while !running.are_over() {
        // All connections at once from one container to the other, then to both.
        for shares in ["v1=1", "v2=1", "--balance"] {
            stage.daemon.order_done(&format!("shift web {shares}"))?;
            flips += 1;
        }
        held.iter_mut().try_for_each(Kept::goes_on)?;
    }
    let mut counts = running.join()?;
    let retransmitted = client.ns.tcp_counter("TCPSynRetrans")? - before;
    report::figure("four fronts on one port, with few client ports", format!("{flips} flips, {counts}"));
    ensure!(counts.answered() == connections && flips >= 3, "{flips} flips, {counts}");
    ensure!(counts.retransmitted == 0 && retransmitted == 0, "{retransmitted} retransmitted SYNs; {counts}");
    // Otherwise no container had a client's port in TIME_WAIT from another front, and the test shows nothing.
    ensure!(counts.other_port > connections / 20, "{counts}");
    for kept in held {
        *counts.by_name.entry(kept.server).or_default() += 1;
    }
    let service = stage.daemon.wait_idle("web")?;
    for counted in [service.by_name(|backend| backend.steered), service.by_name(|backend| backend.opened)] {
        ensure!(counted == counts.by_name, "the kernel counted {counted:?}, and the clients {:?}", counts.by_name);
    }
    let bad: Vec<_> = service.counters.iter().filter(|(_, count)| **count > 0).collect();
    ensure!(bad.is_empty(), "{bad:?}");
    Ok(())
}
