//! Another release of pod-steer takes over the kernel state: every attached program is replaced in place, and no connection is lost.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use pod_steer_tests::{
    bpf::{self, Object},
    daemon::Stage,
    require, tools,
    upgrades::{PROGRAM, choose, ends_well, fails, goes_on, links, take_over, under_load},
    wait,
};

const REPLACED: &str = "attached programs of another build were replaced";
/// Links of three backends' cgroups and of one namespace.
const LINKS: usize = 3 * 8 + 1;

/// The tag of each program that has a link, by its name.
fn tags(stage: &Stage) -> Result<BTreeMap<String, u64>> {
    let program = |id: u32| match bpf::program(id)? {
        Some(Object::Program { name, tag, .. }) => Ok((name, tag)),
        other => bail!("program {id} has a link and is {other:?}"),
    };
    links(stage)?.into_values().map(program).collect()
}

/// Id of the migrate program that the daemon has open.
fn migrate_program(stage: &Stage) -> Result<u32> {
    let own = bpf::of_daemon(&stage.host, stage.daemon.pid())?;
    let is_migrate = |object: &Object| matches!(object, Object::Program { name, .. } if name == "migrate");
    let found = own.iter().find(|(_, object)| is_migrate(object));
    found.map(|((_, id), _)| *id).context("the daemon has a migrate program")
}

#[test]
fn a_changed_program_replaces_the_attached_one_under_load() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let (mut stage, _backends, load) = under_load()?;
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
        // Programs of sockets have no link: they are freed with the last socket that they are attached to.
        wait::until_ok("the former migrate program to be gone", || Ok(bpf::program(migrate)?.is_none().then_some(())))
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
    ensure!(status.warnings().is_empty(), "{status}");
    ends_well("three upgrades of programs, six restarts, under load", &stage, load)
}

#[test]
fn killed_at_each_step_of_replacing_programs() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let (mut stage, _backends, load) = under_load()?;
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
    ends_well("three upgrades, killed at each step", &stage, load)
}

#[test]
fn a_step_that_fails_leaves_the_former_programs() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let (mut stage, _backends, load) = under_load()?;
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
    ends_well("an upgrade that failed three times", &stage, load)
}
