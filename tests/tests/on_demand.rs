//! Ports that a server opens for one connection and then closes, as passive FTP does. The client connects before the daemon can have
//! published a table.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpStream},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::Exec,
    load::Load,
    process::{Process, output},
    report, require, server, tools, wait,
};
use rustix::process::Signal;

/// Transfers of one run, and of one that is a variant of it.
const TRANSFERS: usize = 200;
const FEW: usize = 30;

/// A small FTP server: `NAME CONTROL-PORT FIRST-PORT FIRST-TARGET COUNT ADDRESS`. Each transfer gets a fresh listener on the
/// next target port, and the client is told the port that leads there. The file has the server's name. `FLASH` opens and closes some
/// of these listeners at once.
const FTP: &str = r#"
import socket, sys, threading
name, control, first, target, count, address = sys.argv[1], *map(int, sys.argv[2:6]), sys.argv[6]
family = socket.AF_INET6 if ':' in address else socket.AF_INET
turn, lock = 0, threading.Lock()
def listen(port):
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port))
    s.listen(8)
    return s
def serve(c):
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    global turn
    data = None
    def say(text): c.sendall((text + '\r\n').encode())
    say('220 ' + name)
    for line in c.makefile():
        verb = line.split()[0].upper() if line.split() else ''
        if verb == 'USER': say('331 who')
        elif verb == 'PASS': say('230 in')
        elif verb == 'PWD': say('257 "/"')
        elif verb in ('TYPE', 'CWD'): say('200 ok')
        elif verb == 'SIZE': say('213 %d' % len(name))
        elif verb in ('EPSV', 'PASV'):
            with lock:
                n, turn = turn % count, turn + 1
            data = listen(target + n)
            port = first + n
            if verb == 'EPSV': say('229 go (|||%d|)' % port)
            else:
                host = c.getsockname()[0].replace('.', ',')
                say('227 go (%s,%d,%d)' % (host, port >> 8, port & 255))
        elif verb == 'RETR':
            data.settimeout(20)
            d, _ = data.accept()
            data.close()
            say('150 now')
            d.sendall(name.encode())
            d.close()
            say('226 done')
        elif verb == 'FLASH':
            for n in range(min(count, 3)): listen(target + n).close()
            say('200 ok')
        elif verb == 'QUIT':
            say('221 bye')
            break
        else: say('502 no')
    c.close()
s = listen(control)
print('listening', flush=True)
while True:
    c, _ = s.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"#;

fn needs() -> Result<(), String> {
    tools::root_and(&["ip", "curl", "python3"])
}

struct Ftp<'a> {
    name: &'a str,
    /// Of `pod-steer exec`.
    ports: &'a str,
    /// Control port, first port for clients, first port to listen on, and number of ports.
    numbers: [u16; 4],
    address: &'a str,
}

impl Ftp<'_> {
    fn launch(&self, stage: &Stage) -> Result<Process> {
        let mut command = stage.host.command(tools::pod_steer()?)?;
        command.env("POD_STEER_SOCKET", stage.daemon.socket());
        command.args(["exec", "--service", "ftp", "--ports", self.ports, "--name", self.name, "--version", self.name]);
        command.args(["--"]).arg(tools::find("python3").context("python3")?).args(["-I", "-c", FTP, self.name]);
        command.args(self.numbers.map(|number| number.to_string())).arg(self.address);
        stage.host.start(self.name, &mut command)
    }

    fn start(&self, stage: &Stage) -> Result<Process> {
        let mut process = self.launch(stage)?;
        wait::until_ok("the FTP server to listen", || {
            ensure!(!process.has_ended()?, "it has ended: {}", process.stderr());
            Ok(process.stdout().contains("listening").then_some(()))
        })?;
        Ok(process)
    }
}

/// Fetches a file repeatedly over one control connection. Each copy must contain the server's name.
fn ensure_served(stage: &Stage, url: &str, transfers: usize, options: &[&str], name: &str) -> Result<()> {
    let mut curl = stage.host.command("curl")?;
    curl.args(["--silent", "--show-error", "--globoff", "--max-time", "120"]).args(options);
    curl.args((0..transfers).map(|_| url));
    let answer = output(&mut curl)?;
    let said = String::from_utf8_lossy(&answer.stdout).into_owned();
    let good = said.matches(name).count();
    report::figure(&format!("transfers from {url} {options:?}"), format!("{good} of {transfers}"));
    let errors = String::from_utf8_lossy(&answer.stderr).into_owned();
    ensure!(said == name.repeat(transfers), "{good} of {transfers} by {name}, {}: {errors}", answer.status);
    Ok(())
}

const FTP_21: &str = "ftp://127.0.0.1:21/file";

#[test]
fn listeners_opened_on_demand_are_found() -> Result<()> {
    require!(needs());
    // The same port numbers, other port numbers, and a claim on one address.
    for (ports, first, target, address, url) in [
        ("21:2121,30000-30009", 30_000, 30_000, "0.0.0.0", FTP_21),
        ("21:2121,30000-30009:31000-31009", 30_000, 31_000, "0.0.0.0", FTP_21),
        ("127.0.0.2:21:2121,127.0.0.2:30000-30009", 30_000, 30_000, "0.0.0.0", "ftp://127.0.0.2:21/file"),
        ("127.0.0.2:21:2121,127.0.0.2:30000-30009:31000-31009", 30_000, 31_000, "127.0.0.2", "ftp://127.0.0.2:21/file"),
        ("21:2121,30000-30009:31000-31009", 30_000, 31_000, "::", FTP_21),
        ("21:2121,30000-30009:31000-31009", 30_000, 31_000, "::", "ftp://[::1]:21/file"),
    ] {
        let stage = Stage::without_engine()?;
        let ftp = Ftp { name: "one", ports, numbers: [2121, first, target, 10], address };
        let _server = ftp.start(&stage)?;
        stage.daemon.wait_ready("ftp", 1)?;
        let transfers = if first == target && url == FTP_21 { TRANSFERS } else { FEW };
        ensure_served(&stage, url, transfers, &[], "one").with_context(|| ports.to_owned())?;
        if !url.contains("[::1]") {
            ensure_served(&stage, url, FEW / 3, &["--disable-epsv"], "one").with_context(|| ports.to_owned())?;
        }
        let refused = stage.daemon.wait_ready("ftp", 1)?.counters["refused_no_backend"];
        ensure!(refused == 0, "{refused} refused");
    }
    Ok(())
}

#[test]
fn listeners_that_a_container_opens_on_demand_are_found() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["python3", "ldd", "curl"]));
    let stage = Stage::with_docker()?;
    let numbers = [2121u16, 30_000, 31_000, 10].map(|number| number.to_string());
    let ftp = server::python_program("one", FTP).args(&["one"]).args(&numbers).args(&["0.0.0.0"]);
    let _ftp = stage.engine().start_container(&ftp.service("ftp", "21:2121,30000-30009:31000-31009"))?;
    stage.daemon.wait_ready("ftp", 1)?;
    ensure_served(&stage, FTP_21, FEW, &[], "one")?;
    let refused = stage.daemon.wait_ready("ftp", 1)?.counters["refused_no_backend"];
    ensure!(refused == 0, "{refused} refused");
    Ok(())
}

/// A listener that is opened while no daemon runs is found too.
#[test]
fn listeners_opened_on_demand_need_no_daemon() -> Result<()> {
    require!(needs());
    let mut stage = Stage::without_engine()?;
    let ports = "21:2121,30000-30009:31000-31009";
    let _server = Ftp { name: "one", ports, numbers: [2121, 30_000, 31_000, 10], address: "0.0.0.0" }.start(&stage)?;
    stage.daemon.wait_ready("ftp", 1)?;
    stage.daemon.kill()?;
    ensure_served(&stage, FTP_21, FEW, &[], "one")?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("ftp", 1)?;
    ensure_served(&stage, FTP_21, FEW, &[], "one")
}

#[test]
fn a_second_server_with_the_same_ports_on_demand_is_refused() -> Result<()> {
    require!(needs());
    let stage = Stage::without_engine()?;
    let ports = "21:2121,30000-30009";
    let _one = Ftp { name: "one", ports, numbers: [2121, 30_000, 30_000, 10], address: "0.0.0.0" }.start(&stage)?;
    stage.daemon.wait_ready("ftp", 1)?;
    // Shows the daemon that the range is opened on demand. (On a busy machine, curl might keep a listener open for too long for that.)
    stage.host.net().run(|| flash(21))?;
    let mut two = Ftp { name: "two", ports, numbers: [2121, 30_000, 30_000, 10], address: "0.0.0.0" }.launch(&stage)?;
    let status = two.wait(wait::STUCK)?;
    let said = two.stderr();
    ensure!(status.code() == Some(2), "{status}: {said}");
    ensure!(said.contains("one of the same service opens the ports 30000-30009 on demand"), "{said}");
    ensure!(said.contains("give each server a range of its own") && said.trim_end().lines().count() == 1, "{said}");
    stage.daemon.wait_ready("ftp", 1)?;

    // With a range of its own it is accepted, and each client gets the files of the server that it is connected to.
    let ports = "21:2121,30010-30019";
    let _two = Ftp { name: "two", ports, numbers: [2121, 30_010, 30_010, 10], address: "0.0.0.0" }.start(&stage)?;
    stage.daemon.wait_ready("ftp", 2)?;
    for _ in 0..20 {
        let mut curl = stage.host.command("curl")?;
        curl.args(["--silent", "--show-error", "--verbose", "--max-time", "60", FTP_21, FTP_21, FTP_21]);
        let answer = output(&mut curl)?;
        let (got, log) = (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
        let greeted =
            log.lines().find_map(|line| line.strip_prefix("< 220 ")).context("no greeting")?.trim().to_owned();
        ensure!(got == greeted.repeat(3), "greeted by {greeted}, and got {got}: {log}");
    }
    Ok(())
}

/// Makes an FTP server open and close some listeners of its range.
fn flash(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connecting to the FTP server")?;
    stream.set_read_timeout(Some(wait::STUCK))?;
    stream.write_all(b"FLASH\r\n")?;
    let done = BufReader::new(stream).lines().find(|line| line.as_ref().is_ok_and(|line| line.starts_with("200")));
    done.context("the server has hung up")?.map(drop).context("reading its answer")
}

/// An ordinary service with some ports not open yet does not count as on demand.
#[test]
fn a_range_that_is_not_up_yet_is_not_on_demand() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let exec = |name: &str| Exec::new(name, "web", "80:8080,8443,9000-9002", "0.0.0.0:8080");
    let up = ["--listen", "0.0.0.0:9000", "--listen", "0.0.0.0:9001"];
    let _one = exec("one").server(&up).start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    let _two = exec("two").server(&up).start(&stage)?;
    let service = stage.daemon.wait_ready("web", 2)?;
    ensure!(service.backends.iter().all(|backend| backend.warnings().is_empty()), "{service:?}");
    Ok(())
}

/// Listens on 8081 and 8080. Each SIGUSR1 closes the next one. It answers with its name.
const TWO_PORTS: &str = r#"
import signal, socket, sys, threading
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
def serve(listener):
    while True:
        try: client, peer = listener.accept()
        except OSError: return
        client.recv(4096)
        client.sendall(('%s %s:%d\n' % (sys.argv[1], *peer)).encode())
        client.close()
listeners = [socket.create_server(('0.0.0.0', port), backlog=128) for port in (8081, 8080)]
threads = [threading.Thread(target=serve, args=(listener,), daemon=True) for listener in listeners]
for thread in threads: thread.start()
print('listening', flush=True)
for listener, thread in zip(listeners, threads):
    signal.sigwait({signal.SIGUSR1})
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()
    print('closed', flush=True)
signal.pause()
"#;

/// An ordinary service of two replicas: no client is refused while the older one ends, and another replica may take its place.
#[test]
fn a_replica_closes_its_ports_one_after_the_other() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    for ports in ["8080,8081", "80-81:8080-8081"] {
        let stage = Stage::without_engine()?;
        let start = |name: &str| -> Result<Process> {
            let mut command = stage.daemon.cli()?;
            command.args(["exec", "--service", "web", "--ports", ports, "--name", name, "--"]);
            command.arg(tools::find("python3").context("python3")?).args(["-I", "-c", TWO_PORTS, name]);
            let mut process = stage.host.start(name, &mut command)?;
            wait::until_ok("the server to listen", || {
                ensure!(!process.has_ended()?, "it has ended: {}", process.stderr());
                Ok(process.stdout().contains("listening").then_some(()))
            })?;
            stage.daemon.wait_state("web", name, "ready")?;
            Ok(process)
        };
        let (older, _younger) = (start("older")?, start("younger")?);
        let first = if ports.contains('-') { 80 } else { 8080 };
        let to = |port: u16| Load::to((Ipv4Addr::LOCALHOST, first + port).into());
        let loads = [to(0).start(stage.host.net())?, to(1).start(stage.host.net())?];
        wait::until("clients", || loads.iter().all(|load| load.answered() > 20).then_some(()))?;
        for closed in 1..=2 {
            older.signal(Signal::USR1)?;
            wait::until("it to close", || (older.stdout().matches("closed").count() == closed).then_some(()))?;
            for _ in 0..5 {
                let before = [0, 1].map(|port: usize| loads[port].answered());
                wait::until("clients", || {
                    [0, 1].iter().all(|port| loads[*port].answered() > before[*port] + 100).then_some(())
                })?;
            }
            let backends = stage.daemon.status()?.service("web").context("web")?.backends.clone();
            let younger = backends.iter().find(|backend| backend.name == "younger").context("younger")?;
            ensure!(younger.state == "ready" && younger.warnings().is_empty(), "{ports}: {backends:?}");
            let tally = to(1).count(100).run(stage.host.net())?;
            ensure!(tally.answered_by("younger") == 100, "{ports}: {tally}");
        }
        for (load, port) in loads.into_iter().zip(["8080", "8081"]) {
            let tally = load.stop()?;
            report::figure(&format!("{ports}: clients of {port} while a replica closes it"), &tally);
            // The kernel resets connections whose handshake is under way when their listener closes.
            ensure!(tally.losses.len() <= 2, "{ports}: {port}: {tally}");
        }
        let _newest = start("newest")?;
    }
    Ok(())
}
