//! The host of all contestants: a Docker engine with its default configuration, pod-steer's daemon, and a client beside it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use pod_steer_tests::{
    daemon::BPFFS,
    engine::Engine,
    host::{Client, Host},
    netns::NetNs,
    process::{Process, output, run},
    status::Status,
    tools, wait,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::servers::{SharedPair, Site};

/// A proxy has two descriptors for each of 10,000 idle connections, and all processes here inherit the limit.
const FILES_MAX: u64 = 131_072;
/// The daemon's runtime directory: on a tmpfs, as on a machine.
const RUNTIME_DIR: &str = "/run/pod-steer";

/// The resources that the contestants share. The fields are dropped in this order.
pub struct Lab {
    daemon: Process,
    /// The two servers on Docker's bridge.
    pub bridge_pair: SharedPair,
    /// The two servers on the host's network.
    pub host_pair: SharedPair,
    /// The engine.
    pub engine: Engine,
    /// The files of the servers.
    pub site: Site,
    /// The namespace of most clients.
    pub client: Client,
    /// The host.
    pub host: Host,
    /// The limit of open files here.
    pub files_max: u64,
}

/// The place of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// In a network namespace of its own, behind a pair of interfaces.
    Client,
    /// On the host itself.
    Host,
}

impl Lab {
    /// Sets up everything but the contestants.
    pub fn new() -> Result<Self> {
        let files_max = raise_file_limit()?;
        let host = Host::new()?;
        let client = host.new_client()?;
        for ns in [host.net(), &client.ns] {
            // A proxy's connections to its servers have the same source address as the clients.
            ns.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
            ns.sysctl("net.ipv4.tcp_max_syn_backlog", "8192")?;
        }
        let engine = Engine::start_publishing(&host)?;
        // Otherwise a minute of new connections fills the table, at the expense of the next contestant. Without connection
        // tracking there is no such setting, and no such table.
        if let Err(error) = host.net().sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", "1") {
            eprintln!("connections that have ended are tracked as long as by default: {error:#}");
        }
        let site = Site::new(&host)?;
        let daemon = start_daemon(&host, &engine)?;
        let (bridge_pair, host_pair) = (SharedPair::new(), SharedPair::new());
        Ok(Self { daemon, bridge_pair, host_pair, engine, site, client, host, files_max })
    }

    /// The host's address as the client sees it.
    pub fn addr(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.client.host_ip4, port)
    }

    /// An address on the host itself.
    pub fn local(port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
    }

    /// The namespace of a client.
    pub fn ns(&self, from: Side) -> &NetNs {
        match from {
            Side::Client => &self.client.ns,
            Side::Host => self.host.net(),
        }
    }

    /// A command that ends with the host, started where a client is.
    pub fn command(&self, from: Side, program: &str) -> Result<Command> {
        self.host.command_in(self.ns(from), program)
    }

    /// Runs a program on the host, with arguments separated by spaces.
    pub fn run(&self, command: &str) -> Result<String> {
        let mut words = command.split(' ');
        run(self.host.command(words.next().context("an empty command")?)?.args(words))
    }

    /// Lets the client reach the addresses on Docker's bridge, which Docker allows for published ports only. Must be called after the
    /// containers were created, or Docker's rules for them come first.
    pub fn allow_forwarding(&self) -> Result<()> {
        self.run("iptables -t raw -I PREROUTING -i client0 -j ACCEPT")?;
        self.run("iptables -I FORWARD -i client0 -o docker0 -j ACCEPT").map(drop)
    }

    /// The daemon's pid.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Waits until so many backends of a service are ready.
    pub fn wait_ready(&self, service: &str, backends: usize) -> Result<()> {
        wait::until_ok(&format!("{backends} ready backends of {service}"), || {
            let ready = self.status()?.service(service).map(|service| service.ready());
            Ok(ready.filter(|ready| *ready == backends).map(drop))
        })
        .with_context(|| self.daemon.stderr())
    }

    /// Gives an order to the daemon, with arguments separated by spaces.
    pub fn order(&self, args: &str) -> Result<()> {
        run(cli(&self.host)?.args(args.split(' '))).map(drop)
    }

    /// How many times the kernel program has chosen a backend of a service.
    pub fn steered(&self, service: &str) -> Result<u64> {
        let status = self.status()?;
        let service = status.service(service).with_context(|| format!("there is no service {service} any more"))?;
        Ok(service.backends.iter().map(|backend| backend.steered).sum())
    }

    fn status(&self) -> Result<Status> {
        Ok(serde_json::from_str(&run(cli(&self.host)?.args(["status", "-o", "json"]))?)?)
    }
}

/// Raises the limit of open files for all processes that are started from here on, as far as possible; returns it.
fn raise_file_limit() -> Result<u64> {
    let old = getrlimit(Resource::Nofile);
    let hard = old.maximum.unwrap_or(FILES_MAX);
    // Exceeding the hard limit needs CAP_SYS_RESOURCE, which not every root has.
    let wish = Rlimit { current: Some(FILES_MAX), maximum: Some(hard.max(FILES_MAX)) };
    if setrlimit(Resource::Nofile, wish).is_ok() {
        return Ok(FILES_MAX);
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(hard), ..old })
        .with_context(|| format!("raising the limit of open files to {hard}"))?;
    Ok(hard)
}

/// As in production: the debug log of the tests' fixture would cost CPU time here.
fn start_daemon(host: &Host, engine: &Engine) -> Result<Process> {
    let mut command = host.command(tools::pod_steer()?)?;
    command.args(["run", "--bpffs", BPFFS, "--engine", &engine.url()]);
    command.args(["--runtime-dir", RUNTIME_DIR, "--state-dir"]).arg(host.dir().join("state"));
    let mut daemon = host.start("pod-steer", &mut command)?;
    wait::until_ok("the daemon to be ready", || {
        if daemon.has_ended()? {
            bail!("the daemon has ended: {}", daemon.stderr());
        }
        Ok(output(cli(host)?.arg("status"))?.status.success().then_some(()))
    })?;
    Ok(daemon)
}

fn cli(host: &Host) -> Result<Command> {
    let mut command = host.command(tools::pod_steer()?)?;
    command.env("POD_STEER_SOCKET", Path::new(RUNTIME_DIR).join("api.sock")).env("NO_COLOR", "1");
    Ok(command)
}
