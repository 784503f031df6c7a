//! Which signals mean that a container stops, and what happens to a container that ignores them.

use std::{sync::Arc, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::{Container, Spec},
    daemon::{Daemon, Stage},
    exec::Exec,
    host::Host,
    image::Image,
    load::Load,
    podman::Podman,
    report, require,
    rollouts::{all_by, clients, none_lost},
    server, tools, wait,
};
use serde_json::json;

/// A server that ignores SIGTERM.
fn deaf(name: &str) -> Spec {
    server::named_with(name, &["--listen", "0.0.0.0:8080", "--deaf"]).service("web", "80:8080")
}

/// A server that keeps serving for twelve seconds after SIGTERM, as many do.
fn slow(name: &str, listen: &str) -> Spec {
    server::named_with(name, &["--listen", listen, "--stop-delay-ms", "12000"])
}

fn load() -> Load {
    Load::to("127.0.0.1:80".parse().expect("an address")).pause(Duration::from_millis(10))
}

fn state(daemon: &Daemon, backend: &str) -> Result<String> {
    Ok(daemon.status()?.backend("web", backend).state.clone())
}

#[test]
fn only_a_stop_signal_stops_a_backend() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    // None is ready again before all have got their stop signal.
    let start = |name: &str, stop_signal: &[&str]| {
        stage.engine().start_container(&deaf(name).options(&["--stop-timeout", "60"]).options(stop_signal))
    };
    let plain = start("plain", &[])?;
    let quit = start("quit", &["--stop-signal", "SIGQUIT"])?;
    let named = start("named", &["--stop-signal", "SIGRTMIN+3"])?;
    let number = start("number", &["--stop-signal", "37"])?;
    stage.daemon.wait_ready("web", 4)?;
    let load = load().start(stage.host.net())?;

    for signal in ["INT", "HUP", "USR1", "USR2", "QUIT", "WINCH"] {
        plain.kill(signal)?;
        if signal != "QUIT" {
            quit.kill(signal)?;
        }
        named.kill(signal)?;
        number.kill(signal)?;
    }
    // A stop signal follows all of them. When the daemon has seen that one, it has seen the others.
    for container in [&plain, &quit, &named, &number] {
        ensure!(state(&stage.daemon, &container.name)? == "ready", "{} is still ready", container.name);
    }
    let others = || -> Result<usize> { Ok(stage.daemon.status()?.service("web").context("no web")?.ready()) };
    for (left, (container, signal)) in
        (0..4).rev().zip([(&quit, "QUIT"), (&named, "RTMIN+3"), (&number, "37"), (&plain, "TERM")])
    {
        container.kill(signal)?;
        stage.daemon.wait_state("web", &container.name, "stopping")?;
        ensure!(others()? == left, "one at a time");
    }
    // All of them ignore it and listen. They serve, since there is no other backend.
    none_lost(&load.stop()?)
}

#[test]
fn a_backend_that_ignores_its_stop_signal_is_ready_again() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let ignores = stage.engine().start_container(&deaf("v1-1").options(&["--stop-timeout", "12"]))?;
    let _other = stage.engine().start_container(&deaf("v2-1"))?;
    stage.daemon.wait_ready("web", 2)?;
    let load = load().start(stage.host.net())?;
    ignores.kill("TERM")?;
    stage.daemon.wait_state("web", "v1-1", "stopping")?;
    all_by(stage.host.net(), 100, "v2")?;
    // The time runs on while no daemon runs, and a second signal does not prolong it.
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    ignores.kill("TERM")?;
    stage.daemon.wait_ready("web", 2)?;
    wait::until_ok("connections for it again", || {
        let tally = clients().pause(Duration::ZERO).count(100).run(stage.host.net())?;
        Ok((tally.answered_by("v1-1") > 10).then_some(()))
    })?;

    // A paused container cannot begin to stop: its time starts when it is unpaused.
    ignores.kill("TERM")?;
    stage.daemon.wait_state("web", "v1-1", "stopping")?;
    ignores.pause()?;
    stage.daemon.wait_state("web", "v1-1", "paused")?;
    ignores.unpause()?;
    stage.daemon.wait_state("web", "v1-1", "stopping")?;
    stage.daemon.wait_ready("web", 2)?;
    none_lost(&load.stop()?)?;

    // SIGKILL ends it.
    ignores.kill("KILL")?;
    stage.daemon.wait_state("web", "v1-1", "exited")
}

#[test]
fn the_only_container_serves_while_it_stops() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let steered = stage.engine().start_container(&slow("web-1", "0.0.0.0:8080").service("web", "80:8080"))?;
    let plain = stage.engine().start_container(&slow("plain-1", "0.0.0.0:9090"))?;
    stage.daemon.wait_ready("web", 1)?;
    let to_steered = load().start(stage.host.net())?;
    let to_plain = Load::to("127.0.0.1:9090".parse()?).pause(Duration::from_millis(10)).start(stage.host.net())?;
    wait::until("answers", || (to_steered.answered() > 10 && to_plain.answered() > 10).then_some(()))?;
    let restart = |container: &Container| {
        let mut docker = stage.engine().docker().command();
        docker.args(["restart", "--time", "30", &container.id]);
        thread::spawn(move || pod_steer_tests::process::run(&mut docker))
    };
    let restarts = [restart(&plain), restart(&steered)];
    stage.daemon.wait_state("web", "web-1", "stopping")?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(100).run(stage.host.net())?;
    ensure!(tally.answered_by("web-1") == 100, "it listens, and there is no other backend: {tally}");
    for restart in restarts {
        restart.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    stage.daemon.wait_ready("web", 1)?;
    all_answered_by(&stage, "web-1")?;
    let (steered, plain) = (to_steered.stop()?, to_plain.stop()?);
    report::figure("refused while the only container restarts: steered", steered.refused());
    report::figure("refused while the only container restarts: not managed", plain.refused());
    // Twelve seconds of refusals would be about 1,200. On a busy machine the two restarts take different times.
    ensure!(steered.refused() < plain.refused() + 1_000, "{steered}\nnot managed: {plain}");
    Ok(())
}

fn all_answered_by(stage: &Stage, name: &str) -> Result<()> {
    let tally = Load::to("127.0.0.1:80".parse()?).count(100).run(stage.host.net())?;
    ensure!(tally.answered_by(name) == 100, "all by {name}: {tally}");
    Ok(())
}

#[test]
fn a_stopping_backend_serves_only_while_no_other_can() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let start = |name: &str| stage.engine().start_container(&deaf(name).options(&["--stop-timeout", "-1"]));
    let first = start("web-1")?;
    stage.daemon.wait_ready("web", 1)?;
    let load = load().start(stage.host.net())?;
    first.kill("TERM")?;
    stage.daemon.wait_state("web", "web-1", "stopping")?;
    all_answered_by(&stage, "web-1")?;
    // The next backend has a check that does not pass yet.
    let checked = |status: &str| {
        let part = stage.host.dir().join("part");
        std::fs::write(&part, status)?;
        std::fs::rename(part, stage.host.dir().join("status"))
    };
    checked("503 Not Yet")?;
    let second = server::named_with("web-2", &["--listen", "0.0.0.0:8080", "--status-file", "/dir/status"])
        .service("web", "80:8080")
        .mount(stage.host.dir(), "/dir")
        .label("pod-steer.health", "http")
        .label("pod-steer.health.interval", "50ms")
        .label("pod-steer.health.timeout", "30s")
        .label("pod-steer.health.unhealthy", 1);
    let _second = stage.engine().start_container(&second)?;
    stage.daemon.wait_state("web", "web-2", "unhealthy")?;
    all_answered_by(&stage, "web-1")?;
    checked("200 OK")?;
    stage.daemon.wait_state("web", "web-2", "ready")?;
    all_answered_by(&stage, "web-2")?;
    none_lost(&load.stop()?)?;

    // It serves again as the last resort, unless an operator has drained it.
    stage.daemon.order_done("drain web --backend web-2")?;
    all_answered_by(&stage, "web-1")?;
    stage.daemon.order_done("drain web --backend web-1")?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(20).run(stage.host.net())?;
    ensure!(tally.refused() == 20, "{tally}");
    stage.daemon.order_done("resume web --backend web-1")?;
    all_answered_by(&stage, "web-1")
}

#[test]
fn a_command_that_ignores_its_stop_stands_by_again() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let start = |stage: &Stage, name: &str, more: &[&str]| {
        let version = pod_steer_tests::rollouts::version(name).to_owned();
        let exec = Exec::new(name, "web", "80:8080", "0.0.0.0:8080").flags(&["--version", &version]);
        exec.server(more).start(stage)
    };
    let _old = start(&stage, "v1-1", &["--deaf"])?;
    stage.daemon.wait_ready("web", 1)?;
    let new = start(&stage, "v2-1", &[])?;
    stage.daemon.wait_ready("web", 2)?;
    let deploy = json!({
        "order": "deploy", "version": "v2", "timeout_ms": 20_000, "drain_timeout_ms": 20_000, "stop_old": true
    });
    stage.daemon.begin(&deploy)?;
    stage.daemon.wait_state("web", "v1-1", "stopping")?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_state("web", "v1-1", "stopping")?;
    all_by(stage.host.net(), 100, "v2")?;
    stage.daemon.wait_state("web", "v1-1", "standby")?;
    // The new version has all traffic. When it is gone, the old one serves rather than none.
    all_by(stage.host.net(), 100, "v2")?;
    drop(new);
    stage.daemon.wait_state("web", "v1-1", "ready")?;
    all_by(stage.host.net(), 100, "v1").map(drop)
}

#[test]
fn signals_of_podman() -> Result<()> {
    require!(tools::root_and(&["podman", "conmon", "docker", "busybox", "ip", "tar"]));
    let host = Arc::new(Host::new()?);
    let podman = Podman::start(&host)?;
    podman.import(Image::Named)?;
    let daemon = Daemon::start(&host, &[&podman.url()])?;
    let container = podman.docker().create(&deaf("web-1").options(&["--stop-timeout", "3"]))?;
    daemon.wait_for("the container to be announced", |status| status.service("web").map(drop))?;
    container.start()?;
    daemon.wait_ready("web", 1)?;
    for signal in ["INT", "HUP", "USR1"] {
        container.kill(signal)?;
    }
    // Podman's event does not name the signal, and the event of the process's end comes later.
    container.kill("TERM")?;
    thread::sleep(Duration::from_millis(500));
    ensure!(state(&daemon, "web-1")? == "ready", "it has ignored all of them, and is as ready as before");
    container.kill("KILL")?;
    daemon.wait_state("web", "web-1", "exited")
}

#[test]
fn a_deploy_waits_for_a_version_that_ignores_its_stop_signal() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let stopping = stage.engine().start_container(&deaf("v1-1").version("v1").options(&["--stop-timeout", "10"]))?;
    stage.daemon.wait_ready("web", 1)?;
    stopping.kill("TERM")?;
    stage.daemon.wait_state("web", "v1-1", "stopping")?;
    stage.daemon.order_done("deploy web v1 --timeout 120s")?;
    all_by(stage.host.net(), 50, "v1").map(drop)?;

    // The refusal names the backend that has ended, and the remedy.
    stopping.kill("KILL")?;
    stage.daemon.wait_state("web", "v1-1", "exited")?;
    let refused = stage.daemon.order("deploy web v1")?.expect(2)?;
    ensure!(refused.stderr.contains("every backend of version v1 of web has ended (v1-1); start one"), "{refused:?}");
    Ok(())
}
