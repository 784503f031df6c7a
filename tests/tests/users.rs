//! Versions that run as different users share a port. The kernel alone allows that to sockets of one user only.

use std::{fs, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bpf::{self, Object},
    check,
    daemon::Stage,
    exec::{Exec, socket_names},
    host::Host,
    load::{Load, Tally},
    netns::NetNs,
    process::{Process, output, run},
    require, server,
    status::Backend,
    tools, wait,
};

const ROOT: u32 = 0;
const USER: u32 = 1000;

fn exec<'a>(name: &str, listen: &str, uid: u32) -> Exec<'a> {
    let exec = Exec::new(name, "web", "80:8080", listen);
    if uid == ROOT { exec } else { exec.user(uid) }
}

/// The only listening port other than 8080.
fn hidden_port(net: &NetNs) -> Result<u16> {
    let ports = net.listening_ports()?;
    let others: Vec<u16> = ports.iter().copied().filter(|port| *port != 8080).collect();
    ensure!(ports.contains(&8080) && others.len() == 1, "one on 8080, one on a port of the kernel's choice: {ports:?}");
    Ok(others[0])
}

fn load(net: &NetNs, target: &str, count: u64) -> Result<Tally> {
    Load::to(target.parse()?).threads(2).count(count).run(net)
}

/// The backend whose bind was moved has a note, and the other one has none.
fn only_noted(backends: &[Backend], moved: &str) {
    for backend in backends {
        if backend.name == moved {
            let [said] = &backend.infos()[..] else { panic!("one condition of {moved}: {:?}", backend.infos()) };
            let (user, owner) = if moved == "of-user" { (USER, ROOT) } else { (ROOT, USER) };
            assert!(said.contains(&format!("runs as user {user}, and port 8080 was user {owner}'s")), "{said}");
        } else {
            assert!(backend.infos().is_empty(), "{:?}", backend.infos());
        }
        assert!(backend.warnings().is_empty(), "{:?}", backend.warnings());
    }
}

#[test]
fn two_users_share_in_any_order() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    for order in [[("of-root", ROOT), ("of-user", USER)], [("of-user", USER), ("of-root", ROOT)]] {
        let stage = Stage::without_engine()?;
        let client = stage.host.new_client()?;
        let [(first, _), (second, _)] = order;
        let servers = order
            .iter()
            .map(|(name, uid)| exec(name, "0.0.0.0:8080", *uid).start(&stage))
            .collect::<Result<Vec<_>>>()?;
        stage.daemon.wait_ready("web", 2)?;
        for server in &servers {
            assert_eq!(socket_names(&server.process.stdout()), ["0.0.0.0:8080"], "{}", server.name);
        }
        let clients = Load::to((client.host_ip4, 80).into()).threads(4);
        let label = format!("{first} before {second}");
        let service =
            check::measured_shares(&label, &stage.daemon, &client.ns, &clients, &[("of-root", 1), ("of-user", 1)])?;
        only_noted(&service.backends, second);
        let wide = run(stage.daemon.cli()?.args(["status", "-o", "wide"]))?;
        assert!(wide.contains(&format!("backend {second} of web: it runs as user")), "{wide}");

        let hidden = hidden_port(stage.host.net())?;
        let direct = load(&client.ns, &format!("{}:{hidden}", client.host_ip4), 20)?;
        assert_eq!(direct.refused(), 20, "an undeclared port: {direct}");
        let direct = load(&client.ns, &format!("{}:8080", client.host_ip4), 20)?;
        assert_eq!(direct.answered_by(first), 20, "the port itself is the first one's: {direct}");
    }
    Ok(())
}

#[test]
fn dual_stack_servers_of_two_users() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let stage = Stage::without_engine()?;
    let _root = exec("of-root", "[::]:8080", ROOT).start(&stage)?;
    let user = exec("of-user", "[::]:8080", USER).start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    assert_eq!(socket_names(&user.process.stdout()), ["[::]:8080"]);
    let mut opened = 0;
    for ip in ["127.0.0.1", "[::1]"] {
        let tally = load(stage.host.net(), &format!("{ip}:80"), 2000)?;
        assert!(tally.losses.is_empty() && tally.disguised.is_empty(), "{tally}");
        check::shares_follow(&format!("two users, clients of {ip}"), &tally, &[("of-root", 1), ("of-user", 1)])?;
        opened += tally.answered();
    }
    let service = stage.daemon.wait_idle("web")?;
    assert_eq!(service.opened(), opened);
    only_noted(&service.backends, "of-user");
    let hidden = hidden_port(stage.host.net())?;
    for ip in ["127.0.0.1", "[::1]"] {
        let direct = load(stage.host.net(), &format!("{ip}:{hidden}"), 20)?;
        assert_eq!(direct.refused(), 20, "{ip}: {direct}");
    }
    Ok(())
}

#[test]
fn two_users_that_bind_in_the_same_moment() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let stage = Stage::without_engine()?;
    for _ in 0..10 {
        let both = [("of-root", ROOT), ("of-user", USER)];
        let servers = both.map(|(name, uid)| exec(name, "0.0.0.0:8080", uid).launch(&stage));
        let mut servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
        for server in &mut servers {
            wait::until_ok("both to listen", || server.listening())?;
        }
        stage.daemon.wait_ready("web", 2)?;
        let tally = load(stage.host.net(), "127.0.0.1:80", 100)?;
        assert_eq!(tally.answered_by("of-root") + tally.answered_by("of-user"), 100, "{tally}");
        assert!(tally.answered_by("of-root") > 0 && tally.answered_by("of-user") > 0, "{tally}");
        for server in &mut servers {
            server.process.kill()?;
        }
        stage.daemon.wait_for("both to be gone", |status| status.service("web").is_none().then_some(()))?;
    }
    Ok(())
}

#[test]
fn other_binds_are_unchanged() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let stage = Stage::without_engine()?;
    let _root = exec("of-root", "0.0.0.0:8080", ROOT).start(&stage)?;
    // Undeclared ports are bound as usual, also by a backend whose declared port is moved.
    let user = exec("of-user", "0.0.0.0:8080", USER).server(&["--listen", "0.0.0.0:8090"]).start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    let names = ["0.0.0.0:8080", "0.0.0.0:8090"];
    wait::until("both sockets", || (socket_names(&user.process.stdout()) == names).then_some(()))?;
    let own = load(stage.host.net(), "127.0.0.1:8090", 20)?;
    assert_eq!(own.answered_by("of-user"), 20, "{own}");
    // The bind of an unmanaged process fails because the port is taken, whatever its user.
    for uid in [ROOT, USER] {
        let mut intruder = stage.host.command("setpriv")?;
        let uid = uid.to_string();
        intruder.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "--"]).arg(tools::named_server()?);
        let outcome = output(intruder.args(["--name", "intruder", "--listen", "0.0.0.0:8080"]))?;
        assert!(!outcome.status.success());
        let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert!(said.contains("Address already in use"), "{said}");
    }
    Ok(())
}

#[test]
fn a_server_that_listened_before_has_the_port() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let stage = Stage::without_engine()?;
    let mut command = stage.host.command("setpriv")?;
    let uid = USER.to_string();
    command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "--"]).arg(tools::named_server()?);
    let old = stage.host.start("of-user", command.args(["--name", "of-user", "--listen", "0.0.0.0:8080"]))?;
    wait::until("the server", || old.stdout().contains("listening").then_some(()))?;
    // The daemon does not know that server yet, so this is the first managed bind, and it fails.
    let mut early = exec("of-root", "0.0.0.0:8080", ROOT).launch(&stage)?;
    assert!(!early.process.wait(wait::STUCK)?.success());
    let mut register = stage.daemon.cli()?;
    register.args(["register", "--service", "web", "--ports", "80:8080", "--name", "of-user"]);
    run(register.args(["--pid", &old.pid().to_string()]))?;
    let _root = exec("of-root", "0.0.0.0:8080", ROOT).start(&stage)?;
    let service = stage.daemon.wait_ready("web", 2)?;
    only_noted(&service.backends, "of-root");
    let tally = load(stage.host.net(), "127.0.0.1:80", 1000)?;
    assert!(tally.losses.is_empty(), "{tally}");
    check::shares_follow("one was there before", &tally, &[("of-root", 1), ("of-user", 1)])
}

#[test]
fn a_daemon_that_starts_again_knows_them() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let mut stage = Stage::without_engine()?;
    let _root = exec("of-root", "0.0.0.0:8080", ROOT).start(&stage)?;
    let mut user = exec("of-user", "0.0.0.0:8080", USER).start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    let hidden = hidden_port(stage.host.net())?;
    stage.daemon.kill()?;
    let without = load(stage.host.net(), "127.0.0.1:80", 500)?;
    assert!(without.losses.is_empty() && without.answered_by("of-user") > 0, "{without}");
    stage.daemon.restart()?;
    only_noted(&stage.daemon.wait_ready("web", 2)?.backends, "of-user");
    let direct = load(stage.host.net(), &format!("127.0.0.1:{hidden}"), 20)?;
    assert_eq!(direct.refused(), 20, "{direct}");
    // The daemon notices its end: no client is refused, and nothing of its port is left.
    user.process.kill()?;
    stage.daemon.wait_ready("web", 1)?;
    let after = load(stage.host.net(), "127.0.0.1:80", 200)?;
    assert_eq!(after.answered_by("of-root"), 200, "{after}");
    Ok(())
}

#[test]
fn containers_of_two_users() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let specs = [server::named("of-root", "0.0.0.0:8080"), server::named_as_user("of-user", "0.0.0.0:8080")];
    let specs = specs.map(|spec| spec.service("web", "80:8080"));
    for (order, moved) in [([0, 1], "of-user"), ([1, 0], "of-root")] {
        let mut containers = Vec::new();
        for (already, at) in order.into_iter().enumerate() {
            containers.push(stage.engine().start_container(&specs[at])?);
            stage.daemon.wait_ready("web", already + 1)?;
        }
        let user = containers.iter().find(|container| container.name == "of-user").context("it was started")?;
        let status = fs::read_to_string(format!("/proc/{}/status", user.pid()?))?;
        assert!(status.contains("Uid:\t1000\t1000"), "the container runs as the image says: {status}");
        for container in &containers {
            let names = |log: &str| Some(socket_names(log).join(" ")).filter(|names| !names.is_empty());
            assert_eq!(container.said("its address", names)?, "0.0.0.0:8080", "{}", container.name);
        }
        let tally = Load::to((client.host_ip4, 80).into()).threads(2).count(2000).run(&client.ns)?;
        assert!(tally.losses.is_empty() && tally.disguised.is_empty(), "{tally} {:?}", tally.disguised);
        check::shares_follow("containers of two users", &tally, &[("of-root", 1), ("of-user", 1)])?;
        only_noted(&stage.daemon.wait_idle("web")?.backends, moved);
        let hidden = hidden_port(stage.host.net())?;
        let direct = load(&client.ns, &format!("{}:{hidden}", client.host_ip4), 20)?;
        assert_eq!(direct.refused(), 20, "{direct}");
        drop(containers);
        stage.daemon.wait_for("both to be gone", |status| status.service("web").is_none().then_some(()))?;
    }
    Ok(())
}

#[test]
fn unload_leaves_nothing_of_it() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let mut stage = Stage::with(Arc::new(Host::new()?), None)?;
    let _root = exec("of-root", "0.0.0.0:8080", ROOT).start(&stage)?;
    let user = exec("of-user", "0.0.0.0:8080", USER).start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    let hidden = hidden_port(stage.host.net())?;
    let owned = bpf::of_daemon(&stage.host, stage.daemon.pid())?;
    let of_sockets = |object: &Object| matches!(object, Object::Map { kind: bpf::SK_STORAGE, .. });
    assert!(owned.values().any(of_sockets), "{owned:?}");
    stage.daemon.unload()?;
    assert_eq!(stage.daemon.exit_code()?, Some(0));
    // That includes the storage of a socket that lives on.
    bpf::until_gone(&owned)?;
    let own = load(stage.host.net(), &format!("127.0.0.1:{hidden}"), 5)?;
    assert_eq!(own.answered_by(&user.name), 5, "it was not touched, and listens where the kernel put it: {own}");
    Ok(())
}

/// Accepts one connection and ends. A child that has left the cgroup keeps the connection open. It never sets `SO_REUSEADDR`.
const LEAVES_A_CONNECTION: &str = r#"
import os, signal, socket, sys
listener = socket.socket()
listener.bind(("0.0.0.0", 8080))
listener.listen(16)
print("listening", flush=True)
connection, _ = listener.accept()
if os.fork() == 0:
    listener.close()
    with open(sys.argv[1], "w") as procs:
        procs.write("0")
    print("left", flush=True)
    signal.pause()
"#;

/// Starts a backend of root that leaves an established connection behind when it ends, and waits for its end.
fn leave_a_connection(stage: &Stage) -> Result<(Process, std::net::TcpStream)> {
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", "web", "--ports", "8080", "--name", "of-root", "--"]);
    command.arg(tools::find("python3").context("python3 is not installed")?).args(["-c", LEAVES_A_CONNECTION]);
    let outside = format!("/sys/fs/cgroup/{}/cgroup.procs", pod_steer_tests::cgroup2::PROCESSES);
    let server = stage.host.start("of-root", command.arg(outside))?;
    stage.daemon.wait_ready("web", 1)?;
    let connect = || std::net::TcpStream::connect("127.0.0.1:8080");
    let connected = stage.host.net().run(connect).context("connecting")?;
    wait::until("the child to leave", || server.stdout().contains("left").then_some(()))?;
    stage.daemon.wait_for("its backend to be gone", |status| status.service("web").is_none().then_some(()))?;
    Ok((server, connected))
}

#[test]
fn a_port_is_its_users_as_long_as_connections_use_it() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv", "python3"]));
    let stage = Stage::without_engine()?;
    let net = stage.host.net();
    let (_server, connected) = leave_a_connection(&stage)?;

    // The kernel does not give the port to another user now. The bind is moved, and the backend still gets its clients.
    let _user = Exec::new("of-user", "web", "8080", "0.0.0.0:8080").user(USER).start(&stage)?;
    only_noted(&stage.daemon.wait_ready("web", 1)?.backends, "of-user");
    let tally = load(net, "127.0.0.1:8080", 50)?;
    assert_eq!(tally.answered_by("of-user"), 50, "{tally}");
    drop(connected);
    Ok(())
}

#[test]
fn a_port_stays_its_users_without_a_backend() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv", "python3"]));
    let stage = Stage::without_engine()?;
    let net = stage.host.net();
    let (_server, connected) = leave_a_connection(&stage)?;

    // Two resyncs (`RESYNC_EVERY`) look at the port meanwhile.
    std::thread::sleep(std::time::Duration::from_secs(65));
    let user = Exec::new("of-user", "web", "8080", "0.0.0.0:8080").user(USER).start(&stage)?;
    only_noted(&stage.daemon.wait_ready("web", 1)?.backends, "of-user");
    assert_eq!(load(net, "127.0.0.1:8080", 50)?.answered_by("of-user"), 50);
    drop(user);
    drop(connected);
    Ok(())
}
