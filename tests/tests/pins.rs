//! Pins and links that are removed by another program: the daemon notices, repairs them, and reports it.

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bpf::{self, Target},
    daemon::{BPFFS, Stage},
    exec::{Backend, Exec},
    journal::Killed,
    load::{Load, Running},
    process::{output, run},
    require, tools, wait,
};
use rustix::process::Signal;

fn web(stage: &Stage, name: &str) -> Result<Backend> {
    Exec::new(name, "web", "80:8080", "0.0.0.0:8080").start(stage)
}

fn load(stage: &Stage) -> Result<Running> {
    Load::to("127.0.0.1:80".parse()?).threads(2).start(stage.host.net())
}

fn remove(stage: &Stage, what: &str) -> Result<()> {
    let removed = output(stage.host.command("sh")?.args(["-c", &format!("rm -r {BPFFS}/{what}")]))?;
    // The daemon may pin something again in a directory that has just been emptied.
    let errors = String::from_utf8_lossy(&removed.stderr);
    ensure!(errors.lines().all(|line| line.ends_with("Directory not empty")), "{errors}");
    Ok(())
}

/// Every pin, below the directory.
fn pins(stage: &Stage) -> Result<Vec<String>> {
    // The directory itself may be gone.
    let found = output(stage.host.command("find")?.args([BPFFS, "-type", "f", "-printf", "%P\n"]))?;
    let mut pins: Vec<String> = String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect();
    pins.sort();
    Ok(pins)
}

fn wait_for_pins(stage: &Stage, wanted: &[String]) -> Result<()> {
    wait::until_ok("the pins to be there again", || {
        // Backends that have ended may still have pins.
        let now = pins(stage)?;
        Ok(wanted.iter().all(|pin| now.contains(pin)).then_some(()))
    })
    .with_context(|| stage.daemon.log_tail())
}

/// All new connections are answered, some of them by `name`.
fn answers(stage: &Stage, name: &str) -> Result<()> {
    let tally = Load::to("127.0.0.1:80".parse()?).threads(2).count(400).run(stage.host.net())?;
    ensure!(tally.answered() == 400 && tally.answered_by(name) > 0, "{name}: {tally}\n{}", stage.daemon.log_tail());
    Ok(())
}

/// A backend that starts now gets connections, and none is lost when it ends. This shows that the daemon and the attached programs use
/// the same maps.
fn takes_a_newcomer(stage: &Stage, name: &str) -> Result<()> {
    let mut newcomer = web(stage, name)?;
    stage.daemon.wait_ready("web", 2)?;
    answers(stage, name)?;
    // SIGKILL would take the connections that it has accepted and not answered with it.
    newcomer.process.signal(Signal::TERM)?;
    newcomer.process.wait(wait::STUCK)?;
    stage.daemon.wait_ready("web", 1)?;
    answers(stage, "web-1")
}

fn no_conditions(stage: &Stage) -> Result<()> {
    stage.daemon.wait_for("conditions to end", |status| status.warnings().is_empty().then_some(()))
}

/// Ids of the pinned links in the host's own network namespace.
fn links_of_namespace(stage: &Stage) -> Result<Vec<u32>> {
    let inode = stage.host.net().id()?.1;
    let links = bpf::links(&stage.host)?.into_iter();
    Ok(links.filter(|link| link.target == Target::Netns(inode)).map(|link| link.id).collect())
}

/// Ids of the pinned links in cgroups.
fn links_of_cgroups(stage: &Stage) -> Result<Vec<u32>> {
    let links = bpf::links(&stage.host)?.into_iter();
    Ok(links.filter(|link| matches!(link.target, Target::Cgroup(_))).map(|link| link.id).collect())
}

/// Waits until the host's namespace has its one link again.
fn attached_again(stage: &Stage) -> Result<()> {
    wait::until_ok("another link", || Ok((links_of_namespace(stage)?.len() == 1).then_some(())))
        .with_context(|| stage.daemon.log_tail())
}

#[test]
fn a_detached_link_of_a_namespace_is_attached_again() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _web = web(&stage, "web-1")?;
    stage.daemon.wait_ready("web", 1)?;
    answers(&stage, "web-1")?;
    for _ in 0..2 {
        let ids = links_of_namespace(&stage)?;
        ensure!(ids.len() == 1, "one link in the namespace: {ids:?}");
        bpf::detach(ids[0])?;
        attached_again(&stage)?;
        stage.daemon.wait_ready("web", 1)?;
        answers(&stage, "web-1")?;
        no_conditions(&stage)?;
    }
    takes_a_newcomer(&stage, "web-2")?;
    ensure!(stage.daemon.log().contains("sk_lookup link is gone or detached"), "{}", stage.daemon.log_tail());
    Ok(())
}

/// A short loss of steering does not count as the loss of a backend.
#[test]
fn a_canary_continues_while_a_detached_link_is_attached_again() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let start = |name, version: &str| Exec::new(name, "web", "80:8080", "0.0.0.0:8080").flags(&["--version", version]);
    let _old = start("old", "v1").start(&stage)?;
    let _new = start("new", "v2").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    let order = serde_json::json!({
        "order": "canary", "version": "v2", "steps": [5_000, 10_000], "every_ms": 3_600_000, "timeout_ms": 60_000
    });
    let id = stage.daemon.begin(&order)?;
    stage.daemon.wait_operation(id, "the first step", |operation| operation.phase.name == "stepping")?;
    let goes_on = |stage: &Stage| -> Result<()> {
        attached_again(stage)?;
        no_conditions(stage)?;
        let end = stage.daemon.operation(id)?.end;
        ensure!(end.is_none(), "the canary goes on: {end:?}\n{}", stage.daemon.log_tail());
        let tally = Load::to("127.0.0.1:80".parse()?).count(200).run(stage.host.net())?;
        let (old, new) = (tally.answered_by("old"), tally.answered_by("new"));
        ensure!(old > 40 && new > 40 && tally.answered() == 200, "half of them come to each: {tally}");
        Ok(())
    };
    for _ in 0..3 {
        bpf::detach(links_of_namespace(&stage)?[0])?;
        goes_on(&stage)?;
    }
    // While no daemon runs, removing the pin ends the link.
    stage.daemon.kill()?;
    remove(&stage, "netns")?;
    stage.daemon.restart()?;
    goes_on(&stage)
}

#[test]
fn detached_links_of_a_cgroup_are_attached_again() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _web = web(&stage, "web-1")?;
    // Wait until it listens, so that its cgroup's programs are attached.
    stage.daemon.wait_ready("web", 1)?;
    let before = pins(&stage)?;
    let ids = links_of_cgroups(&stage)?;
    ensure!(ids.len() == 8, "eight links of the backend: {ids:?}");
    for id in &ids {
        bpf::detach(*id)?;
    }
    wait::until_ok("other links", || {
        let now = links_of_cgroups(&stage)?;
        Ok((now.len() == 8 && now.iter().all(|id| !ids.contains(id))).then_some(()))
    })?;
    wait_for_pins(&stage, &before)?;
    let counted = stage.daemon.wait_idle("web")?.opened();
    answers(&stage, "web-1")?;
    ensure!(stage.daemon.wait_idle("web")?.opened() == counted + 400, "the new links count connections");
    takes_a_newcomer(&stage, "web-2")?;
    no_conditions(&stage)
}

#[test]
fn removed_pins_are_pinned_again_and_no_client_is_refused() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _web = web(&stage, "web-1")?;
    stage.daemon.wait_ready("web", 1)?;
    let before = pins(&stage)?;
    let load = load(&stage)?;
    let removed = ["cgroups/*", "cgroups/*", "*", "", "maps/TABLES", "maps/*", "ports/*", "netns/*"];
    for (number, what) in removed.into_iter().enumerate() {
        remove(&stage, what)?;
        wait_for_pins(&stage, &before)?;
        takes_a_newcomer(&stage, &format!("web-{}", number + 2))?;
        no_conditions(&stage)?;
    }
    let tally = load.stop()?;
    Killed::told(removed.len()).accounts_for(&tally).with_context(|| stage.daemon.log_tail())?;
    ensure!(stage.daemon.log().contains("maps/TABLES` was gone"), "{}", stage.daemon.log_tail());
    Ok(())
}

#[test]
fn pins_removed_without_a_daemon() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let _web = web(&stage, "web-1")?;
    stage.daemon.wait_ready("web", 1)?;
    let before = pins(&stage)?;
    let load = load(&stage)?;
    let maps = ["TABLES", "LISTENERS", "SOCKETS", "META", "RULES", "CGROUPS", "BACKEND_COUNTERS", "*"];
    let removed = maps.map(|map| format!("maps/{map}")).into_iter().chain(["ports/*", "cgroups/*"].map(str::to_owned));
    let removed: Vec<String> = removed.collect();
    for (number, what) in removed.iter().enumerate() {
        stage.daemon.kill()?;
        remove(&stage, what)?;
        let answered = load.answered();
        stage.daemon.restart()?;
        wait_for_pins(&stage, &before)?;
        wait::until("clients to be answered", || (load.answered() > answered + 100).then_some(()))?;
        takes_a_newcomer(&stage, &format!("web-{}", number + 2))?;
        no_conditions(&stage)?;
    }
    let tally = load.stop()?;
    Killed::told(removed.len()).accounts_for(&tally)?;

    // Without its link nothing is steered in the namespace until a daemon starts.
    stage.daemon.kill()?;
    remove(&stage, "netns/*")?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    takes_a_newcomer(&stage, "web-20")?;
    wait_for_pins(&stage, &before)?;
    no_conditions(&stage)
}

#[test]
fn an_unknown_file_is_reported() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let _web = web(&stage, "web-1")?;
    stage.daemon.wait_ready("web", 1)?;
    run(stage.host.command("mkdir")?.arg(format!("{BPFFS}/maps/strange")))?;
    run(stage.host.command("mkdir")?.arg(format!("{BPFFS}/cgroups/mine")))?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    for name in ["maps/strange", "cgroups/mine"] {
        let said = stage
            .daemon
            .wait_for("the file to be named", |status| Some(status.said_about(name)).filter(|said| !said.is_empty()))?;
        ensure!(said[0].contains("remove it"), "{said:?}");
    }
    answers(&stage, "web-1")
}
