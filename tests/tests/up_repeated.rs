//! `pod-steer up` again and again under load, and a broken version in between.

use anyhow::{Result, ensure};
use pod_steer_tests::{
    compose::{Compose, Project, said, web},
    report, require,
    rollouts::none_lost,
    scale,
};

/// Labels, command and more of a version that cannot serve.
const BROKEN: [(&str, &str, &str); 6] = [
    ("its program is missing", "[/missing]", ""),
    ("it exits at once", "[/named-server, --no-such-flag]", ""),
    ("it listens elsewhere", "[/named-server, --name, broken, --listen, '127.0.0.1:8081']", ""),
    (
        "a directory is missing",
        "[/named-server, --name, broken, --listen, '127.0.0.1:8080']",
        "    working_dir: /dev/null\n",
    ),
    ("its user is unknown", "[/named-server, --name, broken, --listen, '127.0.0.1:8080']", "    user: no-such-user\n"),
    ("its image is missing", "[/named-server]", "    image: pod-steer-no-such-image\n"),
];

#[test]
fn every_replacement_under_load_loses_nothing() -> Result<()> {
    require!(Compose::two().is_there());
    let project = Project::new(Compose::two())?;
    project.write_version("v0")?;
    project.up_done(&["web"])?;
    let load = project.load()?;
    let (replacements, broken) = scale::of((2, 2), (50, BROKEN.len()));
    for round in 1..=replacements {
        let version = format!("v{round}");
        project.write_version(&version)?;
        let done = project.up_done(&[])?;
        ensure!(done.contains(&format!("web: version {version} serves")), "{done}");
        ensure!(project.containers()?.len() == 2 && project.answered_by()? == version, "{:?}", project.containers()?);
    }
    let before = project.running()?;
    let last = format!("v{replacements}");
    for (why, command, more) in &BROKEN[BROKEN.len() - broken..] {
        let good = web("pod-steer.version: broken, pod-steer.ports: '80:8080'", command, more);
        // The last of two equal keys would be an error.
        let text = if more.contains("image:") { good.split_once('\n').map_or("", |(_, rest)| rest) } else { &good };
        project.write(text)?;
        let done = project.up(&["--timeout", "2s"])?;
        ensure!(done.status.code() == Some(1), "{why}: {done:?}");
        ensure!(project.running()? == before && project.answered_by()? == last, "{why}: {}\n{before:?}", said(&done));
    }
    let tally = load.stop()?;
    none_lost(&tally)?;
    report::figure(&format!("{replacements} replacements by `up`, and {broken} broken versions"), &tally);
    Ok(())
}
