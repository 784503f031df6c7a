//! A service that sleeps: its containers are stopped, and the first client has them started again.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::{Container, Spec},
    daemon::{BPFFS, Stage},
    exec::{listening_ns, now_ns},
    held::{Waiting, kill_together, retries, wait_gone, wait_held},
    orders::Ordered,
    report, require,
    rollouts::{TARGET, connect, hold, version},
    scale, server,
    status::Status,
    tools, wait,
};
use serde_json::json;

/// How long a client waits for its answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Attempts to see a short phase.
const ATTEMPTS_MAX: u32 = 5;

/// A container of `web`; its version is in its name.
fn web(name: &str, args: &[&str]) -> Spec {
    let args = [&["--listen", "0.0.0.0:8080"], args].concat();
    server::named_with(name, &args).service("web", "80:8080").version(version(name))
}

/// A stage where such a container serves.
fn stage(spec: Spec) -> Result<(Stage, Container)> {
    let stage = Stage::with_docker()?;
    let container = stage.engine().start_container(&spec)?;
    stage.daemon.wait_ready("web", 1)?;
    Ok((stage, container))
}

fn sleep(stage: &Stage) -> Result<()> {
    let slept = stage.daemon.order_done("idle web")?;
    ensure!(slept.stdout.contains("web sleeps until a client comes"), "{slept:?}");
    Ok(())
}

fn wait_asleep(stage: &Stage) -> Result<()> {
    let asleep = || {
        let web = stage.daemon.said_of("web")?;
        let is_still = web["operation"].is_null() && web["decision"]["asleep"].is_object();
        Ok(is_still.then_some(()))
    };
    wait::until_ok("web to sleep", asleep).with_context(|| stage.daemon.log_tail())
}

fn wait_awake(stage: &Stage) -> Result<()> {
    let awake = || {
        let web = stage.daemon.said_of("web")?;
        Ok((web["operation"].is_null() && web["decision"]["asleep"].is_null()).then_some(()))
    };
    wait::until_ok("web to be awake", awake).with_context(|| stage.daemon.log_tail())
}

/// One client. Returns its answer.
fn ask(stage: &Stage) -> Result<String> {
    let target = TARGET.to_socket_addrs()?.next().context("no address")?;
    let mut stream = stage.host.net().run(|| TcpStream::connect_timeout(&target, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.contains(" 200 "), "{answer:?}");
    Ok(answer)
}

fn answered_by(stage: &Stage, name: &str) -> Result<()> {
    let answer = ask(stage).with_context(|| stage.daemon.log_tail())?;
    ensure!(answer.contains(name), "{answer:?}");
    Ok(())
}

/// Has the engine start a container by its API, as the daemon does.
fn start(stage: &Stage, container: &Container) -> Result<()> {
    let mut engine = UnixStream::connect(stage.engine().docker().socket())?;
    let request =
        format!("POST /containers/{}/start HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n", container.id);
    engine.write_all(request.as_bytes())?;
    let mut answer = String::new();
    engine.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    Ok(())
}

/// How long ago the server of a container began to listen for the last time, as its log says.
fn listened(container: &Container) -> Result<Duration> {
    let at_ns = listening_ns(&container.logs()?).context("it has not listened")?;
    Ok(Duration::from_nanos(now_ns().saturating_sub(at_ns)))
}

fn median(mut times: Vec<Duration>) -> Result<(Duration, Duration)> {
    times.sort_unstable();
    Ok((times[times.len() / 2], *times.last().context("no time")?))
}

#[test]
fn the_first_client_of_a_service_that_sleeps_is_answered() -> Result<()> {
    require!(tools::docker());
    let rounds = scale::of(8, 50);
    let (stage, container) = stage(web("v1-1", &[]))?;
    // The same server, which the daemon does not know.
    let alone = stage.engine().create_container(&server::named("alone", "0.0.0.0:9090"))?;
    let before = retries(&stage)?;
    let (mut starts, mut waits, mut after_listen) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        sleep(&stage)?;
        // Its description says that a container has ended a moment before the list does.
        let is_listed = || Ok(stage.engine().docker().run(&["ps", "--quiet"])?.is_empty().then_some(()));
        wait::until_ok("no container to be listed", is_listed).with_context(|| stage.daemon.log_tail())?;
        if starts.len() < 5 {
            let begun = Instant::now();
            start(&stage, &alone)?;
            let took = wait::until("alone to listen", || {
                let ago = listened(&alone).ok()?;
                begun.elapsed().checked_sub(ago)
            })?;
            starts.push(took);
            alone.kill("KILL")?;
        }
        let begun = Instant::now();
        answered_by(&stage, "v1-1")?;
        waits.push(begun.elapsed());
        let answered = Instant::now();
        after_listen.push(listened(&container)?.saturating_sub(answered.elapsed()));
        wait_awake(&stage)?;
    }
    let (start, start_max) = median(starts)?;
    let (latency, latency_max) = median(waits)?;
    let (handed, handed_max) = median(after_listen)?;
    report::figure(
        "start of the container alone, until it listens",
        format!("{start:?} (median), {start_max:?} (longest)"),
    );
    report::figure(
        &format!("{rounds} first clients of a service that sleeps"),
        format!(
            "answered after {latency:?} (median), {latency_max:?} (longest); from listen() to the answer: {handed:?} (median), \
             {handed_max:?} (longest)"
        ),
    );
    ensure!(retries(&stage)? == before, "{} SYNs were repeated", retries(&stage)? - before);
    let shown = stage.daemon.order_done("status")?.stdout;
    ensure!(shown.contains(&format!("web: {rounds} cold starts; the last one took")), "{shown}");
    let metrics = stage.daemon.order_done("metrics")?.stdout;
    ensure!(metrics.contains(&format!("pod_steer_service_cold_starts_total{{service=\"web\"}} {rounds}")), "{metrics}");
    let last = "pod_steer_service_last_cold_start_seconds{service=\"web\"} ";
    let last: f64 = metrics.lines().find_map(|line| line.strip_prefix(last)).context("no last cold start")?.parse()?;
    ensure!(last > 0.0 && last < PATIENCE.as_secs_f64(), "{last}");
    wait_gone(&stage)
}

#[test]
fn a_hundred_clients_wait_for_one_start() -> Result<()> {
    require!(tools::docker());
    let (mut stage, _container) = stage(web("v1-1", &["--listen-delay-ms", "300"]))?;
    let _other = stage.engine().start_container(&web("v2-1", &["--listen-delay-ms", "300"]))?;
    stage.daemon.wait_ready("web", 2)?;
    let before = retries(&stage)?;
    for killed in [false, true] {
        sleep(&stage)?;
        let shown = stage.daemon.order_done("status")?.stdout;
        ensure!(shown.contains("web: asleep, its containers are stopped; the next client wakes it"), "{shown}");
        if killed {
            // Its clients are held without it, and the next one knows of the sleep.
            stage.daemon.kill()?;
        }
        let mut clients = Waiting::connect(stage.host.net(), &[TARGET], 100)?;
        if killed {
            clients.wait_still()?;
            stage.daemon.restart()?;
        }
        ensure!(clients.answered("v")? == 100, "each is answered");
        wait_awake(&stage)?;
        stage.daemon.wait_ready("web", 2)?;
    }
    ensure!(retries(&stage)? == before, "{} SYNs were repeated", retries(&stage)? - before);
    Ok(())
}

#[test]
fn a_client_in_the_moment_of_falling_asleep_is_served() -> Result<()> {
    require!(tools::docker());
    let (mut stage, _container) = stage(web("v1-1", &["--stop-delay-ms", "100"]))?;
    let (mut slept, mut stayed) = (0, 0);
    for number in 0..scale::of(6, 100) {
        let (cli, pause) = (stage.daemon.cli()?, Duration::from_millis(number * 113 % 700));
        let order = thread::spawn(move || Ordered::by(cli, "idle web"));
        thread::sleep(pause);
        answered_by(&stage, "v1-1").with_context(|| format!("{pause:?} after the order"))?;
        let order = order.join().map_err(|_| anyhow::anyhow!("the thread of the order panicked"))??;
        match order.code {
            Some(0) => slept += 1,
            _ => stayed += 1,
        }
        let is_refused = ["does not sleep", "is not put to sleep"].iter().any(|said| order.stderr.contains(said));
        ensure!(order.code == Some(0) || is_refused, "{order:?}\n{}", stage.daemon.log_tail());
        // It may be about to wake, or sleep still.
        answered_by(&stage, "v1-1")?;
        wait_awake(&stage)?;
        stage.daemon.wait_idle("web")?;
    }
    report::figure(
        "clients in the moment of falling asleep, all answered",
        format!("{slept} slept, {stayed} stayed awake"),
    );
    for phase in ["waiting", "stopping"] {
        ensure!(
            (0..ATTEMPTS_MAX).try_fold(false, |seen, _| Ok::<_, anyhow::Error>(seen || killed(&mut stage, phase)?))?
        );
    }
    Ok(())
}

/// Kills the daemon in this phase of an order. False if the phase was too short to be seen.
fn killed(stage: &mut Stage, phase: &str) -> Result<bool> {
    let cli = stage.daemon.cli()?;
    let order = thread::spawn(move || Ordered::by(cli, "idle web"));
    let is_in_it = wait::until_ok(&format!("the phase {phase}"), || {
        let web = stage.daemon.said_of("web")?;
        let is_over = !web["decision"]["asleep"].is_null() && web["operation"].is_null();
        Ok((is_over || web["operation"]["phase"]["name"] == phase).then_some(!is_over))
    })?;
    if is_in_it {
        stage.daemon.kill()?;
        stage.daemon.restart()?;
    }
    let order = order.join().map_err(|_| anyhow::anyhow!("the thread of the order panicked"))??;
    // The order was stored, and its answer may have been under way.
    let is_unanswered = is_in_it && order.stderr.contains("the daemon exited while it carried out this order");
    ensure!(order.code == Some(0) || is_unanswered, "{order:?}\n{}", stage.daemon.log_tail());
    answered_by(stage, "v1-1")?;
    wait_awake(stage)?;
    stage.daemon.wait_idle("web")?;
    Ok(is_in_it)
}

#[test]
fn a_label_puts_it_to_sleep_and_any_order_wakes_it() -> Result<()> {
    require!(tools::docker());
    let (mut stage, _container) = stage(web("v1-1", &[]).label("pod-steer.idle", "1s"))?;
    let open = hold(stage.host.net())?;
    wait_awake(&stage)?;
    thread::sleep(Duration::from_millis(2500));
    let web = stage.daemon.said_of("web")?;
    ensure!(web["decision"]["asleep"].is_null(), "a connection is open: {web}");
    // The time goes on without the daemon.
    drop(open);
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    wait_asleep(&stage)?;
    ensure!(stage.daemon.order_done("idle web")?.stdout.contains("web sleeps already"), "it has slept already");
    let pause = stage.daemon.order_done("pause web")?;
    ensure!(pause.stdout.contains("clients of 80 are held"), "{pause:?}");
    stage.daemon.wait_state("web", "v1-1", "standby")?;
    thread::sleep(Duration::from_millis(1500));
    stage.daemon.wait_state("web", "v1-1", "standby")?;
    stage.daemon.order_done("unpause web")?;
    wait_asleep(&stage)?;
    let woken = stage.daemon.order_done("wake web")?;
    ensure!(woken.stdout.contains("web is awake after"), "{woken:?}");
    // Its network namespace would end with it.
    let own = server::named("own-1", "0.0.0.0:8080")
        .service("own", "81:8080")
        .label("pod-steer.idle", "1s")
        .network("bridge");
    let _own = stage.engine().start_container(&own)?;
    stage.daemon.wait_for("the condition", |status| {
        let own = status.service("own")?;
        own.conditions
            .iter()
            .any(|one| one.reason == "cannot-sleep" && one.message.contains("ends with the container"))
            .then_some(())
    })?;
    let refused = stage.daemon.order("idle own")?.expect(2)?;
    ensure!(refused.stderr.contains("own cannot be put to sleep"), "{refused:?}");
    wait_asleep(&stage)?;
    let state_dir = stage.daemon.state_dir();
    let unload = format!("unload --bpffs {BPFFS} --runtime-dir /run/pod-steer --state-dir {}", state_dir.display());
    let unloaded = Ordered::by(stage.daemon.cli()?, &unload)?.expect(0)?;
    ensure!(unloaded.stderr.contains("start them yourself: docker start v1-1"), "{unloaded:?}");
    Ok(())
}

#[test]
fn an_operator_may_start_and_remove_containers_meanwhile() -> Result<()> {
    require!(tools::docker());
    let (stage, container) = stage(web("v1-1", &[]))?;
    sleep(&stage)?;
    container.start()?;
    wait_awake(&stage)?;
    answered_by(&stage, "v1-1")?;
    // The processes that hold its clients die.
    stage.daemon.wait_idle("web")?;
    sleep(&stage)?;
    kill_together(&stage)?;
    wait_awake(&stage)?;
    answered_by(&stage, "v1-1")?;
    // A version that is started wakes it, and is deployed.
    stage.daemon.wait_idle("web")?;
    sleep(&stage)?;
    let new = stage.engine().start_container(&web("v2-1", &[]))?;
    stage.daemon.order_done("deploy web v2")?;
    connect(stage.host.net(), 5)?;
    stage.daemon.wait_idle("web")?;
    sleep(&stage)?;
    let rolled_back = stage.daemon.order_done("rollback web")?;
    let decision = stage.daemon.said_of("web")?["decision"].take();
    ensure!(decision["traffic"]["weights"].is_null() && decision["asleep"].is_null(), "{rolled_back:?}");
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("deploy web v2")?;
    stage.daemon.wait_idle("web")?;
    sleep(&stage)?;
    // They are recreated: clients are held until the new one is started.
    let again = stage.engine().create_container(&web("v2-2", &[]))?;
    drop((container, new));
    let mut client = Waiting::connect(stage.host.net(), &[TARGET], 1)?;
    client.wait_still()?;
    again.start()?;
    ensure!(client.answered("v2-2")? == 1, "it is answered");
    wait_awake(&stage)?;
    stage.daemon.wait_idle("web")?;
    sleep(&stage)?;
    drop(again);
    let gone = |status: &Status| status.service("web").is_none().then_some(());
    stage.daemon.wait_for("web to be gone", gone)?;
    let refused = ask(&stage);
    ensure!(refused.is_err(), "nothing is left to serve it: {refused:?}");
    let _later = stage.engine().start_container(&web("v2-3", &[]))?;
    stage.daemon.wait_ready("web", 1)?;
    answered_by(&stage, "v2-3")?;
    wait_gone(&stage)
}

#[test]
fn clients_wait_for_a_container_that_cannot_be_started_only_so_long() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let dir = stage.host.dir().join("data");
    fs::create_dir(&dir)?;
    let mount = format!("type=bind,source={},target=/data", dir.display());
    let spec = web("v1-1", &[]).options(&["--mount", &mount]).label("pod-steer.idle-max-hold", "8s");
    let _container = stage.engine().start_container(&spec)?;
    stage.daemon.wait_ready("web", 1)?;
    sleep(&stage)?;
    fs::remove_dir(&dir)?;
    let clients = Waiting::connect(stage.host.net(), &[TARGET], 10)?;
    wait_held(&stage, 10)?;
    stage.daemon.wait_for("the condition", |status| {
        let web = status.service("web")?;
        web.conditions
            .iter()
            .any(|one| one.reason == "wake-fails" && one.message.contains("could not be started"))
            .then_some(())
    })?;
    let held = stage.daemon.order("pause web")?.expect(1)?;
    ensure!(held.stderr.contains("web sleeps and cannot wake: v1-1 could not be started"), "{held:?}");
    clients.lost()?;
    ensure!(ask(&stage).is_err(), "clients are refused by then");
    fs::create_dir(&dir)?;
    wait_awake(&stage)?;
    answered_by(&stage, "v1-1")?;
    stage
        .daemon
        .wait_for("the condition to end", |status| status.service("web")?.conditions.is_empty().then_some(()))?;
    // The operator gives up.
    stage.daemon.wait_idle("web")?;
    sleep(&stage)?;
    fs::remove_dir(&dir)?;
    let refused = stage.daemon.order("pause web")?.expect(1)?;
    ensure!(refused.stderr.contains("web sleeps and cannot wake"), "{refused:?}");
    // It joins the wake that the pause has begun.
    let (status, joined) = stage.daemon.api("/v1/services/web/orders", Some(&json!({ "order": "wake" })))?;
    ensure!(joined["order"] == "wake" && joined["end"].is_null(), "{status}: {joined}");
    stage.daemon.wait_for("the condition", |status| {
        status.service("web")?.conditions.iter().any(|one| one.reason == "wake-fails").then_some(())
    })?;
    stage.daemon.order_done("rollback web")?;
    let history = stage.daemon.history("web")?;
    let end = history.iter().find(|one| joined["id"] == one.id).and_then(|one| one.end.as_ref());
    ensure!(end.is_some_and(|end| end.outcome == "aborted"), "{history:?}");
    wait_awake(&stage)?;
    wait_gone(&stage)
}
