//! Parses one item of a list of ports.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{PortMap, PortsError, Proto};
use crate::text::quoted;

/// One item of a list: two ranges of one length.
pub(super) struct Item<'a> {
    pub(super) text: &'a str,
    ip: Option<IpAddr>,
    ports: (u16, u16),
    targets: (u16, u16),
    proto: Proto,
}

impl<'a> Item<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, PortsError> {
        let item = || quoted(text);
        let (rest, proto) = match text.split_once('/') {
            Some((rest, proto)) => (rest, parse_proto(proto, item)?),
            None => (text, Proto::default()),
        };
        let (ip, rest) = split_address(rest, item)?;
        if let Some(ip) = ip.filter(is_of_many) {
            let instead = "TCP clients come to an address of one host, as in 127.0.0.1:80:8080";
            return Err(PortsError::NotAnAddress { item: item(), part: quoted(&ip.to_string()), instead });
        }
        let (ports, targets) = match rest.split_once(':') {
            Some((_, targets)) if targets.contains(':') => return Err(PortsError::TooManyParts { item: item() }),
            Some(("", _)) => return Err(PortsError::NoPort { item: item() }),
            Some((ports, targets)) => (parse_range(ports, item)?, parse_range(targets, item)?),
            None => {
                let ports = parse_range(rest, item)?;
                (ports, ports)
            }
        };
        if length(ports) != length(targets) {
            return Err(PortsError::UnequalRanges { item: item(), ports: length(ports), targets: length(targets) });
        }
        Ok(Self { text, ip, ports, targets, proto })
    }

    pub(super) fn len(&self) -> usize {
        length(self.ports)
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = PortMap> {
        let pairs = (self.ports.0..=self.ports.1).zip(self.targets.0..=self.targets.1);
        pairs.map(|(port, target)| PortMap { ip: self.ip, port, target, proto: self.proto })
    }
}

fn length((first, last): (u16, u16)) -> usize {
    usize::from(last - first) + 1
}

fn parse_proto(text: &str, item: impl Fn() -> String) -> Result<Proto, PortsError> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Proto::Tcp),
        "udp" => Err(PortsError::NotYet { item: item(), proto: "UDP" }),
        "sctp" => Err(PortsError::NotYet { item: item(), proto: "SCTP" }),
        _ => Err(PortsError::NotAProtocol { item: item(), part: quoted(text) }),
    }
}

/// Splits off an address and its colon, if there is one: text in brackets, or text before a colon that is not a port.
fn split_address(text: &str, item: impl Fn() -> String) -> Result<(Option<IpAddr>, &str), PortsError> {
    let wrong = |part: &str, instead| PortsError::NotAnAddress { item: item(), part: quoted(part), instead };
    if let Some(inside) = text.strip_prefix('[') {
        let Some((address, rest)) = inside.split_once(']') else {
            return Err(wrong(text, "close the bracket after the IPv6 address, as in [::1]:80:8080"));
        };
        let ip: Ipv6Addr = address
            .parse()
            .map_err(|_| wrong(address, "write an IPv6 address in the brackets, as in [::1]:80:8080"))?;
        if ip.to_ipv4_mapped().is_some() {
            return Err(wrong(address, "IPv4 clients come to IPv4 addresses: write 192.0.2.1, not [::ffff:192.0.2.1]"));
        }
        return match rest.strip_prefix(':') {
            Some(rest) => Ok((Some(ip.into()), rest)),
            None => Err(wrong(text, "write a colon and a port after the bracket, as in [::1]:80:8080")),
        };
    }
    match text.split_once(':') {
        _ if text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()) => {
            Err(wrong(text, "write a colon and a port after the address, as in 127.0.0.1:80:8080"))
        }
        // `::1:80:8080` is ambiguous.
        Some((first, rest)) if rest.contains(':') && is_bare_v6(first, text) => {
            Err(wrong(text, "put an IPv6 address in brackets, as in [::1]:80:8080"))
        }
        // With three parts the first is an address. With two, only an address has dots.
        Some((first, rest)) if first.contains('.') || (rest.contains(':') && !first.is_empty()) => {
            match first.parse() {
                Ok(ip) => Ok((Some(IpAddr::V4(ip)), rest)),
                Err(_) if rest.matches(':').count() > 1 => Err(PortsError::TooManyParts { item: item() }),
                Err(_) => {
                    Err(wrong(first, "write an IPv4 address, as in 127.0.0.1:80:8080, or [::1]:80:8080, or none"))
                }
            }
        }
        _ => Ok((None, text)),
    }
}

/// Multicast and broadcast: no TCP connection has such an address.
fn is_of_many(ip: &IpAddr) -> bool {
    ip.is_multicast() || *ip == Ipv4Addr::BROADCAST
}

/// Whether the text looks like an IPv6 address without brackets, with or without ports behind it.
fn is_bare_v6(first: &str, text: &str) -> bool {
    let is_group = |group: &str| group.len() <= 4 && group.bytes().all(|b| b.is_ascii_hexdigit());
    is_group(first) && (text.parse::<Ipv6Addr>().is_ok() || text.starts_with("::") || text.split(':').count() > 4)
}

fn parse_range(text: &str, item: impl Fn() -> String) -> Result<(u16, u16), PortsError> {
    let port = |part: &str| match part.parse::<u16>() {
        // `parse` would accept a plus sign.
        Ok(port) if port > 0 && !part.starts_with('+') => Ok(port),
        _ => Err(PortsError::NotAPort { item: item(), part: quoted(part) }),
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last {
        return Err(PortsError::Backwards { item: item(), first, last });
    }
    Ok((first, last))
}
