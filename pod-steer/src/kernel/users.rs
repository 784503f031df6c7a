//! The users that own shared ports, and the sockets that had to be bound to another port.

use std::{collections::BTreeSet, os::fd::AsRawFd};

use pod_steer_ebpf::{Hidden, PORT_USERS_MAX, PortKey, PortUser, SocketInfo};

use super::{Kernel, KernelError, Result};
use crate::ids::SocketCookie;

impl Kernel {
    /// Records the user that owns a port.
    pub fn own_port(&mut self, port: PortKey, uid: u32) -> Result<()> {
        let user = PortUser { uid, bound: 1, since_ns: 0 };
        self.port_users.insert(port, user, 0).map_err(KernelError::add(
            "write the owner of a port to",
            "PORT_USERS",
            PORT_USERS_MAX,
        ))
    }

    /// Ports that a user owns.
    pub fn owned_ports(&self) -> BTreeSet<PortKey> {
        self.port_users.keys().flatten().collect()
    }

    /// Frees a port: the next bind to it may be any user's.
    pub fn free_port(&mut self, port: PortKey) {
        let _ = self.port_users.remove(&port);
    }

    /// The record of a socket whose bind was moved; `None` for others.
    pub fn hidden(&self, socket: &impl AsRawFd) -> Option<Hidden> {
        self.hidden.get(socket, 0).ok().filter(|hidden| hidden.port != 0)
    }

    /// The description of a registered socket.
    pub fn socket(&self, cookie: SocketCookie) -> Option<SocketInfo> {
        self.sockets.get(&cookie.0, 0).ok()
    }
}
