//! `cargo xtask package image --try`: loads the image into a real Docker engine, starts it by `examples/daemon.compose.yaml` with Docker
//! Compose, and lets it steer clients to other containers, on the host's network and behind a bridge. Clients connect meanwhile, and none may
//! be lost.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pod_steer_tests::container::Container;
use pod_steer_tests::engine::{Engine, Options};
use pod_steer_tests::host::{Client, Host};
use pod_steer_tests::load::{Load, Running};
use pod_steer_tests::process::run as run_here;
use pod_steer_tests::{server, status::Status, wait};
use serde_json::Value;

use super::Built;
use super::compose::Compose;
use super::layout::NAME;
use super::left::Left;
use crate::{build, debian, say};

/// Connections that are answered before, during and after each step.
const CONNECTIONS: u64 = 300;
/// A service on the host's network, and one behind the engine's bridge: the name, the port of its clients, and the networks.
const SERVICES: [(&str, u16, &str); 2] = [("web", 80, "host"), ("shop", 81, "bridge")];

/// Stands in an order for the name of each service.
const SERVICE: &str = "SERVICE";
/// How long a service is paused, and its client waits at most.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// Tries the image.
pub fn run(built: &Built) -> Result<()> {
    debian::ensure(&["docker", "dockerd", "ip", "iptables", "mount", "nft"])?;
    build::test_programs()?;
    let host = Host::new()?;
    // The state of the daemon's container is on the host, which here is this machine.
    run_here(host.command("mount")?.args(["-t", "tmpfs", "-o", "mode=755", "none", "/var/lib"]))?;
    // As on a machine: then only CAP_DAC_OVERRIDE can write there.
    run_here(host.command("chmod")?.args(["0555", "/sys/fs/cgroup"]))?;
    let engine = Options::publishing().arguments(&["--host", "unix:///var/run/docker.sock"]);
    let engine = Engine::start_with(&host, engine)?;
    let client = host.new_client()?;
    let trial = Trial { compose: Compose::new(&host, &engine)?, engine: &engine, client: &client };

    say::heading("the engine loads the image");
    trial.load_image(built)?;
    let before = Left::look(&host)?;
    say::heading("Compose starts the daemon, and containers become its backends");
    trial.compose.run(&["up", "-d"])?;
    trial.wait_until_up()?;
    trial.lacks_nothing()?;
    let _first = trial.backends("v1")?;
    trial.wait_states("v1", "ready")?;
    trial.answers("v1")?;
    trial.no_conditions()?;

    say::heading("under load, it deploys, restarts, drains and is replaced");
    trial.steps()?;

    say::heading("it is unloaded");
    trial.compose.run(&["stop"])?;
    trial.compose.run(&["run", "--rm", "pod-steer", "unload"])?;
    trial.compose.run(&["down"])?;
    before.compare(&Left::look(&host)?)
}

/// An engine, a client, and the daemon's container.
struct Trial<'a> {
    compose: Compose<'a>,
    engine: &'a Engine,
    client: &'a Client,
}

impl Trial<'_> {
    fn load_image(&self, built: &Built) -> Result<()> {
        let docker = self.engine.docker();
        docker.run(&["load", "--quiet", "--input", built.archive.to_str().context("a path that is not text")?])?;
        let image: Value = serde_json::from_str(&docker.run(&["image", "inspect", "--format", "{{json .}}", NAME])?)?;
        ensure!(image["RootFS"]["Layers"] == serde_json::json!([built.image.layer_digest()]), "{image:#}");
        let labels = &image["Config"]["Labels"];
        for label in ["title", "version", "revision", "created", "licenses"] {
            let text = labels[format!("org.opencontainers.image.{label}")].as_str();
            ensure!(text.is_some_and(|text| !text.is_empty()), "the image lacks the label {label}: {labels}");
        }
        ensure!(image["Config"]["Entrypoint"] == serde_json::json!(["/pod-steer"]), "{image:#}");
        let files = built.image.contents()?.join(", ");
        say::note(&format!("{NAME} has the one layer of the layout, whose only file is {files}"));
        Ok(())
    }

    /// Each step has its connections, to both services.
    fn steps(&self) -> Result<()> {
        let load = |port| Load::to(self.target(port)).threads(2).start(&self.client.ns);
        let loads = [load(SERVICES[0].1)?, load(SERVICES[1].1)?];
        let _next = self.backends("v2")?;
        self.wait_states("v2", "standby")?;
        self.replaced(&loads, "restart", || self.compose.run(&["restart"]))?;
        self.each(&loads, &["deploy", SERVICE, "v2"])?;
        self.replaced(&loads, "kill -9 and start", || {
            self.compose.run(&["kill", "--signal", "KILL"])?;
            self.compose.run(&["up", "-d"])
        })?;
        self.each(&loads, &["shift", SERVICE, "v1=50", "v2=50"])?;
        self.each(&loads, &["drain", SERVICE, "--version", "v1"])?;
        self.answers("v2")?;
        self.replaced(&loads, "another container", || self.compose.run(&["up", "-d", "--force-recreate"]))?;
        self.answers("v2")?;
        self.each(&loads, &["resume", SERVICE, "--version", "v1"])?;
        self.each(&loads, &["deploy", SERVICE, "v1", "--stop-old"])?;
        for load in loads {
            let tally = load.stop()?;
            say::note(&format!("clients meanwhile: {tally}"));
            ensure!(tally.losses.is_empty(), "connections were lost");
        }
        self.answers("v1")?;
        self.no_conditions()?;
        self.pause()
    }

    /// A pause outlives the container that began it: its client connects when another one has ended it.
    fn pause(&self) -> Result<()> {
        let (service, port, _) = SERVICES[0];
        self.compose.steer(&["pause", service])?;
        self.compose.run(&["up", "-d", "--force-recreate"])?;
        self.wait_until_up()?;
        let waiting = Load::to(self.target(port)).threads(1).timeout(PAUSE_MAX).start(&self.client.ns)?;
        std::thread::sleep(PAUSE);
        ensure!(waiting.answered() == 0, "a paused service has answered");
        self.compose.steer(&["unpause", service])?;
        wait::until("an answer after the pause", || (waiting.answered() > 0).then_some(()))?;
        let tally = waiting.stop()?;
        ensure!(tally.losses.is_empty(), "{tally}");
        say::note(&format!("a client waited through a pause, and another container of the daemon: {tally}"));
        Ok(())
    }

    /// Gives an order for each service.
    fn each(&self, loads: &[Running], order: &[&str]) -> Result<()> {
        for (service, _, _) in SERVICES {
            let order: Vec<&str> = order.iter().map(|word| if *word == SERVICE { service } else { word }).collect();
            self.step(loads, &order.join(" "), || self.compose.steer(&order))?;
        }
        Ok(())
    }

    /// Does something that ends the daemon and starts it again.
    fn replaced(&self, loads: &[Running], what: &str, act: impl FnMut() -> Result<String>) -> Result<()> {
        let before = self.status()?.pid;
        self.step(loads, what, act)?;
        ensure!(self.status()?.pid != before, "the daemon goes on after: {what}");
        Ok(())
    }

    /// Does something while clients connect, and waits for further connections of each load.
    fn step(&self, loads: &[Running], what: &str, mut act: impl FnMut() -> Result<String>) -> Result<()> {
        act().with_context(|| what.to_owned())?;
        self.wait_until_up()?;
        let before: Vec<u64> = loads.iter().map(Running::answered).collect();
        wait::until(&format!("connections after {what}"), || {
            loads.iter().zip(&before).all(|(load, before)| load.answered() >= before + CONNECTIONS).then_some(())
        })?;
        println!("   {} {what}", say::green("✓"));
        Ok(())
    }

    /// Connects to each service; only this version answers.
    fn answers(&self, version: &str) -> Result<()> {
        for (service, port, _) in SERVICES {
            let tally = Load::to(self.target(port)).count(CONNECTIONS).run(&self.client.ns)?;
            ensure!(tally.answered_by(&format!("{service}-{version}")) == CONNECTIONS, "{service}: {tally}");
        }
        Ok(())
    }

    /// Starts a container of each service. The next version of a service on the host's network is another user's.
    fn backends(&self, version: &str) -> Result<Vec<Container>> {
        let start = |(service, port, network): (&str, u16, &str)| {
            let name = format!("{service}-{version}");
            let spec = match (version, network) {
                ("v2", "host") => server::named_as_user(&name, "0.0.0.0:8080"),
                _ => server::named(&name, "0.0.0.0:8080"),
            };
            let spec = spec.network(network).service(service, &format!("{port}:8080")).version(version);
            self.engine.start_container(&spec.label("pod-steer.rollout", "manual"))
        };
        SERVICES.into_iter().map(start).collect()
    }

    fn target(&self, port: u16) -> SocketAddr {
        (self.client.host_ip4, port).into()
    }

    fn status(&self) -> Result<Status> {
        let printed = self.compose.steer(&["status", "-o", "json"])?;
        serde_json::from_str(&printed).with_context(|| format!("reading the status {printed}"))
    }

    fn wait_until_up(&self) -> Result<()> {
        wait::until_ok("the daemon to answer", || Ok(self.compose.steer(&["status"]).ok().map(drop)))
            .with_context(|| self.compose.log().unwrap_or_default())
    }

    /// Waits until the backend of each service is in a state.
    fn wait_states(&self, version: &str, state: &str) -> Result<()> {
        let reached = wait::until_ok(&format!("{version} to be {state}"), || {
            let status = self.status()?;
            let backends = status.services.iter().flat_map(|service| &service.backends);
            let count = backends.filter(|backend| backend.version == version && backend.state == state).count();
            Ok((count == SERVICES.len()).then_some(()))
        });
        reached.with_context(|| format!("{:#?}\n{}", self.status(), self.compose.log().unwrap_or_default()))
    }

    /// The daemon lacks nothing that the image or the Compose file should give it.
    fn lacks_nothing(&self) -> Result<()> {
        let log = self.compose.log()?;
        ensure!(!log.contains(" WARN ") && !log.contains(" ERROR "), "the daemon has warned:\n{log}");
        let doctor = self.compose.steer(&["doctor"])?;
        ensure!(doctor.lines().all(|line| line.starts_with("ok ")), "doctor:\n{doctor}");
        say::note(&format!("{} checks of `doctor` find nothing missing", doctor.lines().count()));
        Ok(())
    }

    /// The status of a container may lag behind its start or its end.
    fn no_conditions(&self) -> Result<()> {
        let reached = wait::until_ok("no condition", || Ok(self.status()?.conditions.is_empty().then_some(())));
        reached.with_context(|| format!("{:#?}\n{}", self.status(), self.compose.log().unwrap_or_default()))
    }
}
