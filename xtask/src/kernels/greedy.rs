//! The guest's scene of a greedy backend: a backend that opens and closes listeners without end is not steered and gets a condition,
//! and another service serves beside it.

use std::convert::Infallible;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Child;

use anyhow::{Context, Result};

use super::{NAMED_SERVER, users};
use crate::cmd::output;
use crate::demo::stage::{Stage, wait_until};
use crate::say;

/// The clients' port and the server's port, of the greedy backend and of the one beside it.
const GREEDY: (u16, u16) = (82, 8082);
const BESIDE: (u16, u16) = (83, 8083);

/// The greedy backend.
pub fn open_and_close(port: u16) -> Result<Infallible> {
    loop {
        drop(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("the greedy backend cannot listen")?);
    }
}

/// Starts both.
pub fn play(stage: &Stage) -> Result<()> {
    say::heading("a backend that opens listeners without end");
    let looping = ["/init", "kernels-guest", "--open-and-close", &GREEDY.1.to_string()];
    let mut servers = vec![start(stage, "greedy", GREEDY, &looping)?];
    let told = wait_until("the greedy backend is told", || {
        let status = output(&mut stage.pod_steer(&["status", "-o", "json"]))?;
        Ok(status.lines().find(|line| line.contains("faster than 512 a second")).map(|line| line.trim().to_owned()))
    })?;
    say::note(&told);
    let listen = format!("0.0.0.0:{}", BESIDE.1);
    servers.push(start(
        stage,
        "beside",
        BESIDE,
        &[&format!("/{NAMED_SERVER}"), "--name", "beside", "--listen", &listen],
    )?);
    let answers = || Ok(users::ask(BESIDE.0).ok().filter(|answer| answer == "beside"));
    wait_until("a service beside it answers", answers)?;
    for mut server in servers {
        server.kill().and_then(|()| server.wait()).context("cannot end a server")?;
    }
    Ok(())
}

fn start(stage: &Stage, service: &str, (asked, listens): (u16, u16), server: &[&str]) -> Result<Child> {
    let ports = format!("{asked}:{listens}");
    let mut exec = stage.pod_steer(&["exec", "--service", service, "--ports", &ports, "--name", service, "--"]);
    exec.args(server).spawn().with_context(|| format!("cannot start {service}"))
}
