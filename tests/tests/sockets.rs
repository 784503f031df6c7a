//! `pod-steer sockets` agrees with the machine: which process listens, how the tables use its socket, and whose client each connection is.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bridged::{self, Kept},
    daemon::{BPFFS, Stage},
    exec::{Exec, python},
    process::{Process, run},
    pty::Pty,
    refusals::limit_files,
    report, require, tools, wait,
};
use serde_json::{Value, json};

const TARGET: &str = "127.0.0.1:80";
/// Rows of the terminals.
const ROWS: u16 = 60;
/// A server that takes one client and no longer listens.
const ONE_CLIENT: &str = r#"
import socket, time
listener = socket.create_server(("0.0.0.0", 8085))
client, _ = listener.accept()
listener.close()
client.sendall(b"x")
time.sleep(1000)
"#;

fn found(stage: &Stage, flags: &str) -> Result<Value> {
    let mut command = stage.daemon.cli()?;
    command.args(["sockets", "--json", "--bpffs", BPFFS]).args(flags.split_whitespace());
    Ok(serde_json::from_str(&run(&mut command)?)?)
}

/// The only socket of a backend.
fn socket<'a>(found: &'a Value, backend: &str) -> Result<&'a Value> {
    let all = found["sockets"].as_array().context("sockets")?;
    let mut own = all.iter().filter(|socket| socket["backend"] == backend);
    let first = own.next().with_context(|| format!("no socket of {backend} in {found}"))?;
    ensure!(own.next().is_none(), "{backend} has several: {found}");
    Ok(first)
}

/// The connections of each backend, by its name.
fn connections(found: &Value) -> Result<BTreeMap<&str, &Vec<Value>>> {
    let mut by_name = BTreeMap::new();
    for of_backend in found["connections"].as_array().context("connections")? {
        let list = of_backend["list"].as_array().context("list")?;
        let counted = of_backend["active"].as_u64().unwrap_or(0) + of_backend["idle"].as_u64().unwrap_or(0);
        ensure!(counted == list.len() as u64, "{of_backend}");
        by_name.insert(of_backend["backend"].as_str().context("backend")?, list);
    }
    Ok(by_name)
}

/// The clients of each backend, by its name.
fn clients(found: &Value) -> Result<BTreeMap<String, Vec<String>>> {
    let names = |list: &[Value]| -> Vec<String> {
        let mut names: Vec<String> = list.iter().filter_map(|one| one["client"].as_str().map(str::to_owned)).collect();
        names.sort();
        names
    };
    Ok(connections(found)?.into_iter().map(|(backend, list)| (backend.to_owned(), names(list))).collect())
}

/// The clients of each server that answered, as they know themselves.
fn expected(kept: &[Kept]) -> Result<BTreeMap<String, Vec<String>>> {
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for one in kept {
        expected.entry(one.server.clone()).or_default().push(one.client()?.to_string());
    }
    expected.values_mut().for_each(|clients| clients.sort());
    Ok(expected)
}

/// An unmanaged server.
fn unmanaged(stage: &Stage, listen: &str) -> Result<Process> {
    let mut command = stage.host.command(tools::named_server()?)?;
    let server = stage.host.start("unmanaged", command.args(["--name", "unmanaged", "--listen", listen]))?;
    wait::until("the unmanaged server", || server.stdout().contains("listening").then_some(()))?;
    Ok(server)
}

/// The text on a terminal, on which no line may wrap, once it has all of these parts.
fn on_terminal(stage: &Stage, columns: u16, parts: &[String]) -> Result<()> {
    let mut command = stage.daemon.cli()?;
    command.arg("sockets").env("TERM", "xterm-256color");
    let mut terminal = Pty::start(command, columns, ROWS)?;
    ensure!(terminal.ended()?.success(), "{}", terminal.text());
    terminal.wait_for("the whole answer", |text| {
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        parts.iter().all(|part| words.contains(part)).then_some(())
    })?;
    report::figure(&format!("sockets on {columns} columns"), format!("\n{}", terminal.text()));
    let wraps = terminal.see(|screen| (0..ROWS).any(|row| screen.row_wrapped(row)));
    ensure!(!wraps && !terminal.text().contains('…'), "{}", terminal.text());
    Ok(())
}

#[test]
fn sockets_are_shown_with_their_tables_and_processes() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let mut stage = Stage::without_engine()?;
    let exec =
        |name: &str, version: &str| Exec::new(name, "web", "80:8080", "0.0.0.0:8080").flags(&["--version", version]);
    let servers = [
        exec("v1-1", "v1").start(&stage)?,
        exec("v1-user", "v1").user(1000).start(&stage)?,
        exec("v1-drained", "v1").start(&stage)?,
        exec("v2-1", "v2").server(&["--backlog", "9", "--accept-delay-ms", "600000"]).start(&stage)?,
    ];
    let _other = Exec::new("api-1", "api", "81-83,90", "127.0.0.1:81").start(&stage)?;
    stage.daemon.wait_ready("web", 4)?;
    stage.daemon.order_done("shift web v1=1")?;
    stage.daemon.order_done("drain web --backend v1-drained")?;
    let unmanaged = unmanaged(&stage, "0.0.0.0:80")?;

    let roles = [("v1-1", "table"), ("v1-user", "table"), ("v1-drained", "withheld"), ("v2-1", "reserve")];
    let agrees = |all: &Value| -> Result<()> {
        for ((name, role), server) in roles.iter().zip(&servers) {
            let own = socket(all, name)?;
            let pid = server.process.pid();
            ensure!(own["role"] == *role && own["listens"] == "0.0.0.0:8080" && own["forwarded"] == false, "{own}");
            ensure!(own["processes"] == json!([{ "pid": pid, "name": "named-server" }]), "{pid}: {own}");
            ensure!(own["hidden_port"].is_null() == (*name != "v1-user") && own["holders"] == 1, "{own}");
            ensure!(own["uid"] == if *name == "v1-user" { 1000 } else { 0 } && own["clients"] == json!([80]), "{own}");
        }
        ensure!(socket(all, "v2-1")?["backlog"] == 9, "{all}");
        ensure!(socket(all, "api-1")?["clients"] == json!([81]), "{all}");
        let others = all["others"].as_array().context("others")?;
        let [other] = others.as_slice() else { anyhow::bail!("{others:?}") };
        ensure!(other["listens"] == "0.0.0.0:80" && other["services"] == json!(["web"]), "{other}");
        ensure!(other["processes"][0]["pid"] == unmanaged.pid() && other["holders"] == 1, "{other}");
        ensure!(all["unseen"] == json!([]) && all.get("connections").is_none(), "{all}");
        Ok(())
    };
    let all = found(&stage, "")?;
    agrees(&all)?;
    ensure!(socket(&all, "v1-1")?["state"] == "ready" && socket(&all, "v1-drained")?["state"] == "drained", "{all}");
    let why = |name| Ok::<_, anyhow::Error>(socket(&all, name)?["why"].clone());
    ensure!(why("v1-1")?.is_null() && why("v1-user")?.is_null(), "{all}");
    ensure!(why("v1-drained")? == "the backend is drained", "{all}");
    ensure!(why("v2-1")? == "the version has no share of new connections", "{all}");
    ensure!(all["others"][0]["why"] == "its process belongs to none of these services", "{all}");
    let one = found(&stage, "--service web --backend v1-1")?;
    ensure!(one["sockets"].as_array().is_some_and(|sockets| sockets.len() == 1), "{one}");
    for (wrong, said) in [("--service wbe", "did you mean web?"), ("--service api --backend v1-1", "known: api-1")] {
        let refused = stage.daemon.order(&format!("sockets {wrong}"))?.expect(2)?;
        ensure!(refused.stderr.contains(said) && refused.stderr.lines().count() == 1, "{refused:?}");
    }

    let mut shown: Vec<String> =
        servers.iter().map(|server| format!("named-server[{}]", server.process.pid())).collect();
    shown
        .extend(["hidden port", "v1-drained", "web v2 v2-1 0.0.0.0:8080: the version has no share"].map(str::to_owned));
    shown.push(format!("named-server[{}]: its process belongs to none of these services", unmanaged.pid()));
    for columns in [80, 200] {
        on_terminal(&stage, columns, &shown)?;
    }

    // Without a daemon, from the pins. There are more processes than this command may have open files.
    stage.daemon.kill()?;
    let mut command = stage.daemon.cli()?;
    limit_files(command.args(["sockets", "--json", "--bpffs", BPFFS]), 32);
    let all: Value = serde_json::from_str(&run(&mut command)?)?;
    agrees(&all)?;
    ensure!(socket(&all, "v1-1")?["state"].is_null() && socket(&all, "v1-drained")?["why"].is_null(), "{all}");
    let refused = stage.daemon.order(&format!("sockets --bpffs {BPFFS} --service wbe"))?.expect(2)?;
    ensure!(refused.stderr.contains("did you mean web?") && refused.stderr.lines().count() == 1, "{refused:?}");
    let none = stage.daemon.order("sockets --bpffs /sys/fs/bpf/none")?.expect(2)?;
    ensure!(none.stderr.contains("not running") && none.stderr.lines().count() == 1, "{none:?}");
    Ok(())
}

#[test]
fn connections_in_an_accept_queue_and_of_a_closed_listener_are_listed() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    let slow = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").server(&["--accept-delay-ms", "600000"]);
    let _slow = slow.start(&stage)?;
    let _closes = python(&stage, "once", "85:8085", ONE_CLIENT)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.wait_ready("once", 1)?;
    let connect = |target: &str| -> Result<TcpStream> {
        let target: SocketAddr = target.parse()?;
        Ok(stage.host.net().run(|| TcpStream::connect(target))?)
    };
    let waiting = (0..4).map(|_| connect(TARGET)).collect::<Result<Vec<_>>>()?;
    wait::until_ok("the connections to wait", || {
        let all = found(&stage, "--live")?;
        let count = connections(&all)?["web-1"].iter().filter(|one| one["waiting"] == true).count();
        Ok((socket(&all, "web-1")?["waiting"] == 4 && count == 4).then_some(()))
    })?;
    // The server has closed its listener before it answers.
    let mut client = connect("127.0.0.1:85")?;
    client.set_read_timeout(Some(wait::STUCK))?;
    client.read_exact(&mut [0])?;
    wait::until_ok("the closed listener to be forgotten", || {
        let all = found(&stage, "--live --service once")?;
        let is_gone = all["sockets"] == json!([]);
        let expected = BTreeMap::from([("once-1".to_owned(), vec![client.local_addr()?.to_string()])]);
        ensure!(clients(&all)? == expected, "{all}");
        Ok(is_gone.then_some(()))
    })?;
    // Clients that do not wait for the answer take no place from one that does.
    for _ in 0..40 {
        stage.daemon.connect()?.write_all(b"GET /v1/sockets?live=true HTTP/1.1\r\nHost: x\r\n\r\n")?;
    }
    let (status, all) = stage.daemon.api("/v1/sockets?live=true", None)?;
    ensure!(status == 200 && connections(&all)?["web-1"].len() == waiting.len(), "{status}: {all}");
    Ok(())
}

#[test]
fn connections_are_listed_at_the_backend_that_answers_them() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let inside = ["in-1", "in-2"].map(|name| stage.engine().start_container(&bridged::web(name)));
    let _inside = inside.into_iter().collect::<Result<Vec<_>>>()?;
    let outside = ["out-1", "out-2"].map(|name| Exec::new(name, "web", "80:8080", "0.0.0.0:8080").start(&stage));
    let _outside = outside.into_iter().collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 4)?;
    let mut kept = bridged::kept(&client, (client.host_ip4, 80).into(), 4)?;
    let all = found(&stage, "--live")?;
    ensure!(clients(&all)? == expected(&kept)?, "{all}\n{:?}", expected(&kept)?);
    for name in ["in-1", "in-2", "out-1", "out-2"] {
        let own = socket(&all, name)?;
        ensure!(own["forwarded"] == name.starts_with("in") && own["role"] == "table", "{own}");
        ensure!(own["processes"][0]["name"] == "named-server" && own["netns_cookie"].as_u64() > Some(0), "{own}");
    }
    ensure!(all["namespaces"].as_array().is_some_and(|all| all.len() == 3), "the host's and two containers': {all}");

    // The connections of one server have just been used, and the others have been idle for long.
    wait::until_ok("the connections of one server to be the only active ones", || {
        kept.iter_mut().filter(|one| one.server == "in-1").try_for_each(Kept::goes_on)?;
        let all = found(&stage, "--live")?;
        let agrees = |(name, list): (&str, &Vec<Value>)| list.iter().all(|one| one["active"] == (name == "in-1"));
        Ok(connections(&all)?.into_iter().all(agrees).then_some(()))
    })?;

    stage.daemon.kill()?;
    let all = found(&stage, "--live")?;
    let of_here: BTreeMap<_, _> = expected(&kept)?.into_iter().filter(|(name, _)| name.starts_with("out")).collect();
    ensure!(clients(&all)? == of_here, "the containers' are not known: {all}");
    ensure!(all["unseen"][0].as_str().is_some_and(|said| said.starts_with("2 sockets are in other")), "{all}");
    Ok(())
}
