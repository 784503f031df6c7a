//! A way to replace a server, and its surroundings.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use pod_steer_tests::{container::Container, host::Client, host::Host};

/// The port of every contestant's clients.
pub const PORT: u16 = 8080;

/// One way to replace a server by its next version. Its host, engine and containers are its own, and end with it.
pub trait Contestant {
    /// The namespace of its clients.
    fn site(&self) -> &Site;

    /// Replaces the running version by a new one whose server answers with `version`: starts it, moves the clients, stops the old one.
    /// Returns the replaced one, which is removed when it is dropped.
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

    /// The address of the clients.
    pub fn target(&self) -> SocketAddr {
        SocketAddr::new(self.client.host_ip4, PORT)
    }
}
