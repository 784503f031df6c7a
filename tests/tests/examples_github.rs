//! `examples/github-actions`: the workflow's steps over ssh to a server with the script beside it.

use std::{collections::BTreeMap, fs, process::Output};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    image::Image,
    process::output,
    remote::Remote,
    report, require,
    rollouts::none_lost,
    wait,
    workflow::{self, Step},
    yaml,
};

const WORKFLOW: &str = include_str!("../../examples/github-actions/deploy.yml");
const SCRIPT: &str = include_str!("../../examples/github-actions/deploy-web");
/// What the script says to write into `authorized_keys`.
const RESTRICTION: &str = r#"restrict,command="/usr/local/bin/deploy-web""#;

struct Scene {
    remote: Remote,
    steps: Vec<Step>,
    known_hosts: String,
}

impl Scene {
    fn new() -> Result<Self> {
        ensure!(SCRIPT.contains(RESTRICTION));
        let remote = Remote::new(&[("deploy-web", SCRIPT)], RESTRICTION)?;
        let serve = |name, listen| ["/named-server", "--name", name, "--listen", listen];
        for version in ["v1", "v2"] {
            remote.image(Image::Named, &format!("registry.example/web:{version}"), &serve(version, "0.0.0.0:8080"))?;
        }
        remote.image(Image::Named, "registry.example/web:deaf", &serve("deaf", "0.0.0.0:8081"))?;
        remote.image(Image::Named, "registry.example/web:empty", &["/missing"])?;
        let known_hosts = remote.sshd.known_host.clone();
        Ok(Self { remote, steps: workflow::steps(WORKFLOW, "deploy")?, known_hosts })
    }

    /// Runs the workflow for a version; returns the output of its deploy.
    fn run(&self, version: &str) -> Result<Output> {
        let values = BTreeMap::from([
            ("secrets.DEPLOY_KEY", fs::read_to_string(&self.remote.sshd.client_key)?),
            ("vars.DEPLOY_KNOWN_HOSTS", self.known_hosts.clone()),
            ("vars.DEPLOY_HOST", "127.0.0.1".to_owned()),
            ("inputs.version || github.event.release.tag_name", version.to_owned()),
        ]);
        let done = workflow::run(&self.remote, &self.steps, &values)?;
        ensure!(done.len() == self.steps.len(), "{done:?}");
        ensure!(!self.remote.runner_home().join("temp/deploy-key").exists(), "the key is removed in any case");
        let deploy = done.into_iter().find(|(name, _)| name == "Deploy").context("no step `Deploy`")?;
        Ok(deploy.1)
    }

    fn succeeds(&self, version: &str) -> Result<()> {
        let done = self.run(version)?;
        ensure!(done.status.success(), "{version}: {done:?}\n{}", self.remote.stage.daemon.log_tail());
        self.remote.all_by(version)
    }

    /// The workflow fails, `serving` serves on, and the containers are the same as before.
    fn fails(&self, version: &str, serving: &str, code: i32, part: &str) -> Result<()> {
        let before = self.remote.all()?;
        let done = self.run(version)?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.code() == Some(code) && said.contains(part), "{version}: {done:?}");
        ensure!(self.remote.all()? == before, "{version}: {:?} instead of {before:?}", self.remote.all()?);
        self.remote.all_by(serving)
    }
}

#[test]
fn a_workflow_deploys_over_ssh() -> Result<()> {
    require!(Remote::needed());
    let mut scene = Scene::new()?;
    one_deploy_at_a_time(&scene)?;
    scene.succeeds("v1")?;
    let load = scene.remote.load()?;
    scene.succeeds("v2")?;
    ensure!(scene.remote.running()? == ["web-v1", "web-v2"], "{:?}", scene.remote.running()?);
    // A rollback is possible until the old container is stopped.
    scene.remote.stage.daemon.order_done("rollback web")?;
    scene.remote.all_by("v1")?;
    // The version runs already.
    scene.succeeds("v2")?;

    // Here alone, the script is not verbatim: the test does not wait a minute.
    let impatient = SCRIPT.replace("--timeout 60s", "--timeout 1s");
    ensure!(impatient != SCRIPT);
    scene.remote.install("deploy-web", &impatient)?;
    scene.fails("deaf", "v2", 1, "deaf")?;
    scene.remote.install("deploy-web", SCRIPT)?;
    scene.fails("empty", "v2", 127, "/missing")?;
    scene.fails("absent", "v2", 1, "registry.example")?;
    // The key can do nothing else, and a version is no command.
    for version in ["v3; id", "-oProxyCommand=id", ""] {
        scene.fails(version, "v2", 2, "not a version")?;
    }
    // Another server than the one whose key is known.
    let good = std::mem::take(&mut scene.known_hosts);
    scene.known_hosts = good.replace("127.0.0.1", "127.0.0.2");
    scene.fails("v1", "v2", 255, "Host key verification failed")?;
    scene.known_hosts = good;

    // Back to the version before, whose container has been stopped meanwhile.
    scene.remote.stage.engine().docker().run(&["stop", "web-v1"])?;
    scene.succeeds("v1")?;
    let tally = load.stop()?;
    report::figure("a workflow that deployed four times and failed seven times", &tally);
    none_lost(&tally)
}

fn one_deploy_at_a_time(scene: &Scene) -> Result<()> {
    let Remote { stage, .. } = &scene.remote;
    let home = scene.remote.runner_home().with_file_name("deploy");
    let mut holder = stage.host.command("setpriv")?;
    let lock = "exec 9>\"$HOME/.deploy-web.lock\" && flock 9 && echo locked && exec sleep 600";
    holder.args(["--reuid", "deploy", "--regid", "deploy", "--clear-groups", "--", "sh", "-c", lock]).env("HOME", home);
    let holder = stage.host.start("holder", &mut holder)?;
    wait::until("the lock", || holder.stdout().contains("locked").then_some(()))?;
    let done = scene.run("v1")?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.code() == Some(1) && said.contains("another deploy of web is running"), "{done:?}");
    ensure!(scene.remote.all()?.is_empty(), "{:?}", scene.remote.all()?);
    Ok(())
}

#[test]
fn the_workflow_is_careful() -> Result<()> {
    let workflow = yaml::read(WORKFLOW)?;
    assert_eq!(workflow["concurrency"]["cancel-in-progress"], false, "a deploy that runs is not interrupted");
    assert_eq!(workflow["permissions"], serde_json::json!({}), "nothing of GitHub's is needed");
    Ok(())
}

#[test]
fn the_scripts_are_sound() -> Result<()> {
    for script in ["github-actions/deploy-web", "kamal/post-app-boot"] {
        let path = format!("{}/../examples/{script}", env!("CARGO_MANIFEST_DIR"));
        let checked = output(std::process::Command::new("sh").args(["-n", &path]))?;
        ensure!(checked.status.success() && checked.stderr.is_empty(), "{script}: {checked:?}");
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path)?);
        ensure!(mode & 0o111 == 0o111, "{script} is executable");
    }
    Ok(())
}
