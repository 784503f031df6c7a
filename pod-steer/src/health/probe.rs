//! One probe: a connection that reaches one given socket, although others may listen on its port.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use pod_steer_ebpf::{FAMILY_V4, FAMILY_V6, PROBE_SOURCE_V4, ProbeKey};
use tokio::{
    net::{TcpSocket, TcpStream},
    task::spawn_blocking,
};

use super::{Outcome, StatusRange};
use crate::{
    ids::{NetnsCookie, SocketCookie},
    kernel::{ProbeUnderWay, Probes},
    netns,
    ports::Port,
    procs::address_bytes,
};

/// The socket that a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its cookie.
    pub cookie: SocketCookie,
    /// Cookie of the namespace that it lives in.
    pub netns_cookie: NetnsCookie,
    /// Address that it is bound to.
    pub ip: IpAddr,
    /// Port that it is bound to.
    pub port: Port,
}

/// The means to send a probe.
pub struct Way {
    /// The map in which the target socket is registered.
    pub probes: Probes,
    /// The socket.
    pub target: Target,
    /// The namespace that it lives in; nothing for our own.
    pub ns: Option<Arc<File>>,
}

/// A connection, and the map entry that directs it to the socket. The entry must live as long as the connection.
struct Connection {
    stream: TcpStream,
    to: SocketAddr,
    _under_way: ProbeUnderWay,
}

/// Connects.
pub async fn tcp(way: &Way) -> Outcome {
    match connect(way).await {
        Ok(_) => Outcome::Passed,
        Err(outcome) => outcome,
    }
}

/// Asks by HTTP.
pub async fn http(way: &Way, path: &str, host: Option<&str>, status: StatusRange) -> Outcome {
    let Connection { stream, to, _under_way } = match connect(way).await {
        Ok(connection) => connection,
        Err(outcome) => return outcome,
    };
    let asked = format!("GET {path} on port {}", to.port());
    match ask(stream, path, host.unwrap_or(&to.to_string())).await {
        Ok(answer) if status.contains(answer) => Outcome::Passed,
        Ok(answer) => Outcome::Failed(format!("{asked} returned {answer}, expected {status}")),
        Err(error) => Outcome::Failed(format!("{asked} failed: {}", crate::chain(&error))),
    }
}

async fn ask(stream: TcpStream, path: &str, host: &str) -> Result<u16, hyper::Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // The task ends when the sender and the answer are dropped.
    tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    let headers = [
        (header::HOST, host),
        (header::USER_AGENT, concat!("pod-steer/", env!("CARGO_PKG_VERSION"))),
        (header::CONNECTION, "close"),
    ];
    for (name, value) in headers {
        // Path and host were checked when they were read.
        request.headers_mut().extend(value.parse().ok().map(|value| (name, value)));
    }
    *request.uri_mut() = path.parse().unwrap_or_default();
    Ok(sender.send_request(request).await?.status().as_u16())
}

/// Source and destination addresses by which a probe can reach the socket.
fn routes(target: &Target) -> Vec<(IpAddr, IpAddr)> {
    let v4 = |to: Ipv4Addr| {
        let to = if to.is_unspecified() { Ipv4Addr::LOCALHOST } else { to };
        (IpAddr::from(PROBE_SOURCE_V4), IpAddr::from(to))
    };
    let v6 = |to: Ipv6Addr| (IpAddr::from(Ipv6Addr::LOCALHOST), IpAddr::from(to));
    match target.ip {
        IpAddr::V4(ip) => vec![v4(ip)],
        // IPv4 first: many containers have no ::1. An IPv6-only socket refuses IPv4 at once.
        IpAddr::V6(ip) if ip.is_unspecified() => vec![v4(Ipv4Addr::UNSPECIFIED), v6(Ipv6Addr::LOCALHOST)],
        IpAddr::V6(ip) => vec![ip.to_ipv4_mapped().map_or_else(|| v6(ip), v4)],
    }
}

async fn connect(way: &Way) -> Result<Connection, Outcome> {
    let mut failed = Outcome::Unknown("its socket has no address that a probe can reach".to_owned());
    for (from, to) in routes(&way.target) {
        let to = SocketAddr::new(to, way.target.port.number);
        let (socket, under_way) = match prepare(way, from, to).await {
            Ok(prepared) => prepared,
            Err(error) => {
                failed = Outcome::Unknown(format!("cannot send a probe: {error}"));
                continue;
            }
        };
        match socket.connect(to).await {
            Ok(stream) => return Ok(Connection { stream, to, _under_way: under_way }),
            Err(error) => failed = Outcome::Failed(format!("cannot connect to {to}: {error}")),
        }
    }
    Err(failed)
}

/// Creates a socket in the target's namespace whose connection will reach the target. A socket stays in the namespace in which it was
/// created, whichever thread uses it.
async fn prepare(way: &Way, from: IpAddr, to: SocketAddr) -> io::Result<(TcpSocket, ProbeUnderWay)> {
    let make = move || if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = match way.ns.clone() {
        None => make()?,
        Some(ns) => {
            let cookie = way.target.netns_cookie;
            spawn_blocking(move || netns::run_in(&ns, cookie, make)).await.map_err(io::Error::other)??
        }
    };
    socket.bind(SocketAddr::new(from, 0))?;
    let key = ProbeKey {
        netns_cookie: way.target.netns_cookie.0,
        destination: address_bytes(to.ip()),
        source_port: socket.local_addr()?.port(),
        destination_port: to.port(),
        family: if from.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 },
        pad: [0; 3],
    };
    let under_way = way.probes.begin(key, way.target.cookie).map_err(|e| io::Error::other(crate::chain(&e)))?;
    Ok((socket, under_way))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_use_the_address_of_the_socket() {
        let routes = |ip: &str| {
            let target = Target {
                cookie: SocketCookie(1),
                netns_cookie: NetnsCookie(2),
                ip: ip.parse().unwrap(),
                port: Port::tcp(80),
            };
            routes(&target).into_iter().map(|(from, to)| format!("{from} {to}")).collect::<Vec<_>>()
        };
        assert_eq!(routes("0.0.0.0"), ["127.83.84.1 127.0.0.1"]);
        assert_eq!(routes("10.0.0.1"), ["127.83.84.1 10.0.0.1"]);
        assert_eq!(routes("::"), ["127.83.84.1 127.0.0.1", "::1 ::1"]);
        assert_eq!(routes("fd00::1"), ["::1 fd00::1"]);
        assert_eq!(routes("::ffff:10.0.0.1"), ["127.83.84.1 10.0.0.1"]);
    }
}
