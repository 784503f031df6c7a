//! `pod-steer up`: a Compose service is replaced under load; what fails is put back.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    compose::{Compose, Project, said, serves, web},
    image::Image,
    report, require,
    rollouts::none_lost,
    wait,
};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_service_is_replaced_under_load() -> Result<()> {
    require!(Compose::usual().is_there());
    let project = Project::new(Compose::usual())?;
    project.write_version("v1")?;
    let first = project.up_done(&["web"])?;
    ensure!(first.contains("web: none runs: start 1 container\n"), "{first}");
    let both = [project.name("db", 1), project.name("web", 1)];
    ensure!(project.containers()? == both && project.answered_by()? == "v1");

    let load = project.load()?;
    let same = project.up_done(&[])?;
    ensure!(same == "web is up to date\n" && project.containers()? == both, "{same}");
    project.write_version("v2")?;
    let plan = project.up_done(&["--dry-run"])?;
    ensure!(plan.contains("the configuration has changed") && plan.lines().count() == 1, "{plan}");
    for round in 2..=3 {
        let version = format!("v{round}");
        project.write_version(&version)?;
        let done = project.up_done(&[])?;
        let removed = project.name("web", round - 1);
        ensure!(done.ends_with(&format!("web: version {version} serves, {removed} removed\n")), "{done}");
        ensure!(project.containers()?.len() == 2 && project.answered_by()? == version);
    }
    // A version of the same name: its configuration tells it apart.
    project.write(&web(
        "pod-steer.version: v3, pod-steer.ports: '80:8080'",
        &serves("other"),
        "    environment: { A: b }\n",
    ))?;
    let done = project.up_done(&[])?;
    ensure!(done.contains("web: version v3-") && project.answered_by()? == "other", "{done}");
    ensure!(project.up_done(&[])? == "web is up to date\n");
    // The service's policy would deploy it too.
    project.write(&web(
        "pod-steer.version: v4, pod-steer.ports: '80:8080', pod-steer.rollout: latest",
        &serves("v4"),
        "",
    ))?;
    project.up_done(&[])?;
    ensure!(project.containers()?.len() == 2 && project.answered_by()? == "v4");
    // More containers of it, and fewer.
    project.up_done(&["--scale", "2"])?;
    ensure!(project.containers()?.len() == 3, "{:?}", project.containers()?);
    project.up_done(&["--scale", "1"])?;
    ensure!(project.containers()?.len() == 2, "{:?}", project.containers()?);
    let tally = load.stop()?;
    none_lost(&tally)?;
    report::figure("a Compose service, replaced six times by `up`", &tally);
    Ok(())
}

#[test]
fn a_broken_version_is_put_back() -> Result<()> {
    require!(Compose::usual().is_there());
    let project = Project::new(Compose::usual())?;
    project.write_version("v1")?;
    project.up_done(&["web"])?;
    let before = project.containers()?;
    let load = project.load()?;
    let named = format!("    container_name: {}\n", project.name("db", 1));
    let (ports, version) = ("pod-steer.ports: '80:8080'", "pod-steer.version: v2");
    let good = format!("{version}, {ports}");
    let missing = web(&good, &serves("v2"), "").replace(Image::Named.name(), "pod-steer-no-such-image");
    for (what, text, code, part) in [
        ("its image is missing", missing.clone(), 1, "registry-1.docker.io"),
        ("its program is missing", web(&good, "[/missing]", ""), 1, "missing"),
        ("it exits at once", web(&good, "[/named-server, --no-such-flag]", ""), 1, "v2"),
        ("it never listens", web(&good, "[/named-server, --name, v2, --listen, '127.0.0.1:8081']", ""), 1, "v2"),
        ("a label is wrong", web(&format!("{version}, pod-steer.ports: '80:x'"), &serves("v2"), ""), 2, "80:x"),
        ("a label is misspelt", web(&format!("{good}, pod-steer.helth: http"), &serves("v2"), ""), 2, "helth"),
        ("its fixed name is in use", web(&good, &serves("v2"), &named), 1, &project.name("db", 1)),
        (
            "it publishes a port",
            web(&good, &serves("v2"), "    ports: ['127.0.0.1:7777:80']\n")
                .replace("network_mode: host", "restart: 'no'"),
            2,
            "publishes port 7777",
        ),
        (
            "the file is no YAML",
            "    image: [\n".to_owned(),
            2,
            if Compose::usual() == Compose::One { "compose.yaml" } else { "yaml: line " },
        ),
    ] {
        project.write(&text)?;
        let done = project.up(&["--timeout", "2s"])?;
        ensure!(done.status.code() == Some(code) && said(&done).contains(part), "{what}: {done:?}");
        ensure!(
            project.containers()? == before && project.answered_by()? == "v1",
            "{what}: {:?}",
            project.containers()?
        );
    }
    project.write_version("v1")?;
    for (args, part) in [
        (&["nothing"][..], "no service nothing"),
        (&["--timeout", "soon"], "--timeout"),
        (&["-f", "missing.yaml"], "missing.yaml"),
    ] {
        let done = project.up(args)?;
        ensure!(done.status.code() == Some(2) && said(&done).contains(part), "{done:?}");
    }
    none_lost(&load.stop()?)?;
    // A stopped container is removed only when another one has been created.
    project.docker(&["stop", &project.name("web", 1)])?;
    project.write(&missing)?;
    project.up_refused(&[], 1, "registry-1.docker.io")?;
    project.write_version("v1")?;
    project.up_done(&[])?;
    ensure!(project.containers()?.len() == 2 && project.answered_by()? == "v1", "{:?}", project.containers()?);
    Ok(())
}

#[test]
fn a_service_that_sleeps_is_woken_first() -> Result<()> {
    require!(Compose::usual().is_there());
    let project = Project::new(Compose::usual())?;
    project.write_version("v1")?;
    project.up_done(&["web"])?;
    let before = project.running()?;
    let sleep = || -> Result<()> {
        project.stage.daemon.order_done("idle web")?;
        ensure!(project.running()? != before, "{before:?}");
        Ok(())
    };
    sleep()?;
    let plan = project.up(&["--dry-run"])?;
    ensure!(said(&plan).contains("web sleeps, and is woken before anything is done"), "{plan:?}");
    ensure!(plan.stdout == b"web is up to date\n" && project.running()? != before, "{plan:?}");
    let same = project.up_done(&[])?;
    ensure!(same.contains("web is awake after") && same.ends_with("web is up to date\n"), "{same}");
    ensure!(project.running()? == before && project.answered_by()? == "v1");
    sleep()?;
    let silent = "[/named-server, --name, v2, --listen, '127.0.0.1:8081']";
    project.write(&web("pod-steer.version: v2, pod-steer.ports: '80:8080'", silent, ""))?;
    let broken = project.up(&["--timeout", "2s"])?;
    ensure!(broken.status.code() == Some(1) && said(&broken).contains("v2"), "{broken:?}");
    ensure!(project.running()? == before && project.answered_by()? == "v1");
    // Clients come meanwhile: the first one wakes it too.
    project.stage.daemon.wait_idle("web")?;
    sleep()?;
    project.write_version("v2")?;
    let load = project.load()?;
    let done = project.up_done(&[])?;
    ensure!(done.ends_with(&format!("web: version v2 serves, {} removed\n", project.name("web", 1))), "{done}");
    none_lost(&load.stop()?)
}

#[test]
fn an_interrupt_puts_back_and_a_kill_is_mended_by_the_next_run() -> Result<()> {
    require!(Compose::usual().is_there());
    let project = Project::new(Compose::usual())?;
    project.write_version("v1")?;
    project.up_done(&["web"])?;
    let load = project.load()?;
    // A version that does not listen: the command waits for it.
    let silent = "[/named-server, --name, v2, --listen, '127.0.0.1:8081']";
    project.write(&web("pod-steer.version: v2, pod-steer.ports: '80:8080'", silent, ""))?;
    for (signal, left) in [(Signal::INT, 2), (Signal::KILL, 3)] {
        let mut up = project.up_command(&[])?;
        let up = up.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        // It is started when the deploy has begun.
        let count = |words: &[&str]| Ok((project.docker(words)?.lines().count() == 3).then_some(()));
        // Before that, Compose is asked nine times.
        let limit = 4 * wait::STUCK;
        let began = wait::until_within(limit, "the new container", || count(&["ps", "--all", "--quiet"]))
            .and_then(|()| wait::until_within(limit, "the new container to run", || count(&["ps", "--quiet"])))
            .and_then(|()| {
                wait::until_ok("the deploy", || {
                    let operation = project.stage.daemon.said_of("web")?["operation"].take();
                    Ok((operation["order"] == "deploy").then_some(()))
                })
            });
        kill_process(Pid::from_child(&up), signal)?;
        let done = up.wait_with_output()?;
        began.with_context(|| format!("{signal:?}: {done:?}"))?;
        ensure!(done.status.code() == if signal == Signal::INT { Some(130) } else { None }, "{done:?}");
        ensure!(project.containers()?.len() == left, "{signal:?}: {:?}", project.containers()?);
    }
    // What the killed one left runs and gets no traffic.
    project.stage.daemon.order_done("rollback web")?;
    project.write_version("v1")?;
    let mended = project.up_done(&[])?;
    ensure!(mended.contains("which gets no traffic"), "{mended}");
    ensure!(project.containers()?.len() == 2 && project.answered_by()? == "v1");
    none_lost(&load.stop()?)
}

/// Compose starts a service that `up` has replaced no second time.
#[test]
fn compose_finds_what_up_has_made() -> Result<()> {
    require!(Compose::One.is_there());
    let project = Project::new(Compose::One)?;
    project.write_version("v1")?;
    project.up_done(&["web"])?;
    project.write_version("v2")?;
    project.up_done(&[])?;
    let before = project.running()?;
    project.compose(&["up", "-d"])?;
    ensure!(project.running()? == before && project.answered_by()? == "v2");
    Ok(())
}
