//! A client that sends one request, for health checks in containers without any other program.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Whether `GET /` is answered with 200; else the error names the answer.
pub fn ask(address: &str) -> Result<(), String> {
    let address: SocketAddr = address.parse().map_err(|error| format!("{address}: {error}"))?;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(|error| error.to_string())?;
    let answer = (|| {
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: check\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    })();
    let answer = answer.map_err(|error: std::io::Error| error.to_string())?;
    match answer.lines().next() {
        Some(status) if status.contains(" 200 ") => Ok(()),
        status => Err(format!("answered {}", status.unwrap_or_default())),
    }
}
