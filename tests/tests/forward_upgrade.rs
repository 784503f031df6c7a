//! Other releases of pod-steer take over while packets are forwarded: the programs of the network devices are replaced in place, and no
//! client notices, neither by a new connection nor by one that was open before.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    bpf::{self, Object, Target},
    bridged::{self, Kept, add_kept, counts_agree, kept},
    container::Container,
    daemon::Stage,
    host::Client,
    load::{Load, Running},
    report, require, tools,
    upgrades::{LAYOUT, LAYOUT_MORE, PROGRAM, choose, goes_on, links, no_residue, take_over},
};

/// Two servers that take a while to answer, so that some requests are under way at each moment.
const ANSWER_DELAY: [&str; 2] = ["--answer-delay-ms", "20"];

/// A stage with two servers, open connections, and clients.
struct Scene {
    stage: Stage,
    _client: Client,
    _servers: Vec<Container>,
    held: Vec<Kept>,
    short: Running,
    long: Running,
}

impl Scene {
    fn new() -> Result<Self> {
        let stage = Stage::with_docker()?;
        let client = stage.host.new_client()?;
        let servers = ["web-1", "web-2"].map(|name| {
            let spec = bridged::web_with(name, &ANSWER_DELAY);
            stage.engine().start_container(&spec)
        });
        let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
        stage.daemon.wait_ready("web", 2)?;
        let target: SocketAddr = (client.host_ip4, 80).into();
        let held = kept(&client, target, 2)?;
        let short = Load::to(target).threads(6).start(&client.ns)?;
        let long = Load::to(target).threads(4).requests(50).pause(Duration::from_millis(1)).start(&client.ns)?;
        goes_on(&short)?;
        Ok(Self { stage, _client: client, _servers: servers, held, short, long })
    }

    /// New connections are served, and all open ones go on.
    fn goes_on(&mut self) -> Result<()> {
        goes_on(&self.short)?;
        self.held.iter_mut().try_for_each(Kept::goes_on)
    }

    /// The programs of network devices by the ids of their links.
    fn device_programs(&self) -> Result<BTreeMap<u32, u32>> {
        let links = bpf::links(&self.stage.host)?.into_iter().filter(|link| link.target == Target::Other);
        let programs: BTreeMap<u32, u32> = links.map(|link| (link.id, link.program)).collect();
        for program in programs.values() {
            let name = bpf::program(*program)?.map(|program| match program {
                Object::Program { name, .. } => name,
                other => format!("{other:?}"),
            });
            let known = ["from_wire", "from_bridge", "to_wire", "from_tunnel", "to_tunnel", "from_pair"];
            ensure!(name.as_deref().is_some_and(|name| known.contains(&name)), "{name:?} is no program of a device");
        }
        Ok(programs)
    }

    fn ends_well(mut self, label: &str) -> Result<()> {
        self.goes_on()?;
        let (mut tally, long) = (self.short.stop()?, self.long.stop()?);
        let requests = tally.requests() + long.requests();
        tally.merge(long);
        report::figure(label, format!("{requests} requests, {tally}; {} connections were held", self.held.len()));
        add_kept(&mut tally, &self.held);
        drop(self.held);
        counts_agree(label, &self.stage.daemon, &tally)
    }
}

#[test]
fn upgrades_lose_no_forwarded_connection() -> Result<()> {
    require!(tools::docker());
    let mut scene = Scene::new()?;
    let mut opened = 0;
    for release in [PROGRAM, LAYOUT, LAYOUT_MORE] {
        let (all, of_devices) = (links(&scene.stage)?, scene.device_programs()?);
        // At least the loopback device, the engine's bridge and the one to the client, in both directions.
        ensure!(of_devices.len() >= 6, "{of_devices:?}");
        take_over(&mut scene.stage, Some(release))?;
        scene.goes_on()?;
        let now = links(&scene.stage)?;
        ensure!(now.keys().eq(all.keys()), "{release}: no link was made anew: {all:?} {now:?}");
        ensure!(now.iter().all(|(id, program)| all[id] != *program), "{release}: {all:?} {now:?}");
        ensure!(scene.device_programs()?.keys().eq(of_devices.keys()), "{release}");
        no_residue(&scene.stage)?;
        let status = scene.stage.daemon.status()?;
        ensure!(status.warnings().is_empty(), "{release}: {status}");
        let now = status.service("web").map(|web| web.opened()).unwrap_or_default();
        ensure!(now > opened, "{release}: counters go on: {now} after {opened}");
        opened = now;
    }
    scene.ends_well("three upgrades while packets are forwarded")
}

#[test]
fn an_upgrade_that_is_killed_loses_no_forwarded_connection() -> Result<()> {
    require!(tools::docker());
    let mut scene = Scene::new()?;
    for (release, point) in [(PROGRAM, "half-replaced"), (LAYOUT, "half-replaced"), (LAYOUT_MORE, "half-swapped")] {
        let before = links(&scene.stage)?;
        scene.stage.daemon.kill()?;
        choose(&mut scene.stage, Some(release))?;
        scene.stage.daemon.run_until_dead(point)?;
        scene.goes_on()?;
        scene.stage.daemon.restart()?;
        scene.goes_on()?;
        let now = links(&scene.stage)?;
        ensure!(now.keys().eq(before.keys()), "{release}: {before:?} {now:?}");
        ensure!(now.iter().all(|(id, program)| before[id] != *program), "{release}: {before:?} {now:?}");
        no_residue(&scene.stage)?;
    }
    scene.ends_well("three upgrades that were killed, while packets are forwarded")
}
