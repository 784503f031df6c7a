//! Servers that hand over their listener, as servers with zero-downtime upgrades do.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::{container::Spec, daemon::Stage, process::Process, server, tools, wait};

/// Arguments: `NAME`, a word, and the path of a unix socket. `listens` opens the listener; `takes` receives it through the unix socket;
/// `inherits` has it as descriptor 3. The first two pass it to every process that connects to the path. The server answers like the test
/// server with `--raw`, and ends on SIGTERM after the connection that it serves. SIGUSR1: a child in a session of its own, named
/// `NAME-child`, takes over, and the server ends. SIGUSR2: it closes the listener and keeps running. SIGHUP: it ends the listener by
/// shutdown(2) and keeps running. SIGALRM: it executes itself again in the same process, with the listener as descriptor 3, as
/// `NAME-again`.
const SERVER: &str = r#"
import array, os, select, signal, socket, sys
name, mode, path = sys.argv[1:4]
got = set()
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGALRM):
    signal.signal(number, lambda number, frame: got.add(number))
def say(*words):
    print(*words, flush=True)
if mode == "takes":
    asks = socket.socket(socket.AF_UNIX)
    asks.connect(path)
    _, ancillary, _, _ = asks.recvmsg(1, socket.CMSG_SPACE(4))
    listener = socket.socket(fileno=array.array("i", ancillary[0][2])[0])
elif mode == "inherits":
    listener = socket.socket(fileno=3)
else:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", 8080))
    listener.listen(1024)
listener.setblocking(False)
giver = socket.socket(socket.AF_UNIX)
if mode == "listens":
    giver.bind(path)
    giver.listen(8)
say("serves")
watched = [listener, giver] if mode == "listens" else [listener]
while signal.SIGTERM not in got:
    if signal.SIGUSR1 in got:
        got.clear()
        if os.fork():
            os._exit(0)
        os.setsid()
        name += "-child"
        say("child", os.getpid())
    if signal.SIGALRM in got:
        os.dup2(listener.fileno(), 3)
        os.set_inheritable(3, True)
        os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], name + "-again", "inherits", path])
    if signal.SIGUSR2 in got and listener in watched:
        watched.remove(listener)
        listener.close()
        say("closed")
    if signal.SIGHUP in got and listener in watched:
        watched.remove(listener)
        listener.shutdown(socket.SHUT_RDWR)
        say("shut")
    try:
        ready, _, _ = select.select(watched, [], [], 0.02)
    except InterruptedError:
        continue
    if giver in ready:
        asker, _ = giver.accept()
        asker.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener.fileno()]))])
    if listener in ready:
        try:
            connection, peer = listener.accept()
        except BlockingIOError:
            continue
        connection.setblocking(True)
        connection.recv(4096)
        connection.sendall(f"{name} {peer[0]}:{peer[1]}\n".encode())
        connection.close()
say("ends")
"#;

/// How a server gets its listener.
#[derive(Clone, Copy, Debug)]
pub enum Listener {
    /// Opens it, on 0.0.0.0:8080.
    Opens,
    /// Receives it from the process that opened it.
    Takes,
}

/// The command of such a server.
pub fn command(name: &str, listener: Listener, path: &Path) -> Result<Vec<String>> {
    let python = tools::find("python3").context("python3 is not installed")?;
    let mode = match listener {
        Listener::Opens => "listens",
        Listener::Takes => "takes",
    };
    let path = path.display().to_string();
    Ok([&python.display().to_string(), "-c", SERVER, name, mode, &path].map(str::to_owned).to_vec())
}

/// Starts one that is not a backend.
pub fn start(stage: &Stage, name: &str, listener: Listener, path: &Path) -> Result<Process> {
    let words = command(name, listener, path)?;
    let mut command = stage.host.command(&words[0])?;
    let process = stage.host.start(name, command.args(&words[1..]))?;
    serves(process)
}

/// A container with one that opens the listener.
pub fn container(name: &str) -> Spec {
    server::python_program(name, SERVER).args(&[name, "listens", "/tmp/giver"])
}

/// Starts one as a backend by `exec`, of the service `web` on port 80.
pub fn exec(stage: &Stage, name: &str, version: &str, listener: Listener, path: &Path) -> Result<Process> {
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", "web", "--ports", "80:8080", "--name", name, "--version", version, "--"]);
    let process = stage.host.start(name, command.args(self::command(name, listener, path)?))?;
    serves(process)
}

fn serves(process: Process) -> Result<Process> {
    wait::until("the server to serve", || process.stdout().contains("serves").then_some(()))
        .with_context(|| process.stderr())?;
    Ok(process)
}
