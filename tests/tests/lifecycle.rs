//! Stop, kill, pause and health take effect at once: after such an event the container gets no new connection.

use anyhow::Result;
use pod_steer_tests::{
    container::Container,
    daemon::Stage,
    load::{Load, Tally},
    require, server, tools,
};

fn two(stage: &Stage) -> Result<(Container, Container)> {
    let start =
        |name: &str| stage.engine().start_container(&server::named(name, "0.0.0.0:8080").service("web", "8080:8080"));
    let both = (start("web-1")?, start("web-2")?);
    stage.daemon.wait_ready("web", 2)?;
    Ok(both)
}

fn load(stage: &Stage) -> Result<Tally> {
    let tally = Load::to("127.0.0.1:8080".parse()?).threads(2).count(300).run(stage.host.net())?;
    assert!(tally.losses.is_empty(), "{tally}");
    Ok(tally)
}

#[test]
fn a_paused_container_gets_nothing_new() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let (_first, second) = two(&stage)?;
    second.pause()?;
    stage.daemon.wait_state("web", "web-2", "paused")?;
    let tally = load(&stage)?;
    assert_eq!(tally.answered_by("web-1"), 300, "{tally}");
    second.unpause()?;
    stage.daemon.wait_ready("web", 2)?;
    let tally = load(&stage)?;
    assert!(tally.answered_by("web-2") > 0, "{tally}");
    Ok(())
}

#[test]
fn a_container_that_is_told_to_stop_gets_nothing_new() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let (_first, _second) = two(&stage)?;
    // As the first process of a container, busybox ignores SIGTERM and keeps listening.
    let third = stage.engine().start_container(&server::busybox("web-3", 8080).service("web", "8080:8080"))?;
    stage.daemon.wait_ready("web", 3)?;
    assert!(load(&stage)?.answered_by("web-3") > 0);
    third.kill("TERM")?;
    stage.daemon.wait_state("web", "web-3", "stopping")?;
    let tally = load(&stage)?;
    assert_eq!(tally.answered_by("web-1") + tally.answered_by("web-2"), 300, "{tally}");
    assert_eq!(stage.daemon.status()?.backend("web", "web-3").sockets, 1, "it listens still");
    Ok(())
}

#[test]
fn an_unhealthy_container_gets_nothing_new() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let (_first, _second) = two(&stage)?;
    let health = ["--health-cmd", "[ ! -e /www/sick ]", "--health-interval", "200ms", "--health-retries", "1"];
    let third = server::busybox("web-3", 8080).service("web", "8080:8080").options(&health);
    let third = stage.engine().start_container(&third)?;
    stage.daemon.wait_ready("web", 3)?;
    let docker = stage.engine().docker();
    docker.run(&["exec", &third.id, "/bin/busybox", "touch", "/www/sick"])?;
    stage.daemon.wait_state("web", "web-3", "unhealthy")?;
    let tally = load(&stage)?;
    assert_eq!(tally.answered_by("web-1") + tally.answered_by("web-2"), 300, "{tally}");
    docker.run(&["exec", &third.id, "/bin/busybox", "rm", "/www/sick"])?;
    stage.daemon.wait_ready("web", 3)?;
    assert!(load(&stage)?.answered_by("web-3") > 0);
    Ok(())
}

#[test]
fn a_signal_that_asks_for_nothing_changes_nothing() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let spec = server::named("web-1", "0.0.0.0:8080").service("web", "8080:8080");
    let only = stage.engine().start_container(&spec)?;
    stage.daemon.wait_ready("web", 1)?;
    // Signals that do not ask to stop.
    only.kill("URG")?;
    only.kill("WINCH")?;
    let tally = load(&stage)?;
    assert_eq!(tally.answered_by("web-1"), 300, "{tally}");
    stage.daemon.wait_ready("web", 1).map(drop)
}

#[test]
fn a_container_is_renamed_and_restarted() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let (_first, second) = two(&stage)?;
    let docker = stage.engine().docker();
    docker.run(&["rename", &second.id, "web-9"])?;
    stage.daemon.wait_for("its new name", |status| {
        status.service("web")?.backends.iter().any(|backend| backend.name == "web-9").then_some(())
    })?;
    docker.run(&["restart", &second.id])?;
    stage.daemon.wait_ready("web", 2)?;
    assert!(load(&stage)?.answered_by("web-2") > 0);
    Ok(())
}
