//! A connection that is kept alive, one request after the other.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{host::Client, load};

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// A connection that stays open. Each request names the server that answers.
#[derive(Debug)]
pub struct Kept {
    stream: TcpStream,
    target: SocketAddr,
    /// The server that answered first.
    pub server: String,
}

impl Kept {
    /// Connects, and asks once.
    pub fn open(client: &Client, target: SocketAddr) -> Result<Self> {
        let stream = client.ns.run(|| TcpStream::connect(target))?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let mut kept = Self { stream, target, server: String::new() };
        kept.server = kept.ask()?;
        Ok(kept)
    }

    /// The server that answers now.
    pub fn ask(&mut self) -> Result<String> {
        let before = !self.server.is_empty();
        let answer = load::ask(&mut self.stream, self.target, before);
        answer.map(|(name, _)| name).map_err(|loss| anyhow!("{loss:?}"))
    }

    /// The same server answers as before.
    pub fn goes_on(&mut self) -> Result<()> {
        let now = self.ask().with_context(|| format!("a connection of {}", self.server))?;
        ensure!(now == self.server, "{} was answered by {now}", self.server);
        Ok(())
    }
}
