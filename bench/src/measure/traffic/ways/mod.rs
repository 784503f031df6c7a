//! The contestants: every way from a client to two workers of nginx. Each has a function that starts it and returns its clients' address
//! and its processes beyond the servers.

mod bridge;
mod docker;
mod host;
mod nat;
mod pod;
mod proxies;
mod steered;

use std::{net::SocketAddr, rc::Rc};

use anyhow::Result;
use pod_steer_tests::{container::Container, process::Process};

use super::{
    lab::{Lab, Side},
    servers::{Pair, Server},
};

/// A contestant.
pub struct Way {
    /// Its name.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// The base of its ratios.
    pub base: Option<&'static str>,
    /// A remark for reading its figures.
    pub note: Option<&'static str>,
    /// Sets it up.
    pub start: fn(&Lab) -> Result<Running>,
}

impl Way {
    /// Whether it is one of pod-steer's own.
    pub fn is_own(&self) -> bool {
        self.name.starts_with("pod-steer")
    }
}

/// A contestant that is set up.
pub struct Running {
    /// Where the client is.
    pub from: Side,
    /// For HTTP.
    pub http: SocketAddr,
    /// For HTTP over TLS, or why there is none.
    pub tls: Result<SocketAddr, &'static str>,
    /// The servers.
    pub servers: Servers,
    /// Its processes beyond the servers.
    pub own: Vec<u32>,
    /// The service of pod-steer that all of its connections belong to, if it is steered.
    pub service: Option<&'static str>,
    /// Open files for each connection, of the process that has most.
    pub files_each: u64,
    /// Resources that end with it.
    _kept: (Vec<Process>, Vec<Container>),
}

impl Running {
    /// Servers that the client reaches at an address.
    fn new(http: SocketAddr, tls: SocketAddr, servers: Servers) -> Self {
        let (from, own, _kept) = (Side::Client, vec![], (vec![], vec![]));
        Self { from, http, tls: Ok(tls), servers, own, service: None, files_each: 1, _kept }
    }

    /// Further processes that take part.
    fn with(self, own: Vec<u32>) -> Self {
        Self { own, ..self }
    }

    /// Steered by the daemon, as this service.
    fn steered(self, lab: &Lab, service: &'static str) -> Self {
        Self { service: Some(service), ..self.with(vec![lab.daemon_pid()]) }
    }

    /// More open files for each connection than one.
    fn files(self, files_each: u64) -> Self {
        Self { files_each, ..self }
    }

    /// Resources that end with it.
    fn keep(self, processes: Vec<Process>, containers: Vec<Container>) -> Self {
        Self { _kept: (processes, containers), ..self }
    }

    /// A client on the host.
    fn local(self) -> Self {
        Self { from: Side::Host, ..self }
    }
}

/// Servers of its own, or those that several share.
pub enum Servers {
    /// Its own.
    Own(Vec<Server>),
    /// A pair.
    Shared(Rc<Pair>),
}

impl Servers {
    /// Each of them.
    pub fn all(&self) -> &[Server] {
        match self {
            Self::Own(servers) => servers,
            Self::Shared(pair) => &pair.servers,
        }
    }

    /// All of their processes.
    pub fn pids(&self) -> Vec<u32> {
        self.all().iter().flat_map(|server| server.pids.clone()).collect()
    }
}

/// All of them, in the order in which people should read them.
pub const WAYS: &[Way] = &[
    host::DIRECT,
    host::REUSEPORT,
    steered::HOST,
    steered::ONE,
    steered::PORT,
    steered::JUDGED,
    proxies::HAPROXY,
    proxies::NGINX_STREAM,
    proxies::NGINX_HTTP,
    pod::DIRECT,
    pod::STEERED,
    bridge::FORWARDED,
    bridge::PEER,
    nat::DNAT,
    nat::IPVS,
    docker::PUBLISHED,
    host::LOCAL,
    docker::PROXY,
];

/// Their names.
pub const NAMES: &[&str] = &{
    let mut names = [""; WAYS.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = WAYS[index].name;
        index += 1;
    }
    names
};
