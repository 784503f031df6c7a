//! The old containers of `pod-steer up`: what is not steered, what other containers of the service do, and a version that ends after its
//! deploy.

use std::{process::Stdio, thread};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    compose::{Compose, Project, said, serves, web},
    require, server,
};

const PORTS: &str = "pod-steer.ports: '80:8080'";

/// Ends a container while another one stops.
fn kill_while_stopping(project: &Project, new: &str, old: &str) -> Result<()> {
    project.stage.daemon.wait_state("web", old, "stopping")?;
    project.docker(&["kill", new]).map(drop)
}

#[test]
fn old_containers_go_only_if_new_ones_serve() -> Result<()> {
    require!(Compose::usual().is_there());
    let project = Project::new(Compose::usual())?;
    let (first, second) = (project.name("web", 1), project.name("web", 2));
    // The connections of a container that is not steered yet are not counted.
    project.write(&web(PORTS, &serves("v0").replace("8080", "8079"), "").replace("pod-steer.", "other."))?;
    project.compose(&["up", "-d"])?;
    let slow = serves("v1").replace(']', ", --stop-delay-ms, '8000']");
    project.write(&web(&format!("pod-steer.version: v1, {PORTS}"), &slow, ""))?;
    let moved = project.up(&["web"])?;
    ensure!(moved.status.code() == Some(3) && said(&moved).contains("it is not steered"), "{moved:?}");
    ensure!(project.containers()?.contains(&first) && project.answered_by()? == "v1");
    project.up_done(&[])?;
    ensure!(!project.containers()?.contains(&first), "{:?}", project.containers()?);

    // The new version ends while the old one stops: of `up`, and of a deploy.
    let before = project.containers()?;
    let third = project.name("web", 3);
    project.write_version("v2")?;
    let mut up = project.up_command(&[])?;
    let up = up.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let killed = kill_while_stopping(&project, &third, &second);
    let done = up.wait_with_output()?;
    killed?;
    ensure!(done.status.code() == Some(1) && said(&done).contains("no new container of web served"), "{done:?}");
    ensure!(project.containers()? == before && project.answered_by()? == "v1", "{:?}", project.running()?);

    let other = server::named_with("other", &["--listen", "127.0.0.1:8080"]).service("web", "80:8080").version("other");
    let other = project.stage.engine().start_container(&other)?;
    let daemon = &project.stage.daemon;
    thread::scope(|scope| -> Result<()> {
        let deploy = scope.spawn(|| daemon.order("deploy web other --stop-old"));
        let killed = kill_while_stopping(&project, &other.id, &second);
        let deployed = deploy.join().expect("the thread does not panic")?.expect(1)?;
        killed?;
        ensure!(deployed.stderr.contains("the old version is started again"), "{}", deployed.stderr);
        Ok(())
    })?;
    daemon.wait_state("web", &second, "ready")?;
    ensure!(project.answered_by()? == "v1");

    // A container that is not of the Compose service, and that has served, is left alone.
    project.docker(&["start", &other.id])?;
    daemon.order_done("deploy web other --timeout 20s")?;
    daemon.order_done("deploy web v1")?;
    project.write_version("v3")?;
    project.up_done(&[])?;
    let runs = project.docker(&["inspect", "--format", "{{.State.Running}}", &other.id])?;
    ensure!(runs.trim() == "true" && !project.containers()?.contains(&second), "{:?}", project.running()?);
    ensure!(project.answered_by()? == "v3");
    // The version before, of which no container is left, is not one to go back to.
    let refused = project.stage.daemon.order("rollback web")?.expect(2)?;
    ensure!(refused.stderr.contains("no backend of it is ready"), "{}", refused.stderr);
    Ok(())
}
