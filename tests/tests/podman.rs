//! The same on Podman, and on two engines at once.

use anyhow::{Result, ensure};
use pod_steer_tests::{
    check, daemon::Daemon, engine::Engine, host::Host, image::Image, load::Load, podman::Podman, require, server,
    tools, wait,
};
use std::sync::Arc;

fn podman() -> Result<(), String> {
    tools::root_and(&["podman", "conmon", "docker", "busybox", "ip", "tar"])
}

#[test]
fn containers_of_podman_share_a_port() -> Result<()> {
    require!(podman());
    let host = Arc::new(Host::new()?);
    let podman = Podman::start(&host)?;
    podman.import(Image::Named)?;
    podman.import(Image::Busybox)?;
    let daemon = Daemon::start(&host, &[&podman.url()])?;
    let specs = [
        server::named("named-1", "0.0.0.0:8080").weight(2),
        server::named("named-2", "0.0.0.0:8080").weight(1),
        server::busybox("busybox-1", 8080).weight(1),
    ];
    let mut containers = specs
        .into_iter()
        .map(|spec| podman.start_announced(&daemon, &spec.service("web", "80:8080")))
        .collect::<Result<Vec<_>>>()?;
    daemon.wait_ready("web", 3)?;
    let target = "127.0.0.1:80".parse()?;
    let tally = Load::to(target).threads(3).count(5000).run(host.net())?;
    check::kernel_agrees(&daemon.wait_idle("web")?, &tally)?;
    check::shares_follow("Podman", &tally, &[("named-1", 2), ("named-2", 1), ("busybox-1", 1)])?;

    // The daemon also follows Podman's events.
    let load = Load::to(target).threads(1).start(host.net())?;
    containers[1].pause()?;
    daemon.wait_state("web", "named-2", "paused")?;
    containers[1].unpause()?;
    daemon.wait_ready("web", 3)?;
    containers[1].stop()?;
    daemon.wait_ready("web", 2)?;
    drop(containers.swap_remove(1));
    daemon.wait_for("the removed container to be gone", |status| {
        status.service("web").filter(|service| service.backends.len() == 2).map(drop)
    })?;
    let tally = load.stop()?;
    assert!(tally.losses.is_empty(), "{tally}");
    Ok(())
}

#[test]
fn two_engines_serve_one_service() -> Result<()> {
    require!(podman());
    require!(tools::docker());
    let host = Arc::new(Host::new()?);
    let (docker, podman) = (Engine::start(&host)?, Podman::start(&host)?);
    podman.import(Image::Named)?;
    let daemon = Daemon::start(&host, &[&docker.url(), &podman.url()])?;
    let spec = |name: &str| server::named(name, "0.0.0.0:8080").service("web", "80:8080");
    let _docker = docker.start_container(&spec("docker-1"))?;
    let _podman = podman.start_announced(&daemon, &spec("podman-1"))?;
    let service = daemon.wait_ready("web", 2)?;
    for (name, url) in [("docker-1", docker.url()), ("podman-1", podman.url())] {
        let backend = service.backends.iter().find(|backend| backend.name == name).expect("it is ready");
        assert_eq!(backend.engine.as_deref(), Some(url.as_str()));
    }
    let tally = Load::to("127.0.0.1:80".parse()?).threads(2).count(2000).run(host.net())?;
    check::kernel_agrees(&daemon.wait_idle("web")?, &tally)?;
    check::shares_follow("Docker and Podman at once", &tally, &[("docker-1", 1), ("podman-1", 1)])
}

/// Podman tells late of the death of a run: the next one may serve already.
#[test]
fn a_container_that_is_started_again_at_once_serves_on() -> Result<()> {
    require!(podman());
    let host = Arc::new(Host::new()?);
    let podman = Podman::start(&host)?;
    podman.import(Image::Named)?;
    let daemon = Daemon::start(&host, &[&podman.url()])?;
    let container =
        podman.start_announced(&daemon, &server::named("web-1", "0.0.0.0:8080").service("web", "80:8080"))?;
    daemon.wait_ready("web", 1)?;
    wait::until("the event of its first start", || daemon.log().contains("change=Started").then_some(()))?;
    let target = "127.0.0.1:80".parse()?;
    for _ in 0..3 {
        let before = daemon.log().len();
        container.kill("KILL")?;
        container.start()?;
        daemon.wait_ready("web", 1)?;
        let load = Load::to(target).threads(1).start(host.net())?;
        wait::until("the events of its end and its start", || {
            let log = daemon.log().split_off(before);
            let is_told = log.contains("event of a former run") || log.contains("change=Died");
            (is_told && log.contains("change=Started")).then_some(())
        })?;
        let answered = load.answered();
        wait::until("more connections", || (load.answered() > answered + 500).then_some(()))?;
        let tally = load.stop()?;
        ensure!(tally.losses.is_empty(), "{tally}\n{}", daemon.log_tail());
        let log = daemon.log().split_off(before);
        ensure!(!log.contains("had connections before it was attached"), "{}", daemon.log_tail());
    }
    Ok(())
}
