//! One accepted connection: HTTP/1.1 with keep-alive, or the bare answer. A client may ask for an upgrade, as a WebSocket does: from
//! then on the server echoes every byte until the client closes.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::Duration,
};

use rustix::net::sockopt::set_socket_linger;

use crate::{
    args::{Args, Fault},
    stop::Stop,
};

/// The requests of all connections.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// How long a connection waits for a request before it checks whether the server stops.
const IDLE_CHECK: Duration = Duration::from_millis(100);
/// Longest request head that is accepted; the load generator's are below 200 bytes.
const HEAD_BYTES_MAX: usize = 8192;

pub fn serve(mut stream: TcpStream, peer: SocketAddr, name: &str, args: &Args, stop: &Stop) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let body = format!("{name} {}\n", SocketAddr::new(peer.ip().to_canonical(), peer.port()));
    if args.raw {
        return stream.write_all(body.as_bytes());
    }
    stream.set_read_timeout(Some(IDLE_CHECK))?;
    let mut received = Vec::new();
    let mut served = 0;
    while let Some(head) = next_head(&mut stream, &mut received, stop, served > 0)? {
        thread::sleep(args.answer_delay);
        let fault = args.fault.filter(|_| REQUESTS.fetch_add(1, Relaxed).is_multiple_of(args.fault_every));
        match fault {
            Some(Fault::Reset) => return set_socket_linger(&stream, Some(Duration::ZERO)).map_err(Into::into),
            Some(Fault::Close) => return Ok(()),
            Some(Fault::Hang) => return next_head(&mut stream, &mut received, stop, false).map(drop),
            Some(Fault::Slow(time)) => thread::sleep(time),
            Some(Fault::Error) | None => {}
        }
        if let Some(protocol) = upgrade(&head) {
            return echo(stream, &received, protocol);
        }
        served += 1;
        let last = stop.told() || wants_close(&head) || served >= args.requests_max;
        let connection = if last { "close" } else { "keep-alive" };
        let answer = format!(
            "HTTP/1.1 {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            if matches!(fault, Some(Fault::Error)) {
                "500 Internal Server Error".to_owned()
            } else {
                status(args, &head)
            },
            body.len()
        );
        stream.write_all(answer.as_bytes())?;
        if last {
            break;
        }
    }
    Ok(())
}

/// The status line's code and reason.
fn status(args: &Args, head: &str) -> String {
    let mine = format!("host: {}", args.name);
    if args.only_host && !head.lines().any(|line| line.eq_ignore_ascii_case(&mine)) {
        return "421 Misdirected Request".into();
    }
    let status = args.status_file.as_ref().and_then(|path| fs::read_to_string(path).ok());
    status.map_or_else(|| "200 OK".into(), |status| status.trim().to_owned())
}

/// The next request's head; `None` when the client has finished, or the server stops and no request is under way. The first request of a
/// connection counts as under way from the start: a client that was delayed between its handshake and its request is not idle.
fn next_head(
    stream: &mut TcpStream,
    received: &mut Vec<u8>,
    stop: &Stop,
    may_be_idle: bool,
) -> io::Result<Option<String>> {
    let mut buffer = [0; 1024];
    loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).into_owned();
            received.drain(..end + 4);
            return Ok(Some(head));
        }
        if received.len() > HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "request head too long"));
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(n) => received.extend_from_slice(&buffer[..n]),
            // A read with a time-out is not continued after its container was paused (signal(7)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if stop.told() && received.is_empty() && may_be_idle {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// The protocol of a requested upgrade.
fn upgrade(head: &str) -> Option<&str> {
    let headers = head.lines().filter_map(|line| line.split_once(':'));
    headers.filter(|(name, _)| name.eq_ignore_ascii_case("upgrade")).map(|(_, protocol)| protocol.trim()).next()
}

fn echo(mut stream: TcpStream, received: &[u8], protocol: &str) -> io::Result<()> {
    let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade";
    stream.write_all(format!("{switching}\r\nUpgrade: {protocol}\r\n\r\n").as_bytes())?;
    stream.write_all(received)?;
    stream.set_read_timeout(None)?;
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

fn wants_close(head: &str) -> bool {
    let http_1_0 = head.lines().next().is_some_and(|line| line.ends_with("HTTP/1.0"));
    http_1_0 || head.lines().any(|line| line.eq_ignore_ascii_case("connection: close"))
}
