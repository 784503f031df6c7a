//! `pod-steer up` while others change the same service by Compose 2, and a Compose that fails half-way.

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    compose::{Compose, Project, said, serves, web},
    require,
    rollouts::none_lost,
};

#[test]
fn containers_that_come_meanwhile_are_not_removed() -> Result<()> {
    require!(Compose::two().is_there());
    let mut project = Project::new(Compose::two())?;
    project.write_version("v1")?;
    project.up_done(&["web"])?;
    let load = project.load()?;
    project.write_version("v2")?;
    // An operator scales it between two steps.
    project.replace_docker(
        "case \"$*\" in *--dry-run*) $DOCKER compose up -d --no-recreate --no-deps --scale web=2 web >/dev/null 2>&1;; esac",
    )?;
    let done = project.up(&[])?;
    let came = project.name("web", 2);
    let why = format!("{came} has been created meanwhile");
    ensure!(done.status.code() == Some(1) && said(&done).contains(&why), "{done:?}");
    ensure!(project.containers()?.len() == 3 && project.containers()?.contains(&came), "{:?}", project.containers()?);
    project.restore_docker();
    project.write_version("v3")?;
    project.up_done(&[])?;
    ensure!(project.answered_by()? == "v3");
    none_lost(&load.stop()?)
}

#[test]
fn what_compose_has_stopped_is_started_again() -> Result<()> {
    require!(Compose::two().is_there());
    let mut project = Project::new(Compose::two())?;
    project.write_version("v1")?;
    project.up_done(&["web"])?;
    let before = project.running()?;
    project.write_version("v2")?;
    let old = project.name("web", 1);
    project.replace_docker(&format!(
        "case \"$*\" in *--dry-run*) ;; *--no-start*) $DOCKER stop {old} >/dev/null; echo broken >&2; exit 1;; esac"
    ))?;
    let done = project.up(&[])?;
    ensure!(
        done.status.code() == Some(1) && said(&done).contains(&format!("{old} did not run, and is started again")),
        "{done:?}"
    );
    ensure!(said(&done).contains("broken") && project.running()? == before, "{done:?}: {:?}", project.running()?);
    Ok(())
}

/// Compose 2 writes the content of a config into a container when it starts it.
#[test]
fn new_containers_have_their_configs() -> Result<()> {
    require!(Compose::two().is_there());
    let project = Project::new(Compose::two())?;
    let write = |version: &str| {
        let labels = format!("pod-steer.version: {version}, pod-steer.ports: '80:8080'");
        let config =
            "    configs: [ { source: greeting, target: /greeting } ]\nconfigs: { greeting: { content: good day } }\n";
        project.write(&web(&labels, &serves(version), config))
    };
    write("v1")?;
    project.up_done(&["web"])?;
    for (version, number) in [("v2", 2), ("v3", 3)] {
        write(version)?;
        project.up_done(&[])?;
        ensure!(project.answered_by()? == version);
        let name = project.name("web", number);
        let copied = project.docker(&["cp", &format!("{name}:/greeting"), "-"]);
        let copied = copied.with_context(|| format!("{name} has no /greeting"))?;
        ensure!(copied.contains("good day"), "{copied}");
    }
    ensure!(project.up_done(&[])? == "web is up to date\n");
    Ok(())
}
