//! One connection from `connect` to its end.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt},
};

/// How a connection ended. Exactly one of these.
#[derive(Clone, Debug)]
pub enum End {
    /// At least one request was answered, and none was lost.
    Answered(Answer),
    /// One was lost, and with it the connection; what had been answered before.
    Lost(Loss, Option<Answer>),
}

/// Who answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The server's name.
    pub name: String,
    /// The client's address as the server saw it, if the server reports it.
    pub peer: Option<SocketAddr>,
    /// The client's own address.
    pub local: SocketAddr,
    /// Answered requests.
    pub requests: u32,
}

/// Why there was no answer.
#[derive(Clone, Debug)]
pub enum Loss {
    /// A reset answered `connect`: no socket listened.
    Refused,
    /// An ICMP message answered `connect`: a firewall rejects, or there is no route.
    Rejected,
    /// Connected, then closed or reset before the first byte of the answer.
    ResetBefore(SocketAddr),
    /// Closed or reset within an answer, or before one on a kept-alive connection.
    ResetAfter(SocketAddr),
    /// No connection in time.
    ConnectTimedOut,
    /// No answer in time.
    AnswerTimedOut(SocketAddr),
    /// The answer is not one that a test server gives.
    Garbled(SocketAddr, String),
    /// An error of the client itself.
    Failed(String),
}

impl Loss {
    /// The client's own address, where there was a connection.
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::ResetBefore(local)
            | Self::ResetAfter(local)
            | Self::AnswerTimedOut(local)
            | Self::Garbled(local, _) => Some(*local),
            Self::Refused | Self::Rejected | Self::ConnectTimedOut | Self::Failed(_) => None,
        }
    }
}

/// Opens a connection from the calling thread's namespace, sends `requests` requests one after the other, and closes.
pub fn attempt(target: SocketAddr, requests: u32, timeout: Duration) -> End {
    attempt_from(None, target, requests, timeout)
}

/// As [`attempt`], from a given address of the client.
pub fn attempt_from(source: Option<IpAddr>, target: SocketAddr, requests: u32, timeout: Duration) -> End {
    end_of(source.map(|source| SocketAddr::new(source, 0)), target, requests, timeout)
}

/// As [`attempt`] with one request, from a given address and port of the client.
pub fn attempt_by(source: SocketAddr, target: SocketAddr, timeout: Duration) -> End {
    end_of(Some(source), target, 1, timeout)
}

fn end_of(source: Option<SocketAddr>, target: SocketAddr, requests: u32, timeout: Duration) -> End {
    let mut answer = None;
    match try_attempt(source, target, requests, timeout, &mut answer) {
        Ok(()) => answer.map_or_else(|| End::Lost(Loss::Failed("a load of no requests".into()), None), End::Answered),
        Err(loss) => End::Lost(loss, answer),
    }
}

fn try_attempt(
    source: Option<SocketAddr>,
    target: SocketAddr,
    requests: u32,
    timeout: Duration,
    answer: &mut Option<Answer>,
) -> Result<(), Loss> {
    let opened = match source {
        None => TcpStream::connect_timeout(&target, timeout),
        Some(source) => connect_from(source, target, timeout),
    };
    let mut stream = opened.map_err(|error| match error.kind() {
        ErrorKind::ConnectionRefused => Loss::Refused,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Loss::Rejected,
        ErrorKind::TimedOut => Loss::ConnectTimedOut,
        // It was connected, and the socket has lost its address before the client looked.
        ErrorKind::ConnectionReset => Loss::ResetBefore(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)),
        _ => Loss::Failed(error.to_string()),
    })?;
    let failed = |error: io::Error| Loss::Failed(error.to_string());
    let local = stream.local_addr().map_err(failed)?;
    stream.set_read_timeout(Some(timeout)).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    for left in (0..requests).rev() {
        let body = exchange(&mut stream, target, left == 0).map_err(|broken| broken.loss(local, answer.is_some()))?;
        let (name, peer) = parse_body(&body.text).ok_or_else(|| Loss::Garbled(local, body.text.clone()))?;
        let done = answer.as_ref().map_or(0, |answer| answer.requests);
        if answer.as_ref().is_some_and(|answer| answer.name != name) {
            return Err(Loss::Garbled(local, format!("another name on the same connection: {name}")));
        }
        *answer = Some(Answer { name, peer, local, requests: done + 1 });
        if body.last {
            break;
        }
    }
    Ok(())
}

/// Sends one request on an open connection, which may have had answers before, and reads its own: the server's name, and
/// whether it closes the connection now.
pub fn ask(stream: &mut TcpStream, target: SocketAddr, answered_before: bool) -> Result<(String, bool), Loss> {
    let local = stream.local_addr().map_err(|error| Loss::Failed(error.to_string()))?;
    let body = exchange(stream, target, false).map_err(|broken| broken.loss(local, answered_before))?;
    let (name, _) = parse_body(&body.text).ok_or(Loss::Garbled(local, body.text))?;
    Ok((name, body.last))
}

fn connect_from(source: SocketAddr, target: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &source)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))?;
    match connect(&socket, &target) {
        Ok(()) => Ok(TcpStream::from(socket)),
        // The error of a blocking connect when its send time-out is over.
        Err(Errno::INPROGRESS) => Err(ErrorKind::TimedOut.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// A body, and whether the server closes the connection after it.
struct Body {
    text: String,
    last: bool,
}

/// How an exchange broke off, and whether a byte of the answer had arrived.
struct Broken {
    error: io::Error,
    begun: bool,
}

impl Broken {
    fn loss(self, local: SocketAddr, answered_before: bool) -> Loss {
        match self.error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Loss::AnswerTimedOut(local),
            _ if self.begun || answered_before => Loss::ResetAfter(local),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Loss::ResetBefore(local),
            _ => Loss::Failed(self.error.to_string()),
        }
    }
}

fn exchange(stream: &mut TcpStream, target: SocketAddr, last: bool) -> Result<Body, Broken> {
    let connection = if last { "close" } else { "keep-alive" };
    let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\nConnection: {connection}\r\n\r\n");
    // A server that answers at once may have closed already; what it sent can still be read.
    let sent = stream.write_all(request.as_bytes());
    let mut received = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        if let Some(body) = complete(&received) {
            return Ok(body);
        }
        match stream.read(&mut buffer) {
            Ok(0) => return at_end(&received),
            Ok(n) => received.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                let error = if received.is_empty() { sent.err().unwrap_or(error) } else { error };
                return Err(Broken { error, begun: !received.is_empty() });
            }
        }
    }
}

/// The body of an answer with a length, once it is complete.
fn complete(received: &[u8]) -> Option<Body> {
    let end = received.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&received[..end]).to_ascii_lowercase();
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let length: usize = header("content-length:")?.parse().ok()?;
    let body = received.get(end..end + length)?;
    let last = header("connection:") == Some("close") || head.starts_with("http/1.0");
    Some(Body { text: String::from_utf8_lossy(body).into_owned(), last })
}

/// The answer when the server has closed: a bare answer is complete, and any other one is broken off.
fn at_end(received: &[u8]) -> Result<Body, Broken> {
    if !received.starts_with(b"HTTP/") && received.ends_with(b"\n") {
        return Ok(Body { text: String::from_utf8_lossy(received).into_owned(), last: true });
    }
    Err(Broken { error: ErrorKind::UnexpectedEof.into(), begun: !received.is_empty() })
}

/// `NAME` or `NAME PEER`.
fn parse_body(body: &str) -> Option<(String, Option<SocketAddr>)> {
    let mut words = body.split_whitespace();
    let name = words.next()?;
    let peer = words.next().map(str::parse).transpose().ok()?;
    words.next().is_none().then(|| (name.to_owned(), peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_kind_of_answer() {
        let http = b"HTTP/1.1 200 OK\r\nContent-Length: 18\r\nConnection: close\r\n\r\nweb 10.0.0.2:5000\n";
        assert!(complete(&http[..http.len() - 1]).is_none());
        let body = complete(http).unwrap();
        assert!(body.last);
        assert_eq!(parse_body(&body.text), Some(("web".into(), Some("10.0.0.2:5000".parse().unwrap()))));
        assert!(at_end(b"web [::1]:1\n").is_ok());
        assert!(!at_end(b"").err().unwrap().begun);
        assert!(at_end(b"HTTP/1.1 200 OK\r\n").err().unwrap().begun);
        assert_eq!(parse_body("<html> no name"), None);
    }
}
