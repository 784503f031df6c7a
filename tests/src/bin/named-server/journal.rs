//! The record of accepted connections, which outlives the process.
//!
//! A test that kills a server must know which connections it had accepted: those are lost with it, and another server must serve all
//! others. Before each `accept` the server writes `?`, after it the peer's address and a newline. A file that ends in `?` belongs to a
//! server that died between the two, so the fate of one connection is unknown.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
};

pub struct Journal(File);

impl Journal {
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().create(true).append(true).open(path).map(Self)
    }

    pub fn about_to_accept(&self) -> io::Result<()> {
        (&self.0).write_all(b"?")
    }

    pub fn accepted(&self, peer: SocketAddr) -> io::Result<()> {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        // Formatted first: one write, so that a kill leaves a whole record or none.
        (&self.0).write_all(format!("{peer}\n").as_bytes())
    }

    /// The `accept` returned no connection.
    pub fn nothing(&self) -> io::Result<()> {
        (&self.0).write_all(b"-\n")
    }
}
