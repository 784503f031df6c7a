//! A backend that connects to its own port reaches itself, as an engine's health check must, and is not counted as a client.

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    asked::{TRIES, ensure_asked},
    bpf,
    daemon::Stage,
    exec::{self, Backend, Exec},
    load::Load,
    process::run,
    require, tools, wait,
};

fn needs() -> Result<(), String> {
    tools::root_and(&["ip", "curl"])
}

fn manual() -> Result<Stage> {
    Stage::configured("[service.web]\nrollout = 'manual'\n")
}

fn start(stage: &Stage, name: &str, ports: &str, listen: &str) -> Result<Backend> {
    Exec::new(name, "web", ports, listen).flags(&["--version", name]).start(stage)
}

/// A backend's connections to itself are not counted.
fn ensure_uncounted(stage: &Stage, service: &str) -> Result<()> {
    let status = stage.daemon.status()?;
    for backend in &status.service(service).context("no such service")?.backends {
        let counted = (backend.steered, backend.opened, backend.closed, backend.live, backend.moved_in);
        ensure!(counted == (0, 0, 0, 0, 0), "connections to itself are counted: {backend:?}");
    }
    Ok(())
}

#[test]
fn a_backend_reaches_itself_whatever_the_tables_say() -> Result<()> {
    require!(needs());
    let stage = manual()?;
    let one = start(&stage, "v1", "80:8080", "0.0.0.0:8080")?;
    stage.daemon.wait_ready("web", 1)?;
    let two = start(&stage, "v2", "80:8080", "0.0.0.0:8080")?;
    stage.daemon.wait_state("web", "v2", "standby")?;
    let both = |when: &str| -> Result<()> {
        for backend in [&one, &two] {
            for (options, address) in [
                (&[][..], "127.0.0.1:80"),
                (&[], "127.0.0.1:8080"),
                (&[], "127.9.9.9:80"),
                (&[], "0.0.0.0:80"),
                (&[], "[::ffff:127.0.0.1]:80"),
                (&[], "[::ffff:127.0.0.1]:8080"),
                (&["--tcp-fastopen"], "127.0.0.1:80"),
                (&["--interface", "127.0.0.7"], "127.0.0.1:80"),
            ] {
                ensure_asked(&stage, backend, options, address, &backend.name).context(when.to_owned())?;
            }
            // It listens on IPv4 only.
            ensure_asked(&stage, backend, &[], "[::1]:80", "7").context(when.to_owned())?;
            ensure_asked(&stage, backend, &[], "[::1]:8080", "7").context(when.to_owned())?;
        }
        ensure_uncounted(&stage, "web").context(when.to_owned())
    };
    both("while one waits")?;
    let order = |args: &[&str]| run(stage.daemon.cli()?.args(args));
    order(&["drain", "web", "--version", "v1"])?;
    both("while the other is drained")?;
    order(&["drain", "web"])?;
    both("while all are drained")?;
    order(&["resume", "web"])?;
    order(&["resume", "web", "--version", "v1"])?;
    order(&["pause", "web"])?;
    both("while the service is paused")?;
    order(&["unpause", "web"])?;
    stage.daemon.wait_state("web", "v1", "ready")?;
    // Clients are steered and counted, also from source ports that the backends have used.
    let tally = Load::to("127.0.0.1:80".parse()?).threads(2).count(2000).run(stage.host.net())?;
    ensure!((tally.answered(), tally.answered_by("v1")) == (2000, 2000), "{tally}");
    pod_steer_tests::check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)
}

#[test]
fn a_backend_that_does_not_listen_is_refused_and_not_answered_by_another() -> Result<()> {
    require!(needs());
    let stage = manual()?;
    let _one = start(&stage, "v1", "80:8080", "0.0.0.0:8080")?;
    stage.daemon.wait_ready("web", 1)?;
    // Its server listens elsewhere at first.
    let two = start(&stage, "v2", "80:8080", "0.0.0.0:9999")?;
    for address in ["127.0.0.1:80", "127.0.0.1:8080", "[::1]:80"] {
        ensure_asked(&stage, &two, &[], address, "7")?;
    }
    ensure_asked(&stage, &two, &[], "127.0.0.1:9999", "v2")?;
    ensure_uncounted(&stage, "web")
}

#[test]
fn addresses_families_and_other_services_are_respected() -> Result<()> {
    require!(needs());
    let stage = Stage::without_engine()?;
    // Two versions share one claim by address, with a listener for each address; another service has the next address.
    let claim = "127.0.0.2:80:8080,127.0.0.3:80:8081,[::1]:80:8080";
    let exec = |name: &str, service: &str, ports: &str, listen: &str, args: &[&str]| {
        Exec::new(name, service, ports, listen).server(args).start(&stage)
    };
    let more = ["--listen", "127.0.0.3:8081", "--listen", "[::1]:8080"];
    let one = exec("one", "web", claim, "127.0.0.2:8080", &more)?;
    let two = exec("two", "web", claim, "127.0.0.2:8080", &more)?;
    let other = exec("other", "api", "127.0.0.4:80:9000,81:9001", "127.0.0.4:9000", &["--listen", "[::]:9001"])?;
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.wait_ready("api", 1)?;
    for backend in [&one, &two] {
        for address in ["127.0.0.2:80", "127.0.0.3:80", "127.0.0.2:8080", "127.0.0.3:8081", "[::1]:80", "[::1]:8080"] {
            ensure_asked(&stage, backend, &[], address, &backend.name)?;
        }
        // An address without a claim and without a listener, as for any process.
        for address in ["127.0.0.5:80", "127.0.0.4:8080", "127.0.0.2:9000"] {
            ensure_asked(&stage, backend, &[], address, "7")?;
        }
    }
    ensure_uncounted(&stage, "web")?;
    ensure_uncounted(&stage, "api")?;
    // Clients of another service on the same port number.
    ensure_asked(&stage, &one, &[], "127.0.0.4:80", "other")?;
    for address in ["127.0.0.1:81", "[::1]:81"] {
        ensure_asked(&stage, &one, &[], address, "other")?;
        ensure_asked(&stage, &other, &[], address, "other")?;
    }
    let api = stage.daemon.wait_idle("api")?;
    ensure!(api.backends[0].opened == 3 * TRIES as u64, "{api:?}");
    Ok(())
}

/// An unmanaged server keeps its address, although backends listen on the same port number.
#[test]
fn a_backend_reaches_servers_that_are_not_managed() -> Result<()> {
    require!(needs());
    let stage = manual()?;
    let alone = |name: &str, listen: &[&str]| {
        let mut server = stage.host.command(tools::named_server()?)?;
        server.args(["--name", name]);
        for address in listen {
            server.args(["--listen", address]);
        }
        stage.host.start(name, &mut server)
    };
    let mut unmanaged = alone("unmanaged", &["127.0.0.3:8080", "[::1]:8080", "127.0.0.3:9090"])?;
    wait::until_ok("it to listen", || {
        ensure!(!unmanaged.has_ended()?, "it has ended: {}", unmanaged.stderr());
        Ok(exec::listening_ns(&unmanaged.stdout()))
    })?;
    let exec = |name: &str, service: &str, ports: &str, listen: &str| {
        Exec::new(name, service, ports, listen).flags(&["--version", name]).start(&stage)
    };
    // A claim on one address, and unclaimed ports with listeners on one address.
    let here = exec("here", "here", "127.0.0.2:8080", "127.0.0.2:8080")?;
    let one = exec("one", "web", "80:9090", "127.0.0.5:9090")?;
    let two = exec("two", "web", "80:9090", "127.0.0.6:9090")?;
    let next = exec("next", "next", "127.0.0.4:8080", "127.0.0.4:8080")?;
    // Its server does not listen on its declared port.
    let late = exec("late", "web", "80:9090", "127.0.0.7:9999")?;
    stage.daemon.wait_ready("here", 1)?;
    stage.daemon.wait_ready("next", 1)?;
    stage.daemon.wait_state("web", "one", "ready")?;
    for address in ["127.0.0.3:8080", "[::1]:8080"] {
        ensure_asked(&stage, &here, &[], address, "unmanaged")?;
        ensure_asked(&stage, &next, &[], address, "unmanaged")?;
    }
    for backend in [&one, &two, &late] {
        ensure_asked(&stage, backend, &[], "127.0.0.3:9090", "unmanaged")?;
        ensure_asked(&stage, backend, &[], "127.0.0.8:9090", "7")?;
    }
    // Its own address, an address without a listener, and that of another service, whose client it is.
    ensure_asked(&stage, &here, &[], "127.0.0.2:8080", "here")?;
    ensure_asked(&stage, &here, &[], "127.0.0.5:8080", "7")?;
    ensure_uncounted(&stage, "next")?;
    ensure_asked(&stage, &here, &[], "127.0.0.4:8080", "next")?;
    let service = stage.daemon.wait_idle("next")?;
    ensure!(service.backends[0].opened == TRIES as u64, "{service:?}");
    // No other backend of its service answers.
    ensure_asked(&stage, &one, &[], "127.0.0.5:9090", "one")?;
    for backend in [&one, &late] {
        ensure_asked(&stage, backend, &[], "127.0.0.6:9090", "7")?;
    }
    drop(two);
    let _again = exec("again", "web", "80:9090", "127.0.0.6:9090")?;
    ensure_asked(&stage, &late, &[], "127.0.0.6:9090", "7")?;
    ensure_uncounted(&stage, "web")?;
    ensure_uncounted(&stage, "here")
}

#[test]
fn nothing_is_left_of_own_connections_however_they_end() -> Result<()> {
    require!(tools::root_and(&["ip", "curl", "bpftool", "python3"]));
    let stage = manual()?;
    let backend = start(&stage, "v1", "80:8080", "[::]:8080")?;
    stage.daemon.wait_ready("web", 1)?;
    // Refused, answered, reset by the client, given up before they are accepted, to an unused address, disconnected, and bound
    // to one port repeatedly; in both families and by IPv4 on an IPv6 socket.
    let script = r"
import socket, struct
def client(family, source=None):
    s = socket.socket(family)
    s.settimeout(0.2)
    if source:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(source)
    return s
for family, host in (socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1'), (socket.AF_INET6, '::ffff:127.0.0.1'):
    for port in 80, 8080:
        for end in 'close', 'reset', 'disconnect':
            s = client(family)
            s.connect((host, port))
            if end == 'reset':
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            if end == 'disconnect':
                libc = __import__('ctypes').CDLL(None)
                libc.connect(s.fileno(), struct.pack('H14x', socket.AF_UNSPEC), 16)
            s.close()
for _ in range(50):
    s = client(socket.AF_INET, ('127.0.0.1', 40404))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    s.connect(('127.0.0.1', 80))
    s.close()
s = client(socket.AF_INET)
try: s.connect(('192.0.2.7', 80))
except OSError: pass
s.close()
";
    run(backend.command(&stage, "python3")?.args(["-I", "-c", script]))?;
    // A connection of another process from the port that was used last counts as a client.
    let mut curl = stage.host.command("curl")?;
    curl.args(["--silent", "--max-time", "20", "--local-port", "40404", "http://127.0.0.1:80/"]);
    ensure!(run(&mut curl)?.starts_with("v1"), "a client from a used port");
    let service = stage.daemon.wait_idle("web")?;
    ensure!(service.backends[0].opened == 1, "{service:?}");
    wait::until_ok("own connections to end", || {
        Ok(bpf::entries(&stage.host, "OWN_CONNECTIONS")?.is_empty().then_some(()))
    })?;
    let counters = bpf::entries(&stage.host, "OWN_SOURCES")?;
    let counted = |entry: &&serde_json::Value| {
        entry["value"].as_array().is_some_and(|bytes| bytes.iter().any(|byte| byte.as_str() != Some("0x00")))
    };
    ensure!(counters.len() == 2048 && !counters.iter().any(|entry| counted(&entry)), "a counter is not back at zero");
    Ok(())
}
