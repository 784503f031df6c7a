//! The daemon's files are lost or cannot be written, and the engine does not answer: known listeners are still steered.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bridged::{self, Kept},
    daemon::{BPFFS, Conditions, Stage},
    exec::{Backend, Exec},
    load::{Load, Running},
    process::run,
    refusals::{NO_INSTANCES, NO_WATCHES},
    require, server,
    status::Status,
    tools, wait,
};
use rustix::process::Signal;

/// Subject of the condition that names the awaited engine.
const AWAITED: &str = "steering of an earlier daemon";

fn exec(stage: &Stage, name: &str) -> Result<Backend> {
    Exec::new(name, "web", "80:8080", "0.0.0.0:8080").start(stage)
}

fn load(stage: &Stage) -> Result<Running> {
    Load::to("127.0.0.1:80".parse()?).threads(2).start(stage.host.net())
}

fn none_lost(stage: &Stage, load: Running) -> Result<()> {
    let answered = load.answered();
    wait::until("more answers", || (load.answered() > answered + 200).then_some(()))?;
    let tally = load.stop()?;
    ensure!(tally.lost(|_| true) == 0, "{tally}\n{}", stage.daemon.log_tail());
    Ok(())
}

/// Removes everything in the runtime directory.
fn lose_files(stage: &Stage) -> Result<()> {
    for entry in fs::read_dir(stage.daemon.runtime_dir())? {
        let path = entry?.path();
        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    Ok(())
}

/// The next daemon finds neither.
fn lose_both_and_restart(stage: &mut Stage) -> Result<()> {
    stage.daemon.kill()?;
    lose_files(stage)?;
    lose_notes(stage)?;
    stage.daemon.restart()
}

/// Removes the kernel's copy of the same data.
fn lose_notes(stage: &Stage) -> Result<()> {
    run(stage.host.command("rm")?.arg(format!("{BPFFS}/maps/NOTES"))).map(drop)
}

fn lose_and_restart(stage: &mut Stage, silence: &str, signal: Signal) -> Result<()> {
    let mut backends = vec![exec(stage, "exec-1")?];
    stage.daemon.wait_ready("web", 2)?;
    let before = stage.daemon.status()?;
    let load = load(stage)?;
    stage.engine().signal(signal)?;
    stage.daemon.kill()?;
    lose_files(stage)?;
    stage.daemon.restart().with_context(|| format!("the engine is {silence}"))?;
    stage.daemon.wait_ready("web", 2)?;
    let status = stage.daemon.status()?;
    for name in ["docker-1", "exec-1"] {
        let (then, now) = (before.backend("web", name), status.backend("web", name));
        ensure!(then.id == now.id && then.kind == now.kind && then.version == now.version, "{then:?} {now:?}");
        ensure!(now.opened >= then.opened, "its counters go on: {then:?} {now:?}");
    }
    // New backends are steered to, and the end of a backend is noticed.
    backends.push(exec(stage, "exec-2")?);
    stage.daemon.wait_ready("web", 3)?;
    none_lost(stage, load)?;
    backends.clear();
    stage.daemon.wait_ready("web", 1)?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(100).run(stage.host.net())?;
    ensure!(tally.answered_by("docker-1") == 100, "{tally}");
    // The daemon has written the files again.
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    Ok(())
}

#[test]
fn a_lost_runtime_directory_and_an_engine_that_says_nothing() -> Result<()> {
    require!(tools::docker());
    for (silence, signal) in [("hung", Signal::STOP), ("dead", Signal::KILL)] {
        let mut stage = Stage::with_docker()?;
        let container = server::named("docker-1", "0.0.0.0:8080").service("web", "80:8080");
        let container = stage.engine().start_container(&container)?;
        let outcome = lose_and_restart(&mut stage, silence, signal);
        // An engine that hangs would keep its container from being removed.
        stage.engine().signal(Signal::CONT)?;
        drop(container);
        outcome?;
    }
    Ok(())
}

/// Without the kernel's copy, only the engine can identify the backends.
#[test]
fn lost_files_and_notes_and_an_engine_that_answers_late() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let container = server::named("docker-1", "0.0.0.0:8080").service("web", "80:8080");
    let container = stage.engine().start_container(&container)?;
    stage.daemon.wait_ready("web", 1)?;
    let before = stage.daemon.status()?;
    let load = load(&stage)?;
    stage.engine().signal(Signal::STOP)?;
    let outcome = (|| {
        lose_both_and_restart(&mut stage)?;
        let awaited = |status: &Status| Some(status.said_about(AWAITED)).filter(|said| !said.is_empty());
        let said = stage.daemon.wait_for("the condition", awaited)?;
        ensure!(said[0].contains("Docker at") && said[0].contains("start that engine"), "{said:?}");
        let mut refused = Exec::new("exec-1", "web", "80:8080", "0.0.0.0:8080").launch(&stage)?;
        ensure!(!refused.process.wait(wait::STUCK)?.success(), "it could not be put in force");
        ensure!(refused.process.stderr().contains("has described its containers"), "{}", refused.process.stderr());
        anyhow::Ok(())
    })();
    // An engine that hangs would keep its container from being removed.
    stage.engine().signal(Signal::CONT)?;
    outcome?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.wait_for("no condition", |status| status.warnings().is_empty().then_some(()))?;
    let (then, status) = (before.backend("web", "docker-1").opened, stage.daemon.status()?);
    ensure!(status.backend("web", "docker-1").opened >= then, "its counters go on: {status}");
    let second = exec(&stage, "exec-2")?;
    stage.daemon.wait_ready("web", 2)?;
    none_lost(&stage, load)?;

    // The daemon does not wait for an engine whose socket does not exist.
    drop(second);
    stage.daemon.wait_ready("web", 1)?;
    stage.engine().signal(Signal::STOP)?;
    stage.daemon.kill()?;
    lose_files(&stage)?;
    lose_notes(&stage)?;
    let socket = stage.engine().docker().socket().to_owned();
    let aside = socket.with_extension("aside");
    fs::rename(&socket, &aside)?;
    let outcome = stage.daemon.restart().and_then(|()| {
        stage.daemon.wait_for("the end of the wait", |status| status.said_about(AWAITED).is_empty().then_some(()))?;
        let third = exec(&stage, "exec-3")?;
        stage.daemon.wait_ready("web", 1)?;
        drop(third);
        Ok(())
    });
    fs::rename(&aside, &socket)?;
    stage.engine().signal(Signal::CONT)?;
    drop(container);
    outcome
}

#[test]
fn lost_files_and_notes_of_a_forwarded_backend_and_an_engine_that_answers_late() -> Result<()> {
    /// Longer than the programs of devices stay attached without a backend to forward to.
    const LATE: Duration = Duration::from_secs(13);
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let _container = stage.engine().start_container(&bridged::web("docker-1"))?;
    stage.daemon.wait_ready("web", 1)?;
    let target = (client.host_ip4, 80).into();
    let mut kept = Kept::open(&client.ns, target)?;
    stage.engine().signal(Signal::STOP)?;
    let outcome = (|| {
        lose_both_and_restart(&mut stage)?;
        std::thread::sleep(LATE);
        kept.goes_on()?;
        let tally = Load::to(target).count(20).run(&client.ns)?;
        ensure!(tally.answered_by("docker-1") == 20, "{tally}");
        anyhow::Ok(())
    })();
    // An engine that hangs would keep its container from being removed.
    stage.engine().signal(Signal::CONT)?;
    outcome?;
    stage.daemon.wait_ready("web", 1)?;
    kept.goes_on()
}

#[test]
fn a_runtime_directory_that_is_full() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let _first = exec(&stage, "web-1")?;
    stage.daemon.wait_ready("web", 1)?;
    // A full file system of its own, over the directory of the files.
    let dir = "/run/pod-steer/backends";
    let sh = |script: &str| run(stage.host.command("sh")?.args(["-c", script]));
    sh(&format!("mount -t tmpfs -o size=4k tmpfs {dir} && head -c 4096 /dev/zero > {dir}/filler"))?;
    let _second = exec(&stage, "web-2")?;
    stage.daemon.wait_ready("web", 2)?;
    let said = stage.daemon.wait_for("the condition", |status| {
        Some(status.said_about("runtime directory")).filter(|said| !said.is_empty())
    })?;
    ensure!(said[0].contains("No space left") && said[0].contains("make room"), "{said:?}");
    let load = load(&stage)?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 2)?;
    none_lost(&stage, load)?;
    let sh = |script: &str| run(stage.host.command("sh")?.args(["-c", script]));
    sh(&format!("rm {dir}/filler && mount -o remount,size=1m {dir}"))?;
    stage.daemon.wait_for("the condition to end", |status| status.said_about("runtime").is_empty().then_some(()))?;
    sh(&format!("umount {dir}")).map(drop)
}

#[test]
fn without_watches_of_inotify() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let mut first = exec(&stage, "web-1")?;
    let _second = exec(&stage, "web-2")?;
    stage.daemon.wait_ready("web", 2)?;
    for refusal in [NO_WATCHES, NO_INSTANCES] {
        let load = load(&stage)?;
        stage.daemon.kill()?;
        stage.daemon.restart_under(Conditions { refused: vec![refusal], ..Conditions::default() })?;
        stage.daemon.wait_ready("web", 2)?;
        let said = stage.daemon.wait_for("the condition", |status| {
            Some(status.said_about("watches of cgroups")).filter(|said| !said.is_empty())
        })?;
        ensure!(said[0].contains("fs.inotify.max_user_watches"), "{said:?}");
        let third = exec(&stage, "web-3")?;
        stage.daemon.wait_ready("web", 3)?;
        none_lost(&stage, load)?;
        drop(third);
        // The daemon still notices its end, and its cgroup is removed.
        stage.daemon.wait_for("web-3 to be gone", |status| {
            status.service("web").filter(|service| service.backends.len() == 2).map(drop)
        })?;
    }
    stage.daemon.kill()?;
    first.process.kill()?;
    stage.daemon.restart_under(Conditions::default())?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.wait_for("no condition", |status| status.warnings().is_empty().then_some(()))
}
