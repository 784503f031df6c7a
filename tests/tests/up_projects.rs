//! `pod-steer up` and what a Compose file can say: profiles, numbers, files with variables, services that others depend on, and where the
//! files are.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    compose::{Compose, Project, said, serves, text, web},
    image::Image,
    process::output,
    require,
    rollouts::none_lost,
    scale,
};

const LABELS: &str = "pod-steer.version: v1, pod-steer.ports: '80:8080'";

/// The values of a variable in the containers of `web`.
fn variable(project: &Project, name: &str) -> Result<Vec<String>> {
    let ids = project.docker(&["ps", "--quiet", "--filter", "label=com.docker.compose.service=web"])?;
    let format = "{{range .Config.Env}}{{println .}}{{end}}";
    let mut found = Vec::new();
    for id in ids.lines() {
        let all = project.docker(&["inspect", "--format", format, id])?;
        let own = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.push(own.unwrap_or_default().to_owned());
    }
    Ok(found)
}

/// The lines of [`Project::running`] of one service.
fn of(project: &Project, service: &str) -> Result<Vec<String>> {
    let start = project.name(service, 1).trim_end_matches('1').to_owned();
    Ok(project.running()?.into_iter().filter(|line| line.starts_with(&start)).collect())
}

fn is_up_to_date(project: &Project) -> Result<()> {
    let done = project.up_done(&[])?;
    ensure!(done == "web is up to date\n", "{done}");
    Ok(())
}

/// Other services keep their containers, of which an operator has started more than the file says.
fn dependencies(compose: Compose) -> Result<()> {
    let project = Project::new(compose)?;
    let image = Image::Named.name();
    let api = format!(
        "  api:\n    image: {image}\n    network_mode: host\n    command: [/named-server, --name, api, --listen, '127.0.0.1:0']\n"
    );
    let others = text(&web(LABELS, &serves("v1"), ""));
    project.write_file("compose.yaml", &format!("{}{api}", others.replace("[db]", "[db, api]")))?;
    project.compose(&["up", "-d", "--scale", "api=3", "api"])?;
    let three = of(&project, "api")?;
    ensure!(three.len() == 3 && of(&project, "db")?.is_empty(), "{three:?}");
    project.up_done(&["web"])?;
    ensure!(of(&project, "api")? == three && of(&project, "db")?.len() == 1, "{:?}", project.running()?);
    project.docker(&["rm", "--force", &project.name("web", 1)])?;
    project.up_done(&["web"])?;
    ensure!(of(&project, "api")? == three && project.answered_by()? == "v1", "{:?}", project.running()?);
    Ok(())
}

/// A changed file of variables is deployed, an unchanged one is not, and so is a number; a paused container is named.
fn definitions(compose: Compose) -> Result<()> {
    let project = Project::new(compose)?;
    project.write_file("app.env", "A=1\n")?;
    let with = |more: &str| project.write(&web(LABELS, &serves("v1"), &format!("    env_file: app.env\n{more}")));
    with("")?;
    project.compose(&["up", "-d"])?;
    is_up_to_date(&project)?;
    let load = project.load()?;
    for value in ["2", "3"] {
        project.write_file("app.env", &format!("A={value}\n"))?;
        // The version is the same: its labels are amended.
        let done = project.up_done(&[])?;
        ensure!(done.contains("the configuration has changed") && done.contains("version v1"), "{done}");
        ensure!(variable(&project, "A")? == [value], "{:?}", variable(&project, "A")?);
        is_up_to_date(&project)?;
    }
    // Two of them by the file. One is killed, and comes back; fewer are announced.
    with("    deploy: { replicas: 2 }\n")?;
    project.up_done(&[])?;
    ensure!(of(&project, "web")?.len() == 2, "{:?}", project.running()?);
    is_up_to_date(&project)?;
    let web = of(&project, "web")?;
    let killed = web[1].split(' ').next().context("it has a name")?;
    project.stage.daemon.order_done(&format!("drain web --backend {killed}"))?;
    project.docker(&["kill", killed])?;
    let done = project.up_done(&[])?;
    ensure!(done.contains("the number has changed: start 2 new containers"), "{done}");
    ensure!(of(&project, "web")?.len() == 2, "{:?}", project.running()?);
    let fewer = project.up_done(&["--scale", "1", "--dry-run"])?;
    ensure!(fewer.contains("start 1 new container (there were 2)"), "{fewer}");

    let paused = of(&project, "db")?[0].split(' ').next().context("it has a name")?.to_owned();
    project.docker(&["pause", &paused])?;
    is_up_to_date(&project)?;
    none_lost(&load.stop()?)?;
    let paused = of(&project, "web")?[0].split(' ').next().context("it has a name")?.to_owned();
    project.docker(&["pause", &paused])?;
    project.up_refused(&["--scale", "3"], 2, &format!("{paused} is paused"))?;
    project.docker(&["unpause", &paused])?;
    Ok(())
}

/// A service behind a profile is replaced if it is named. The files are those that Compose finds, for an amended version too.
fn files(compose: Compose) -> Result<()> {
    let project = Project::new(compose)?;
    let with = |more: &str| project.write(&web(LABELS, &serves("v1"), &format!("    profiles: [next]\n{more}")));
    with("")?;
    project.up_done(&["web"])?;
    project.up_refused(&[], 2, "its profile is not active")?;
    project.up_refused(&["nothing"], 2, "the Compose file has no service nothing; it has: db, web")?;
    // In a directory below.
    let below = project.dir().join("a/b");
    fs::create_dir_all(&below)?;
    with("    environment: { A: below }\n")?;
    let done = output(&mut project.up_command_in(&below, &["web"])?)?;
    ensure!(done.status.success() && variable(&project, "A")? == ["below"], "{done:?}");
    // By names in a file of variables.
    let base = fs::read_to_string(project.dir().join("compose.yaml"))?;
    project.write_file("base.yml", &base)?;
    project.write_file("more.yml", "services: { web: { environment: { B: more } } }\n")?;
    let version = if base.starts_with("version") { "" } else { "version: '3.8'\n" };
    for name in ["base.yml", "more.yml"] {
        let text = fs::read_to_string(project.dir().join(name))?;
        project.write_file(name, &format!("{version}{text}"))?;
    }
    fs::remove_file(project.dir().join("compose.yaml"))?;
    project.write_file(".env", "COMPOSE_FILE=base.yml;more.yml\nCOMPOSE_PATH_SEPARATOR=;\n")?;
    project.up_done(&["web"])?;
    ensure!(variable(&project, "B")? == ["more"], "{:?}", variable(&project, "B")?);
    // The version is the same: its labels are amended, by one file more.
    let more = fs::read_to_string(project.dir().join("more.yml"))?;
    project.write_file("more.yml", &more.replace("B: more", "B: other"))?;
    let done = project.up_done(&["web"])?;
    ensure!(done.contains("version v1-") && variable(&project, "B")? == ["other"], "{done}");
    let same = project.up_done(&["web"])?;
    ensure!(same == "web is up to date\n", "{same}");
    fs::remove_file(project.dir().join(".env"))?;
    let done = project.up(&["web"])?;
    ensure!(
        done.status.code() == Some(2) && said(&done).contains("name the Compose file: pod-steer up -f FILE"),
        "{done:?}"
    );
    Ok(())
}

/// Each case with Compose 2, and in `cargo xtask soak` with Compose 1 too, of which each command takes a second.
fn with_each(case: fn(Compose) -> Result<()>) -> Result<()> {
    for compose in scale::of(vec![Compose::two()], vec![Compose::two(), Compose::One]) {
        require!(compose.is_there());
        case(compose.clone()).with_context(|| format!("with {compose:?}"))?;
    }
    Ok(())
}

#[test]
fn services_that_it_depends_on_are_left_alone() -> Result<()> {
    with_each(dependencies)
}

#[test]
fn what_the_file_says_is_deployed() -> Result<()> {
    with_each(definitions)
}

#[test]
fn profiles_and_files_are_those_of_compose() -> Result<()> {
    with_each(files)
}
