//! Connects TCP clients to a unix socket: `relay SOCKET` listens on a port of 127.0.0.1 that the kernel chooses, prints it, and copies
//! bytes both ways.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener},
    os::unix::net::UnixStream,
    thread,
};

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let socket = std::env::args_os().nth(1).context("usage: relay SOCKET")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
    println!("{}", listener.local_addr()?.port());
    for client in listener.incoming() {
        let (client, server) = (client?, UnixStream::connect(&socket)?);
        let (from_client, from_server) = (client.try_clone()?, server.try_clone()?);
        thread::spawn(move || {
            copy(from_client, &server);
            let _ = server.shutdown(Shutdown::Write);
        });
        thread::spawn(move || {
            copy(from_server, &client);
            let _ = client.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

/// Copies until one side closes.
fn copy(mut from: impl Read, mut to: impl Write) {
    let _ = io::copy(&mut from, &mut to);
}
