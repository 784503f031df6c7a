//! Health checks: each probe reaches exactly its own backend, and an unhealthy backend gets no connections.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use pod_steer_tests::{
    check,
    container::{Container, Spec},
    daemon::Stage,
    exec::{Backend, Exec},
    image::Image,
    journal::Journal,
    load::Load,
    process::output,
    report, require, server,
    status::Status,
    tools, wait,
};
use rustix::process::Signal;

/// Source address of IPv4 probes.
const PROBE_SOURCE: &str = "127.83.84.1";
/// Probes of each backend that a test waits for.
const PROBES: usize = 100;

fn journals(stage: &Stage) -> Result<PathBuf> {
    let directory = stage.host.dir().join("journals");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// A container that answers 421 to a probe that is not for it; one is enough to make it unhealthy.
fn particular(stage: &Stage, name: &str, listen: &[&str], ports: &str) -> Result<Spec> {
    let args = ["--only-host", "--journal", &format!("/journals/{name}")];
    let spec = server::named_with(name, &[listen, &args].concat()).mount(&journals(stage)?, "/journals");
    let spec = spec.service("web", ports).label("pod-steer.health", "http").label("pod-steer.health.host", name);
    let spec = spec.label("pod-steer.health.interval", "20ms").label("pod-steer.health.timeout", "30s");
    Ok(spec.label("pod-steer.health.unhealthy", 1))
}

/// Starts three on one port. Each gets only its own probes, and no probe is counted as a connection.
fn own_probes(stage: &Stage, network: &str, listen: &[&str], ports: &str, source: &str) -> Result<Vec<Container>> {
    let names = ["web-1", "web-2", "web-3"];
    let start = |name: &&str| {
        let spec = particular(stage, name, listen, ports)?.network(network);
        stage.engine().start_container(&spec)
    };
    let containers = names.iter().map(start).collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 3)?;
    let directory = journals(stage)?;
    for name in names {
        let probes = wait::until_ok("probes of every backend", || {
            let accepted = Journal::read(&directory.join(name))?.accepted;
            Ok(Some(accepted).filter(|accepted| accepted.len() >= PROBES))
        })?;
        let others: Vec<&SocketAddr> = probes.iter().filter(|peer| peer.ip().to_string() != source).collect();
        ensure!(others.is_empty(), "{name} was probed from {others:?}");
        report::figure(name, format!("{} probes from {source}, each by the right name", probes.len()));
    }
    ensure!(!stage.daemon.log().contains("answered 421"), "a probe came to another: {}", stage.daemon.log_tail());
    let service = stage.daemon.wait_ready("web", 3)?;
    for backend in &service.backends {
        let counted = (backend.steered, backend.opened, backend.closed, backend.live);
        ensure!(counted == (0, 0, 0, 0), "probes are counted: {backend:?}");
    }
    Ok(containers)
}

/// Clients of the same service are counted exactly while probes run.
fn clients_are_counted(stage: &Stage, target: SocketAddr) -> Result<()> {
    let tally = Load::to(target).threads(2).count(1000).run(stage.host.net())?;
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)
}

#[test]
fn probes_reach_their_backend_on_the_hosts_port() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let _containers = own_probes(&stage, "host", &["--listen", "0.0.0.0:8080"], "8080:8080", PROBE_SOURCE)?;
    clients_are_counted(&stage, "127.0.0.1:8080".parse()?)
}

#[test]
fn probes_reach_their_backend_in_a_pod() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let pod = Spec::new(Image::Busybox, "pod").network("bridge").args(&["/bin/busybox", "sleep", "1000"]);
    let pod = stage.engine().start_container(&pod)?;
    let network = format!("container:{}", pod.id);
    let _containers = own_probes(&stage, &network, &["--listen", "0.0.0.0:8080"], "80:8080", PROBE_SOURCE)?;
    clients_are_counted(&stage, (pod.ip()?, 80).into())
}

#[test]
fn probes_reach_servers_of_ipv6_alone() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let listen = ["--listen", "[::]:8080", "--v6only"];
    let _containers = own_probes(&stage, "host", &listen, "80:8080", "::1")?;
    clients_are_counted(&stage, "[::1]:80".parse()?)
}

#[test]
fn probes_reach_servers_on_one_address() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let listen = format!("{}:8080", client.host_ip4);
    let _containers = own_probes(&stage, "host", &["--listen", &listen], "80:8080", PROBE_SOURCE)?;
    clients_are_counted(&stage, (client.host_ip4, 80).into())
}

fn status_file(stage: &Stage, name: &str) -> PathBuf {
    stage.host.dir().join(format!("{name}.status"))
}

fn process(stage: &Stage, name: &str, service: &str, ports: &str, listen: &str) -> Result<Backend> {
    let file = status_file(stage, name);
    let file = file.to_str().context("a path that is not text")?;
    Exec::new(name, service, ports, listen).server(&["--status-file", file]).start(stage)
}

#[test]
fn an_unhealthy_backend_leaves_the_table_and_returns() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::configured(
        "[service.web.health]\nkind = 'http'\npath = '/ready'\nstatus = '200-299'\ninterval = '20ms'\n\
         timeout = '30s'\nunhealthy = 2\n[service.'*'.health]\nkind = 'tcp'\ninterval = '20ms'\ntimeout = '30s'\n\
         [service.job.health]\nkind = 'exec'\ncommand = ['true']\n",
    )?;
    let names = ["web-1", "web-2", "web-3"];
    let start = |name: &&str| process(&stage, name, "web", "80:8080", "0.0.0.0:8080");
    let _servers = names.iter().map(start).collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 3)?;
    let answered = |stage: &Stage| Load::to("127.0.0.1:80".parse()?).count(300).run(stage.host.net());

    fs::write(status_file(&stage, "web-2"), "503 Not Yet")?;
    stage.daemon.wait_state("web", "web-2", "unhealthy")?;
    let said = stage.daemon.status()?.said_about("web-2").join("\n");
    ensure!(said.contains("GET /ready on port 8080 returned 503, expected 200-299"), "{said}");
    let tally = answered(&stage)?;
    ensure!((tally.answered(), tally.answered_by("web-2")) == (300, 0), "{tally}");

    // The health states survive a restart of the daemon: no client is refused, and no client reaches the unhealthy backend.
    let load = Load::to("127.0.0.1:80".parse()?).threads(2).start(stage.host.net())?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 2)?;
    let tally = load.stop()?;
    ensure!(tally.losses.is_empty() && tally.answered_by("web-2") == 0, "{tally}");

    fs::remove_file(status_file(&stage, "web-2"))?;
    stage.daemon.wait_ready("web", 3)?;
    let tally = answered(&stage)?;
    ensure!(tally.answered() == 300 && tally.answered_by("web-2") > 0, "{tally}");
    ensure!(stage.daemon.status()?.warnings().is_empty(), "{:?}", stage.daemon.status()?.warnings());

    // The check of all other services, and a check by exec, which a process cannot have.
    let _other = process(&stage, "other-1", "other", "81:8081", "[::]:8081")?;
    stage.daemon.wait_ready("other", 1)?;
    let _job = process(&stage, "job-1", "job", "82:8082", "0.0.0.0:8082")?;
    stage.daemon.wait_state("job", "job-1", "unhealthy")?;
    let said = stage.daemon.status()?.said_about("job-1").join("\n");
    ensure!(said.contains("a check by exec needs a container"), "{said}");
    Ok(())
}

#[test]
fn probes_do_not_move_to_another_backend() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::configured("[service.web.health]\nkind = 'tcp'\ninterval = '10ms'\ntimeout = '30s'\n")?;
    let start =
        |name: &str, args: &[&str]| Exec::new(name, "web", "80:8080", "0.0.0.0:8080").server(args).start(&stage);
    let mut slow = start("slow", &["--accept-delay-ms", "300"])?;
    let _other = start("other", &[])?;
    stage.daemon.wait_ready("web", 2)?;
    // Meanwhile probes pile up in the queue of the server that is slow to accept.
    std::thread::sleep(Duration::from_millis(500));
    slow.process.kill()?;
    for backend in stage.daemon.wait_ready("web", 1)?.backends {
        let counted = (backend.moved_in, backend.moved_out, backend.opened, backend.live);
        ensure!(counted == (0, 0, 0, 0), "probes are counted: {backend:?}");
    }
    Ok(())
}

#[test]
fn commands_in_containers() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let start = |name: &str, command: &str| {
        let spec = server::busybox(name, 8080).service("web", "80:8080").label("pod-steer.health", "exec");
        let spec = spec.label("pod-steer.health.command", command).label("pod-steer.health.interval", "50ms");
        stage.engine().start_container(&spec.label("pod-steer.health.timeout", "10s"))
    };
    let first = start("web-1", "test -e /tmp/ok || { echo not yet; false; }")?;
    let _second = start("web-2", r#"["/bin/busybox", "true"]"#)?;
    stage.daemon.wait_state("web", "web-1", "unhealthy")?;
    stage.daemon.wait_ready("web", 1)?;
    let said = stage.daemon.status()?.said_about("web-1").join("\n");
    ensure!(said.contains(r#"exited with code 1; output: "not yet""#), "{said}");
    stage.engine().docker().run(&["exec", &first.id, "/bin/busybox", "touch", "/tmp/ok"])?;
    stage.daemon.wait_ready("web", 2)?;
    // An engine that does not answer makes no container unhealthy.
    let load = Load::to("127.0.0.1:80".parse()?).start(stage.host.net())?;
    stage.restart_engine()?;
    stage.daemon.wait_ready("web", 2)?;
    let tally = load.stop()?;
    ensure!(tally.losses.is_empty(), "{tally}");
    let unhealthy = stage.daemon.log().matches("health=Unhealthy").count();
    ensure!(unhealthy == 1, "{unhealthy} times unhealthy: {}", stage.daemon.log_tail());
    Ok(())
}

#[test]
fn a_check_has_a_port_of_its_own() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let start = |name: &str, listen: &[&str]| {
        let spec = server::named_with(name, listen).service("web", "80:8080").label("pod-steer.health", "tcp");
        stage.engine().start_container(&spec.label("pod-steer.health.port", 9000))
    };
    let both = ["--listen", "0.0.0.0:8080", "--listen", "0.0.0.0:9000"];
    let _servers = [start("web-1", &both)?, start("web-2", &both)?, start("web-3", &both[..2])?];
    stage.daemon.wait_ready("web", 2)?;
    let said = stage.daemon.wait_for("a condition of web-3", |status| {
        Some(status.said_about("web-3").join("\n")).filter(|said| !said.is_empty())
    })?;
    ensure!(said.contains("its health check waits for it to listen on port 9000"), "{said}");
    stage.daemon.wait_state("web", "web-3", "starting")?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(300).run(stage.host.net())?;
    ensure!((tally.answered(), tally.answered_by("web-3")) == (300, 0), "{tally}");
    Ok(())
}

#[test]
fn invalid_checks_are_reported() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let spec = server::named("bad-1", "0.0.0.0:8080").service("web", "80:8080");
    let spec = spec.label("pod-steer.health", "tcp").label("pod-steer.health.path", "/");
    let _bad = stage.engine().start_container(&spec)?;
    let said = stage.daemon.wait_for("a condition of bad-1", |status| {
        Some(status.said_about("bad-1").join("\n")).filter(|said| !said.is_empty())
    })?;
    ensure!(
        said.contains(r#"label pod-steer.health.path="/" is refused: a check of kind tcp does not use it"#),
        "{said}"
    );

    let file = stage.host.dir().join("bad.toml");
    fs::write(&file, "[service.web.health]\nkind = 'tcp'\ninterval = '0s'\n")?;
    let ended = output(stage.host.command(tools::pod_steer()?)?.arg("run").arg("--config").arg(&file))?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(ended.status.code() == Some(2) && said.trim_end().lines().count() == 1, "{}: {said}", ended.status);
    ensure!(said.contains("service.web.health.interval=\"0s\" is refused: it is too short"), "{said}");
    Ok(())
}

/// A stopped server passes a check that only connects. Its full accept queue is a condition while it is full.
#[test]
fn a_full_accept_queue_is_shown() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let server = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").server(&["--backlog", "1"]).start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    server.process.signal(Signal::STOP)?;
    let net = stage.host.net().try_clone()?;
    let connect = move || {
        net.enter()?;
        // The kernel queues one connection more than the backlog, and turns the next client away.
        let clients = (0..2).map(|_| Ok(TcpStream::connect(("127.0.0.1", 80))?)).collect::<Result<Vec<_>>>();
        let third = TcpStream::connect_timeout(&"127.0.0.1:80".parse()?, Duration::from_millis(200));
        ensure!(third.is_err(), "a third client came into the queue");
        clients
    };
    let clients = std::thread::spawn(connect).join().map_err(|_| anyhow!("the clients panicked"))??;
    let full = "its accept queue on port 8080 is full (2 connections wait, its backlog is 1)";
    let is_said = |status: &Status| status.said_about("web-1").iter().any(|said| said.contains(full));
    stage.daemon.wait_for("the full queue", |status| is_said(status).then_some(()))?;
    // The backend stays ready.
    stage.daemon.wait_ready("web", 1)?;
    server.process.signal(Signal::CONT)?;
    stage.daemon.wait_for("the queue to be emptied", |status| (!is_said(status)).then_some(()))?;
    drop(clients);
    Ok(())
}
