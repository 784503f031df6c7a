//! The daemon finds the backends that ran before it started.

use std::sync::Arc;

use anyhow::Result;
use pod_steer_tests::{check, daemon::Daemon, engine::Engine, host::Host, load::Load, require, server, tools, wait};

#[test]
fn containers_that_listened_before_the_daemon() -> Result<()> {
    require!(tools::docker());
    let host = Arc::new(Host::new()?);
    let engine = Engine::start(&host)?;
    // Without the daemon nothing sets SO_REUSEPORT, so each has a port of its own.
    let start = |name: &str, port: u16| {
        let spec = server::named(name, &format!("0.0.0.0:{port}")).service("web", &format!("80:{port}"));
        engine.start_container(&spec)
    };
    let containers = [start("web-1", 8081)?, start("web-2", 8082)?];
    for container in &containers {
        wait::until("the server", || container.logs().ok().filter(|logs| logs.contains("listening")))?;
    }
    let daemon = Daemon::start(&host, &[&engine.url()])?;
    daemon.wait_ready("web", 2)?;
    let tally = Load::to("127.0.0.1:80".parse()?).threads(2).count(2000).run(host.net())?;
    check::kernel_agrees(&daemon.wait_idle("web")?, &tally)?;
    check::shares_follow("found at start", &tally, &[("web-1", 1), ("web-2", 1)])
}

#[test]
fn an_engine_that_is_not_there_yet() -> Result<()> {
    require!(tools::docker());
    let host = Arc::new(Host::new()?);
    let url = format!("unix://{}", host.dir().join("docker/docker.sock").display());
    let daemon = Daemon::start(&host, &[&url])?;
    daemon.wait_for("a condition of the engine", |status| (!status.warnings().is_empty()).then_some(()))?;
    let engine = Engine::start(&host)?;
    assert_eq!(engine.url(), url);
    let _web = engine.start_container(&server::named("web-1", "0.0.0.0:8080").service("web", "80:8080"))?;
    daemon.wait_ready("web", 1)?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(50).run(host.net())?;
    assert_eq!(tally.answered_by("web-1"), 50, "{tally}");
    daemon.wait_for("nothing to complain of", |status| status.warnings().is_empty().then_some(()))
}
