//! The guest's scene of a greedy backend: a backend that opens and closes listeners without end is not steered and gets a condition,
//! and another service serves beside it.

use std::convert::Infallible;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{NAMED_SERVER, users};
use crate::cmd::output;
use crate::demo::stage::{Stage, wait_until};
use crate::say;

/// The clients' port and the server's port, of the greedy backend and of the one beside it.
const GREEDY: (u16, u16) = (82, 8082);
const BESIDE: (u16, u16) = (83, 8083);
/// Where the greedy backend writes how many listeners it has opened in each second, a line each.
const OPENED: &str = "/tmp/greedy-opened";
/// The listeners that a backend may open in a second, and those at once before that (`LISTENS_PER_S`, `LISTENS_BURST`).
const MAY_OPEN: (u32, u32) = (512, 2048);
/// An emulated processor may be too slow for a greedy backend. It is watched for so long.
const WATCHED: Duration = Duration::from_secs(20);

/// The greedy backend.
pub fn open_and_close(port: u16) -> Result<Infallible> {
    let mut seconds = String::new();
    loop {
        let (start, mut opened) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(1) {
            drop(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("the greedy backend cannot listen")?);
            opened += 1;
        }
        seconds += &format!("{opened}\n");
        fs::write(OPENED, &seconds)?;
    }
}

/// Starts both.
pub fn play(stage: &Stage) -> Result<()> {
    say::heading("a backend that opens listeners without end");
    let _ = fs::remove_file(OPENED);
    let looping = ["/init", "kernels-guest", "--open-and-close", &GREEDY.1.to_string()];
    let mut servers = vec![start(stage, "greedy", GREEDY, &looping)?];
    let start_of_watch = Instant::now();
    let told = wait_until("the greedy backend is told", || {
        let status = output(&mut stage.pod_steer(&["status", "-o", "json"]))?;
        let told = status.lines().find(|line| line.contains("faster than 512 a second"));
        let slow = || (start_of_watch.elapsed() > WATCHED).then(too_slow).flatten();
        Ok(told.map(|line| line.trim().to_owned()).or_else(slow))
    })?;
    say::note(&told);
    let listen = format!("0.0.0.0:{}", BESIDE.1);
    let beside = [&format!("/{NAMED_SERVER}"), "--name", "beside", "--listen", &listen];
    servers.push(start(stage, "beside", BESIDE, &beside)?);
    let answers = || Ok(users::ask(BESIDE.0).ok().filter(|answer| answer == "beside"));
    wait_until("a service beside it answers", answers)?;
    for mut server in servers {
        server.kill().and_then(|()| server.wait()).context("cannot end a server")?;
    }
    Ok(())
}

/// What is said of a greedy backend that has never been above the limit: its listeners were counted, and are too few for one.
fn too_slow() -> Option<String> {
    let seconds = fs::read_to_string(OPENED).ok()?;
    let opened: Vec<u32> = seconds.lines().filter_map(|line| line.parse().ok()).collect();
    let mut above = 0;
    for opened in &opened {
        above = (above + opened).saturating_sub(MAY_OPEN.0);
        if above >= MAY_OPEN.1 {
            return None;
        }
    }
    let (fewest, most) = (opened.iter().min()?, opened.iter().max()?);
    Some(format!(
        "NOT SHOWN: this emulated processor opens {fewest} to {most} listeners a second, and a backend may open {} a second and {} \
         at once before that",
        MAY_OPEN.0, MAY_OPEN.1
    ))
}

fn start(stage: &Stage, service: &str, (asked, listens): (u16, u16), server: &[&str]) -> Result<Child> {
    let ports = format!("{asked}:{listens}");
    let mut exec = stage.pod_steer(&["exec", "--service", service, "--ports", &ports, "--name", service, "--"]);
    exec.args(server).spawn().with_context(|| format!("cannot start {service}"))
}
