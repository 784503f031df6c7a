//! Why a list of ports is refused.
#![forbid(unsafe_code)]

use super::{PORTS_MAX, PortMap};

/// Why a list of ports is refused. Each message quotes the item, says what is wrong and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortsError {
    /// Nothing, or nothing between two commas.
    #[error("{item} has an item without a port; write ports separated by single commas, as in 80:8080,443:8443")]
    Empty {
        /// The whole list, quoted.
        item: String,
    },
    /// Not digits, or not 1 to 65535.
    #[error("in {item}, {part} is not a port; write a number from 1 to 65535, as in 80:8080")]
    NotAPort {
        /// The item, quoted.
        item: String,
        /// What stands in the port's place, quoted.
        part: String,
    },
    /// `82-80`.
    #[error("in {item}, the range {first}-{last} runs backwards; write {last}-{first}")]
    Backwards {
        /// The item, quoted.
        item: String,
        /// What the range begins with.
        first: u16,
        /// What it ends with.
        last: u16,
    },
    /// `80-82:8080-8081`.
    #[error(
        "in {item}, {ports} port(s) cannot go to {targets} container port(s); write two ranges of one length, \
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
    #[error("in {item}, the port before a colon is missing and none is chosen for you; write it out, as in 80:8080")]
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
        /// What stands in the address's place, quoted.
        part: String,
        /// What to write.
        instead: &'static str,
    },
    /// `/udp` and `/sctp`: valid for `docker -p`.
    #[error("in {item}, {proto} is not steered yet, only TCP is; leave the port out, or write /tcp or nothing")]
    NotYet {
        /// The item, quoted.
        item: String,
        /// The protocol's name.
        proto: &'static str,
    },
    /// Another protocol.
    #[error("in {item}, {part} is not a protocol; write /tcp, or nothing, which means the same")]
    NotAProtocol {
        /// The item, quoted.
        item: String,
        /// What stands in the protocol's place, quoted.
        part: String,
    },
    /// One port twice.
    #[error("in {item}, {port} claims what {earlier} before it claims already; leave one of the two out")]
    Duplicate {
        /// The item, quoted.
        item: String,
        /// The port of the item.
        port: PortMap,
        /// The one before it.
        earlier: PortMap,
    },
    /// More than [`PORTS_MAX`].
    #[error("with {item} the list comes to {ports} ports and {PORTS_MAX} are the most; split the service into several")]
    TooMany {
        /// The item, quoted, with which there were too many.
        item: String,
        /// Ports up to and with that item.
        ports: usize,
    },
}
