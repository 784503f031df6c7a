//! Errors in a list of ports.
#![forbid(unsafe_code)]

use super::{PORTS_MAX, PortMap};

/// An error in a list of ports. Each message quotes the item, says what is wrong and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortsError {
    /// The list or an item is empty.
    #[error("{item} has an item without a port; write ports separated by single commas, as in 80:8080,443:8443")]
    Empty {
        /// The whole list, quoted.
        item: String,
    },
    /// Not a number from 1 to 65535.
    #[error("in {item}, {part} is not a port; write a number from 1 to 65535, as in 80:8080")]
    NotAPort {
        /// The item, quoted.
        item: String,
        /// The invalid port, quoted.
        part: String,
    },
    /// `82-80`.
    #[error("in {item}, the range {first}-{last} runs backwards; write {last}-{first}")]
    Backwards {
        /// The item, quoted.
        item: String,
        /// First port of the range.
        first: u16,
        /// Last port of the range.
        last: u16,
    },
    /// `80-82:8080-8081`.
    #[error(
        "in {item}, {ports} port(s) do not match {targets} container port(s); write two ranges of the same length, \
         as in 80-82:8080-8082"
    )]
    UnequalRanges {
        /// The item, quoted.
        item: String,
        /// Length of the first range.
        ports: usize,
        /// Length of the second range.
        targets: usize,
    },
    /// `127.0.0.1::80`, or `:80`: for `docker -p` a request for any free port.
    #[error(
        "in {item}, the port before the colon is missing, and pod-steer does not choose one; write it, as in 80:8080"
    )]
    NoPort {
        /// The item, quoted.
        item: String,
    },
    /// More than `ip:port:container-port`.
    #[error(
        "{item} has too many colons; write [ip:]port:container-port, with an IPv6 address in brackets, \
         as in [::1]:80:8080"
    )]
    TooManyParts {
        /// The item, quoted.
        item: String,
    },
    /// Not an address, or an address in a form that has no meaning here.
    #[error("in {item}, {part} is not an address to listen on; {instead}")]
    NotAnAddress {
        /// The item, quoted.
        item: String,
        /// The invalid address, quoted.
        part: String,
        /// The remedy.
        instead: &'static str,
    },
    /// `/udp` and `/sctp`: valid for `docker -p`.
    #[error("in {item}, pod-steer does not steer {proto} yet; remove the port, or write /tcp or no protocol")]
    NotYet {
        /// The item, quoted.
        item: String,
        /// The protocol's name.
        proto: &'static str,
    },
    /// Another protocol.
    #[error("in {item}, {part} is not a protocol; write /tcp or nothing, which both mean TCP")]
    NotAProtocol {
        /// The item, quoted.
        item: String,
        /// The invalid protocol, quoted.
        part: String,
    },
    /// One port twice.
    #[error("in {item}, {port} overlaps the earlier {earlier}; remove one of the two")]
    Duplicate {
        /// The item, quoted.
        item: String,
        /// The port of the item.
        port: PortMap,
        /// The one before it.
        earlier: PortMap,
    },
    /// More than [`PORTS_MAX`].
    #[error("with {item} the list has {ports} ports, more than {PORTS_MAX}; split the service into several")]
    TooMany {
        /// The item that exceeds the limit, quoted.
        item: String,
        /// Ports up to and with that item.
        ports: usize,
    },
}
