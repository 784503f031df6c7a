//! The daemon is killed in the middle of deploys between a version on the host's network and one behind a bridge. New connections follow
//! the decision before the step or the one after it, and no connection is lost.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bridged::{self, Kept, add_kept, counts_agree, kept},
    daemon::Stage,
    exec::Exec,
    load::{Load, Tally},
    report, require, tools,
};
use serde_json::json;

/// Connections by which it is seen which version serves.
const SEEN: u64 = 100;

/// A server on the host's network, and one behind a bridge, each with its version.
const SERVERS: [(&str, &str); 2] = [("out", "v1"), ("in", "v2")];

#[test]
fn a_deploy_from_one_kind_to_the_other_goes_on_when_the_daemon_is_killed() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let _inside = stage.engine().start_container(&bridged::web("in").version("v2"))?;
    let _outside = Exec::new("out", "web", "80:8080", "0.0.0.0:8080").flags(&["--version=v1"]).start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let mut held = kept(&client, target, 2)?;
    stage.daemon.order_done("shift web v1=1")?;
    let short = Load::to(target).threads(3).start(&client.ns)?;
    let long = Load::to(target).threads(2).requests(50).pause(Duration::from_millis(2)).start(&client.ns)?;
    let mut total = Tally::default();
    // By the number of the version: which one serves when the daemon is dead, as it was or as it will be.
    for (point, is_new) in [("stored", false), ("built", false), ("switched", true)] {
        for to in [1, 0] {
            stage.daemon.kill()?;
            stage.daemon.restart_to_die(point)?;
            stage.daemon.wait_state("web", SERVERS[to].0, "standby")?;
            let order = json!({
                "order": "deploy", "version": SERVERS[to].1, "timeout_ms": 60_000, "drain_timeout_ms": 0, "stop_old": false
            });
            // The daemon ends while it handles the order, so an answer is not required.
            let _ = stage.daemon.begin(&order);
            stage.daemon.wait_until_dead()?;
            for (when, by) in [("dead", if is_new { to } else { 1 - to }), ("restarted", to)] {
                if when == "restarted" {
                    stage.daemon.restart()?;
                    let id = stage.daemon.history("web")?.last().context("no operation")?.id;
                    stage.daemon.wait_operation(id, "the deploy to end", |operation| operation.end.is_some())?;
                }
                let all = Load::to(target).count(SEEN).run(&client.ns)?;
                ensure!(all.answered_by(SERVERS[by].0) == SEEN, "{point}, {when}, to {}: {all}", SERVERS[to].0);
                total.merge(all);
                held.iter_mut().try_for_each(Kept::goes_on)?;
            }
        }
    }
    let (short, long) = (short.stop()?, long.stop()?);
    let label = "the daemon killed in deploys from one kind to the other";
    report::figure(label, format!("6 kills, {} requests; {short}; {long}", short.requests() + long.requests()));
    total.merge(short);
    total.merge(long);
    add_kept(&mut total, &held);
    drop(held);
    counts_agree(label, &stage.daemon, &total)
}
