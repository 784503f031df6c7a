//! A release with another layout of maps takes over: it fills its maps from those in use, and connections, counters and decisions are
//! kept.

use std::net::TcpStream;

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::{BPFFS, Stage},
    exec::Exec,
    load::Load,
    process::output,
    report, require, tools,
    upgrades::{
        LAYOUT, LAYOUT_MORE, PROGRAM, choose, ends_well, fails, goes_on, links, load, no_residue, take_over, three,
        under_load, web,
    },
    wait,
};

const MIGRATED: &str = "the kernel state was brought to another layout";

const REPLACED: &str = "attached programs of another build were replaced";

/// All new connections to a port are answered by this backend, or all are refused.
fn all(stage: &Stage, port: u16, name: Option<&str>) -> Result<()> {
    let tally = Load::to(([127, 0, 0, 1], port).into()).count(50).run(stage.host.net())?;
    let right = name.map_or(tally.refused() == 50, |name| tally.answered_by(name) == 50);
    ensure!(right, "port {port}, by {name:?}: {tally}\n{}", stage.daemon.log_tail());
    Ok(())
}

#[test]
fn three_upgrades_in_a_row_under_load() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let mut stage = Stage::without_engine()?;
    let mut backends = three(&stage)?;
    let other = |name, service, port: u16| {
        let flags = ["--version", name];
        Exec::new(name, service, &format!("{port}:{port}"), &format!("0.0.0.0:{port}")).flags(&flags).start(&stage)
    };
    let _drained = other("drained", "drained", 81)?;
    let _versions = [other("v1", "versions", 82)?, other("v2", "versions", 82)?];
    stage.daemon.wait_ready("versions", 2)?;
    stage.daemon.wait_ready("drained", 1)?;
    stage.daemon.order_done("drain drained")?;
    stage.daemon.order_done("shift versions v2=1")?;
    // A connection that stays open through every upgrade.
    let held = stage.host.net().run(|| TcpStream::connect("127.0.0.1:82"))?;
    let live = |stage: &Stage| Ok::<_, anyhow::Error>(stage.daemon.status()?.backend("versions", "v2").live);
    stage
        .daemon
        .wait_for("the held connection", |status| (status.backend("versions", "v2").live == 1).then_some(()))?;
    let load = load(&stage)?;
    let mut opened = 0;
    for (number, release) in [PROGRAM, LAYOUT, LAYOUT_MORE].into_iter().enumerate() {
        let before = links(&stage)?;
        take_over(&mut stage, Some(release))?;
        goes_on(&load)?;
        let now = links(&stage)?;
        ensure!(now.keys().eq(before.keys()), "{release}: no link was made anew: {before:?} {now:?}");
        ensure!(now.iter().all(|(id, program)| before[id] != *program), "{release}: {before:?} {now:?}");
        let migrated = stage.daemon.log().matches(MIGRATED).count();
        ensure!(migrated == number, "{release}: {migrated} migrations\n{}", stage.daemon.log_tail());
        no_residue(&stage)?;
        let status = stage.daemon.status()?;
        ensure!(status.warnings().is_empty(), "{release}: {status}");
        let web_opened = status.service("web").map(|web| web.opened()).unwrap_or_default();
        ensure!(web_opened > opened, "{release}: counters go on: {web_opened} after {opened}");
        opened = web_opened;
        // Decisions are in force, and earlier services are served.
        all(&stage, 81, None)?;
        all(&stage, 82, Some("v2"))?;
        ensure!(live(&stage)? >= 1, "{release}: the connection is held");
        // The new programs see a listener that opens now, and its clients are served.
        let name = format!("web-{}", number + 4);
        backends.push(web(&name).user(1000 * (number as u32 % 2)).start(&stage)?);
        stage.daemon.wait_ready("web", number + 4)?;
        let answered = load.answered();
        wait::until("clients", || (load.answered() > answered + 400).then_some(()))?;
        ensure!(stage.daemon.status()?.backend("web", &name).opened > 0, "{release}: {name} is served");
    }
    for line in stage.daemon.log().lines().filter(|line| line.contains(MIGRATED) || line.contains(REPLACED)) {
        report::figure("upgrade", line.split_once("INFO ").map_or(line, |(_, said)| said));
    }
    ends_well("three upgrades in a row, two of them of the layout", &stage, load)?;
    drop(held);
    stage.daemon.wait_idle("versions")?;
    stage.daemon.terminate()?;
    stage.daemon.unload()?;
    let gone = output(stage.host.command("ls")?.arg(BPFFS))?;
    ensure!(!gone.status.success(), "the directory is gone");
    Ok(())
}

#[test]
fn killed_at_each_step_of_a_migration() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    // Until all maps are filled, a daemon of the former release can still take over.
    let early = ["maps-made", "maps-filled"];
    let late =
        ["maps-ready", "programs-loaded", "half-replaced", "replaced", "carried-over", "half-swapped", "swapped"];
    for point in early.into_iter().chain(late) {
        let killed = || -> Result<()> {
            let (mut stage, _backends, load) = under_load()?;
            stage.daemon.kill()?;
            choose(&mut stage, Some(LAYOUT_MORE))?;
            stage.daemon.run_until_dead(point)?;
            goes_on(&load)?;
            choose(&mut stage, None)?;
            if early.contains(&point) {
                stage.daemon.restart()?;
                no_residue(&stage)?;
                stage.daemon.wait_ready("web", 3)?;
                goes_on(&load)?;
                stage.daemon.kill()?;
            } else {
                fails(&mut stage, 2)?;
            }
            choose(&mut stage, Some(LAYOUT_MORE))?;
            stage.daemon.restart()?;
            goes_on(&load)?;
            no_residue(&stage)?;
            let _newcomer = web("web-4").start(&stage)?;
            stage.daemon.wait_ready("web", 4)?;
            goes_on(&load)?;
            let status = stage.daemon.status()?;
            ensure!(status.warnings().is_empty(), "{status}");
            ends_well(&format!("a migration killed at {point}"), &stage, load)
        };
        killed().map_err(|error| error.context(format!("killed at {point}")))?;
    }
    Ok(())
}

#[test]
fn a_migration_that_fails_leaves_the_former_state() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let (mut stage, _backends, load) = under_load()?;
    let before = links(&stage)?;
    stage.daemon.kill()?;
    choose(&mut stage, Some(LAYOUT_MORE))?;
    let points =
        ["maps-made", "maps-filled", "maps-ready", "programs-loaded", "half-replaced", "replaced", "carried-over"];
    for point in points {
        stage.daemon.conditions.env = vec![("POD_STEER_FAIL_AT", point.to_owned())];
        fails(&mut stage, 1)?;
        ensure!(links(&stage)? == before, "{point}: the programs are the former ones");
        no_residue(&stage)?;
        goes_on(&load)?;
    }
    // The former release continues with its state, and the later one takes over in the end.
    stage.daemon.conditions.env.clear();
    choose(&mut stage, None)?;
    stage.daemon.restart()?;
    goes_on(&load)?;
    ensure!(links(&stage)? == before, "{}", stage.daemon.log_tail());
    take_over(&mut stage, Some(LAYOUT_MORE))?;
    goes_on(&load)?;
    ends_well("a migration that failed at seven steps", &stage, load)
}

/// No daemon has to finish the migration first.
#[test]
fn unload_ends_a_migration_that_was_killed() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    for point in ["maps-filled", "half-replaced", "half-swapped", "swapped"] {
        let mut stage = Stage::without_engine()?;
        let _backends = three(&stage)?;
        stage.daemon.kill()?;
        choose(&mut stage, Some(LAYOUT_MORE))?;
        stage.daemon.run_until_dead(point)?;
        stage.daemon.unload()?;
        let gone = output(stage.host.command("ls")?.arg(BPFFS))?;
        ensure!(!gone.status.success(), "{point}: {}", String::from_utf8_lossy(&gone.stdout));
        ensure!(links(&stage)?.is_empty(), "{point}");
    }
    Ok(())
}

/// The new daemon cannot open the sockets, so the former migrate programs stay attached and count in the former maps.
#[test]
fn counts_of_the_former_migrate_programs_are_kept() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let mut first = web("first").server(&["--accept-delay-ms", "600000"]).start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let connect = || stage.host.net().run(|| TcpStream::connect("127.0.0.1:80"));
    let waiting = (0..5).map(|_| connect()).collect::<Result<Vec<_>, _>>()?;
    stage.daemon.wait_for("all to wait", |status| (status.backend("web", "first").live == 5).then_some(()))?;
    let _second = web("second").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.conditions.refused = vec![(libc::SYS_pidfd_getfd, libc::EPERM)];
    take_over(&mut stage, Some(LAYOUT))?;
    first.process.kill()?;
    // The daemon reads the counters every 30 s.
    stage.daemon.wait_for("the moves to be counted", |status| {
        let second = status.service("web")?.backends.iter().find(|backend| backend.name == "second")?.clone();
        (second.moved_in == 5 && second.live == 5).then_some(())
    })?;
    drop(waiting);
    stage.daemon.wait_idle("web").map(drop)
}

#[test]
fn a_downgrade_is_refused_and_changes_nothing() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let (mut stage, _backends, load) = under_load()?;
    take_over(&mut stage, Some(LAYOUT))?;
    let before = links(&stage)?;
    stage.daemon.kill()?;
    choose(&mut stage, None)?;
    fails(&mut stage, 2)?;
    let log = stage.daemon.log();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("newer pod-steer")).collect();
    ensure!(said.len() == 1, "one line says it: {said:?}\n{log}");
    for part in ["kernel state 8", "states 6 to 7", "Start the newer release again", "pod-steer unload"] {
        ensure!(said[0].contains(part), "{part}: {}", said[0]);
    }
    ensure!(links(&stage)? == before);
    goes_on(&load)?;
    choose(&mut stage, Some(LAYOUT))?;
    stage.daemon.restart()?;
    goes_on(&load)?;
    ensure!(links(&stage)? == before);
    ends_well("an upgrade, and a downgrade that was refused", &stage, load)
}
