//! A reverse proxy whose configuration names the server. To swap, the new server is started beside the old one, the configuration is
//! rewritten and reloaded, and the old server is stopped when no process of the proxy uses it any more.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use pod_steer_tests::{container::Container, engine::Engine, host::Host, process::Process, server, tools, wait};

use super::contestant::{Contestant, PORT, Site};

/// The servers listen on these in turn. Only the proxy connects to them.
const SERVER_PORTS: [u16; 2] = [9001, 9002];

/// The differences between proxies.
pub trait Program {
    /// The program.
    fn name(&self) -> &'static str;

    /// A configuration with the port to listen on and the server behind it. Files go to `dir`.
    fn config(&self, dir: &Path, server: SocketAddr) -> String;

    /// Arguments with which it stays in the foreground.
    fn args(&self, config: &Path) -> Vec<OsString>;

    /// Makes the master process reload the configuration, as Debian's service does. Need not wait.
    fn reload(&self, program: &Path, host: &Host, master: &Process, config: &Path) -> Result<()>;
}

/// A proxy, and the server behind it.
#[derive(Debug)]
pub struct Proxy<P> {
    kind: P,
    program: PathBuf,
    config: PathBuf,
    master: Process,
    current: Container,
    swaps: usize,
    engine: Engine,
    site: Site,
}

impl<P: Program> Proxy<P> {
    /// The proxy, and the first version.
    pub fn start(kind: P, version: &str) -> Result<Self> {
        let site = Site::new()?;
        let program = tools::find(kind.name()).with_context(|| format!("{} is not installed", kind.name()))?;
        let engine = Engine::start(&site.host)?;
        let (current, server) = run(&engine, &site, version, 0)?;
        let dir = site.host.dir();
        let config = dir.join(format!("{}.conf", kind.name()));
        fs::write(&config, kind.config(dir, server))?;
        let mut command = site.host.command(&program)?;
        let master = site.host.start(kind.name(), command.args(kind.args(&config)))?;
        wait_for_listener(&site, SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))).with_context(|| master.stderr())?;
        Ok(Self { kind, program, config, master, current, swaps: 0, engine, site })
    }
}

impl<P: Program> Contestant for Proxy<P> {
    fn site(&self) -> &Site {
        &self.site
    }

    fn replace(&mut self, version: &str) -> Result<Container> {
        self.swaps += 1;
        let (new, server) = run(&self.engine, &self.site, version, self.swaps)?;
        let host = &self.site.host;
        let before = children(self.master.pid())?;
        fs::write(&self.config, self.kind.config(host.dir(), server))?;
        self.kind.reload(&self.program, host, &self.master, &self.config)?;
        wait::until_ok(&format!("the old workers of {} to end", self.kind.name()), || {
            let now = children(self.master.pid())?;
            Ok((!now.is_empty() && now.is_disjoint(&before)).then_some(()))
        })
        .with_context(|| self.master.stderr())?;
        self.current.stop()?;
        Ok(std::mem::replace(&mut self.current, new))
    }
}

/// Starts a version and waits until it listens.
fn run(engine: &Engine, site: &Site, version: &str, swaps: usize) -> Result<(Container, SocketAddr)> {
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, SERVER_PORTS[swaps % SERVER_PORTS.len()]));
    let spec = server::named(version, &server.to_string());
    engine.import(spec.image())?;
    let container = engine.docker().run_detached(&spec)?;
    wait_for_listener(site, server)?;
    Ok((container, server))
}

fn wait_for_listener(site: &Site, address: SocketAddr) -> Result<()> {
    let connect = || site.host.net().run(|| TcpStream::connect(address));
    wait::until(&format!("a listener on {address}"), || connect().ok().map(drop))
}

/// The running children of a process.
fn children(pid: u32) -> Result<BTreeSet<u32>> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    text.split_whitespace().map(|pid| pid.parse().with_context(|| format!("a number in {path}"))).collect()
}
