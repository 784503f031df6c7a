//! Tells the kernel programs that a daemon lives: its own socket is in the socket map, and the kernel removes it at the
//! instant when the daemon ends, however it ends.

use std::{
    net::{Ipv4Addr, TcpListener},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
};

use aya::maps::{MapData, SockHash};
use pod_steer_ebpf::{DAEMON_COOKIE, SOCKETS_MAX};

use super::{KernelError, Result};

const WHAT: &str = "add the daemon's own socket to";
const MAP: &str = "LISTENERS";

/// The daemon's socket. It is closed on exec, so no child keeps it open.
#[expect(dead_code, reason = "it is held open, and used for nothing")]
pub(super) enum Alive {
    /// One end of a socket pair, which shows in no namespace. A socket map accepts such sockets from Linux 5.15 on.
    Pair(UnixStream, UnixStream),
    /// A listener on a port of the kernel's choice that only this machine can reach.
    Listener(TcpListener),
}

impl Alive {
    /// Adds a socket of this process to the socket map. Fails if the map has no room for it.
    pub fn announce(listeners: &mut SockHash<MapData, u64>) -> Result<Self> {
        let failed =
            |source| KernelError::Io { what: "create the daemon's own socket for", path: "LISTENERS".into(), source };
        let (own, peer) = UnixStream::pair().map_err(failed)?;
        match listeners.insert(DAEMON_COOKIE, own.as_raw_fd(), 0).map_err(KernelError::add(WHAT, MAP, SOCKETS_MAX)) {
            Ok(()) => return Ok(Self::Pair(own, peer)),
            Err(full @ KernelError::Full { .. }) => return Err(full),
            Err(_) => {}
        }
        // A kernel may be built without sockmaps of unix sockets, but every kernel accepts listeners like those of
        // backends.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        listeners.insert(DAEMON_COOKIE, listener.as_raw_fd(), 0).map_err(KernelError::add(WHAT, MAP, SOCKETS_MAX))?;
        Ok(Self::Listener(listener))
    }
}
