//! Backends behind an engine's bridge, to which packets are forwarded, their clients, and the kernel's entries of their connections.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpStream},
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

/// Opens eight connections for each server; each server must have some of them.
pub fn kept(client: &Client, target: SocketAddr, servers: usize) -> Result<Vec<Kept>> {
    let all = (0..8 * servers).map(|_| Kept::open(&client.ns, target)).collect::<Result<Vec<_>>>()?;
    let names: BTreeSet<&str> = all.iter().map(|kept| kept.server.as_str()).collect();
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

/// Removes every entry of all connections, as an eviction does, or a new map. A delayed acknowledgement may bring one back at once.
pub fn forget(host: &Host) -> Result<()> {
    wait::until_ok("all entries to be gone", || {
        remove_entries(host)?;
        Ok((entries(host, "FLOWS")? == 0).then_some(()))
    })
}

fn remove_entries(host: &Host) -> Result<()> {
    for map in ["FLOWS", "PENDING"] {
        let dump = bpftool(host, "dump", map)?;
        for entry in dump.as_array().context("no entries")? {
            let key = entry["key"].as_array().context("no key")?;
            let key = key.iter().map(|byte| byte.as_str().unwrap_or_default().trim_start_matches("0x"));
            let pin = format!("{BPFFS}/forward/{map}");
            let mut delete = host.command("bpftool")?;
            // One that is gone already was evicted.
            output(delete.args(["map", "delete", "pinned", &pin, "key", "hex"]).args(key))?;
        }
    }
    Ok(())
}

/// The size of such a map.
pub fn max_entries(host: &Host, map: &str) -> Result<u64> {
    let shown = bpftool(host, "show", map)?;
    shown["max_entries"].as_u64().with_context(|| format!("bpftool shows no size of {map}: {shown}"))
}

fn bpftool(host: &Host, command: &str, map: &str) -> Result<Value> {
    let pin = format!("{BPFFS}/forward/{map}");
    let printed = run(host.command("bpftool")?.args(["--json", "map", command, "pinned", &pin]))?;
    serde_json::from_str(&printed).with_context(|| format!("bpftool map {command} {map}: {printed}"))
}
