//! An engine's `HEALTHCHECK` runs inside the container and connects to the container's own port. It reaches this container, although
//! others share the port.

use std::{fs, path::PathBuf, sync::Arc, time::Instant};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::{Container, Spec},
    daemon::{Daemon, Stage},
    host::Host,
    image::Image,
    load::Load,
    podman::Podman,
    process::{output, run},
    report, require, tools,
};

fn status_file(host: &Host, name: &str) -> Result<PathBuf> {
    let dir = host.dir().join(format!("status-{name}"));
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// A container whose health check sends a request to an address. Its server answers with the status in a file.
fn checked(host: &Host, name: &str, version: &str, address: &str) -> Result<Spec> {
    let server = ["/named-server", "--name", name, "--listen", "0.0.0.0:8080", "--status-file", "/status/status"];
    let spec = Spec::new(Image::Busybox, name).mount(&tools::named_server()?, "/named-server");
    let spec = spec.mount(&status_file(host, name)?, "/status").args(&server).version(version);
    let ask = format!("--health-cmd=/named-server --ask {address}");
    let options = [ask.as_str(), "--health-interval=300ms", "--health-retries=2", "--health-timeout=10s"];
    Ok(spec.options(&options).service("web", "80:8080").label("pod-steer.rollout", "manual"))
}

fn deploy(daemon: &Daemon, version: &str) -> Result<()> {
    run(daemon.cli()?.args(["deploy", "web", version])).map(drop)
}

/// One backend answers all connections.
fn ensure_served_by(host: &Host, target: std::net::SocketAddr, name: &str) -> Result<()> {
    let tally = Load::to(target).count(200).run(host.net())?;
    ensure!((tally.answered(), tally.answered_by(name)) == (200, 200), "{tally}");
    Ok(())
}

fn ensure_nothing_counted(daemon: &Daemon, name: &str) -> Result<()> {
    let status = daemon.status()?;
    let service = status.service("web").context("no service")?;
    let backend = service.backends.iter().find(|backend| backend.name == name).context("no backend")?;
    let counted = (backend.steered, backend.opened, backend.closed, backend.live, backend.moved_in);
    ensure!(counted == (0, 0, 0, 0, 0), "checks are counted: {backend:?}");
    Ok(())
}

/// Waits until the status has the reason why a backend is unhealthy. The daemon asks the engine for it after the event.
fn ensure_says_why(daemon: &Daemon, name: &str, why: &str) -> Result<()> {
    daemon.wait_for(&format!("{why:?} of {name}"), |status| {
        status.said_about(name).iter().any(|said| said.contains(why)).then_some(())
    })
}

/// A version that answers 500 is unhealthy and gets no clients, whichever other version is healthy.
#[test]
fn a_version_that_fails_its_own_check_is_not_served() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    // One check uses the claimed port, the other the container's own; both without the policy that makes a version wait.
    let start = |name: &str, version: &str, address: &str| -> Result<Container> {
        let spec = checked(&stage.host, name, version, address)?;
        stage.engine().start_container(&spec.label("pod-steer.rollout", "balance"))
    };
    let _one = start("one", "v1", "127.0.0.1:8080")?;
    stage.daemon.wait_ready("web", 1)?;
    for (name, address) in [("two", "127.0.0.1:80"), ("three", "127.0.0.1:8080")] {
        fs::write(status_file(&stage.host, name)?.join("status"), "500 Broken")?;
        let _bad = start(name, "v2", address)?;
        stage.daemon.wait_state("web", name, "unhealthy")?;
        ensure_says_why(&stage.daemon, name, "exited with code 1 with output: answered HTTP/1.1 500 Broken")?;
        ensure_served_by(&stage.host, "127.0.0.1:80".parse()?, "one")?;
        fs::remove_file(status_file(&stage.host, name)?.join("status"))?;
        stage.daemon.wait_ready("web", 2)?;
        let said = stage.daemon.status()?.said_about(name);
        ensure!(said.is_empty(), "{said:?}");
    }
    Ok(())
}

/// A waiting version becomes healthy by its own check, and can be deployed.
#[test]
fn a_version_that_waits_passes_its_own_check() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let _one = stage.engine().start_container(&checked(&stage.host, "one", "v1", "127.0.0.1:80")?)?;
    stage.daemon.wait_ready("web", 1)?;
    let _two = stage.engine().start_container(&checked(&stage.host, "two", "v2", "127.0.0.1:80")?)?;
    stage.daemon.wait_state("web", "two", "standby")?;
    ensure_nothing_counted(&stage.daemon, "two")?;
    ensure_served_by(&stage.host, "127.0.0.1:80".parse()?, "one")?;
    deploy(&stage.daemon, "v2")?;
    ensure_served_by(&stage.host, "127.0.0.1:80".parse()?, "two")
}

/// The old version has ended. The new one becomes healthy only by its own answers.
#[test]
fn a_version_can_be_deployed_after_the_old_one_has_died() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let one = stage.engine().start_container(&checked(&stage.host, "one", "v1", "127.0.0.1:80")?)?;
    stage.daemon.wait_ready("web", 1)?;
    deploy(&stage.daemon, "v1")?;
    let _two = stage.engine().start_container(&checked(&stage.host, "two", "v2", "127.0.0.1:80")?)?;
    one.kill("KILL")?;
    stage.daemon.wait_state("web", "one", "exited")?;
    deploy(&stage.daemon, "v2")?;
    ensure_served_by(&stage.host, "127.0.0.1:80".parse()?, "two")
}

/// The same in a pod, where the servers have joined another container's namespace.
#[test]
fn checks_in_a_pod_reach_their_own_container() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let pod = Spec::new(Image::Busybox, "pod").network("bridge").args(&["/bin/busybox", "sleep", "1000"]);
    let pod = stage.engine().start_container(&pod)?;
    let network = format!("container:{}", pod.id);
    let start = |name: &str, version: &str| -> Result<Container> {
        stage.engine().start_container(&checked(&stage.host, name, version, "127.0.0.1:80")?.network(&network))
    };
    let _one = start("one", "v1")?;
    stage.daemon.wait_ready("web", 1)?;
    fs::write(status_file(&stage.host, "two")?.join("status"), "500 Broken")?;
    let _two = start("two", "v2")?;
    stage.daemon.wait_state("web", "two", "unhealthy")?;
    ensure_says_why(&stage.daemon, "two", "HTTP/1.1 500")?;
    let refused = output(stage.daemon.cli()?.args(["deploy", "web", "v2", "--timeout", "1s"]))?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && said.contains("HTTP/1.1 500"), "{}: {said}", refused.status);
    fs::remove_file(status_file(&stage.host, "two")?.join("status"))?;
    stage.daemon.wait_state("web", "two", "standby")?;
    deploy(&stage.daemon, "v2")?;
    ensure_served_by(&stage.host, (pod.ip()?, 80).into(), "two")
}

/// Podman reports the result of a check in a field that Docker's API does not have.
#[test]
fn results_of_podmans_checks_are_understood() -> Result<()> {
    require!(tools::root_and(&["podman", "conmon", "docker", "busybox", "ip", "tar", "curl"]));
    let host = Arc::new(Host::new()?);
    let podman = Podman::start(&host)?;
    podman.import(Image::Busybox)?;
    let daemon = Daemon::start(&host, &[&podman.url()])?;
    let start = |name: &str, version: &str| -> Result<Container> {
        let container = podman.docker().create(&checked(&host, name, version, "127.0.0.1:8080")?)?;
        daemon.wait_for("the container to be announced", |status| {
            status.services.iter().flat_map(|service| &service.backends).find(|b| b.id == container.id).map(drop)
        })?;
        container.start()?;
        Ok(container)
    };
    let _one = start("one", "v1")?;
    daemon.wait_state("web", "one", "starting")?;
    podman.check_health(&host, "one")?;
    let checked_at = Instant::now();
    daemon.wait_ready("web", 1)?;
    report::figure("Podman's check to ready", format!("{:?}", checked_at.elapsed()));
    // The next version waits and its check fails: the check reaches that version, not the first one.
    fs::write(status_file(&host, "two")?.join("status"), "500 Broken")?;
    let _two = start("two", "v2")?;
    for _ in 0..2 {
        podman.check_health(&host, "two")?;
    }
    daemon.wait_state("web", "two", "unhealthy")?;
    ensure_says_why(&daemon, "two", "HTTP/1.1 500")?;
    fs::remove_file(status_file(&host, "two")?.join("status"))?;
    podman.check_health(&host, "two")?;
    daemon.wait_state("web", "two", "standby")?;
    deploy(&daemon, "v2")?;
    ensure_served_by(&host, "127.0.0.1:80".parse()?, "two")
}
