//! The guest's scene of two users: the kernel lets sockets of one user share a port, and no others.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Child;

use anyhow::{Context, Result, bail};

use super::{BUSYBOX, NAMED_SERVER};
use crate::demo::stage::{Stage, wait_until};
use crate::say;

/// The clients' port, and the port that both servers bind.
const PORTS: (u16, u16) = (81, 8081);
/// Requests: enough that all reaching one of two servers is no accident.
const REQUESTS: u32 = 100;

/// Starts a server of root and one of user 1000 on one port, and checks which of them answer.
pub fn play(stage: &Stage) -> Result<()> {
    say::heading("servers of two users");
    // busybox needs an entry for the user.
    fs::create_dir_all("/etc").and_then(|()| fs::write("/etc/passwd", "user:x:1000:1000::/:/bin/sh\n"))?;
    let busybox = format!("/{BUSYBOX}");
    let as_user = [&busybox, "start-stop-daemon", "-S", "-n", "nobody", "-c", "1000:1000", "-a"];
    let mut servers = Vec::new();
    for (name, before) in [("of-root", &[][..]), ("of-user", &as_user[..])] {
        servers.push(start(stage, name, before)?);
        wait_until(&format!("{name} answers"), || Ok(ask(PORTS.0).ok().filter(|answer| answer == name)))?;
    }
    let mut answers = BTreeMap::<String, u32>::new();
    for _ in 0..REQUESTS {
        *answers.entry(ask(PORTS.0)?).or_default() += 1;
    }
    for mut server in servers {
        server.kill().and_then(|()| server.wait()).context("cannot end a server")?;
    }
    if answers.len() != 2 {
        bail!("the servers of two users do not share: {answers:?}");
    }
    say::note(&format!("{REQUESTS} requests: {answers:?}"));
    Ok(())
}

fn start(stage: &Stage, name: &str, before: &[&str]) -> Result<Child> {
    let (asked, listens) = PORTS;
    let ports = format!("{asked}:{listens}");
    let (server, listen) = (format!("/{NAMED_SERVER}"), format!("0.0.0.0:{listens}"));
    let mut exec = stage.pod_steer(&["exec", "--service", "users", "--ports", &ports, "--name", name, "--"]);
    exec.args(before).arg(&server);
    if !before.is_empty() {
        exec.arg("--");
    }
    exec.args(["--name", name, "--listen", &listen]).spawn().with_context(|| format!("cannot start {name}"))
}

/// The name of the server that answers on a port.
pub fn ask(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let name = answer.lines().last().and_then(|line| line.split(' ').next());
    name.map(str::to_owned).context("an empty answer")
}
