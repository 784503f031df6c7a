//! An uplink that is a port of a bridge, as on hosts of virtual machines, with Docker's rules as they are by default: br_netfilter passes the
//! frames of the bridge to conntrack and to the rules before they are rewritten.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    bridged::{self, Kept},
    check,
    daemon::Stage,
    engine::Engine,
    host::Host,
    load::Load,
    require, tools,
};

const CONNECTIONS: u64 = 200;

#[test]
fn clients_come_by_a_bridge_past_docker_s_rules() -> Result<()> {
    require!(tools::docker());
    let host = Arc::new(Host::new()?);
    let engine = Engine::start_publishing(&host)?;
    let stage = Stage::with(host, Some(engine))?;
    let client = stage.host.new_client()?;
    let net = stage.host.net();
    for ip in [
        "link add br1 type bridge",
        "link set br1 up",
        "link set client0 master br1",
        &format!("addr del {}/24 dev client0", client.host_ip4),
        &format!("addr del {}/64 dev client0", client.host_ip6),
        &format!("addr add {}/24 dev br1", client.host_ip4),
        &format!("addr add {}/64 dev br1 nodad", client.host_ip6),
    ] {
        net.ip(ip)?;
    }
    // Where there is no br_netfilter, nothing can go wrong.
    let _ = net.sysctl("net.bridge.bridge-nf-call-iptables", "1");
    let _servers = ["one", "two"]
        .map(|name| stage.engine().start_container(&bridged::web(name)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 2)?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let mut kept = Kept::open(&client.ns, target)?;
    let tally = Load::to(target).threads(2).count(CONNECTIONS).run(&client.ns)?;
    ensure!(tally.losses.is_empty() && tally.answered() == CONNECTIONS, "{tally}");
    ensure!(tally.disguised.is_empty(), "a client's address was rewritten: {:?}", tally.disguised);
    check::shares_follow("a bridged uplink", &tally, &[("one", 1), ("two", 1)])?;
    kept.goes_on()
}
