//! `pod-steer top` on a real terminal: what it shows of a real daemon, and that it leaves the terminal as it was, whatever ends it.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    load::Load,
    process::output,
    pty::Pty,
    report, require,
    rollouts::{CHECKED, Scene, TARGET, answer, hold, web},
    screenshot, tools, wait,
};
use rustix::process::Signal;

fn command(stage: &Stage, args: &[&str]) -> Result<Command> {
    let mut top = stage.daemon.cli()?;
    top.args(args).env("TERM", "xterm-256color").env_remove("NO_COLOR");
    Ok(top)
}

fn top(stage: &Stage, columns: u16, rows: u16) -> Result<Pty> {
    let top = Pty::start(command(stage, &["top"])?, columns, rows)?;
    top.wait_text("NEW/S")?;
    Ok(top)
}

/// The columns of the first row with this name.
fn row(text: &str, name: &str) -> Option<Vec<String>> {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
    text.lines().map(words).find(|words| words.first().is_some_and(|word| word == name) && words.len() > 5)
}

#[test]
fn services_rates_and_a_deploy_are_shown() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::configured(CHECKED)?;
    let _v1 = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v1-2").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("shift web v1=1")?;
    answer(&stage, "v2-2", "503 Not Yet")?;
    let _v2 = [web(&stage, "v2-1").start(&stage)?, web(&stage, "v2-2").start(&stage)?];
    stage.daemon.wait_state("web", "v2-2", "unhealthy")?;
    let mut narrow = top(&stage, 80, 24)?;
    let wide = top(&stage, 200, 24)?;

    // About 200 connections a second, as many as the clients count in the same seconds. The load of other tests changes both.
    let load = Load::to(TARGET.parse()?).threads(2).pause(Duration::from_millis(10)).start(stage.host.net())?;
    let rate = |text: &str| row(text, "web")?.get(1)?.parse::<f64>().ok();
    let mut rates = Vec::new();
    wait::until_ok("three rates in a row that are about those of the clients", || {
        let (before, began) = (load.answered(), Instant::now());
        thread::sleep(Duration::from_secs(2));
        let made = (load.answered() - before) as f64 / began.elapsed().as_secs_f64();
        rates.push((made.round(), rate(&narrow.text()).unwrap_or_default()));
        let is_near = |(made, shown): &(f64, f64)| *made > 0.0 && (0.6 * made..1.6 * made).contains(shown);
        Ok((rates.len() >= 3 && rates.iter().rev().take(3).all(is_near)).then_some(()))
    })?;
    report::figure("new connections a second: made, shown", format!("{rates:?}"));

    // A deploy waits for the backend that is not ready.
    let order =
        serde_json::json!({ "order": "deploy", "version": "v2", "timeout_ms": 60_000, "drain_timeout_ms": 20_000 });
    let id = stage.daemon.begin(&order)?;
    narrow.wait_text("░ deploy v2: 1 of 2 backends are ready (time limit in ")?;
    wide.wait_text("deploy v2: 1 of 2 backends are ready")?;
    narrow.wait_text("conditions")?;
    screenshot::keep(&narrow, "top-80")?;
    screenshot::keep(&wide, "top-200")?;

    // Into the service, into a backend, and back.
    narrow.press("\x1b[B\r")?;
    narrow.wait_text("v2-2")?;
    narrow.press("/v2-2\r\x1b[B\r")?;
    // A part of a page may be shown before the rest.
    let whole = ["accept queues", "state           unhealthy", "Conditions"];
    narrow.wait_for("the page of v2-2", |text| whole.iter().all(|part| text.contains(part)).then_some(()))?;
    narrow.press("\x1b[D\x1b[D\x1b[D")?;
    narrow.wait_text("c conditions")?;

    // Then all new connections go to v2.
    answer(&stage, "v2-2", "200 OK")?;
    stage.daemon.wait_ended(id, "done")?;
    narrow.wait_for("the share that v2 gets", |text| {
        let share = row(text, "v2")?.get(5)?.trim_end_matches('%').parse::<f64>().ok()?;
        (share > 50.0).then_some(())
    })?;
    let tally = load.stop()?;
    ensure!(tally.losses.is_empty(), "{tally}");
    Ok(())
}

#[test]
fn the_terminal_is_left_as_it_was() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    for (keys, code) in [("q", 0), ("\x03", 0)] {
        let mut top = top(&stage, 80, 24)?;
        ensure!(!top.is_as_before()?, "it has the terminal");
        top.press(keys)?;
        let status = top.ended()?;
        ensure!(status.code() == Some(code), "{keys:?}: {status}");
        top.wait_as_before()?;
    }
    let ending = [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130), (Signal::QUIT, 131)];
    for (signal, code) in ending {
        let mut top = top(&stage, 80, 24)?;
        top.signal(signal)?;
        let status = top.ended()?;
        ensure!(status.code() == Some(code), "{signal:?}: {status}");
        top.wait_as_before()?;
    }
    // Suspended by a key and by a signal, and continued.
    let mut top = top(&stage, 80, 24)?;
    top.press("\x1a")?;
    top.wait_stopped()?;
    top.wait_as_before()?;
    top.signal(Signal::CONT)?;
    wait::until_ok("the terminal to be taken again", || Ok((!top.is_as_before()?).then_some(())))?;
    top.wait_text("NEW/S")?;
    top.signal(Signal::TSTP)?;
    top.wait_stopped()?;
    top.wait_as_before()?;
    top.signal(Signal::CONT)?;
    top.wait_text("NEW/S")?;
    // On a terminal that becomes small, it goes on, and shows as much as fits.
    top.resize(20, 5)?;
    top.wait_for("the small page", |text| (text.lines().count() == 5 && text.contains("q quit")).then_some(()))?;
    top.press("q")?;
    ensure!(top.ended()?.success(), "after fg");
    top.wait_as_before()?;
    Ok(())
}

#[test]
fn it_waits_for_a_daemon_that_is_away() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let _server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let mut top = top(&stage, 80, 24)?;
    stage.daemon.kill()?;
    top.wait_text("daemon not reachable since")?;
    ensure!(row(&top.text(), "web").is_some(), "the last figures stay: {}", top.text());
    stage.daemon.restart()?;
    top.wait_for("the daemon to be found", |text| (!text.contains("not reachable")).then_some(()))?;
    top.press("q")?;
    ensure!(top.ended()?.success(), "q");
    top.wait_as_before()?;

    // Without a daemon at first, and without a terminal.
    stage.daemon.terminate()?;
    let mut none = Pty::start(command(&stage, &["top"])?, 80, 24)?;
    ensure!(none.ended()?.code() == Some(1), "{}", none.text());
    none.wait_text("pod-steer is not running")?;
    none.wait_as_before()?;
    let piped = output(&mut command(&stage, &["top"])?)?;
    let said = String::from_utf8_lossy(&piped.stderr);
    ensure!(piped.status.code() == Some(2) && said.lines().count() == 1 && said.contains("--once"), "{said}");
    let mut dumb = command(&stage, &["top"])?;
    dumb.env("TERM", "dumb");
    let mut dumb = Pty::start(dumb, 80, 24)?;
    ensure!(dumb.ended()?.code() == Some(2), "{}", dumb.text());
    dumb.wait_text("--once")?;
    Ok(())
}

#[test]
fn one_frame_for_a_pipe() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    let frame = stage.daemon.order_done("top --once --interval 200ms")?.stdout;
    for name in ["web", "v1", "v1-1", "v2", "v2-1"] {
        let row = row(&frame, name).with_context(|| format!("no {name} in\n{frame}"))?;
        ensure!(row[1] == "0", "{name}: {row:?}");
    }
    ensure!(!frame.contains('\x1b') && !frame.contains("quit"), "{frame}");
    let refused = stage.daemon.order("top --once wbe")?.expect(2)?;
    ensure!(refused.stderr.contains("did you mean web?"), "{refused:?}");
    stage.daemon.order("top --once --interval 1ms")?.expect(2)?;
    Ok(())
}

/// A serial console does not know its size, and `Pty` emulates one of 80 columns for it.
#[test]
fn a_terminal_without_a_size_has_80_columns() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let mut unknown = top(&stage, 0, 0)?;
    unknown.wait_text("q quit")?;
    // Another program has told it meanwhile.
    unknown.resize(100, 30)?;
    unknown.wait_for("30 rows", |text| (text.lines().count() == 30 && text.contains("q quit")).then_some(()))?;
    unknown.press("q")?;
    ensure!(unknown.ended()?.success(), "q");
    unknown.wait_as_before()
}

/// On a terminal a bar, in a pipe lines as before; Ctrl-C leaves a clean line.
#[test]
fn an_operation_has_a_bar_on_a_terminal() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let scene = Scene::new(true)?;
    let held = hold(scene.stage.host.net())?;
    let mut deploy = Pty::start(command(&scene.stage, &["deploy", "web", "v2", "--drain-timeout", "60s"])?, 80, 24)?;
    deploy.wait_for("the bar", |text| {
        let line = text.lines().last()?;
        (line.starts_with('░') && line.contains("waiting for 1 connection to end")).then_some(())
    })?;
    deploy.press("\x03")?;
    ensure!(deploy.ended()?.code() == Some(130), "{}", deploy.text());
    deploy.wait_text("the daemon continues `deploy v2`")?;
    deploy.wait_as_before()?;
    ensure!(!deploy.text().contains('░'), "{}", deploy.text());
    // Narrower than the bar and the words: the line is clipped, so that it stays one line.
    scene.stage.daemon.order_done("rollback web")?;
    let mut narrow = Pty::start(command(&scene.stage, &["deploy", "web", "v2", "--drain-timeout", "60s"])?, 30, 24)?;
    narrow.wait_text("░ waiting")?;
    // Until it is rewritten a few times.
    thread::sleep(Duration::from_secs(1));
    // The line is cleared before it is written again.
    narrow.wait_for("one bar", |text| (text.lines().filter(|line| line.contains('░')).count() == 1).then_some(()))?;
    narrow.press("\x03")?;
    ensure!(narrow.ended()?.code() == Some(130), "{}", narrow.text());
    drop(held);
    scene
        .stage
        .daemon
        .wait_for("the end of the deploy", |status| status.service("web")?.operation.is_none().then_some(()))?;
    // In a file there is neither a bar nor an escape sequence.
    let log = scene.stage.host.dir().join("canary.log");
    let file = fs::File::create(&log)?;
    let mut canary = scene.stage.daemon.cli()?;
    canary
        .args(["canary", "web", "v1", "--steps", "50%,100%", "--every", "300ms"])
        .stdout(file.try_clone()?)
        .stderr(file);
    ensure!(canary.status()?.success(), "{}", fs::read_to_string(&log)?);
    let text = fs::read_to_string(&log)?;
    ensure!(text.contains("50 %") && !text.contains(['\x1b', '\r', '█', '░']), "{text}");
    Ok(())
}
