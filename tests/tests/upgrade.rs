//! Another release of pod-steer takes over the state of the one before: every attached program is replaced in place, and no
//! client notices.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    check,
    daemon::Stage,
    process::run,
    report, require, tools,
    upgrades::{PROGRAM, choose, fails, goes_on, links, load, take_over, three},
    wait,
};
use serde_json::Value;

const REPLACED: &str = "attached programs of another build were replaced";
/// Links of three backends' cgroups and of one namespace.
const LINKS: usize = 3 * 8 + 1;

/// The tag of each program that has a link, by its name.
fn tags(stage: &Stage) -> Result<BTreeMap<String, String>> {
    let program = |id: u64| -> Result<(String, String)> {
        let text = run(stage.host.command("bpftool")?.args(["--json", "prog", "show", "id", &id.to_string()]))?;
        let program: Value = serde_json::from_str(&text)?;
        let text = |field: &str| program[field].as_str().unwrap_or_default().to_owned();
        Ok((text("name"), text("tag")))
    };
    links(stage)?.into_values().map(program).collect()
}

/// Whether a program is still there.
fn is_loaded(stage: &Stage, id: u64) -> Result<bool> {
    let shown =
        pod_steer_tests::process::output(stage.host.command("bpftool")?.args(["prog", "show", "id", &id.to_string()]))?;
    Ok(shown.status.success())
}

/// Ids of the migrate programs that the daemon has open.
fn migrate_program(stage: &Stage) -> Result<u64> {
    let own = pod_steer_tests::bpf::of_daemon(&stage.host, stage.daemon.pid())?;
    let mut found = own.iter().filter(|((kind, _), text)| *kind == "prog" && text.ends_with(" migrate"));
    found.next().map(|((_, id), _)| *id).context("the daemon has a migrate program")
}

#[test]
fn a_changed_program_replaces_the_attached_one_under_load() -> Result<()> {
    require!(tools::root_and(&["ip", "bpftool", "setpriv"]));
    let mut stage = Stage::without_engine()?;
    let _backends = three(&stage)?;
    let load = load(&stage)?;
    let (mut before, mut tags_before) = (links(&stage)?, tags(&stage)?);
    ensure!(before.len() == LINKS, "{before:?}");
    for (upgrades, feature) in [Some(PROGRAM), None, Some(PROGRAM)].into_iter().enumerate() {
        let migrate = migrate_program(&stage)?;
        take_over(&mut stage, feature)?;
        let now = links(&stage)?;
        ensure!(now.keys().eq(before.keys()), "no link was made anew: {before:?} {now:?}");
        ensure!(now.iter().all(|(id, program)| before[id] != *program), "each has another program: {before:?} {now:?}");
        let tags = tags(&stage)?;
        let changed = tags.iter().filter(|(name, tag)| tags_before.get(*name) != Some(tag));
        let changed: Vec<&str> = changed.map(|(name, _)| name.as_str()).collect();
        for name in ["steer", "bind4", "bind6", "refuse_mptcp", "tcp_events"] {
            ensure!(changed.contains(&name), "{name} runs other instructions: {changed:?}");
        }
        // Those of the sockets have no links: the last one goes with the last socket that it is attached to.
        wait::until_ok("the former migrate program to be gone", || Ok((!is_loaded(&stage, migrate)?).then_some(())))
            .with_context(|| stage.daemon.log_tail())?;
        let said = stage.daemon.log().matches(REPLACED).count();
        ensure!(said == upgrades + 1, "each upgrade is logged once:\n{}", stage.daemon.log_tail());
        goes_on(&load)?;

        // The same release once more has nothing to replace.
        take_over(&mut stage, feature)?;
        ensure!(links(&stage)? == now, "{}", stage.daemon.log_tail());
        ensure!(stage.daemon.log().matches(REPLACED).count() == said);
        goes_on(&load)?;
        (before, tags_before) = (now, tags);
    }
    let status = stage.daemon.status()?;
    ensure!(status.problems.is_empty(), "{status}");
    let tally = load.stop()?;
    report::figure("three upgrades of programs, six restarts, under load", &tally);
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)
}

#[test]
fn killed_at_each_step_of_replacing_programs() -> Result<()> {
    require!(tools::root_and(&["ip", "bpftool", "setpriv"]));
    let mut stage = Stage::without_engine()?;
    let _backends = three(&stage)?;
    let load = load(&stage)?;
    let mut release = None;
    for (point, replaced) in [("programs-loaded", 0), ("half-replaced", LINKS.div_ceil(2)), ("replaced", LINKS)] {
        let before = links(&stage)?;
        release = if release.is_some() { None } else { Some(PROGRAM) };
        stage.daemon.kill()?;
        choose(&mut stage, release)?;
        stage.daemon.run_until_dead(point)?;
        let now = links(&stage)?;
        let other = now.iter().filter(|(id, program)| before[*id] != **program).count();
        ensure!(now.len() == LINKS && other == replaced, "{point}: {other} of {} were replaced", now.len());
        goes_on(&load)?;
        stage.daemon.restart()?;
        let end = links(&stage)?;
        ensure!(end.keys().eq(before.keys()), "{point}: {end:?}");
        ensure!(end.iter().all(|(id, program)| before[id] != *program), "{point}: all are replaced now");
        goes_on(&load)?;
    }
    let tally = load.stop()?;
    report::figure("three upgrades, killed at each step", &tally);
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)
}

#[test]
fn a_step_that_fails_leaves_the_former_programs() -> Result<()> {
    require!(tools::root_and(&["ip", "bpftool", "setpriv"]));
    let mut stage = Stage::without_engine()?;
    let _backends = three(&stage)?;
    let load = load(&stage)?;
    let before = links(&stage)?;
    stage.daemon.kill()?;
    choose(&mut stage, Some(PROGRAM))?;
    for point in ["programs-loaded", "half-replaced", "replaced"] {
        stage.daemon.conditions.env = vec![("POD_STEER_FAIL_AT", point.to_owned())];
        fails(&mut stage, 1)?;
        ensure!(links(&stage)? == before, "{point}: the programs are the former ones");
        goes_on(&load)?;
    }
    stage.daemon.conditions.env.clear();
    stage.daemon.restart()?;
    let now = links(&stage)?;
    ensure!(now.iter().all(|(id, program)| before[id] != *program), "{before:?} {now:?}");
    let tally = load.stop()?;
    report::figure("an upgrade that failed three times", &tally);
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)
}
