//! Parses lists of ports in the syntax of `docker run -p`. Pure.
//!
//! A list has items separated by commas, each `[ip:]port[-port][:container-port[-container-port]][/proto]`. `docker run -p 80` publishes on
//! any free port; here `80` means `80:80`, because a service needs a fixed port.
#![forbid(unsafe_code)]

use std::{fmt, net::IpAddr};

use pod_steer_ebpf::PROTO_TCP;
use serde::{Deserialize, Serialize};

use crate::text::quoted;

pub use error::PortsError;
use item::Item;

mod error;
mod item;

/// Maximum number of ports of one list. Each port of a range counts.
pub const PORTS_MAX: usize = 1_024;

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP, the default.
    #[default]
    Tcp,
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
        })
    }
}

impl Proto {
    /// Its number in an IP header, by which the kernel programs know it.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => PROTO_TCP,
        }
    }

    /// The reverse of [`Proto::number`]; nothing if no service can have it.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            PROTO_TCP => Some(Self::Tcp),
            _ => None,
        }
    }
}

/// A port with its protocol: the same number of another protocol is another port. Displayed as in a list of ports: `53`, and with the
/// protocol if that is not TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// Its number.
    pub number: u16,
    /// Its protocol.
    pub proto: Proto,
}

impl Port {
    /// A TCP port.
    pub const fn tcp(number: u16) -> Self {
        Self { number, proto: Proto::Tcp }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)?;
        if self.proto == Proto::default() { Ok(()) } else { write!(f, "/{}", self.proto) }
    }
}

/// One port of a service and the port that its containers listen on. Displayed as `80:8080/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortMap {
    /// Local address that clients connect to: `0.0.0.0` is any IPv4 address, `::` any IPv6 address, `None` both.
    pub ip: Option<IpAddr>,
    /// Port that clients connect to.
    pub port: u16,
    /// Port that the containers listen on.
    pub target: u16,
    /// Protocol of both.
    pub proto: Proto,
}

impl PortMap {
    /// The port that clients connect to, with its protocol.
    pub fn service_port(&self) -> Port {
        Port { number: self.port, proto: self.proto }
    }

    /// The port that the containers listen on, with its protocol.
    pub fn target_port(&self) -> Port {
        Port { number: self.target, proto: self.proto }
    }

    /// Whether both claim the same connections: the same port at the same address. `None` is any address of both families. A single
    /// address does not clash with "any": it takes precedence.
    fn clashes_with(&self, other: &Self) -> bool {
        let any = |ip: Option<IpAddr>| ip.is_none_or(|ip| ip.is_unspecified());
        let same_ip =
            self.ip == other.ip || (self.ip.is_none() && any(other.ip)) || (other.ip.is_none() && any(self.ip));
        same_ip && self.port == other.port && self.proto == other.proto
    }

    /// Whether `next` continues the range that `self` ends.
    pub fn continues_with(&self, next: &Self) -> bool {
        let follows = |a: u16, b: u16| a.checked_add(1) == Some(b);
        (self.ip, self.proto) == (next.ip, next.proto)
            && follows(self.port, next.port)
            && follows(self.target, next.target)
    }
}

impl fmt::Display for PortMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_address(f, self.ip)?;
        write!(f, "{}:{}/{}", self.port, self.target, self.proto)
    }
}

/// Parses a list of ports. Returns only the first error; [`parse_all`] returns all.
pub fn parse(list: &str) -> Result<Vec<PortMap>, PortsError> {
    parse_all(list).map_err(|mut errors| errors.swap_remove(0))
}

/// Parses a list of ports. Returns the ports in the order of the list, or one error for each invalid item.
pub fn parse_all(list: &str) -> Result<Vec<PortMap>, Vec<PortsError>> {
    let (mut ports, mut errors) = (Vec::new(), Vec::new());
    for item in list.split(',').map(str::trim_ascii) {
        // Checked for each item, to bound the cost of a hostile list and the number of errors.
        if ports.len() + errors.len() > PORTS_MAX {
            break;
        }
        if item.is_empty() {
            let error = PortsError::Empty { item: quoted(list) };
            if !errors.contains(&error) {
                errors.push(error);
            }
            continue;
        }
        match Item::parse(item) {
            Ok(item) if ports.len() + item.len() > PORTS_MAX => {
                errors.push(PortsError::TooMany { item: quoted(item.text), ports: ports.len() + item.len() });
                break;
            }
            Ok(item) => {
                let clash = item.ports().find_map(|new| Some((new, *ports.iter().find(|old| new.clashes_with(old))?)));
                match clash {
                    Some((port, earlier)) => {
                        errors.push(PortsError::Duplicate { item: quoted(item.text), port, earlier });
                    }
                    None => ports.extend(item.ports()),
                }
            }
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(ports) } else { Err(errors) }
}

/// The ranges of a list: for each, the positions of its ports in the result of [`parse`].
pub fn ranges(list: &str) -> Vec<std::ops::Range<usize>> {
    let (mut ranges, mut start) = (Vec::new(), 0);
    for item in list.split(',').map_while(|item| Item::parse(item.trim_ascii()).ok()) {
        let range = start..start + item.len();
        start = range.end;
        ranges.extend(Some(range).filter(|range| range.len() > 1));
    }
    ranges
}

/// The same ports in as few items as possible, sorted: `80:8080,8000-8010:9000-9010`. [`parse`] reads it back.
pub fn compact(ports: &[PortMap]) -> String {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    let ranges = sorted.chunk_by(PortMap::continues_with);
    ranges.map(|range| Range(range).to_string()).collect::<Vec<_>>().join(",")
}

/// Ports that follow each other, at least one.
struct Range<'a>(&'a [PortMap]);

impl fmt::Display for Range<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0[0], self.0[self.0.len() - 1]);
        write_address(f, first.ip)?;
        let range = |from: u16, to: u16| if from == to { from.to_string() } else { format!("{from}-{to}") };
        f.write_str(&range(first.port, last.port))?;
        if first.port != first.target {
            write!(f, ":{}", range(first.target, last.target))?;
        }
        // TCP is the default, so it is not written.
        if first.proto == Proto::default() { Ok(()) } else { write!(f, "/{}", first.proto) }
    }
}

fn write_address(f: &mut fmt::Formatter<'_>, ip: Option<IpAddr>) -> fmt::Result {
    match ip {
        Some(IpAddr::V4(ip)) => write!(f, "{ip}:"),
        Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
