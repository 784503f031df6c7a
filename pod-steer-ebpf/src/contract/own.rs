//! Connections from a backend to itself, and listeners that a server opens on demand.

use crate::{BLOCK_PORTS, OWN_SOURCES, bit_of};
#[cfg(doc)]
use crate::{FAMILY_V4, FAMILY_V6, NONE};

/// The newest listener of a backend for one address, by the port that its server asked for. The value is its cookie.
///
/// The kernel program writes it at the instant when the server listens. It may name a socket that has closed: no client
/// is given to that one, because `LISTENERS` no longer has it.
///
/// With [`NONE`] instead of a backend: the newest listener of any backend for that address. The daemon replaces it
/// after it has closed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnListener {
    /// Namespace that the socket lives in.
    pub netns_cookie: u64,
    /// Address that it is bound to, in network byte order; IPv4 in the first four bytes, also of an IPv6 socket that is
    /// bound to an IPv4 address.
    pub addr: [u8; 16],
    /// Index of its backend, or [`NONE`].
    pub backend: u32,
    /// Port that its server asked for.
    pub port: u16,
    /// Family of the address: [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Zero.
    pub pad: u8,
}

/// An address and a block of ports. The backend serves some of the ports, and its service has claimed them: a
/// connection from the backend itself reaches its own listener there. The value is an [`OwnPorts`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnBlock {
    /// Local address in network byte order; all zero for any of this family.
    pub addr: [u8; 16],
    /// Index of the backend.
    pub backend: u32,
    /// [`block_of`](crate::block_of) the local ports.
    pub block: u16,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Zero.
    pub pad: u8,
}

/// Where a backend listens for the ports of an [`OwnBlock`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnPorts {
    /// The claimed ports, each by its [`bit_of`](crate::bit_of).
    pub claimed: u64,
    /// Index of its service.
    pub service: u32,
    /// Zero.
    pub pad: u32,
    /// By position in the block: the port that the backend listens on, or zero.
    pub targets: [u16; BLOCK_PORTS as usize],
}

impl OwnPorts {
    /// No port yet.
    pub const fn of(service: u32) -> Self {
        Self { claimed: 0, service, pad: 0, targets: [0; BLOCK_PORTS as usize] }
    }

    /// Adds a claimed port.
    pub fn add(&mut self, port: u16, target: u16) {
        self.claimed |= bit_of(port);
        self.targets[usize::from(port % BLOCK_PORTS)] = target;
    }

    /// Where the backend listens for a port, if the port is claimed.
    #[inline(always)]
    pub fn target(&self, port: u16) -> Option<u16> {
        let at = port % BLOCK_PORTS;
        (self.claimed >> at & 1 != 0).then(|| self.targets[usize::from(at)])
    }
}

/// A connection from a process of a backend to a port of this backend, at any address. The value is an [`OwnSocket`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnConnection {
    /// Namespace of the connecting socket.
    pub netns_cookie: u64,
    /// Address that it comes from, in network byte order; IPv4 in the first four bytes.
    pub source: [u8; 16],
    /// Address that it goes to.
    pub destination: [u8; 16],
    /// Port that it comes from, in host byte order.
    pub source_port: u16,
    /// Port that it goes to, in host byte order.
    pub destination_port: u16,
    /// [`FAMILY_V4`] or [`FAMILY_V6`]: of the addresses, not of the socket.
    pub family: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// The socket that an [`OwnConnection`] is for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnSocket {
    /// Cookie of the listener, or zero if the backend does not listen there. Without a listener the connection is
    /// refused, unless it would reach one that is unmanaged or belongs to another service.
    pub cookie: u64,
    /// When the connection began, in nanoseconds of the monotonic clock.
    pub born_ns: u64,
    /// Index of the backend.
    pub backend: u32,
    /// Index of the service that must hold the destination's rule, or [`NONE`] if the backend itself listens on the
    /// destination's port.
    pub service: u32,
    /// One after a lookup in its namespace has seen the connection, else zero. A connection that is established without
    /// one has left the namespace.
    pub seen: u32,
    /// Zero.
    pub pad: u32,
}

/// Index of the counter, in front of the map of own connections, for connections from this port (in host byte order).
/// While the counter is zero there are none, and no packet pays for a lookup in the map. The kernel gives connecting
/// sockets even ports first, so the lowest bit is ignored.
pub const fn own_source(port: u16) -> u32 {
    (port >> 1) as u32 & (OWN_SOURCES - 1)
}
