//! Clients whose source is rewritten get another port on the server's side. There are fewer of those that nothing else uses than a busy
//! client has, and the server keeps each for a minute after the connection. Then such a client keeps its own.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bridged::{self, Kept},
    daemon::Stage,
    load::Load,
    report, require, scale, tools,
};

/// The last port that a program gets from the kernel.
const LOCAL_MAX: u16 = 60_999;
/// Connections that stay open.
const KEPT: usize = 20;

#[test]
fn a_client_keeps_its_port_when_those_above_are_in_use() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["bpftool"]));
    // More than there are ports above. In the soak, more than a client has ports.
    let connections = scale::of(6_000, 60_000);
    let stage = Stage::with_docker()?;
    let _server = stage.engine().start_container(&bridged::web("web-1"))?;
    stage.daemon.wait_ready("web", 1)?;
    stage.host.net().sysctl("net.ipv4.ip_local_port_range", &format!("10240 {LOCAL_MAX}"))?;
    let target: SocketAddr = "127.0.0.1:80".parse()?;
    let tally = Load::to(target).threads(4).count(connections).run(stage.host.net())?;
    let mut kept = (0..KEPT).map(|_| Kept::open(stage.host.net(), target)).collect::<Result<Vec<_>>>()?;
    let counters = stage.daemon.status()?.service("web").context("no service")?.counters.clone();
    let own = tally.disguised.iter().filter(|(local, seen)| local.port() == seen.port()).count();
    report::figure("source ports of a client on the host", format!("{own} of {connections} kept their own; {tally}"));
    ensure!(tally.losses.is_empty() && tally.answered() == connections, "{tally}; {counters:?}");
    ensure!(counters["ports_exhausted"] == 0, "{counters:?}");
    ensure!(own > 100, "{own} kept their own port");
    // They are found again by that port too.
    bridged::forget(&stage.host)?;
    kept.iter_mut().try_for_each(Kept::goes_on)?;
    if connections > 20_000 {
        return Ok(());
    }
    let neither = tally.disguised.iter().find(|(local, seen)| seen.port() <= LOCAL_MAX && seen.port() != local.port());
    ensure!(neither.is_none(), "{neither:?}");
    Ok(())
}
