//! Labels of an image do not make its containers backends unless the operator trusts image labels.

use std::sync::Arc;

use anyhow::{Result, ensure};
use pod_steer_tests::{
    container::{Docker, Spec},
    daemon::{Daemon, Stage},
    host::Host,
    image::Image,
    load::Load,
    podman::Podman,
    require, server,
    settings::reload,
    tools,
};

/// A server of the image with labels, on the port that its labels declare.
fn labelled(name: &str, listen: &str) -> Spec {
    Spec::new(Image::NamedWithLabels, name).args(&["/named-server", "--name", name, "--listen", listen])
}

/// A container that has only image labels joins no service, and the operator gets a condition.
fn joins_nothing(host: &Host, daemon: &Daemon, docker: &Docker) -> Result<()> {
    docker.import(Image::Named)?;
    docker.import(Image::NamedWithLabels)?;
    let _web = docker.start(&server::named("web-1", "0.0.0.0:8080").service("web", "80:8080").version("v1"))?;
    daemon.wait_ready("web", 1)?;
    let thief = docker.start_listening(&labelled("thief", "0.0.0.0:9090"))?;
    let said = daemon.wait_for("a condition of the image", |status| {
        Some(status.said_about("thief").join(" ")).filter(|said| !said.is_empty())
    })?;
    for word in ["pod-steer.service", "pod-steer.ports", "pod-steer.weight", "ignored", "run --trust-image-labels"] {
        ensure!(said.contains(word), "{word}: {said}");
    }
    let tally = Load::to("127.0.0.1:80".parse()?).count(100).run(host.net())?;
    ensure!(tally.answered_by("web-1") == 100, "{tally}");
    ensure!(daemon.status()?.service("web").is_some_and(|web| web.backends.len() == 1), "{}", daemon.status()?);
    drop(thief);
    daemon.wait_for("the condition to end", |status| status.warnings().is_empty().then_some(()))
}

#[test]
fn an_image_of_docker_joins_nothing_by_its_labels() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    joins_nothing(&stage.host, &stage.daemon, stage.engine().docker())
}

#[test]
fn an_image_of_podman_joins_nothing_by_its_labels() -> Result<()> {
    require!(tools::root_and(&["podman", "conmon", "docker", "busybox", "ip", "tar"]));
    let host = Arc::new(Host::new()?);
    let podman = Podman::start(&host)?;
    let daemon = Daemon::start(&host, &[&podman.url()])?;
    joins_nothing(&host, &daemon, podman.docker())
}

#[test]
fn labels_that_the_operator_gives_count() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    stage.engine().import(Image::NamedWithLabels)?;
    let docker = stage.engine().docker();
    // Other values than the image has.
    let other = labelled("other-1", "0.0.0.0:9091").service("other", "81:9091").version("v2");
    let _other = docker.start_listening(&other)?;
    stage.daemon.wait_ready("other", 1)?;
    let said = stage.daemon.status()?.said_about("other-1").join(" ");
    ensure!(said.contains("pod-steer.weight is ignored") && !said.contains("pod-steer.ports"), "{said}");
    let weight = stage.daemon.status()?.service("other").map(|other| other.backends[0].weight);
    ensure!(weight == Some(1), "{weight:?}");
    // Equal labels cannot be told apart from the image's.
    let _equal = docker.start_listening(&labelled("equal-1", "0.0.0.0:9090").service("web", "80:9090"))?;
    let said = stage.daemon.wait_for("a condition of it", |status| {
        Some(status.said_about("equal-1").join(" ")).filter(|said| !said.is_empty())
    })?;
    ensure!(said.contains("cannot be told apart") && stage.daemon.status()?.service("web").is_none(), "{said}");
    Ok(())
}

/// Labels of a container whose image is removed cannot be told from the image's. A backend keeps those that it had.
#[test]
fn a_backend_whose_image_is_gone_is_started_again() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    stage.engine().import(Image::Named)?;
    let docker = stage.engine().docker().clone();
    let web = docker.start(&server::named("web-1", "0.0.0.0:8080").service("web", "80:8080"))?;
    stage.daemon.wait_ready("web", 1)?;
    web.stop()?;
    let image = docker.run(&["inspect", "--format", "{{.Image}}", "web-1"])?;
    docker.run(&["rmi", "--force", image.trim()])?;
    ensure!(docker.run(&["image", "inspect", image.trim()]).is_err(), "it is still there");
    // The daemon remembers the image's labels as long as it follows the engine.
    stage.daemon.terminate()?;
    stage.daemon.restart()?;
    web.start()?;
    docker.run(&["rename", "web-1", "web-2"])?;
    stage.daemon.wait_for("the backend to be ready under its new name", |status| {
        let web = status.service("web")?;
        (web.ready() == 1 && web.backends[0].name == "web-2").then_some(())
    })?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(50).run(stage.host.net())?;
    ensure!(tally.answered_by("web-1") == 50, "{tally}");
    Ok(())
}

#[test]
fn trusted_images_join_and_leave_again_with_the_trust() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker_configured("trust-image-labels = true\n")?;
    stage.engine().import(Image::NamedWithLabels)?;
    let _server = stage.engine().docker().start_listening(&labelled("web-1", "0.0.0.0:9090"))?;
    stage.daemon.wait_ready("web", 1)?;
    let answered = |stage: &Stage| -> Result<u64> {
        Ok(Load::to("127.0.0.1:80".parse()?).count(20).run(stage.host.net())?.answered_by("web-1"))
    };
    ensure!(answered(&stage)? == 20);
    // In force at once.
    let gone = |stage: &Stage| {
        stage.daemon.wait_for("the backend to go", |status| status.service("web").is_none().then_some(()))
    };
    reload(&stage, "")?;
    gone(&stage)?;
    ensure!(answered(&stage)? == 0, "its author is not trusted any more");
    let said = stage.daemon.status()?.said_about("web-1").join(" ");
    ensure!(said.contains("run --trust-image-labels"), "{said}");
    reload(&stage, "trust-image-labels = true\n")?;
    stage.daemon.wait_ready("web", 1)?;
    ensure!(answered(&stage)? == 20 && stage.daemon.status()?.warnings().is_empty(), "{}", stage.daemon.status()?);
    // The same at a restart.
    stage.daemon.terminate()?;
    std::fs::write(stage.host.dir().join("pod-steer.toml"), "")?;
    stage.daemon.restart()?;
    gone(&stage)?;
    ensure!(answered(&stage)? == 0, "its author is not trusted any more");
    Ok(())
}
