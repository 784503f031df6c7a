//! `allow-images` restricts the backends of a service to containers of these images, given by name or by id.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::{Container, Docker},
    daemon::{Daemon, Stage},
    exec::Exec,
    host::Host,
    image::Image,
    load::Load,
    podman::Podman,
    process::output,
    require,
    rollouts::hold,
    server,
    settings::{goes_on, reload, write},
    tools, wait,
};
use rustix::process::Signal;

/// Starts a server from an image on a port of its own, for clients of port 80.
fn start(docker: &Docker, image: Image, name: &str, port: u16) -> Result<Container> {
    let spec = match image {
        Image::NamedAsUser => server::named_as_user(name, &format!("0.0.0.0:{port}")),
        _ => server::named(name, &format!("0.0.0.0:{port}")),
    };
    docker.start_listening(&spec.service("web", &format!("80:{port}")).version("v1"))
}

/// Waits until `web` has exactly these backends, and checks that they serve all its clients.
fn serve(daemon: &Daemon, host: &Host, names: &[&str]) -> Result<()> {
    daemon.wait_for(&format!("{names:?} to be all of web"), |status| {
        let web = status.service("web")?;
        let there: Vec<&str> = web.backends.iter().map(|backend| backend.name.as_str()).collect();
        let all = there.len() == names.len() && names.iter().all(|name| there.contains(name));
        (all && web.ready() == names.len()).then_some(())
    })?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(100).run(host.net())?;
    let answered: u64 = names.iter().map(|name| tally.answered_by(name)).sum();
    ensure!(answered == 100, "by {names:?}: {tally}");
    Ok(())
}

/// The condition that `status` shows for a container that `allow-images` excludes.
fn refused(daemon: &Daemon, name: &str) -> Result<String> {
    let said = daemon.wait_for(&format!("a condition of {name}"), |status| {
        status.said_about(name).into_iter().find(|said| said.contains("allow-images"))
    })?;
    ensure!(said.contains("[service.web]") && said.contains("add it there"), "{said}");
    Ok(said)
}

fn allow(patterns: &[&str]) -> String {
    format!("[service.web]\nallow-images = {patterns:?}\n")
}

fn id(docker: &Docker, image: &str) -> Result<String> {
    docker.run(&["image", "inspect", "--format", "{{.Id}}", image])
}

#[test]
fn allow_images_decides_which_containers_are_backends() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker_configured(&allow(&["named"]))?;
    for image in [Image::Named, Image::NamedAsUser] {
        stage.engine().import(image)?;
    }
    let docker = stage.engine().docker();
    let _named = start(docker, Image::Named, "web-1", 8080)?;
    let _other = start(docker, Image::NamedAsUser, "other-1", 8081)?;
    serve(&stage.daemon, &stage.host, &["web-1"])?;
    let said = refused(&stage.daemon, "other-1")?;
    ensure!(said.contains("its image named-as-user (sha256:"), "{said}");

    // Narrowed and widened at run time: the excluded backend leaves at once and the allowed one joins.
    let mut held = hold(stage.host.net())?;
    reload(&stage, &allow(&["named-as-*"]))?;
    refused(&stage.daemon, "web-1")?;
    serve(&stage.daemon, &stage.host, &["other-1"])?;
    goes_on(&mut held, "web-1")?;

    // The same at a restart.
    stage.daemon.terminate()?;
    write(&stage, &allow(&["named"]))?;
    stage.daemon.restart()?;
    refused(&stage.daemon, "other-1")?;
    serve(&stage.daemon, &stage.host, &["web-1"])?;

    // Without the key every image is allowed.
    reload(&stage, "")?;
    serve(&stage.daemon, &stage.host, &["web-1", "other-1"])?;
    ensure!(stage.daemon.status()?.warnings().is_empty(), "{}", stage.daemon.status()?);
    Ok(())
}

#[test]
fn a_tag_that_was_moved_does_not_fool_an_id() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker_configured("")?;
    for image in [Image::Named, Image::NamedAsUser] {
        stage.engine().import(image)?;
    }
    let docker = stage.engine().docker();
    let good = id(docker, "named")?;
    reload(&stage, &allow(&[&good]))?;
    let _good = start(docker, Image::Named, "web-1", 8080)?;
    serve(&stage.daemon, &stage.host, &["web-1"])?;
    docker.run(&["tag", "named-as-user", "named"])?;
    let _moved = start(docker, Image::Named, "moved-1", 8081)?;
    refused(&stage.daemon, "moved-1")?;
    serve(&stage.daemon, &stage.host, &["web-1"])?;
    // A pattern is compared with the name by which the container was created.
    reload(&stage, &allow(&["named"]))?;
    serve(&stage.daemon, &stage.host, &["web-1", "moved-1"])?;
    // The daemon uses the stored image names, so narrowing also works while the engine hangs.
    stage.daemon.kill()?;
    stage.engine().signal(Signal::STOP)?;
    write(&stage, &allow(&[&good]))?;
    let restarted = stage.daemon.restart();
    let narrowed = restarted.and_then(|()| {
        refused(&stage.daemon, "moved-1")?;
        serve(&stage.daemon, &stage.host, &["web-1"])
    });
    // Whatever the outcome, the engine must run again to remove the containers.
    stage.engine().signal(Signal::CONT)?;
    narrowed
}

#[test]
fn allow_images_with_podman() -> Result<()> {
    require!(tools::root_and(&["podman", "conmon", "docker", "busybox", "ip", "tar"]));
    let host = Arc::new(Host::new()?);
    let podman = Podman::start(&host)?;
    for image in [Image::Named, Image::NamedAsUser] {
        podman.import(image)?;
    }
    // Podman completes short image names.
    let name = podman.docker().run(&["image", "inspect", "--format", "{{index .RepoTags 0}}", "named"])?;
    for pattern in [name.clone(), id(podman.docker(), "named")?, "**/named:*".to_owned()] {
        std::fs::write(host.dir().join("pod-steer.toml"), allow(&[&pattern]))?;
        let daemon = Daemon::start(&host, &[&podman.url()])?;
        let _named = start(podman.docker(), Image::Named, "web-1", 8080)?;
        let _other = start(podman.docker(), Image::NamedAsUser, "other-1", 8081)?;
        refused(&daemon, "other-1")?;
        serve(&daemon, &host, &["web-1"]).with_context(|| pattern.clone())?;
        daemon.unload()?;
    }
    Ok(())
}

#[test]
fn a_process_has_no_image() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::configured("")?;
    let exec = |name: &str, port: u16| Exec::new(name, "web", &format!("80:{port}"), &format!("0.0.0.0:{port}"));
    let _first = exec("web-1", 8080).start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let mut held = hold(stage.host.net())?;
    let leaves = |stage: &Stage| -> Result<()> {
        stage.daemon.wait_state("web", "web-1", "not-steered")?;
        let said = stage.daemon.status()?.said_about("web-1").join(" ");
        ensure!(said.contains("a process has no image"), "{said}");
        let tally = Load::to("127.0.0.1:80".parse()?).count(20).run(stage.host.net())?;
        ensure!(tally.refused() == 20, "{tally}");
        Ok(())
    };
    reload(&stage, &allow(&["named"]))?;
    leaves(&stage)?;
    goes_on(&mut held, "web-1")?;
    for command in ["exec", "register"] {
        let mut ask = stage.daemon.cli()?;
        ask.args([command, "--service", "web", "--ports", "80:8082"]);
        let mut unmanaged = None;
        if command == "exec" {
            ask.args(["--", "true"]);
        } else {
            let mut server = stage.host.command(tools::named_server()?)?;
            let server =
                stage.host.start("unmanaged", server.args(["--name", "unmanaged", "--listen", "0.0.0.0:8082"]))?;
            wait::until("it to listen", || server.stdout().contains("listening").then_some(()))?;
            ask.args(["--pid", &server.pid().to_string()]);
            unmanaged = Some(server);
        }
        let refused = output(&mut ask)?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(refused.status.code() == Some(2) && said.contains("a process has no image"), "{command}: {refused:?}");
        ensure!(stage.daemon.status()?.service("web").is_some_and(|web| web.backends.len() == 1));
        drop(unmanaged);
    }
    reload(&stage, &allow(&["**"]))?;
    leaves(&stage)?;
    reload(&stage, "")?;
    serve(&stage.daemon, &stage.host, &["web-1"])?;
    stage.daemon.terminate()?;
    write(&stage, &allow(&["named"]))?;
    stage.daemon.restart()?;
    leaves(&stage)
}
