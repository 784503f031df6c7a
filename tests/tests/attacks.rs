//! Attempts of backends and other processes to get clients that policy does not give them.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::Exec,
    listeners::{expect, start, unmanaged},
    load::{Load, ask},
    process::{Process, output, run},
    require,
    rollouts::all_by,
    tools, wait,
};
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt},
    process::Signal,
};

/// Sends a request from a given client port.
fn ask_from(stage: &Stage, source: SocketAddr, target: SocketAddr) -> Result<String> {
    stage.host.net().run(|| {
        let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &source)?;
        connect(&socket, &target)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(wait::STUCK))?;
        let asked = ask(&mut stream, target, false);
        asked.map(|(name, _)| name).map_err(|loss| anyhow!("{loss:?}"))
    })
}

/// A daemon that is killed during a probe leaves the probe's source port in the map of probes.
#[test]
fn a_probe_of_a_dead_daemon_leads_no_client_to_its_backend() -> Result<()> {
    require!(tools::root_and(&["ip", "ss"]));
    let mut stage = Stage::configured("[service.web.health]\nkind = 'http'\ninterval = '50ms'\ntimeout = '30s'\n")?;
    let _stranger = unmanaged(&stage, stage.host.net(), "stranger", &["[::1]:9000"])?;
    let _backend =
        Exec::new("v1-1", "web", "80:8080", "[::1]:8080").server(&["--answer-delay-ms", "8000"]).start(&stage)?;
    let sockets = |filter: &str| -> Result<String> {
        run(stage.host.command("ss")?.args(["-H", "-t", "-n", "state", "connected"]).arg(filter))
    };
    let client = wait::until_ok("a probe", || {
        let found = sockets("dport = :8080")?;
        Ok(found.split_whitespace().nth(3).map(str::to_owned))
    })?;
    let source: SocketAddr = client.parse().context(client)?;
    // The answer arrives and stays unread, so the daemon's end resets the connection and its port is free at once.
    stage.daemon.signal(Signal::STOP)?;
    wait::until_ok("an unread answer", || {
        let found = sockets("dport = :8080")?;
        Ok(found.split_whitespace().nth(1).is_some_and(|unread| unread != "0").then_some(()))
    })?;
    stage.daemon.kill()?;
    wait::until_ok("the probe to be gone", || Ok(sockets("dport = :8080")?.trim().is_empty().then_some(())))?;
    for target in ["[::1]:9000", "[::1]:8080"] {
        let answer = ask_from(&stage, source, target.parse()?)?;
        let wanted = if target.ends_with("9000") { "stranger@[::1]:9000" } else { "v1-1" };
        ensure!(answer == wanted, "{target}: {answer}");
    }
    Ok(())
}

/// A failed bind to port 80 by an unprivileged user does not reserve the port for that user.
#[test]
fn a_bind_that_fails_gives_no_port_to_its_user() -> Result<()> {
    require!(tools::root_and(&["ip", "ss", "setpriv"]));
    let stage = Stage::without_engine()?;
    let mut failed = Exec::new("tried", "web", "80:80", "0.0.0.0:80").user(1000).launch(&stage)?;
    wait::until_ok("the bind to fail", || Ok(failed.process.has_ended()?.then_some(())))?;
    ensure!(failed.process.stderr().to_lowercase().contains("permission denied"), "{}", failed.process.stderr());
    let root = Exec::new("root", "web", "80:80", "0.0.0.0:80").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let listens = run(stage.host.command("ss")?.args(["-H", "-l", "-t", "-n", "sport = :80"]))?;
    ensure!(listens.contains("0.0.0.0:80"), "root's server has its port: {listens}");
    let infos = stage.daemon.status()?.backend("web", "root").infos();
    ensure!(infos.is_empty(), "{infos:?}");
    all_by(stage.host.net(), 20, "root")?;
    drop(root);
    Ok(())
}

/// A backend of another user can choose its hidden port. A server on the same port of another address keeps its clients.
#[test]
fn a_hidden_port_takes_clients_of_no_other_address() -> Result<()> {
    require!(tools::root_and(&["ip", "ss", "python3"]));
    let stage = Stage::without_engine()?;
    let victims = ["127.0.0.1:45000", "127.0.0.3:45000", "[::1]:45000"];
    let _victim = unmanaged(&stage, stage.host.net(), "victim", &victims)?;
    let _root = Exec::new("root", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    // IP_LOCAL_PORT_RANGE leaves the kernel one port to choose from.
    let server = "import os, socket, struct, time
os.setgid(1000)
os.setuid(1000)
s = socket.socket()
s.setsockopt(0, 51, struct.pack('I', 45000 << 16 | 45000))
s.bind(('127.0.0.2', 8080))
s.listen()
print('listening', flush=True)
time.sleep(600)";
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", "web", "--ports", "80:8080", "--name", "hidden", "--"]);
    command.args(["python3", "-c", server]);
    let hidden = stage.host.start("hidden", &mut command)?;
    wait::until("it to listen", || hidden.stdout().contains("listening").then_some(()))
        .with_context(|| hidden.stderr())?;
    let chosen = run(stage.host.command("ss")?.args(["-H", "-l", "-t", "-n", "src 127.0.0.2"]))?;
    ensure!(chosen.contains("127.0.0.2:45000"), "it has chosen its port: {chosen}");
    stage.daemon.wait_for("the hidden one to be known", |status| {
        (status.service("web")?.backends.iter().any(|backend| backend.name == "hidden" && backend.sockets == 1))
            .then_some(())
    })?;
    for victim in victims {
        expect(stage.host.net(), &[(victim, Some(format!("victim@{victim}").as_str()))])?;
    }
    expect(stage.host.net(), &[("127.0.0.2:45000", None)])
}

/// Another service claims one address of a port of `web`. The kernel would prefer a listener on that address.
#[test]
fn a_claim_of_one_address_takes_no_client_of_another_service() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let net = stage.host.net().try_clone()?;
    let _web = start(&stage, "root", "web", "8080", &["0.0.0.0:8080"])?;
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", "other", "--ports", "127.0.0.1:8080:19090", "--", "true"]);
    let refused = output(&mut command)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    ensure!(said.contains("port 8080 at that address already belongs to the service `web`"), "{said}");
    let right = [("127.0.0.1:8080", Some("root@0.0.0.0:8080")), ("127.0.0.2:8080", Some("root@0.0.0.0:8080"))];
    expect(&net, &right)?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    expect(&net, &right)
}

/// Sockets of one user on one port form one reuseport group, also if their services differ.
#[test]
fn a_queue_does_not_cross_services() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let deaf = &["--accept-delay-ms", "600000"];
    let alpha = Exec::new("alpha", "alpha", "81:8080", "0.0.0.0:8080").server(deaf).start(&stage)?;
    let _beta = Exec::new("beta", "beta", "82:8080", "0.0.0.0:8080").start(&stage)?;
    let _stranger = unmanaged(&stage, stage.host.net(), "stranger", &["0.0.0.0:8080"])?;
    for service in ["alpha", "beta"] {
        stage.daemon.wait_ready(service, 1)?;
    }
    let clients = Load::to("127.0.0.1:81".parse()?).threads(20).count(20).start(stage.host.net())?;
    stage.daemon.wait_for("clients in the queue", |status| (status.service("alpha")?.opened() == 20).then_some(()))?;
    alpha.process.signal(Signal::KILL)?;
    let tally = clients.stop()?;
    ensure!(tally.answered() == 0, "they were alpha's: {tally}");
    let tally = Load::to("127.0.0.1:82".parse()?).count(20).run(stage.host.net())?;
    ensure!(tally.answered_by("beta") == 20, "{tally}");
    Ok(())
}

/// Listens on port 9000. When the file `$1.1` exists it closes that listener and opens another one, and when `$1.2` exists it closes
/// this one. If `$2` is `again`, it opens a third one before, and serves that. It accepts nothing from the first two.
const LISTENS_ANEW: &str = "import os, socket, sys, time
def listen():
    s = socket.socket()
    s.bind(('0.0.0.0', 9000))
    s.listen(100)
    return s
def wait(n):
    while not os.path.exists(sys.argv[1] + n): time.sleep(0.01)
s = listen()
print('first', flush=True)
wait('.1')
s.close()
s = listen()
print('second', flush=True)
wait('.2')
if sys.argv[2] == 'again': new = listen()
s.close()
while sys.argv[2] == 'again':
    c = new.accept()[0]
    c.recv(1000)
    c.sendall(b'HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: 5\\r\\n\\r\\nalpha')
    c.close()
time.sleep(600)";

/// The same for a listener that is in no table because no daemon has seen it. Clients reach it as the newest one of the only backend.
#[test]
fn a_queue_of_a_listener_without_a_table_does_not_cross_services() -> Result<()> {
    require!(tools::root_and(&["ip", "python3", "ss"]));
    for (then, answered) in [("ends", 0), ("again", 20)] {
        let mut stage = Stage::without_engine()?;
        let go = stage.host.dir().join("go").display().to_string();
        let mut command = stage.daemon.cli()?;
        command.args(["exec", "--service", "alpha", "--ports", "80:9000", "--name", "alpha", "--"]);
        let alpha = stage.host.start("alpha", command.args(["python3", "-c", LISTENS_ANEW, &go, then]))?;
        let _beta = Exec::new("beta", "beta", "81:9000", "0.0.0.0:9000").start(&stage)?;
        for service in ["alpha", "beta"] {
            stage.daemon.wait_ready(service, 1)?;
        }
        stage.daemon.kill()?;
        fs::write(format!("{go}.1"), "")?;
        wait::until("the second listener", || alpha.stdout().contains("second").then_some(()))?;
        let clients = Load::to("127.0.0.1:80".parse()?).threads(20).count(20).start(stage.host.net())?;
        wait::until_ok("clients in the queue", || {
            let found = run(stage.host.command("ss")?.args(["-H", "-t", "-n", "state", "established", "sport = :80"]))?;
            Ok((found.lines().count() == 20).then_some(()))
        })?;
        fs::write(format!("{go}.2"), "")?;
        let tally = clients.stop()?;
        ensure!(tally.answered_by("alpha") == answered && tally.answered() == answered, "{then}: {tally}");
    }
    Ok(())
}

/// An unmanaged process of the same user joins the reuseport group and detaches its program.
#[test]
fn a_queue_moves_although_the_groups_program_was_detached() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let mut stage = Stage::without_engine()?;
    let listen = |name: &str| Exec::new(name, "web", "80:8080", "0.0.0.0:8080");
    let deaf = listen("deaf").server(&["--accept-delay-ms", "600000"]).start(&stage)?;
    let _good = listen("good").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    // SO_REUSEPORT, SO_DETACH_REUSEPORT_BPF
    let detach = "import socket
s = socket.socket()
s.setsockopt(1, 15, 1)
s.bind(('0.0.0.0', 8080))
s.listen()
s.setsockopt(1, 68, 0)";
    run(stage.host.command("python3")?.args(["-c", detach]))?;
    let clients = Load::to("127.0.0.1:80".parse()?).threads(20).count(20).start(stage.host.net())?;
    let waiting = stage.daemon.wait_for("all clients to be connected", |status| {
        (status.service("web")?.opened() == 20).then(|| status.backend("web", "deaf").opened)
    })?;
    ensure!(waiting > 0, "some wait");
    // Each resync, one at the start and one every 30 s, attaches it again. Neither `status` nor the log shows when.
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 2)?;
    thread::sleep(Duration::from_secs(10));
    deaf.process.signal(Signal::KILL)?;
    let tally = clients.stop()?;
    ensure!(tally.answered_by("good") == 20, "{tally}");
    Ok(())
}

/// Binds a socket on port 8080 and passes it to the process that listens at `$1`, without listening itself.
const PASSES: &str = "import array, socket, sys, time
s = socket.socket()
s.bind(('0.0.0.0', 8080))
u = socket.socket(socket.AF_UNIX)
u.connect(sys.argv[1])
u.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [s.fileno()]))])
s.close()
if sys.argv[2] == 'stays': time.sleep(600)";

/// Takes that socket, and listens and answers `stranger` once there is a file `$1.go`.
const TAKES: &str = "import array, os, socket, sys, time
u = socket.socket(socket.AF_UNIX)
u.bind(sys.argv[1])
u.listen()
print('waits', flush=True)
_, rights, _, _ = u.accept()[0].recvmsg(1, socket.CMSG_LEN(4))
s = socket.socket(fileno=array.array('i', rights[0][2])[0])
print('took', flush=True)
while not os.path.exists(sys.argv[1] + '.go'): time.sleep(0.01)
s.listen()
print('listens', flush=True)
while True:
    c = s.accept()[0]
    c.recv(1000)
    c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 8\\r\\n\\r\\nstranger')
    c.close()";

/// A process outside every backend that received a bound socket of a backend.
struct Outsider {
    process: Process,
    go: PathBuf,
    _passer: Process,
}

impl Outsider {
    fn start(stage: &Stage, passer: &str) -> Result<Self> {
        let path = stage.host.dir().join("passed");
        let path = path.to_str().context("a path")?;
        let mut command = stage.host.command("python3")?;
        command.args(["-c", TAKES, path]);
        let process = stage.host.start("outsider", &mut command)?;
        wait::until("it to wait", || process.stdout().contains("waits").then_some(()))?;
        let mut command = stage.daemon.cli()?;
        command.args(["exec", "--service", "alpha", "--ports", "81:8080", "--name", "passer", "--"]);
        command.args(["python3", "-c", PASSES, path, passer]);
        let passer = stage.host.start("passer", &mut command)?;
        wait::until("it to have the socket", || process.stdout().contains("took").then_some(()))
            .with_context(|| passer.stderr())?;
        Ok(Self { process, go: format!("{path}.go").into(), _passer: passer })
    }

    fn listen(&self) -> Result<()> {
        fs::write(&self.go, "")?;
        wait::until("it to listen", || self.process.stdout().contains("listens").then_some(()))
            .with_context(|| self.process.stderr())
    }
}

/// The backend has ended, and a backend of another service gets its index.
#[test]
fn a_socket_of_a_dead_backend_is_no_other_backends() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    for listens_first in [true, false] {
        let mut stage = Stage::without_engine()?;
        let outsider = Outsider::start(&stage, "ends")?;
        stage.daemon.wait_for("alpha to be gone", |status| status.service("alpha").is_none().then_some(()))?;
        if listens_first {
            outsider.listen()?;
        }
        let _web = Exec::new("right", "web", "80:9090", "127.0.0.1:9090").start(&stage)?;
        stage.daemon.wait_ready("web", 1)?;
        if !listens_first {
            outsider.listen()?;
        }
        all_by(stage.host.net(), 100, "right")?;
        // The next daemon's resync reads the socket's description.
        stage.daemon.kill()?;
        all_by(stage.host.net(), 100, "right")?;
        stage.daemon.restart()?;
        stage.daemon.wait_ready("web", 1)?;
        all_by(stage.host.net(), 100, "right")?;
        let status = stage.daemon.status()?;
        assert_eq!(status.backend("web", "right").sockets, 1, "{status}");
    }
    Ok(())
}

/// The backend runs, and a process outside it calls listen() on its socket.
#[test]
fn a_listener_that_only_an_outsider_holds_gets_no_clients() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    let outsider = Outsider::start(&stage, "stays")?;
    let _right = Exec::new("right", "alpha", "81:9090", "0.0.0.0:9090").start(&stage)?;
    stage.daemon.wait_ready("alpha", 1)?;
    outsider.listen()?;
    let said = stage.daemon.wait_for("its condition", |status| {
        let said = status.backend("alpha", "passer").warnings().join(" ");
        said.contains("not managed").then_some(said)
    })?;
    ensure!(said.contains("python3") && said.contains("clients are not given to it"), "{said}");
    let tally = Load::to("127.0.0.1:81".parse()?).count(100).run(stage.host.net())?;
    ensure!(tally.answered_by("right") == 100, "{said}: {tally}");
    Ok(())
}

/// One backend opens and closes listeners as fast as it can, many more than there is room for.
#[test]
fn a_loop_of_listeners_takes_no_place_from_others() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let mut stage = Stage::limited("SOCKETS=64")?;
    let server = "import socket
for _ in range(1000):
    s = socket.socket()
    s.bind(('0.0.0.0', 9000))
    s.listen()
    s.close()
s = socket.socket()
s.bind(('0.0.0.0', 9000))
s.listen()
print('listening', flush=True)
while True: s.accept()[0].close()";
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", "loop", "--ports", "90:9000", "--name", "loop", "--", "python3", "-c", server]);
    let looping = stage.host.start("loop", &mut command)?;
    wait::until("a thousand listeners", || looping.stdout().contains("listening").then_some(()))
        .with_context(|| looping.stderr())?;
    let _other = Exec::new("right", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    all_by(stage.host.net(), 20, "right")?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    for service in ["web", "loop"] {
        stage.daemon.wait_ready(service, 1)?;
    }
    all_by(stage.host.net(), 20, "right")?;
    ensure!(stage.daemon.status()?.said_about("right").join(" ").trim().is_empty(), "{}", stage.daemon.status()?);
    Ok(())
}
