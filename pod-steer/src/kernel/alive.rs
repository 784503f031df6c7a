//! How the kernel programs know that a daemon is there: its own socket is in the socket map, and the kernel removes it in the instant
//! in which the daemon ends, however it ends.

use std::{
    net::{Ipv4Addr, TcpListener},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
};

use aya::maps::{MapData, SockHash};
use pod_steer_ebpf::{DAEMON_COOKIE, SOCKETS_MAX};

use super::{KernelError, Result};

const WHAT: &str = "put the daemon's own socket into";
const MAP: &str = "LISTENERS";

/// The socket. It is closed on exec, so no child keeps it open.
#[expect(dead_code, reason = "it is held open, and used for nothing")]
pub(super) enum Alive {
    /// One end of a pair, which no namespace shows. A socket map takes such sockets from Linux 5.15 on.
    Pair(UnixStream, UnixStream),
    /// On a port of the kernel's choice that only this machine reaches.
    Listener(TcpListener),
}

impl Alive {
    /// Puts a socket of this process into the socket map, which may have no room for it.
    pub fn announce(listeners: &mut SockHash<MapData, u64>) -> Result<Self> {
        let failed =
            |source| KernelError::Io { what: "make the daemon's own socket for", path: "LISTENERS".into(), source };
        let (own, peer) = UnixStream::pair().map_err(failed)?;
        match listeners.insert(DAEMON_COOKIE, own.as_raw_fd(), 0).map_err(KernelError::add(WHAT, MAP, SOCKETS_MAX)) {
            Ok(()) => return Ok(Self::Pair(own, peer)),
            Err(full @ KernelError::Full { .. }) => return Err(full),
            Err(_) => {}
        }
        // A kernel may be built without sockmaps of unix sockets; every one takes the listeners of backends.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        listeners.insert(DAEMON_COOKIE, listener.as_raw_fd(), 0).map_err(KernelError::add(WHAT, MAP, SOCKETS_MAX))?;
        Ok(Self::Listener(listener))
    }
}
