//! HTTP requests over TCP in a network namespace, each on a connection of its own, with every header as the test gives it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result, bail};

use crate::{netns::NetNs, wait};

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a str,
    /// The path, with the query.
    pub path: &'a str,
    /// Headers, of which `Host` is one.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body; empty for none.
    pub body: &'a str,
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: String,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// Sends a request and reads the head of the answer; the rest can be read.
pub fn begin(net: &NetNs, to: SocketAddr, request: Request) -> Result<(Answer, BufReader<TcpStream>)> {
    let mut stream = net.run(|| TcpStream::connect(to)).with_context(|| format!("connecting to {to}"))?;
    stream.set_read_timeout(Some(wait::STUCK))?;
    let Request { method, path, headers, body } = request;
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let text = format!(
        "{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut line = || -> Result<String> {
        let mut line = String::new();
        reader.read_line(&mut line).with_context(|| format!("reading the answer to {method} {path}"))?;
        Ok(line.trim_end().to_owned())
    };
    let first = line()?;
    let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
    let mut answer = Answer { status: status.with_context(|| format!("no status in {first:?}"))?, ..Answer::default() };
    loop {
        let line = line()?;
        match line.split_once(':') {
            Some((name, value)) => answer.headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None if line.is_empty() => return Ok((answer, reader)),
            None => bail!("a bad header: {line:?}"),
        }
    }
}

/// Sends a request and reads the answer. Its length must be given by a header, or by the end of the connection.
pub fn ask(net: &NetNs, to: SocketAddr, request: Request) -> Result<Answer> {
    let (mut answer, mut reader) = begin(net, to, request)?;
    match answer.header("content-length").map(str::parse::<u64>) {
        Some(length) => reader.take(length?).read_to_string(&mut answer.body)?,
        None => reader.read_to_string(&mut answer.body)?,
    };
    Ok(answer)
}
