//! Nothing of `pod-steer trace` is left when it ends, however that happens; what it cannot print is counted; and bad input gives one clear
//! line.

use std::{fs, process::Stdio};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    bpf,
    daemon::{BPFFS, Stage},
    exec::Exec,
    load::Load,
    process::output,
    report, require, tools,
    trace::{Trace, command},
    wait,
};
use rustix::process::Signal;

/// A server of `web` for both families.
fn web(name: &str) -> Exec<'static> {
    Exec::new(name, "web", "80:8080", "[::]:8080").flags(&["--version", "v1"])
}

#[test]
fn a_killed_trace_leaves_nothing_behind() -> Result<()> {
    require!(tools::root_and(&[]));
    let stage = Stage::without_engine()?;
    let _server = web("web-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let pins = bpf::pinned(&stage.host)?;
    let load = Load::to("127.0.0.1:80".parse()?).start(stage.host.net())?;
    for (name, signal) in [("first", Signal::KILL), ("second", Signal::INT), ("third", Signal::KILL)] {
        let mut trace = Trace::start(&stage, name, &[])?;
        let daemons = bpf::of_daemon(&stage.host, stage.daemon.pid())?;
        let mut own = bpf::of_daemon(&stage.host, trace.0.pid())?;
        own.retain(|id, _| !daemons.contains_key(id));
        ensure!(own.values().any(|object| matches!(object, bpf::Object::Link(_))), "no link of its own: {own:?}");
        let before = load.answered();
        wait::until("more connections", || (load.answered() > before + 100).then_some(()))?;
        trace.0.signal(signal)?;
        trace.0.wait(wait::STUCK)?;
        bpf::until_gone(&own)?;
        ensure!(bpf::attached_to(stage.host.net())? == 1, "a program is left behind");
        ensure!(bpf::pinned(&stage.host)? == pins, "the pins have changed");
    }
    let tally = load.stop()?;
    ensure!(tally.answered() == tally.connections(), "connections were lost: {tally:?}");
    report::figure("connections while traces began and were killed", tally.connections());
    Ok(())
}

#[test]
fn lost_decisions_are_counted_and_no_connection_is_lost() -> Result<()> {
    require!(tools::root_and(&[]));
    let stage = Stage::without_engine()?;
    let _server = web("web-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    // A page: the ring has room for some fifty decisions.
    let mut command = command(&stage, &[])?;
    let trace = Trace::start_by(&stage, "trace", command.env("POD_STEER_TEST_LIMITS", "TRACED=4096"))?;
    trace.0.signal(Signal::STOP)?;
    let tally = Load::to("127.0.0.1:80".parse()?).threads(4).count(500).run(stage.host.net())?;
    ensure!(tally.answered() == 500, "{tally:?}");
    trace.0.signal(Signal::CONT)?;
    // The losses may be told in parts.
    let (told, parts) = wait::until_ok("all decisions to be told or lost", || {
        let lines = trace.lines()?;
        let parts: Vec<u64> = lines.iter().filter_map(|line| line["lost"].as_u64()).collect();
        let told = (lines.len() - parts.len()) as u64;
        Ok((told + parts.iter().sum::<u64>() >= 500).then_some((told, parts)))
    })?;
    let lost: u64 = parts.iter().sum();
    ensure!(told > 0 && lost > 0 && told + lost == 500, "{told} decisions and {lost} lost of 500");
    let said = |part: &u64| trace.0.stderr().contains(&format!("{part} decisions were lost"));
    wait::until("the losses on standard error", || parts.iter().all(said).then_some(()))?;
    report::figure("decisions of a stopped reader with a ring of 4 KiB", format!("{told} told, {lost} lost"));
    Ok(())
}

#[test]
fn it_ends_when_nothing_reads_it() -> Result<()> {
    require!(tools::root_and(&[]));
    let stage = Stage::without_engine()?;
    let _server = web("web-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let mut child = command(&stage, &[])?.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    wait::until_ok("trace to be attached", || Ok((bpf::attached_to(stage.host.net())? == 2).then_some(())))?;
    // No decision is made: the end of its reader alone ends it.
    drop(child.stdout.take());
    wait::until_ok("trace to end", || Ok(child.try_wait()?))?;
    let said = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success() && text.lines().count() == 1, "{}: {text}", said.status);
    Ok(())
}

#[test]
fn it_ends_with_the_steering() -> Result<()> {
    require!(tools::root_and(&[]));
    let mut stage = Stage::without_engine()?;
    let _server = web("web-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let mut trace = Trace::start(&stage, "trace", &[])?;
    // Another daemon adopts the program.
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    let load = Load::to("127.0.0.1:80".parse()?).count(10).run(stage.host.net())?;
    ensure!(load.answered() == 10, "{load:?}");
    trace.wait(10)?;
    stage.daemon.unload()?;
    let code = trace.0.wait(wait::STUCK)?.code();
    ensure!(code == Some(1) && trace.0.stderr().contains("no longer steered"), "{code:?}: {}", trace.0.stderr());
    Ok(())
}

#[test]
fn bad_input_is_one_line_and_attaches_nothing() -> Result<()> {
    require!(tools::root_and(&[]));
    let mut stage = Stage::without_engine()?;
    let refused = |stage: &Stage, args: &[&str], wanted: &str| -> Result<()> {
        let said = output(&mut command(stage, args)?)?;
        let (text, printed) = (String::from_utf8_lossy(&said.stderr), String::from_utf8_lossy(&said.stdout));
        ensure!(said.status.code() == Some(2), "{args:?} exits with {:?}: {text}{printed}", said.status.code());
        ensure!(text.lines().count() == 1 && text.contains(wanted) && printed.is_empty(), "{args:?}: {text}{printed}");
        Ok(())
    };
    refused(&stage, &[], "nothing is steered in the network namespace")?;
    let _server = web("web-1").start(&stage)?;
    let _api = Exec::new("api-1", "api", "81:8181", "[::]:8181").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.wait_ready("api", 1)?;
    stage.daemon.kill()?;
    for (args, wanted) in [
        (&["--service", "w\u{1b}[31meb"][..], "there are: api, web"),
        (&["--service", ""], "there is no service ``; there are: api, web"),
        (&["--backend", "web"], "there is no backend `web`; there are: api-1, web-1"),
        (&["--service", "web", "--backend", "api-1"], "there is no backend `api-1`; there are: web-1"),
        (&["--reason", "no_backend"], "[possible values: steered, forwarded, paused, refused_no_backend, "),
        (&["--count", "0"], "invalid value '0' for '--count <N>'"),
        (&["--namespace", "/nonexistent"], "cannot enter the network namespace `/nonexistent`"),
        (&["--namespace", "/proc/self/ns/mnt"], "cannot enter the network namespace"),
        (&["--bpffs", "/nonexistent"], "nothing is steered: there is no kernel state below `/nonexistent`"),
        (&["web"], "unexpected argument 'web'"),
    ] {
        refused(&stage, args, wanted)?;
    }
    ensure!(bpf::attached_to(stage.host.net())? == 1, "a program was attached");
    // Pins of which one is missing: it is not made.
    let pin = stage.host.path(BPFFS).join("maps/OWN_SOURCES");
    fs::remove_file(&pin)?;
    let said = output(&mut command(&stage, &[])?)?;
    ensure!(!said.status.success() && !pin.exists(), "{}", String::from_utf8_lossy(&said.stderr));
    ensure!(String::from_utf8_lossy(&said.stderr).lines().count() == 1, "{}", String::from_utf8_lossy(&said.stderr));
    Ok(())
}
