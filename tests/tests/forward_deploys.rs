//! Deploys from one bridged version to another, under load: no client notices.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use pod_steer_tests::{daemon::Stage, load::Load, report, require, rollouts::none_lost, server, tools};

const DEPLOYS: usize = 20;

#[test]
fn no_client_notices_a_deploy_between_bridged_versions() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let start = |name: &str, version: &str| {
        let spec = server::named(name, "0.0.0.0:8080").service("web", "80:8080").version(version);
        stage.engine().start_container(&spec.network("bridge"))
    };
    let _servers = [start("old", "v1")?, start("new", "v2")?];
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("deploy web v1 --timeout 20s")?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let short = Load::to(target).threads(3).start(&client.ns)?;
    // A pause between connections, so that client ports are not used up.
    let kept = Load::to(target).threads(2).requests(50).pause(Duration::from_millis(2)).start(&client.ns)?;
    for round in 0..DEPLOYS {
        let (version, name) = if round % 2 == 0 { ("v2", "new") } else { ("v1", "old") };
        stage.daemon.order_done(&format!("deploy web {version} --timeout 20s"))?;
        let all = Load::to(target).count(20).run(&client.ns)?;
        ensure!(all.answered_by(name) == 20, "round {round}: {all}");
        if round == DEPLOYS / 2 {
            stage.daemon.kill()?;
            stage.daemon.restart()?;
        }
    }
    let (short, kept) = (short.stop()?, kept.stop()?);
    none_lost(&short)?;
    none_lost(&kept)?;
    ensure!(short.connections() > 2_000 && kept.requests() > 2_000, "{short}; {kept}");
    report::figure("deploys between bridged versions", format!("{DEPLOYS}; {short}; {kept}"));
    let service = stage.daemon.wait_idle("web")?;
    for counter in ["refused_no_backend", "flows_full", "not_rewritten", "ports_exhausted"] {
        ensure!(service.counter(counter) == 0, "{service:#?}");
    }
    Ok(())
}
