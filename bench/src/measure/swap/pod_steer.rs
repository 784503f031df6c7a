//! pod-steer, as in its README: the new version is started and deployed, and the deploy stops the old one.

use std::sync::Arc;

use anyhow::Result;
use pod_steer_tests::{container::Container, daemon::Stage, engine::Engine, server};

use super::contestant::{Contestant, PORT, Site};

/// Two versions on one port of the host.
#[derive(Debug)]
pub struct PodSteer {
    current: Container,
    stage: Stage,
    site: Site,
}

impl PodSteer {
    /// The daemon, and the first version.
    pub fn start(version: &str) -> Result<Self> {
        let site = Site::new()?;
        let engine = Engine::start(&site.host)?;
        let stage = Stage::with(Arc::clone(&site.host), Some(engine))?;
        let current = run(&stage, version)?;
        stage.daemon.wait_ready("web", 1)?;
        Ok(Self { current, stage, site })
    }
}

impl Contestant for PodSteer {
    fn site(&self) -> &Site {
        &self.site
    }

    fn replace(&mut self, version: &str) -> Result<Container> {
        let new = run(&self.stage, version)?;
        self.stage.daemon.order_done(&format!("deploy web {version} --stop-old"))?;
        Ok(std::mem::replace(&mut self.current, new))
    }
}

fn run(stage: &Stage, version: &str) -> Result<Container> {
    let spec = server::named(version, &format!("0.0.0.0:{PORT}"));
    let spec = spec.service("web", &format!("{PORT}:{PORT}")).version(version).label("pod-steer.rollout", "manual");
    stage.engine().import(spec.image())?;
    stage.engine().docker().run_detached(&spec)
}
