//! Processes that hand their listener over, and processes that leave their cgroup: the daemon follows the process that holds the
//! listener, or reports why it does not.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use pod_steer_tests::{
    daemon::Stage,
    exec::Exec,
    handover::{self, Listener},
    load::Load,
    process::{Process, output},
    require,
    status::{Backend, Status},
    tools, wait,
};
use rustix::process::{Pid, Signal, kill_process};

fn all_answered_by(stage: &Stage, name: &str) -> Result<()> {
    let tally = Load::to("127.0.0.1:80".parse()?).count(50).run(stage.host.net())?;
    assert_eq!(tally.answered_by(name), 50, "{tally}\n{}", stage.daemon.status()?);
    Ok(())
}

fn until_gone(stage: &Stage, service: &str) -> Result<()> {
    stage.daemon.wait_for(&format!("{service} to be gone"), |status| status.service(service).is_none().then_some(()))
}

fn register(stage: &Stage, name: &str, pid: u32) -> Result<()> {
    let mut register = stage.daemon.cli()?;
    register.args(["register", "--service", "web", "--ports", "80:8080", "--name", name, "--pid", &pid.to_string()]);
    let outcome = output(&mut register)?;
    assert!(outcome.status.success(), "{outcome:?}");
    Ok(())
}

/// The pid of a server's successor, as the server has printed it. The process is killed at the end of the test.
struct Child(Pid);

impl Child {
    fn of(server: &Process) -> Result<Self> {
        let told = || server.stdout().lines().find_map(|line| line.strip_prefix("child ")?.parse().ok());
        let pid = wait::until("the child", told)?;
        Ok(Self(Pid::from_raw(pid).context("a pid")?))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.0, signal)?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // No parent in the test waits for it, so its pid is valid until it has ended.
        let _ = kill_process(self.0, Signal::KILL);
    }
}

fn backend<'a>(status: &'a Status, name: &str) -> Option<&'a Backend> {
    status.service("web")?.backends.iter().find(|backend| backend.name == name)
}

#[test]
fn a_registered_process_that_hands_over_to_another_is_followed() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let mut stage = Stage::without_engine()?;
    let path = stage.host.dir().join("giver");
    let mut server = handover::start(&stage, "server", Listener::Opens, &path)?;
    register(&stage, "server", server.pid())?;
    stage.daemon.wait_ready("web", 1)?;
    let load = Load::to("127.0.0.1:80".parse()?).threads(2).pause(Duration::from_millis(1)).start(stage.host.net())?;
    wait::until("clients", || (load.answered() > 50).then_some(()))?;
    server.signal(Signal::USR1)?;
    let child = Child::of(&server)?;
    server.wait(wait::STUCK)?;
    stage.daemon.wait_for("the daemon to follow", |status| {
        let followed = stage.daemon.log().contains("held by another process, which is followed");
        (followed && backend(status, "server")?.state == "ready").then_some(())
    })?;
    let before = load.answered();
    wait::until("more clients", || (load.answered() > before + 50).then_some(()))?;
    let tally = load.stop()?;
    assert!(tally.losses.is_empty(), "{tally}\n{}", stage.daemon.log_tail());
    all_answered_by(&stage, "server-child")?;

    // The next daemon follows the child. The child hands over once more while no daemon runs.
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    all_answered_by(&stage, "server-child")?;
    child.signal(Signal::TERM)?;
    until_gone(&stage, "web")
}

#[test]
fn a_registered_process_that_executes_itself_anew_stays_the_backend() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let mut stage = Stage::without_engine()?;
    let path = stage.host.dir().join("giver");
    let server = handover::start(&stage, "server", Listener::Opens, &path)?;
    register(&stage, "server", server.pid())?;
    stage.daemon.wait_ready("web", 1)?;
    server.signal(Signal::ALARM)?;
    wait::until("the new program to serve", || (server.stdout().matches("serves").count() == 2).then_some(()))?;
    stage.daemon.wait_ready("web", 1)?;
    all_answered_by(&stage, "server-again")?;
    // The next daemon recognises it by its pid and start time, which are unchanged.
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    all_answered_by(&stage, "server-again")?;
    server.signal(Signal::TERM)?;
    until_gone(&stage, "web")
}

#[test]
fn a_process_that_replaces_a_registered_one_with_a_listener_of_its_own_is_named() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    // As `haproxy -sf`: both processes listen for a moment, then the old one ends.
    let start = |name: &str| -> Result<Process> {
        let mut command = stage.host.command(tools::named_server()?)?;
        command.args(["--name", name, "--listen", "0.0.0.0:8080", "--reuseport"]);
        let server = stage.host.start(name, &mut command)?;
        wait::until("the server", || server.stdout().contains("listening").then_some(()))?;
        Ok(server)
    };
    let mut old = start("old")?;
    register(&stage, "old", old.pid())?;
    stage.daemon.wait_ready("web", 1)?;
    let mut new = start("new")?;
    old.kill()?;
    let named = format!("process {} (named-server) listens on port 8080 by a listener of its own", new.pid());
    stage.daemon.wait_for("the reason", |status| {
        let backend = backend(status, "old")?;
        let said = backend.warnings().join("\n");
        (backend.state == "not-steered" && said.contains(&named) && said.contains("register it")).then_some(())
    })?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(20).run(stage.host.net())?;
    assert_eq!(tally.refused(), 20, "it is not registered: {tally}");
    register(&stage, "new", new.pid())?;
    stage.daemon.wait_state("web", "new", "ready")?;
    all_answered_by(&stage, "new")?;
    stage.daemon.wait_for("the old one to be gone", |status| backend(status, "old").is_none().then_some(()))?;
    new.kill()?;
    until_gone(&stage, "web")
}

/// A service manager that holds the listener of the servers that it starts. On SIGUSR1 it starts another server, on SIGUSR2 it closes
/// the listener.
const ACTIVATOR: &str = r#"
import os, signal, socket, sys, time
numbers = (signal.SIGUSR1, signal.SIGUSR2)
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
def listen(port):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", port))
    listener.listen(64)
    return listener
def start(name, inherits):
    pid = os.fork()
    if not pid and not inherits:
        listener.close()
    own = listener if inherits or pid else listen(8081)
    while not pid:
        connection, peer = own.accept()
        connection.recv(4096)
        connection.sendall(f"{name} {peer[0]}:{peer[1]}\n".encode())
        connection.close()
    print(name, pid, flush=True)
listener = listen(8080)
# Processes are told apart by when they started, to a hundredth of a second.
time.sleep(0.05)
start("first", True)
while signal.sigwait(numbers) == signal.SIGUSR1:
    start("second", True)
    start("other", False)
listener.close()
print("closed", flush=True)
signal.pause()
"#;

#[test]
fn an_activator_holds_the_listener_and_its_other_children_are_no_backend() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let mut stage = Stage::without_engine()?;
    let python = tools::find("python3").context("python3 is not installed")?;
    let activator = stage.host.start("activator", stage.host.command(python)?.args(["-c", ACTIVATOR]))?;
    let child = |name: &str| -> Result<Child> {
        let told = || activator.stdout().lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(Child(Pid::from_raw(wait::until(name, told)?).context("a pid")?))
    };
    let first = child("first")?;
    let mut command = stage.daemon.cli()?;
    command.args(["register", "--service", "web", "--ports", "80:8080,81:8081", "--name", "first", "--pid"]);
    let outcome = output(command.arg(first.0.to_string()))?;
    assert!(outcome.status.success(), "{outcome:?}");
    stage.daemon.wait_ready("web", 1)?;
    all_answered_by(&stage, "first")?;
    first.signal(Signal::KILL)?;
    stage.daemon.wait_for("the daemon to follow", |_| {
        stage.daemon.log().contains("held by another process, which is followed").then_some(())
    })?;
    activator.signal(Signal::USR1)?;
    let (second, _other) = (child("second")?, child("other")?);
    all_answered_by(&stage, "second")?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    // Register the running server too. It gets the listener, which shows that the daemon has searched for the holders.
    register(&stage, "second", second.0.as_raw_nonzero().get().cast_unsigned())?;
    stage.daemon.wait_for("the listener to be the server's", |status| {
        (backend(status, "second")?.sockets == 1).then_some(())
    })?;
    let tally = Load::to("127.0.0.1:81".parse()?).count(20).run(stage.host.net())?;
    assert_eq!(tally.refused(), 20, "another process of the activator's is no backend: {tally}");
    all_answered_by(&stage, "second")?;
    stage.daemon.wait_for("the first one to be gone", |status| backend(status, "first").is_none().then_some(()))?;

    second.signal(Signal::KILL)?;
    stage.daemon.wait_for("the activator to be followed again", |status| {
        (stage.daemon.log().matches("which is followed").count() == 2).then(|| backend(status, "second"))?.map(drop)
    })?;
    activator.signal(Signal::USR2)?;
    until_gone(&stage, "web")
}

#[test]
fn an_upgrade_of_nginx_is_followed() -> Result<()> {
    require!(tools::root_and(&["ip", "nginx"]));
    let stage = Stage::without_engine()?;
    let dir = stage.host.dir();
    let (config, pid) = (dir.join("nginx.conf"), dir.join("nginx.pid"));
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {};", dir.join(kind).display()));
    let text = format!(
        "user root; daemon on; worker_processes 2; pid {}; error_log stderr;\nevents {{}}\nhttp {{ access_log off; {}\n\
         server {{ listen 8080; location / {{ return 200 \"nginx $remote_addr:$remote_port\\n\"; }} }} }}\n",
        pid.display(),
        paths.concat()
    );
    fs::write(&config, text)?;
    let nginx = tools::find("nginx").context("nginx is not installed")?;
    let mut command = stage.host.command(&nginx)?;
    let mut started = stage.host.start("nginx", command.arg("-c").arg(&config))?;
    assert!(started.wait(wait::STUCK)?.success(), "{}", started.stderr());
    let read = |path: &std::path::Path| -> Option<i32> { fs::read_to_string(path).ok()?.trim().parse().ok() };
    let old = wait::until("nginx", || read(&pid))?;
    let old = Child(Pid::from_raw(old).context("a pid")?);
    register(&stage, "nginx", old.0.as_raw_nonzero().get().cast_unsigned())?;
    stage.daemon.wait_ready("web", 1)?;
    let load = Load::to("127.0.0.1:80".parse()?).threads(2).pause(Duration::from_millis(1)).start(stage.host.net())?;
    wait::until("clients", || (load.answered() > 50).then_some(()))?;
    // The new binary takes over the listener, then the old one is told to finish.
    old.signal(Signal::USR2)?;
    let oldbin = dir.join("nginx.pid.oldbin");
    let new = wait::until("the new nginx", || read(&oldbin).and_then(|_| read(&pid)))?;
    let new = Child(Pid::from_raw(new).context("a pid")?);
    old.signal(Signal::QUIT)?;
    wait::until("the end of the old nginx", || (!oldbin.exists()).then_some(()))?;
    stage.daemon.wait_for("the daemon to follow", |status| {
        let followed = stage.daemon.log().contains("held by another process, which is followed");
        (followed && backend(status, "nginx")?.state == "ready").then_some(())
    })?;
    let before = load.answered();
    wait::until("more clients", || (load.answered() > before + 50).then_some(()))?;
    let tally = load.stop()?;
    assert!(tally.losses.is_empty(), "{tally}\n{}", stage.daemon.log_tail());
    new.signal(Signal::QUIT)?;
    until_gone(&stage, "web")
}

#[test]
fn a_process_that_leaves_its_cgroup_is_followed() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let other = stage.host.cgroup().join("other");
    fs::create_dir(&other)?;
    let mut server = Exec::new("server", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let load = Load::to("127.0.0.1:80".parse()?).pause(Duration::from_millis(1)).start(stage.host.net())?;
    fs::write(other.join("cgroup.procs"), server.process.pid().to_string())?;
    wait::until("the daemon to notice", || stage.daemon.log().contains("it has left its cgroup").then_some(()))?;
    let before = load.answered();
    wait::until("clients", || (load.answered() > before + 50).then_some(()))?;
    let tally = load.stop()?;
    assert_eq!(tally.answered_by("server"), tally.connections(), "{tally}");
    assert_eq!(backend(&stage.daemon.status()?, "server").context("it is gone")?.state, "ready");

    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    all_answered_by(&stage, "server")?;
    server.process.kill()?;
    until_gone(&stage, "web")?;
    Ok(fs::remove_dir(&other)?)
}

#[test]
fn a_process_that_leaves_its_cgroup_before_it_listens_is_found() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let other = stage.host.cgroup().join("other");
    fs::create_dir(&other)?;
    let server = tools::named_server()?;
    // As a login session does: the server is a child in another cgroup.
    let script = format!(
        "echo $$ >/sys/fs/cgroup/other/cgroup.procs && {} --name server --listen 0.0.0.0:8080; true",
        server.display()
    );
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", "web", "--ports", "80:8080", "--name", "server", "--", "sh", "-c", &script]);
    let mut shell = stage.host.start("server", &mut command)?;
    stage.daemon.wait_ready("web", 1)?;
    all_answered_by(&stage, "server")?;
    // The shell's child ends with the cgroup of the test host, the backend with the shell.
    let pids = fs::read_to_string(other.join("cgroup.procs"))?;
    for pid in pids.lines().filter_map(|pid| pid.parse().ok()).filter_map(Pid::from_raw) {
        if pid.as_raw_nonzero().get().cast_unsigned() != shell.pid() {
            kill_process(pid, Signal::TERM)?;
        }
    }
    shell.wait(wait::STUCK)?;
    until_gone(&stage, "web")?;
    Ok(fs::remove_dir(&other)?)
}

#[test]
fn a_listener_that_only_a_strange_process_holds_is_not_steered() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    let path = stage.host.dir().join("giver");
    let mut server = handover::exec(&stage, "server", "v1", Listener::Opens, &path)?;
    stage.daemon.wait_ready("web", 1)?;
    let mut stranger = handover::start(&stage, "stranger", Listener::Takes, &path)?;
    server.signal(Signal::TERM)?;
    server.wait(wait::STUCK)?;
    let named = format!("process {} (python3", stranger.pid());
    stage.daemon.wait_for("the reason", |status| {
        let backend = backend(status, "server")?;
        let said = backend.warnings().join("\n");
        let is_named = said.contains(&named) && said.contains("register that process");
        (backend.state == "not-steered" && backend.sockets == 0 && is_named).then_some(())
    })?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(20).run(stage.host.net())?;
    assert_eq!(tally.refused(), 20, "clients are not given to a process that is not managed: {tally}");

    // Apply the remedy.
    register(&stage, "registered", stranger.pid())?;
    stage.daemon.wait_state("web", "registered", "ready")?;
    all_answered_by(&stage, "stranger")?;
    stage.daemon.wait_for("what is over to be gone", |status| backend(status, "server").is_none().then_some(()))?;
    stranger.kill()?;
    until_gone(&stage, "web")
}
