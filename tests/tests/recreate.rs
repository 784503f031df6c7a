//! `deploy --recreate` of a server that refuses to run twice: clients are held while no version runs, and none is lost.

use std::{
    fs,
    net::TcpStream,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::{Container, Spec},
    daemon::Stage,
    exec::{listening_ns, now_ns},
    held::{Waiting, retries, wait_gone, wait_held},
    load::Tally,
    orders::Ordered,
    process::raise_files,
    report, require,
    rollouts::{TARGET, clients, none_lost, version, web},
    scale, server, tools, wait,
};

/// How long the load runs around a deploy.
const AROUND: Duration = Duration::from_millis(100);
/// How long a server takes to stop or to listen where the test has to see that phase.
const PHASE_MS: &str = "1500";
/// A SYN is repeated after a second.
const RETRY: Duration = Duration::from_secs(1);

/// A container of `web` whose server exits if another one runs. Its version is in its name.
fn single(stage: &Stage, name: &str, args: &[&str]) -> Result<Spec> {
    let dir = stage.host.dir().join("lock");
    fs::create_dir_all(&dir)?;
    let args = [&["--listen", "0.0.0.0:8080", "--lock", "/lock/database"], args].concat();
    let spec = server::named_with(name, &args).service("web", "80:8080");
    Ok(spec.version(version(name)).mount(&dir, "/lock"))
}

/// A stage where v1 serves, and the container of v2 has been created.
fn stage(old: &[&str], new: &[&str]) -> Result<(Stage, Container, Container)> {
    let stage = Stage::with_docker()?;
    let old = stage.engine().start_container(&single(&stage, "v1-1", old)?)?;
    stage.daemon.wait_ready("web", 1)?;
    let new = stage.engine().create_container(&single(&stage, "v2-1", new)?)?;
    stage.daemon.wait_state("web", "v2-1", "created")?;
    Ok((stage, old, new))
}

fn deploy(stage: &Stage, version: &str, flags: &str) -> Result<Ordered> {
    stage.daemon.order(format!("deploy web {version} --recreate --drain-timeout 20s {flags}").trim())
}

/// When the server of a container has begun to listen after a time, as its log says.
fn listened_at(container: &Container, after_ns: u64) -> Result<Instant> {
    let at_ns = container.said("it to listen", |log| listening_ns(log).filter(|at_ns| *at_ns > after_ns))?;
    let ago = Duration::from_nanos(now_ns().saturating_sub(at_ns));
    Instant::now().checked_sub(ago).context("it has listened before the machine was started")
}

/// Of the clients that were connected to this server and had come before it listened: how long after that the last one was answered.
fn handed_over(tally: &Tally, name: &str, listened: Instant) -> Vec<Duration> {
    let held = tally.log.iter().filter(|one| one.name == name && one.began < listened && one.ended > listened);
    held.map(|one| one.ended - listened).collect()
}

fn waits_for_phase(stage: &Stage, phase: &str) -> Result<()> {
    // Not by `wait_for`, which starts a process for each query and may miss a short phase.
    wait::until_ok(&format!("the phase {phase}"), || {
        let (_, status) = stage.daemon.api("/v1/status", None)?;
        let mut services = status["services"].as_array().into_iter().flatten();
        let is_in_it = services.any(|one| one["name"] == "web" && one["operation"]["phase"]["name"] == phase);
        Ok(is_in_it.then_some(()))
    })
    .with_context(|| stage.daemon.log_tail())
}

/// Starts an order and does not wait for it.
fn begin(stage: &Stage, args: &str) -> Result<thread::JoinHandle<Result<Ordered>>> {
    let (cli, args) = (stage.daemon.cli()?, args.to_owned());
    Ok(thread::spawn(move || Ordered::by(cli, &args)))
}

fn ended(order: thread::JoinHandle<Result<Ordered>>) -> Result<Ordered> {
    order.join().map_err(|_| anyhow::anyhow!("the thread of the order panicked"))?
}

#[test]
fn under_load_no_client_is_lost_and_none_repeats_a_syn() -> Result<()> {
    require!(tools::docker());
    let deploys = scale::of(6, 100);
    let (stage, old, new) = stage(&[], &[])?;
    let before = retries(&stage)?;
    let (mut longest, mut after_listen, mut held) = (Duration::ZERO, Vec::new(), 0);
    for number in 0..deploys {
        let (version, container) = if number % 2 == 0 { ("v2", &new) } else { ("v1", &old) };
        let load = clients().threads(4).logged().start(stage.host.net())?;
        thread::sleep(AROUND);
        let ordered_ns = now_ns();
        let ordered = deploy(&stage, version, "")?.expect(0).with_context(|| stage.daemon.log_tail())?;
        ensure!(ordered.stdout.contains("clients of 80 are held"), "{}", ordered.stdout);
        ensure!(ordered.stdout.contains(&format!("{version} has all connections of web")), "{}", ordered.stdout);
        thread::sleep(AROUND);
        let tally = load.stop()?;
        none_lost(&tally)?;
        let waits = handed_over(&tally, &container.name, listened_at(container, ordered_ns)?);
        held += waits.len();
        after_listen.extend(waits);
        longest = tally.log.iter().map(|one| one.ended - one.began).max().unwrap_or_default().max(longest);
    }
    after_listen.sort_unstable();
    let p99 = after_listen.get(after_listen.len() * 99 / 100).context("no client was held")?;
    report::figure(
        &format!("{deploys} deploys with --recreate under the load of 4 clients"),
        format!(
            "{held} clients were held, the longest wait was {longest:?}; from listen() to the answer: {:?} (median), {p99:?} (p99)",
            after_listen[after_listen.len() / 2]
        ),
    );
    ensure!(held >= deploys, "at least one client is held in each: {held}");
    ensure!(retries(&stage)? == before, "{} SYNs were repeated", retries(&stage)? - before);
    let history = stage.daemon.history("web")?;
    let last = history.last().context("no history")?;
    let steps: Vec<&str> = last.steps_done.iter().map(|step| step.name.as_str()).collect();
    ensure!(steps == ["held", "drained", "stopped", "ready", "switched"], "{last:?}");
    wait_gone(&stage)
}

/// A queue of many clients, and the daemon is killed while they wait.
#[test]
fn many_clients_are_held_while_the_daemon_is_killed() -> Result<()> {
    require!(tools::docker());
    let count = scale::of(300, 10_000);
    raise_files()?;
    // Long enough for all of them to be connected before.
    let (mut stage, _old, new) = stage(&[], &["--listen-delay-ms", scale::of("6000", "15000")])?;
    stage.host.net().sysctl("net.core.somaxconn", "16384")?;
    let before = retries(&stage)?;
    let order = begin(&stage, "deploy web v2 --recreate")?;
    waits_for_phase(&stage, "starting")?;
    let mut waiting = Waiting::connect(stage.host.net(), &[TARGET], count)?;
    stage.daemon.kill()?;
    waiting.wait_still()?;
    stage.daemon.restart()?;
    ensure!(waiting.answered("v2-1")? == count, "all are answered by v2-1");
    let answered = Instant::now();
    let ordered = ended(order)?.expect(0).with_context(|| stage.daemon.log_tail())?;
    ensure!(ordered.stdout.contains(&format!("{count} at the end")), "{}", ordered.stdout);
    report::figure(
        &format!("{count} clients held, from listen() to the last answer"),
        format!("{:?}", answered - listened_at(&new, 0)?),
    );
    ensure!(retries(&stage)? == before, "{} SYNs were repeated", retries(&stage)? - before);
    wait_gone(&stage)
}

#[test]
fn the_daemon_may_be_killed_in_each_phase() -> Result<()> {
    require!(tools::docker());
    // The second deploy stops v2, and the third one starts it.
    let (mut stage, _old, _new) = stage(&[], &["--stop-delay-ms", PHASE_MS, "--listen-delay-ms", PHASE_MS])?;
    let load = clients().threads(2).start(stage.host.net())?;
    for (number, phase) in ["draining", "stopping", "starting"].into_iter().enumerate() {
        let version = if number % 2 == 0 { "v2" } else { "v1" };
        // A connection that does not end keeps the old version from being stopped.
        let kept = (phase == "draining").then(|| stage.host.net().run(|| TcpStream::connect(TARGET)));
        let order = begin(&stage, &format!("deploy web {version} --recreate --drain-timeout 20s"))?;
        waits_for_phase(&stage, phase)?;
        stage.daemon.kill()?;
        stage.daemon.restart()?;
        drop(kept.transpose()?);
        ended(order)?.expect(0).with_context(|| format!("killed in the phase {phase}: {}", stage.daemon.log_tail()))?;
    }
    let tally = load.stop()?;
    report::figure("3 deploys with --recreate, the daemon killed in each", &tally);
    none_lost(&tally)
}

#[test]
fn a_version_that_fails_leaves_the_old_one_serving() -> Result<()> {
    require!(tools::docker());
    let (stage, _old, exits) = stage(&[], &["--no-such-argument"])?;
    let deaf = stage.engine().create_container(&single(&stage, "v3-1", &["--listen-delay-ms", "600000"])?)?;
    let unstartable = server::named("v4-1", "0.0.0.0:8080").service("web", "80:8080").version("v4");
    let unstartable = stage.engine().create_container(&unstartable.options(&["--entrypoint", "/no-such-program"]))?;
    stage.daemon.wait_state("web", "v4-1", "created")?;
    let before = retries(&stage)?;
    let load = clients().threads(4).start(stage.host.net())?;
    for (container, flags, why) in [
        (&exits, "", "v2-1 has exited"),
        (&deaf, "--timeout 1s", "0 of 1 backends of v3 are ready after"),
        (&unstartable, "", "v4-1 could not be started"),
    ] {
        let version = version(&container.name);
        let ordered = deploy(&stage, version, flags)?.expect(1)?;
        let said = format!("{}{}", ordered.stdout, ordered.stderr);
        ensure!(said.contains(why) && said.contains("web is as it was before"), "{said}");
        let status = stage.daemon.wait_ready("web", 1)?;
        ensure!(status.backends.iter().all(|one| (one.name == "v1-1") == (one.state == "ready")), "{status:#?}");
    }
    let tally = load.stop()?;
    report::figure("3 deploys with --recreate of versions that fail", &tally);
    none_lost(&tally)?;
    ensure!(tally.answered_by("v1-1") == tally.connections(), "{tally}");
    ensure!(retries(&stage)? == before, "{} SYNs were repeated", retries(&stage)? - before);
    Ok(())
}

#[test]
fn a_rollback_puts_the_old_version_back() -> Result<()> {
    require!(tools::docker());
    let (stage, _old, _new) = stage(&["--stop-delay-ms", PHASE_MS], &["--listen-delay-ms", "600000"])?;
    let load = clients().threads(2).start(stage.host.net())?;
    for phase in ["stopping", "starting"] {
        let order = begin(&stage, "deploy web v2 --recreate")?;
        waits_for_phase(&stage, phase)?;
        let refused = stage.daemon.order("deploy web v2")?;
        ensure!(refused.code != Some(0) && refused.stderr.contains("is held by"), "{refused:?}");
        let back = stage.daemon.order_done("rollback web")?;
        ensure!(back.stdout.contains("web is as it was before"), "{}", back.stdout);
        ended(order)?.expect(1)?;
        stage.daemon.wait_ready("web", 1)?;
    }
    let tally = load.stop()?;
    none_lost(&tally)?;
    ensure!(tally.answered_by("v1-1") == tally.connections(), "{tally}");
    Ok(())
}

/// A server of `pod-steer exec` is stopped by pod-steer; the next one is started by the operator.
#[test]
fn a_command_is_replaced_by_one_that_the_operator_starts() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let lock: PathBuf = stage.host.dir().join("lock");
    let single = |name: &str| web(&stage, name).server(&["--lock", &lock.display().to_string()]);
    let mut old = single("v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let refused = stage.daemon.order("deploy web v2 --recreate")?.expect(2)?;
    ensure!(
        refused.stderr.contains("no stopped container of version") && refused.stderr.contains("--backends 1"),
        "{refused:?}"
    );
    let before = retries(&stage)?;
    let load = clients().threads(2).start(stage.host.net())?;
    let order = begin(&stage, "deploy web v2 --recreate --backends 1")?;
    wait::until_ok("v1-1 to end", || Ok(old.process.has_ended()?.then_some(())))?;
    waits_for_phase(&stage, "starting")?;
    wait_held(&stage, 2)?;
    let _new = single("v2-1").start(&stage)?;
    ended(order)?.expect(0).with_context(|| stage.daemon.log_tail())?;
    let tally = load.stop()?;
    none_lost(&tally)?;
    ensure!(retries(&stage)? == before, "{} SYNs were repeated", retries(&stage)? - before);
    let rollback = stage.daemon.order("rollback web")?.expect(2)?;
    ensure!(rollback.stderr.contains("--recreate"), "it would run both versions: {rollback:?}");
    Ok(())
}

/// The listener that holds clients is root's, and cannot share a port with another user's.
#[test]
fn clients_that_cannot_be_held_wait_only_if_that_is_allowed() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let stage = Stage::without_engine()?;
    let mut old = web(&stage, "v1-1").user(1000).start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let refused = stage.daemon.order("deploy web v2 --recreate --backends 1")?.expect(2)?;
    ensure!(refused.stderr.contains("user 1000") && refused.stderr.contains("--allow-drop"), "{refused:?}");
    ensure!(stage.daemon.wait_ready("web", 1)?.operation.is_none() && !old.process.has_ended()?, "nothing has changed");
    let order = begin(&stage, "deploy web v2 --recreate --backends 1 --allow-drop")?;
    wait::until_ok("v1-1 to end", || Ok(old.process.has_ended()?.then_some(())))?;
    // The service is shown without a backend too.
    waits_for_phase(&stage, "starting")?;
    let (begun, before) = (Instant::now(), stage.host.net().connects()?);
    let load = clients().count(1).start(stage.host.net())?;
    wait::until_ok("a SYN to be sent", || Ok((stage.host.net().connects()? > before).then_some(())))?;
    let _new = web(&stage, "v2-1").user(1000).start(&stage)?;
    let tally = load.stop()?;
    none_lost(&tally)?;
    ensure!(begun.elapsed() >= RETRY, "its SYN was discarded and repeated");
    let ordered = ended(order)?.expect(0)?;
    ensure!(ordered.stdout.contains("SYNs to 80 are discarded"), "{}", ordered.stdout);
    Ok(())
}
