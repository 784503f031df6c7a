//! Listening sockets, the users of ports, and the ports of backends.

use super::OwnListener;
use crate::{FAMILY_V4, FAMILY_V6, NONE};
#[cfg(doc)]
use crate::{PROTO_TCP, PROTO_UDP, Rule};

/// Description of a listening socket, as the kernel program saw it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketInfo {
    /// Namespace that the socket lives in.
    pub netns_cookie: u64,
    /// Address that it is bound to, in network byte order; IPv4 in the first four bytes.
    pub addr: [u8; 16],
    /// Index of its backend.
    pub backend: u32,
    /// Table whose members are migration targets of its queue when it closes, or [`NONE`]. Written by the daemon.
    pub table: u32,
    /// Port that its server asked for.
    pub port: u16,
    /// [`PROTO_TCP`] or [`PROTO_UDP`].
    pub proto: u8,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Index of the service whose clients are or were steered to it, or [`NONE`] if none ever were. Written by the
    /// daemon with the table, and by the lookup program with the first client of a socket that is in no table yet
    /// ([`Rule::only`]).
    pub service: u32,
    /// Port that it is really bound to, if it could not share the port that it asked for; else zero.
    pub hidden_port: u16,
    /// For an IPv6 socket, one of the `V6_` constants.
    pub v6only: u16,
    /// With a hidden port: the user that binds, and the user that owns the requested port. Of a listener that holds clients:
    /// [`Self::HOLDS`].
    pub users: [u32; 2],
    /// Index of the device that it is bound to (`SO_BINDTODEVICE`), or zero.
    pub ifindex: u32,
    /// Zero. A field of the later release to which tests upgrade.
    #[cfg(feature = "test-layout")]
    pub later: u64,
}

impl SocketInfo {
    /// In place of users: a listener of pod-steer's own, which holds the clients of a paused service.
    pub const HOLDS: [u32; 2] = [u32::MAX; 2];

    /// Key under which it may be its backend's newest listener. `None` for a socket that is bound to a device, except
    /// the loopback device (index 1 in every namespace), by which a machine's packets to itself arrive.
    #[inline(always)]
    pub fn own_listener(&self) -> Option<OwnListener> {
        let Self { netns_cookie, addr, backend, port, family, ifindex, .. } = *self;
        if ifindex > 1 {
            return None;
        }
        let key = OwnListener { netns_cookie, addr, backend, port, family, pad: 0 };
        let word = |at: usize| u32::from_ne_bytes([addr[at], addr[at + 1], addr[at + 2], addr[at + 3]]);
        if family == FAMILY_V6 && word(0) == 0 && word(4) == 0 && word(8) == 0xFFFFu32.to_be() {
            let mut mapped = [0; 16];
            mapped[..4].copy_from_slice(&word(12).to_ne_bytes());
            return Some(OwnListener { addr: mapped, family: FAMILY_V4, ..key });
        }
        Some(key)
    }

    /// The same without its backend ([`NONE`]): the kernel's own lookup may find the socket there. `None` for a socket
    /// that is bound to a hidden port.
    #[inline(always)]
    pub fn any_listener(&self) -> Option<OwnListener> {
        if self.hidden_port != 0 {
            return None;
        }
        self.own_listener().map(|key| OwnListener { backend: NONE, ..key })
    }
}

/// It is not known yet whether the socket also takes IPv4 clients.
pub const V6_UNKNOWN: u16 = 0;
/// It takes both, as far as its address allows.
pub const V6_BOTH: u16 = 1;
/// It takes IPv6 clients only (`IPV6_V6ONLY`).
pub const V6_ONLY: u16 = 2;

/// A port that managed sockets share. The kernel allows that to the sockets of one user; the value is a [`PortUser`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    /// The namespace.
    pub netns_cookie: u64,
    /// The port.
    pub port: u16,
    /// [`PROTO_TCP`] or [`PROTO_UDP`].
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// The user that owns a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortUser {
    /// The user.
    pub uid: u32,
    /// One if a bind of that user has succeeded; zero while its first one is under way, or after it has failed.
    pub bound: u32,
    /// When that bind began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub since_ns: u64,
}

/// Longest time that a bind may be under way. It takes microseconds, and longer only if its thread is interrupted.
/// After this time a port on which no bind has succeeded has no user.
pub const BIND_MAX_NS: u64 = 50_000_000;

/// Storage of a socket whose bind was moved to a port of the kernel's choice, because another user owns the port that
/// it asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// Port that it asked for.
    pub asked: u16,
    /// Port that it listens on, or zero before it does.
    pub port: u16,
    /// The user that binds, and the user that owns the requested port.
    pub users: [u32; 2],
}

/// Number of ports in a block. A range of ports takes one entry per block, not one per port.
pub const BLOCK_PORTS: u16 = 64;

/// The block that a port is in.
pub const fn block_of(port: u16) -> u16 {
    port / BLOCK_PORTS
}

/// The bit of a port in its block.
pub const fn bit_of(port: u16) -> u64 {
    1 << (port % BLOCK_PORTS)
}

/// A block of ports of a backend; the value is a [`ManagedPorts`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManagedBlock {
    /// Index of the backend.
    pub backend: u32,
    /// [`block_of`] the ports.
    pub block: u16,
    /// [`PROTO_TCP`] or [`PROTO_UDP`].
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

/// Purposes of the ports of a block, by [`bit_of`] each port. A program asks for one purpose of one port at a time. So
/// it reads each of the two words alone, and no reader depends on both being from the same moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManagedPorts {
    /// See [`PORT_LISTENS`].
    pub listens: u64,
    /// See [`PORT_SERVED`].
    pub served: u64,
}

impl ManagedPorts {
    /// Purposes of a port: some of [`PORT_LISTENS`] and [`PORT_SERVED`].
    #[inline(always)]
    pub const fn purposes(&self, port: u16) -> u32 {
        let at = (port % BLOCK_PORTS) as u32;
        let (listens, served) = ((self.listens >> at & 1) as u32, (self.served >> at & 1) as u32);
        listens * PORT_LISTENS + served * PORT_SERVED
    }
}

/// The backend listens on this port: binds may share it, and listeners are registered.
pub const PORT_LISTENS: u32 = 1;
/// Clients come to this port: it is the local port of accepted connections, which are counted.
pub const PORT_SERVED: u32 = 2;
