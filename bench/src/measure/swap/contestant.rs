//! What is swapped, and how.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use pod_steer_tests::{container::Container, host::Client, host::Host};

/// Where every contestant's clients come to.
pub const PORT: u16 = 8080;

/// One way to replace a server by its next version. Its host, engine and containers are its own, and end with it.
pub trait Contestant {
    /// Where its clients are.
    fn site(&self) -> &Site;

    /// Replaces the running version by a new one whose server answers with `version`: starts it, moves the clients, stops the
    /// old one. Returns what was replaced; whoever drops it removes it.
    fn replace(&mut self, version: &str) -> Result<Container>;
}

/// A host, and clients outside it.
#[derive(Debug)]
pub struct Site {
    /// Its clients.
    pub client: Client,
    /// The host.
    pub host: Arc<Host>,
}

impl Site {
    /// A new one.
    pub fn new() -> Result<Self> {
        let host = Arc::new(Host::new()?);
        Ok(Self { client: host.new_client()?, host })
    }

    /// Where the clients come to.
    pub fn target(&self) -> SocketAddr {
        SocketAddr::new(self.client.host_ip4, PORT)
    }
}
