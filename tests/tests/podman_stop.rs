//! Stopping a container of Podman: Podman announces a stop only when the container has ended, so its traffic has to be drained first.

use std::sync::Arc;

use anyhow::{Result, ensure};
use pod_steer_tests::{
    container::{Container, Spec},
    daemon::Daemon,
    host::Host,
    image::Image,
    load::Load,
    podman::Podman,
    report, require, server, tools,
};

/// How long a server keeps serving after SIGTERM.
const STOP_DELAY_MS: &str = "1500";

struct Stage {
    daemon: Daemon,
    podman: Podman,
    host: Arc<Host>,
}

impl Stage {
    fn new() -> Result<Self> {
        let host = Arc::new(Host::new()?);
        let podman = Podman::start(&host)?;
        podman.import(Image::Named)?;
        Ok(Self { daemon: Daemon::start(&host, &[&podman.url()])?, podman, host })
    }

    fn start(&self, name: &str, version: &str) -> Result<Container> {
        let args = ["--listen", "0.0.0.0:8080", "--stop-delay-ms", STOP_DELAY_MS];
        let spec: Spec = server::named_with(name, &args).service("web", "80:8080").version(version);
        self.podman.docker().start(&spec.label("pod-steer.rollout", "manual"))
    }

    fn load(&self) -> Load {
        Load::to(([127, 0, 0, 1], 80).into()).threads(2)
    }
}

#[test]
fn a_drained_container_gets_no_connection_while_it_stops() -> Result<()> {
    require!(tools::root_and(&["podman", "conmon", "docker", "busybox", "ip", "tar"]));
    let stage = Stage::new()?;
    let stopped = [stage.start("web-1", "v1")?, stage.start("web-2", "v1")?];
    let _stays = stage.start("web-3", "v1")?;
    stage.daemon.wait_ready("web", 3)?;

    // Without a drain it gets clients until it has ended.
    let load = stage.load().start(stage.host.net())?;
    stopped[0].stop()?;
    let undrained = load.stop()?.answered_by("web-1");

    // Drained first, it gets no client after the command has returned.
    stage.daemon.order("drain web --backend web-2")?.expect(0)?;
    let load = stage.load().start(stage.host.net())?;
    stopped[1].stop()?;
    let tally = load.stop()?;
    report::figure("connections to a container while `podman stop` ends it", format!("{undrained}, drained first 0"));
    ensure!(tally.losses.is_empty(), "{tally}");
    assert_eq!(tally.answered_by("web-2"), 0, "{tally}");
    Ok(())
}

#[test]
fn deploy_stops_the_old_containers_after_their_traffic_has_moved() -> Result<()> {
    require!(tools::root_and(&["podman", "conmon", "docker", "busybox", "ip", "tar"]));
    let stage = Stage::new()?;
    let _old = stage.start("web-1", "v1")?;
    stage.daemon.wait_ready("web", 1)?;
    let _new = stage.start("web-2", "v2")?;
    let load = stage.load().start(stage.host.net())?;
    stage.daemon.order("deploy web v2 --stop-old")?.expect(0)?;
    // The old container is told to stop, and serves for a while.
    let after = stage.load().start(stage.host.net())?;
    stage.daemon.wait_state("web", "web-1", "exited")?;
    let after = after.stop()?;
    ensure!(after.losses.is_empty() && after.answered_by("web-1") == 0, "{after}");
    let tally = load.stop()?;
    ensure!(tally.losses.is_empty(), "{tally}");
    Ok(())
}
