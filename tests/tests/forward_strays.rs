//! Packets of no connection, from the address of clients that have some: none takes over a connection, also not one whose entries are lost.

use std::net::{IpAddr, SocketAddrV4};

use anyhow::{Context as _, Result, bail, ensure};
use pod_steer_tests::{
    bridged::{self, Kept},
    daemon::Stage,
    flood::strays,
    netns::NetNs,
    report, require, tools,
};

const CONNECTIONS: usize = 60;
/// Ports of the strays. Clients get theirs above.
const PORTS: std::ops::Range<u16> = 1024..30_000;

fn adopted(stage: &Stage) -> Result<u64> {
    Ok(stage.daemon.status()?.service("web").context("no service")?.counters["adopted"])
}

/// Strays from the address that the server sees of these clients take over none of them, with their entries and without.
fn hold_out(stage: &Stage, what: &str, from: &NetNs, source: IpAddr, target: SocketAddrV4) -> Result<()> {
    let IpAddr::V4(source) = source else { bail!("{source} is not one of IPv4") };
    let mut kept = (0..CONNECTIONS).map(|_| Kept::open(from, target.into())).collect::<Result<Vec<_>>>()?;
    let before = adopted(stage)?;
    strays(from, source, PORTS, target)?;
    kept.iter_mut().try_for_each(Kept::goes_on).with_context(|| format!("{what}: with their entries"))?;
    ensure!(adopted(stage)? == before, "{what}: strays were taken for a connection");
    bridged::forget(&stage.host)?;
    strays(from, source, PORTS, target)?;
    ensure!(adopted(stage)? == before, "{what}: strays were taken for a connection without entries");
    kept.iter_mut().try_for_each(Kept::goes_on).with_context(|| format!("{what}: without their entries"))?;
    let found = adopted(stage)? - before;
    ensure!(found >= CONNECTIONS as u64, "{what}: {found} connections were found again");
    report::figure(
        "packets of no connection",
        format!("{what}: {} and as many without entries took over 0 of {CONNECTIONS}", PORTS.len()),
    );
    Ok(())
}

#[test]
fn strays_take_over_no_connection() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["bpftool"]));
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let _server = stage.engine().start_container(&bridged::web("web-1"))?;
    stage.daemon.wait_ready("web", 1)?;
    let IpAddr::V4(host) = client.host_ip4 else { bail!("the host's address is not one of IPv4") };
    hold_out(&stage, "a client of another machine", &client.ns, client.ip4, SocketAddrV4::new(host, 80))?;
    // The server sees another address and port of these.
    let loopback = SocketAddrV4::new([127, 0, 0, 1].into(), 80);
    hold_out(&stage, "a client on the host", stage.host.net(), [127, 0, 0, 1].into(), loopback)
}
