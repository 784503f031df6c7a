//! The promises of `shift`: shares of versions, and networks whose clients reach one version whatever the shares.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::Container,
    daemon::Stage,
    host::Client,
    load::{Load, Tally},
    report, require, server, tools,
};

const CONNECTIONS: u64 = 20_000;
/// How far a share may be from its weight, in percentage points.
const OFF_MAX: f64 = 1.0;
/// Connections of each client of a network.
const EACH: u64 = 200;

/// Both families, on one port.
fn start(stage: &Stage, version: &str) -> Result<Container> {
    let spec = server::named(version, "[::]:8080").service("web", "80:8080").version(version);
    stage.engine().start_container(&spec)
}

fn two_versions(stage: &Stage) -> Result<[Container; 2]> {
    let versions = [start(stage, "v1")?, start(stage, "v2")?];
    stage.daemon.wait_ready("web", 2)?;
    Ok(versions)
}

#[test]
fn shares_of_20000_connections_are_within_one_percent() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let _versions = two_versions(&stage)?;
    let mut answered = 0;
    for (v1, v2) in [(99, 1), (90, 10), (50, 50)] {
        let ordered = stage.daemon.order_done(&format!("shift web v1={v1} v2={v2}"))?;
        let load = Load::to("127.0.0.1:80".parse()?).threads(4).count(CONNECTIONS);
        let mut tally = load.clone().run(stage.host.net())?;
        let mut off = off(&tally, v1)?;
        // At 50/50, chance alone exceeds one percent in one run of 200. Such a run is repeated from another address, and all are judged
        // together.
        for number in 2..=4 {
            if off.abs() <= OFF_MAX {
                break;
            }
            report::figure(&format!("shift {v1}/{v2}"), format!("once more, for it was {off:+.2} off"));
            tally.merge(load.clone().from(IpAddr::from([127, 0, 0, number])).run(stage.host.net())?);
            off = self::off(&tally, v1)?;
        }
        report::figure(&format!("shift {v1}/{v2}"), format!("{:?}, {off:+.2} percentage points off", tally.by_name));
        ensure!(off.abs() <= OFF_MAX, "{}: {off:+.2} percentage points off: {tally}", ordered.command);
        answered += tally.answered();
    }
    let service = stage.daemon.wait_idle("web")?;
    ensure!(service.opened() == answered, "{service:#?}");
    Ok(())
}

/// By how many percentage points the share of v1 is off.
fn off(tally: &Tally, weight: u64) -> Result<f64> {
    ensure!(tally.losses.is_empty(), "{tally}");
    Ok(tally.answered_by("v1") as f64 * 100.0 / tally.answered() as f64 - weight as f64)
}

#[test]
fn clients_of_a_network_and_no_others_reach_its_version() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let _versions = two_versions(&stage)?;
    let client = stage.host.new_client()?;
    let ip4 = ["10.77.0.127", "10.77.0.128", "10.77.0.130", "10.77.0.131"];
    let ip6 = ["fd77::7fff", "fd77::8000", "fd77::8002", "fd77::8003"];
    for address in ip4.iter().map(|ip| format!("{ip}/24")).chain(ip6.iter().map(|ip| format!("{ip}/64 nodad"))) {
        client.ns.ip(&format!("addr add {address} dev eth0"))?;
    }
    // A network, one half of it, and one client of that half.
    stage.daemon.order_done("shift web v1=1 --from 10.77.0.0/24=v2 --from fd77::/64=v2")?;
    stage.daemon.order_done("shift web --from 10.77.0.128/25=v1 --from fd77::8000/113=v1")?;
    stage.daemon.order_done("shift web --from 10.77.0.130/32=v2 --from fd77::8002/128=v2")?;
    for ips in [ip4, ip6] {
        for (ip, version) in ips.into_iter().zip(["v2", "v1", "v2", "v1"]) {
            serves(&client, ip, version)?;
        }
    }
    // Independent of the weights, in both directions. Clients of no such network follow the weights.
    let elsewhere =
        |version: &str| all_by(Load::to("127.0.0.1:80".parse()?).count(EACH).run(stage.host.net())?, version);
    elsewhere("v1")?;
    let before = stage.daemon.status()?.service("web").context("no service")?.counter("by_network");
    ensure!(before == 8 * EACH, "{before} connections were chosen by their network");
    stage.daemon.order_done("shift web v2=1")?;
    elsewhere("v2")?;
    serves(&client, ip4[0], "v2")?;
    serves(&client, ip4[1], "v1")?;
    serves(&client, ip6[3], "v1")?;

    // Without the longest prefix the next one applies, and without any the weights do.
    stage.daemon.order_done("shift web v1=1 --no-from 10.77.0.130/32 --no-from fd77::8002/128")?;
    serves(&client, ip4[2], "v1")?;
    serves(&client, ip6[2], "v1")?;
    serves(&client, ip4[0], "v2")?;
    stage.daemon.order_done("shift web --no-from 10.77.0.0/24 --no-from fd77::/64")?;
    serves(&client, ip4[0], "v1")?;
    serves(&client, ip6[0], "v1")?;
    stage.daemon.order_done("shift web v2=1 --no-from 10.77.0.128/25 --no-from fd77::8000/113")?;
    for ip in ip4.into_iter().chain(ip6) {
        serves(&client, ip, "v2")?;
    }
    report::figure(
        "client networks",
        format!("{} times {EACH} connections, every one as ordered", 8 + 2 + 3 + 3 + 2 + 8),
    );
    Ok(())
}

/// This version answers every connection from this address.
fn serves(client: &Client, ip: &str, version: &str) -> Result<()> {
    let source: IpAddr = ip.parse()?;
    let host = if source.is_ipv6() { client.host_ip6 } else { client.host_ip4 };
    let tally = Load::to(SocketAddr::new(host, 80)).count(EACH).from(source).run(&client.ns)?;
    ensure!(tally.disguised.is_empty(), "{:?}", tally.disguised);
    all_by(tally, version).with_context(|| format!("clients at {ip}"))
}

fn all_by(tally: Tally, version: &str) -> Result<()> {
    ensure!(tally.losses.is_empty(), "{tally}");
    ensure!(tally.answered_by(version) == EACH, "not all came to {version}: {tally}");
    Ok(())
}
