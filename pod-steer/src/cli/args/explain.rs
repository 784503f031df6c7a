//! The arguments of `pod-steer explain`.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::Args;

use super::SocketArgs;
use crate::config::DEFAULT_BPFFS;

/// `pod-steer explain`
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// Protocol of the connection
    #[arg(value_parser = ["tcp"], value_name = "PROTOCOL")]
    pub protocol: String,
    /// The client: ADDRESS or ADDRESS:PORT, IPv6 in brackets. Without a port, many ports are tried
    #[arg(value_name = "SOURCE", required_unless_present = "packets", value_parser = source)]
    pub source: Option<Source>,
    /// Where it connects to: ADDRESS:PORT
    #[arg(value_name = "DESTINATION", required_unless_present = "packets", value_parser = destination)]
    pub destination: Option<SocketAddr>,
    /// Explain each packet of a file, SOURCE and DESTINATION on one line; `-` reads standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["source", "destination"])]
    pub packets: Option<PathBuf>,
    /// Device by which the packet comes [default: that of the route to the client]
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// Network namespace that it comes to, such as /run/netns/NAME or /proc/PID/ns/net [default: that of this command]
    #[arg(long, value_name = "PATH")]
    pub namespace: Option<PathBuf>,
    /// Print JSON, one object a packet and line
    #[arg(long)]
    pub json: bool,
    /// Directory of pinned programs and maps
    #[arg(long, env = "POD_STEER_BPFFS", value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    /// The daemon, which is asked for the states of backends if it runs.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its address.
    pub ip: IpAddr,
    /// Its port; `None` for any.
    pub port: Option<u16>,
}

/// Reads a client.
pub fn source(text: &str) -> Result<Source, String> {
    let alone = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let read = match (alone.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
        (Ok(IpAddr::V6(_)), _) if alone == text => return Err(format!("write the address in brackets: [{text}]")),
        (Ok(ip), _) => Source { ip, port: None },
        (_, Ok(both)) => Source { ip: unscoped(both)?.ip(), port: Some(port(both.port())?) },
        _ if text.contains('%') => return Err(SCOPED.to_owned()),
        _ => return Err("use ADDRESS or ADDRESS:PORT, as in 203.0.113.5:4711 or [2001:db8::7]:4711".to_owned()),
    };
    address(read.ip)?;
    Ok(read)
}

/// Reads where a client connects to.
pub fn destination(text: &str) -> Result<SocketAddr, String> {
    let read: SocketAddr = text.parse().map_err(|_| match text.contains('%') {
        true => SCOPED.to_owned(),
        false => "use ADDRESS:PORT, as in 10.0.0.1:80 or [2001:db8::1]:80".to_owned(),
    })?;
    let read = unscoped(read)?;
    port(read.port())?;
    address(read.ip())?;
    Ok(read)
}

/// The device is an argument of its own.
const SCOPED: &str = "leave out the scope id (`%...`), and name the device with --device";

fn unscoped(read: SocketAddr) -> Result<SocketAddr, String> {
    match read {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => Err(SCOPED.to_owned()),
        _ => Ok(read),
    }
}

fn port(port: u16) -> Result<u16, String> {
    if port == 0 { Err("no connection has port 0".to_owned()) } else { Ok(port) }
}

/// Refuses addresses that no connection has.
fn address(ip: IpAddr) -> Result<(), String> {
    let is_broadcast = ip == IpAddr::from([255; 4]);
    if ip.is_unspecified() || ip.is_multicast() || is_broadcast {
        return Err(format!("no connection has the address {ip}"));
    }
    match ip.to_canonical() {
        v4 if v4 != ip => Err(format!("write it as an IPv4 address: {v4}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_read_with_and_without_a_port() {
        let read = |text: &str| source(text).map(|read| (read.ip.to_string(), read.port));
        assert_eq!(read("203.0.113.5:4711"), Ok(("203.0.113.5".to_owned(), Some(4711))));
        assert_eq!(read("203.0.113.5"), Ok(("203.0.113.5".to_owned(), None)));
        assert_eq!(read("[2001:db8::7]:4711"), Ok(("2001:db8::7".to_owned(), Some(4711))));
        assert_eq!(read("[2001:db8::7]"), Ok(("2001:db8::7".to_owned(), None)));
        assert_eq!(destination("[::1]:80").map(|read| read.to_string()), Ok("[::1]:80".to_owned()));
    }

    #[test]
    fn anything_else_is_refused_with_the_reason() {
        for (text, said) in [
            ("localhost:80", "use ADDRESS or"),
            ("", "use ADDRESS or"),
            ("10.0.0.1:", "use ADDRESS or"),
            ("10.0.0.1:65536", "use ADDRESS or"),
            ("10.0.0.256:1", "use ADDRESS or"),
            ("[10.0.0.1:1", "use ADDRESS or"),
            ("2001:db8::7", "write the address in brackets: [2001:db8::7]"),
            ("10.0.0.1:0", "port 0"),
            ("0.0.0.0:7", "no connection has the address 0.0.0.0"),
            ("[::]:7", "no connection has the address ::"),
            ("[ff02::1]:7", "ff02::1"),
            ("255.255.255.255", "255.255.255.255"),
            ("[::ffff:10.0.0.1]:7", "IPv4 address: 10.0.0.1"),
            ("[fe80::5%3]:4711", "--device"),
            ("[fe80::5%3]", "--device"),
            ("[fe80::5%eth0]:4711", "--device"),
        ] {
            let error = source(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        for (text, said) in [
            ("10.0.0.1", "use ADDRESS:PORT"),
            ("10.0.0.1:0", "port 0"),
            ("224.0.0.1:80", "224.0.0.1"),
            ("[fe80::1%3]:80", "--device"),
            ("[fe80::1%eth0]:80", "--device"),
        ] {
            let error = destination(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
