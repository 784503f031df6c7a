//! Backends behind an engine's bridge, to which packets are forwarded, their clients, and the kernel's entries of their connections.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;

use crate::{
    check::kernel_agrees,
    container::Spec,
    daemon::{BPFFS, Daemon},
    host::{Client, Host},
    load::{self, Tally},
    netns::NetNs,
    process::{output, run},
    report, server, wait,
};

/// Above the longest delay of an acknowledgement (200 ms, TCP_DELACK_MAX).
const SETTLED: Duration = Duration::from_secs(1);

/// A server of `web` on the engine's default bridge. Its clients come to port 80.
pub fn web(name: &str) -> Spec {
    web_with(name, &[])
}

/// The same, with further arguments.
pub fn web_with(name: &str, args: &[&str]) -> Spec {
    let spec = server::named_with(name, &[&["--listen", "0.0.0.0:8080"], args].concat());
    forwarded(spec.service("web", "80:8080"))
}

/// A container to which packets are forwarded.
pub fn forwarded(spec: Spec) -> Spec {
    spec.network("bridge").label("pod-steer.via", "forward")
}

/// A connection that stays open. Each answer names the server.
#[derive(Debug)]
pub struct Kept {
    stream: TcpStream,
    target: SocketAddr,
    /// The server of all answers.
    pub server: String,
}

impl Kept {
    /// Opens a connection and sends one request.
    pub fn open(net: &NetNs, target: SocketAddr) -> Result<Self> {
        let stream = net.run(|| TcpStream::connect(target))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut kept = Self { stream, target, server: String::new() };
        kept.server = kept.ask()?;
        Ok(kept)
    }

    /// The client's own address and port.
    pub fn client(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    /// Sends a request, and returns the name of the server that answers.
    pub fn ask(&mut self) -> Result<String> {
        let answered_before = !self.server.is_empty();
        let answer = load::ask(&mut self.stream, self.target, answered_before);
        answer.map(|(name, _)| name).map_err(|loss| anyhow!("{loss:?}"))
    }

    /// Sends another request, which the same server must answer.
    pub fn goes_on(&mut self) -> Result<()> {
        let now = self.ask().with_context(|| format!("a connection of {}", self.server))?;
        ensure!(now == self.server, "{} was answered by {now}", self.server);
        Ok(())
    }
}

/// Opens eight connections for each server, and more until each server has some of them.
pub fn kept(client: &Client, target: SocketAddr, servers: usize) -> Result<Vec<Kept>> {
    let (mut all, mut names) = (Vec::new(), BTreeSet::new());
    while all.len() < 8 * servers || names.len() < servers && all.len() < 32 * servers {
        let kept = Kept::open(&client.ns, target)?;
        names.insert(kept.server.clone());
        all.push(kept);
    }
    ensure!(names.len() == servers, "{names:?}");
    Ok(all)
}

/// Waits until all connections have ended. None may have been lost, and the kernel's counts and the clients' must be equal.
pub fn counts_agree(label: &str, daemon: &Daemon, tally: &Tally) -> Result<()> {
    let service = daemon.wait_idle("web")?;
    let (steered, opened) = (service.by_name(|backend| backend.steered), service.by_name(|backend| backend.opened));
    let clients = &tally.by_name;
    report::figure(
        label,
        format!("steered {steered:?}, opened {opened:?} by the kernel, answered {clients:?} by the clients"),
    );
    kernel_agrees(&service, tally)
}

/// Counts these connections as answered ones.
pub fn add_kept(tally: &mut Tally, kept: &[Kept]) {
    for one in kept {
        *tally.by_name.entry(one.server.clone()).or_default() += 1;
    }
}

/// Number of entries of a map of forwarding: `FLOWS` or `PENDING`.
pub fn entries(host: &Host, map: &str) -> Result<usize> {
    let dump = bpftool(host, "dump", map)?;
    Ok(dump.as_array().with_context(|| format!("bpftool lists no entries of {map}: {dump}"))?.len())
}

/// Removes every entry of all connections, as an eviction does, or a new map. An acknowledgement that is still under way would find its
/// connection again: those have come first.
pub fn forget(host: &Host) -> Result<()> {
    thread::sleep(SETTLED);
    wait::until_ok("all entries to be gone", || {
        remove_entries(host)?;
        Ok((entries(host, "FLOWS")? == 0).then_some(()))
    })
}

fn remove_entries(host: &Host) -> Result<()> {
    let commands = host.dir().join("entries");
    for map in ["FLOWS", "PENDING"] {
        let dump = bpftool(host, "dump", map)?;
        let mut lines = String::new();
        for entry in dump.as_array().context("no entries")? {
            let key = entry["key"].as_array().context("no key")?;
            let key: Vec<&str> = key.iter().filter_map(Value::as_str).collect();
            writeln!(lines, "map delete pinned {} key {}", pin(map), key.join(" "))?;
        }
        fs::write(&commands, lines)?;
        // It ends at one that was evicted meanwhile.
        output(host.command("bpftool")?.args(["batch", "file"]).arg(&commands))?;
    }
    Ok(())
}

fn pin(map: &str) -> String {
    format!("{BPFFS}/forward/{map}")
}

/// The size of such a map.
pub fn max_entries(host: &Host, map: &str) -> Result<u64> {
    let shown = bpftool(host, "show", map)?;
    shown["max_entries"].as_u64().with_context(|| format!("bpftool shows no size of {map}: {shown}"))
}

fn bpftool(host: &Host, command: &str, map: &str) -> Result<Value> {
    let printed = run(host.command("bpftool")?.args(["--json", "map", command, "pinned", &pin(map)]))?;
    serde_json::from_str(&printed).with_context(|| format!("bpftool map {command} {map}: {printed}"))
}
