//! A deploy from an image that runs as root to one that runs as another user, and back.

use anyhow::Result;
use pod_steer_tests::{daemon::Stage, load::Load, report, require, server, tools};

const ROUNDS: usize = 5;
const OLD: &str = "of-root";
const NEW: &str = "of-user";

#[test]
fn from_root_to_another_user_and_back() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let root = server::named(OLD, "0.0.0.0:8080").service("web", "80:8080").version("v1");
    let user = server::named_as_user(NEW, "0.0.0.0:8080").service("web", "80:8080").version("v2");
    let _root = stage.engine().start_container(&root)?;
    stage.daemon.wait_ready("web", 1)?;
    let _user = stage.engine().start_container(&user)?;
    stage.daemon.wait_ready("web", 2)?;

    let target = (client.host_ip4, 80).into();
    let load = Load::to(target).threads(4).start(&client.ns)?;
    for round in 0..ROUNDS {
        for (version, name) in [("v2", NEW), ("v1", OLD)] {
            stage.daemon.order_done(&format!("deploy web {version}"))?;
            let after = Load::to(target).count(100).run(&client.ns)?;
            assert_eq!(after.answered_by(name), 100, "round {round}, {version}: {after}");
        }
    }
    let tally = load.stop()?;
    report::figure("deploys from root to uid 1000 and back, five times, under load", &tally);
    assert!(tally.losses.is_empty() && tally.disguised.is_empty(), "{tally}");
    assert!(tally.answered_by(OLD) > 0 && tally.answered_by(NEW) > 0, "{tally}");
    let backends = stage.daemon.wait_idle("web")?.backends;
    let infos: Vec<String> = backends.iter().flat_map(|backend| backend.infos()).collect();
    assert!(infos.len() == 1 && infos[0].contains("1000"), "{infos:?}");
    Ok(())
}
