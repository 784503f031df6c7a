//! `unload` is complete: it leaves no program, map, link, pin, cgroup or file of the daemon.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use pod_steer_tests::{
    bpf::{self, Kind},
    cgroup2,
    daemon::{BPFFS, Stage},
    engine::Engine,
    exec::Exec,
    host::Host,
    load::Load,
    process::{output, run},
    report, require, server, tools, wait,
};

/// Every cgroup below the host's.
fn cgroups(host: &Host) -> BTreeSet<PathBuf> {
    fn walk(dir: &Path, found: &mut BTreeSet<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                walk(&entry.path(), found);
                found.insert(entry.path());
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(host.cgroup(), &mut found);
    found
}

/// The contents of the host's bpffs, directories included.
fn pins(host: &Host) -> Result<String> {
    run(host.command("find")?.args(["/sys/fs/bpf", "-mindepth", "1"]))
}

/// Nothing of `owned` is left, and the bpffs is as it was.
fn assert_undone(stage: &Stage, owned: &bpf::Objects, pins_before: &str) -> Result<()> {
    bpf::until_gone(owned)?;
    assert_eq!(pins(&stage.host)?, pins_before, "the bpffs is as it was");
    let files: Vec<_> = fs::read_dir(stage.daemon.runtime_dir()).into_iter().flatten().flatten().collect();
    assert!(files.is_empty(), "files are left: {files:?}");
    Ok(())
}

#[test]
fn with_a_daemon() -> Result<()> {
    require!(tools::docker());
    let host = std::sync::Arc::new(Host::new()?);
    let engine = Engine::start(&host)?;
    // The engine has made its cgroup with its first container.
    let first = engine.start_container(&server::busybox("other-1", 8090))?;
    let (cgroups_before, pins_before) = (cgroups(&host), pins(&host)?);

    let mut stage = Stage::with(host, Some(engine))?;
    let start = |name: &str| {
        stage.engine().start_container(&server::named(name, "0.0.0.0:8080").service("web", "8080:8080,80:8080"))
    };
    let containers = [start("web-1")?, start("web-2")?];
    stage.daemon.wait_ready("web", 2)?;
    let target = "127.0.0.1:8080".parse()?;
    assert_eq!(Load::to(target).count(200).run(stage.host.net())?.answered(), 200);
    let owned = bpf::of_daemon(&stage.host, stage.daemon.pid())?;
    let kinds = [Kind::Program, Kind::Map, Kind::Link].map(|kind| owned.keys().filter(|key| key.0 == kind).count());
    assert!(kinds.iter().all(|&count| count > 0), "a daemon at work holds programs, maps and links: {owned:?}");
    report::figure(
        "BPF objects of a daemon with two containers",
        format!("{} programs, {} maps, {} links", kinds[0], kinds[1], kinds[2]),
    );

    stage.daemon.unload()?;
    assert_eq!(stage.daemon.exit_code()?, Some(0), "{}", stage.daemon.log_tail());
    assert_undone(&stage, &owned, &pins_before)?;
    // The servers still run: they share port 8080 by SO_REUSEPORT, and no socket listens on port 80.
    let after = Load::to(target).count(200).run(stage.host.net())?;
    assert_eq!(after.answered(), 200, "{after}");
    let eighty = Load::to("127.0.0.1:80".parse()?).count(5).run(stage.host.net())?;
    assert_eq!(eighty.refused(), 5, "{eighty}");

    drop(containers);
    wait::until("the cgroups to be as before", || (cgroups(&stage.host) == cgroups_before).then_some(()))?;
    // A second `unload` has nothing to do, which is no failure.
    stage.daemon.unload()?;
    // A daemon can start again.
    stage.daemon.restart()?;
    let _again = stage.engine().start_container(&server::named("web-3", "0.0.0.0:8081").service("web", "81:8081"))?;
    stage.daemon.wait_ready("web", 1)?;
    assert_eq!(Load::to("127.0.0.1:81".parse()?).count(50).run(stage.host.net())?.answered_by("web-3"), 50);
    drop(first);
    Ok(())
}

#[test]
fn after_the_daemon_was_killed() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let host = std::sync::Arc::new(Host::new()?);
    let (cgroups_before, pins_before) = (cgroups(&host), pins(&host)?);
    assert_eq!(cgroups_before, BTreeSet::from([host.cgroup().join(cgroup2::PROCESSES)]));
    let mut stage = Stage::with(host, None)?;
    let mut backends = ["web-1", "web-2"]
        .into_iter()
        .map(|name| Exec::new(name, "web", "80:8080", "0.0.0.0:8080").start(&stage))
        .collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 2)?;
    let owned = bpf::of_daemon(&stage.host, stage.daemon.pid())?;
    stage.daemon.kill()?;
    assert!(pins(&stage.host)?.contains(BPFFS), "everything stays pinned");
    for backend in &mut backends {
        backend.process.kill()?;
    }
    stage.daemon.unload()?;
    assert_undone(&stage, &owned, &pins_before)?;
    assert_eq!(cgroups(&stage.host), cgroups_before);
    Ok(())
}

#[test]
fn while_processes_run_in_cgroups_of_the_daemons() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let host = std::sync::Arc::new(Host::new()?);
    let (cgroups_before, pins_before) = (cgroups(&host), pins(&host)?);
    let mut stage = Stage::with(host, None)?;
    let mut backend = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let owned = bpf::of_daemon(&stage.host, stage.daemon.pid())?;
    stage.daemon.unload()?;
    assert_eq!(stage.daemon.exit_code()?, Some(0));
    assert_undone(&stage, &owned, &pins_before)?;
    assert_eq!(cgroups(&stage.host), cgroups_before, "the process was moved back, its cgroup removed");
    let log = stage.daemon.log();
    assert!(!log.contains("cannot remove a cgroup"), "{}", stage.daemon.log_tail());
    // A second `unload` prints one line.
    let mut again = stage.daemon.cli()?;
    again.args(["unload", "--bpffs", BPFFS, "--runtime-dir", "/run/pod-steer", "--state-dir"]);
    let again = output(again.arg(stage.daemon.state_dir()))?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.success() && said.lines().count() == 1 && said.starts_with("unloaded: "), "{said}");
    assert!(!backend.process.has_ended()?, "and it runs on");
    let own_port = Load::to("127.0.0.1:8080".parse()?).count(5).run(stage.host.net())?;
    assert_eq!(own_port.answered_by("web-1"), 5, "{own_port}");
    Ok(())
}
