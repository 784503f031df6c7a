//! Which containers with a network namespace of their own are forwarded to: those that share it with no other backend of their service,
//! unless a label says otherwise.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    check,
    container::{Container, Spec},
    daemon::Stage,
    load::Load,
    require, server, tools, wait,
};

/// Between two resyncs of the daemon.
const RESYNC: Duration = Duration::from_secs(30);

fn bridged(name: &str) -> Spec {
    server::named(name, "0.0.0.0:8080").service("web", "80:8080").network("bridge")
}

/// A server on port 8081 that joins a container's network namespace.
fn joins(stage: &Stage, container: &Container, service: &str, ports: &str) -> Result<Container> {
    let spec = server::named("joined-1", "0.0.0.0:8081").network(format!("container:{}", container.id));
    stage.engine().start_container(&spec.service(service, ports))
}

#[test]
fn a_sidecar_of_another_service_changes_nothing() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let web = stage.engine().start_container(&bridged("web-1"))?;
    stage.daemon.wait_ready("web", 1)?;
    let clients = Load::to((client.host_ip4, 80).into()).threads(2).start(&client.ns)?;
    let _sidecar = joins(&stage, &web, "metrics", "81:8081")?;
    stage.daemon.wait_ready("metrics", 1)?;
    // It serves its port where it is: at the address of the container.
    let pod = Load::to((web.ip()?, 81).into()).count(100).run(stage.host.net())?;
    ensure!(pod.losses.is_empty() && pod.answered_by("joined-1") == 100, "{pod}");
    let tally = clients.stop()?;
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)?;
    ensure!(tally.losses.is_empty() && tally.disguised.is_empty(), "{tally}");
    Ok(())
}

#[test]
fn a_container_that_another_backend_of_its_service_joins_is_a_pod() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let web = stage.engine().start_container(&bridged("web-1"))?;
    stage.daemon.wait_ready("web", 1)?;
    let joined = joins(&stage, &web, "web", "80:8081")?;
    let service = stage.daemon.wait_ready("web", 2)?;
    ensure!(service.namespaces.len() == 1, "{:?}", service.namespaces);
    let tally = Load::to((web.ip()?, 80).into()).count(400).run(stage.host.net())?;
    let by = (tally.answered_by("web-1"), tally.answered_by("joined-1"));
    ensure!(tally.losses.is_empty() && by.0 > 100 && by.1 > 100, "{tally}");
    let outside = Load::to((client.host_ip4, 80).into()).count(10).run(&client.ns)?;
    ensure!(outside.refused() == 10, "{outside}");
    // Alone again, it is forwarded to at once, and not only after the next resync.
    let begun = Instant::now();
    drop(joined);
    wait::until_ok("clients of the host's port", || {
        let tally = Load::to((client.host_ip4, 80).into()).count(20).run(&client.ns)?;
        Ok((tally.answered_by("web-1") == 20).then_some(()))
    })?;
    ensure!(begun.elapsed() < RESYNC / 2, "it took {:?}: {}", begun.elapsed(), stage.daemon.log_tail());
    Ok(())
}

#[test]
fn a_container_that_asks_for_it_is_forwarded_to_although_it_is_a_pod() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let web = stage.engine().start_container(&bridged("web-1").label("pod-steer.via", "forward"))?;
    stage.daemon.wait_ready("web", 1)?;
    let _joined = joins(&stage, &web, "web", "80:8081")?;
    stage.daemon.wait_ready("web", 2)?;
    for (target, ns, name) in
        [((client.host_ip4, 80), &client.ns, "web-1"), ((web.ip()?, 80), stage.host.net(), "joined-1")]
    {
        let tally = Load::to(target.into()).count(100).run(ns)?;
        ensure!(tally.losses.is_empty() && tally.answered_by(name) == 100, "{target:?}: {tally}");
    }
    Ok(())
}
