//! A host with two uplinks: replies of forwarded connections leave by where the routes say, also when the routes change meanwhile.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage, load::Load, netns::NetNs, process::run, report, require, rollouts::none_lost, server, tools, wait,
};

/// Packets that a device has sent.
fn sent(net: &NetNs, device: &str) -> Result<u64> {
    let text = run(net.command("cat")?.arg("/proc/net/dev"))?;
    let line =
        text.lines().find_map(|line| line.trim().strip_prefix(&format!("{device}:"))).context("no such device")?;
    // Behind the eight fields of what it has received: bytes, and packets.
    Ok(line.split_whitespace().nth(9).context("no field")?.parse()?)
}

#[test]
fn replies_leave_by_where_the_routes_say() -> Result<()> {
    by_the_routes("forward")
}

#[test]
fn replies_that_are_handed_over_leave_by_where_the_routes_say() -> Result<()> {
    by_the_routes("peer")
}

fn by_the_routes(via: &str) -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let (host, router, client) = (stage.host.net(), NetNs::new()?, NetNs::new()?);
    for net in [host, &router] {
        net.sysctl("net.ipv4.ip_forward", "1")?;
        // A packet may come by another link than the way back.
        net.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
    }
    host.connect("up0", &["10.70.0.1/24"], &router, "north0", &["10.70.0.2/24"])?;
    host.connect("up1", &["10.72.0.1/24"], &router, "north1", &["10.72.0.2/24"])?;
    router.connect("south", &["10.71.0.1/24"], &client, "eth0", &["10.71.0.2/24"])?;
    client.ip("route add default via 10.71.0.1")?;
    host.ip("route add 10.71.0.0/24 via 10.72.0.2")?;
    let spec = server::named("web-1", "0.0.0.0:8080").service("web", "80:8080").network("bridge");
    let _server = stage.engine().start_container(&spec.label("pod-steer.via", via))?;
    stage.daemon.wait_ready("web", 1)?;
    let target = "10.70.0.1:80".parse()?;
    let short = Load::to(target).threads(2).start(&client)?;
    let kept = Load::to(target).threads(2).requests(20).pause(Duration::from_millis(2)).start(&client)?;
    for (way, other) in [("up1", "up0"), ("up0", "up1"), ("up1", "up0")] {
        let hop = if way == "up0" { "10.70.0.2" } else { "10.72.0.2" };
        host.ip(&format!("route replace 10.71.0.0/24 via {hop}"))?;
        // What was under way has left.
        std::thread::sleep(Duration::from_millis(100));
        let before = (sent(host, way)?, sent(host, other)?, short.answered());
        wait::until("clients that are answered", || (short.answered() > before.2 + 300).then_some(()))?;
        let (by_way, by_other) = (sent(host, way)? - before.0, sent(host, other)? - before.1);
        // Answers to ARP requests go by the other one too.
        ensure!(by_way > 600 && by_other < by_way / 20, "{by_way} packets by {way}, {by_other} by {other}");
        report::figure(&format!("route by {way}"), format!("{by_way} packets by {way}, {by_other} by {other}"));
    }
    for tally in [short.stop()?, kept.stop()?] {
        none_lost(&tally)?;
        ensure!(tally.disguised.is_empty() && tally.requests() > 300, "{tally}");
    }
    Ok(())
}
