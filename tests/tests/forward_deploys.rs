//! Deploys from one bridged version to another, under load: no client notices.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use pod_steer_tests::{
    bridged,
    daemon::Stage,
    load::{Load, Tally},
    report, require, scale, stats, tools,
};

/// Requests on each connection of the clients that keep theirs.
const REQUESTS: u32 = 50;
/// The test fails if the machine is too slow to finish in this time.
const RUN_MAX: Duration = Duration::from_secs(280);

#[test]
fn no_client_notices_a_deploy_between_bridged_versions() -> Result<()> {
    require!(tools::docker());
    let (deploys, requests) = (scale::of(20, 200), scale::of(4_000, 500_000));
    let mut stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    // More connections in a minute than the client has ports.
    client.ns.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
    let start = |name: &str, version: &str| stage.engine().start_container(&bridged::web(name).version(version));
    let _servers = [start("old", "v1")?, start("new", "v2")?];
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("deploy web v1 --timeout 20s")?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let begun = Instant::now();
    let short = Load::to(target).threads(3).start(&client.ns)?;
    // A pause between connections: a client that is always connected would never let a deploy end.
    let long = Load::to(target).threads(2).requests(REQUESTS).pause(Duration::from_millis(2)).start(&client.ns)?;
    let (mut took, mut tally) = (Vec::new(), Tally::default());
    while took.len() < deploys || short.requests() + long.requests() < requests {
        ensure!(begun.elapsed() < RUN_MAX, "{} deploys, {}", took.len(), short.requests() + long.requests());
        let (version, name) = if took.len() % 2 == 0 { ("v2", "new") } else { ("v1", "old") };
        took.push(stage.daemon.order_done(&format!("deploy web {version} --timeout 20s"))?.took());
        let all = Load::to(target).count(20).run(&client.ns)?;
        if all.answered_by(name) != 20 {
            let service = stage.daemon.said_of("web")?;
            bail!(
                "deploy {}, {:.0} s after the beginning: {all}; {}",
                took.len(),
                begun.elapsed().as_secs_f64(),
                service["counters"]
            );
        }
        tally.merge(all);
        if took.len() == deploys / 2 {
            stage.daemon.kill()?;
            stage.daemon.restart()?;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let (short, long) = (short.stop()?, long.stop()?);
    let (new, kept) = (short.requests(), long.requests());
    tally.merge(short);
    tally.merge(long);
    let (deployed, failed) = (took.len(), tally.losses.len());
    report::figure(
        "deploys between bridged versions",
        format!(
            "{deployed} deploys, {} requests in {seconds:.0} s, {failed} failed; {new} on connections of their own, {kept} on \
             connections with {REQUESTS} each; {tally}",
            new + kept
        ),
    );
    report::figure("deploy between bridged versions, to its return", stats::median_and_maximum(&mut took));
    ensure!(new > requests / 20 && kept > requests / 20, "{new} and {kept}");
    // A client's port may return while a container still has it in TIME_WAIT and its entries have made room for others: the server sees
    // another port then.
    let another_address = tally.disguised.iter().filter(|(own, seen)| own.ip() != seen.ip()).count();
    let another_port = tally.disguised.len();
    report::figure("deploys between bridged versions", format!("{another_port} clients were seen by another port"));
    ensure!(another_address == 0 && (scale::is_soak() || another_port == 0), "{:?}", tally.disguised);
    tally.disguised.clear();
    bridged::counts_agree("deploys between bridged versions", &stage.daemon, &tally)
}
