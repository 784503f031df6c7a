//! A limit on threads: work beside the daemon's loop fails, and the daemon continues.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    cgroup2,
    daemon::Stage,
    netns::NetNs,
    process::{Process, run},
    require,
    rollouts::{clients, hold},
    tools, wait,
};

/// A cgroup of the daemon in which no further thread can be made while a limit is set.
struct Limit {
    dir: PathBuf,
    /// The cgroup to which the daemon returns afterwards.
    back: PathBuf,
}

impl Limit {
    fn new(stage: &Stage) -> Result<Self> {
        let dir = match pids_of_v1() {
            Some(mount) => mount.join(format!("pod-steer-test-{}", std::process::id())),
            None => {
                let host = stage.host.cgroup();
                fs::write(host.join("cgroup.subtree_control"), "+pids").context("enabling the controller pids")?;
                host.join("limited")
            }
        };
        let back = match pids_of_v1() {
            Some(mount) => mount,
            None => stage.host.cgroup().join(cgroup2::PROCESSES),
        };
        fs::create_dir(&dir)?;
        let limit = Self { dir, back };
        fs::write(limit.dir.join("cgroup.procs"), stage.daemon.pid().to_string())?;
        Ok(limit)
    }

    fn set(&self, limited: bool) -> Result<()> {
        let now = fs::read_to_string(self.dir.join("pids.current"))?;
        let max = if limited { now.trim() } else { "max" };
        fs::write(self.dir.join("pids.max"), max).context("setting the limit")
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        for pid in fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(self.back.join("cgroup.procs"), pid);
        }
        fs::remove_dir(&self.dir).expect("the cgroup of the limit is empty");
    }
}

/// Where the controller `pids` is mounted, if that is cgroup v1.
fn pids_of_v1() -> Option<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut mounts = mountinfo.lines().filter_map(|line| line.split_once(" - "));
    let is_pids = |after: &str| after.starts_with("cgroup ") && after.split([' ', ',']).any(|word| word == "pids");
    let (before, _) = mounts.find(|(_, after)| is_pids(after))?;
    before.split(' ').nth(4).map(PathBuf::from)
}

fn can_limit() -> Result<(), String> {
    let root = cgroup2::mount_point().map_err(|error| error.to_string())?;
    let controllers = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
    let of_v2 = controllers.split_whitespace().any(|controller| controller == "pids");
    let can = of_v2 || pids_of_v1().is_some();
    can.then_some(()).ok_or_else(|| "the cgroup controller pids cannot be used".to_owned())
}

/// A server that runs already in this network namespace, and is registered.
fn register(stage: &Stage, net: &NetNs) -> Result<Process> {
    let mut server = stage.host.command_in(net, tools::named_server()?)?;
    let process = stage.host.start("v1-1", server.args(["--name", "v1-1", "--listen", "0.0.0.0:8080"]))?;
    wait::until("the server to listen", || process.stdout().contains("listening ").then_some(()))?;
    let mut register = stage.daemon.cli()?;
    register.args(["register", "--pid", &process.pid().to_string(), "--name", "v1-1"]);
    run(register.args(["--service", "web", "--ports", "80:8080"]))?;
    Ok(process)
}

#[test]
fn a_count_that_needs_a_thread_is_an_error_and_the_next_one_succeeds() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    require!(can_limit());
    let stage = Stage::without_engine()?;
    // The daemon enters another namespace on a new thread.
    let other = NetNs::new()?;
    let _server = register(&stage, &other)?;
    stage.daemon.wait_ready("web", 1)?;
    let held = hold(&other)?;
    let live = || Ok::<_, anyhow::Error>(stage.daemon.status()?.backend("web", "v1-1").live);
    ensure!(live()? == 1, "one is connected");

    let limit = Limit::new(&stage)?;
    limit.set(true)?;
    let status = stage.daemon.status()?;
    let reasons = status.backend("web", "v1-1").reasons();
    ensure!(reasons.contains(&"connections-not-counted"), "{reasons:?}");
    let tally = clients().count(20).run(&other)?;
    ensure!(tally.answered_by("v1-1") == 20, "{tally}");
    limit.set(false)?;
    ensure!(live()? == 1, "it is counted again");
    drop(held);
    Ok(())
}
