//! Whose each shared port is, and which sockets had to be bound to another one.

use std::{collections::BTreeSet, os::fd::AsRawFd};

use pod_steer_ebpf::{Hidden, PORT_USERS_MAX, PortKey, PortUser, SocketInfo};

use super::{Kernel, KernelError, Result};

impl Kernel {
    /// Says whose a port is.
    pub fn own_port(&mut self, port: PortKey, uid: u32) -> Result<()> {
        let user = PortUser { uid, bound: 1, since_ns: 0 };
        self.port_users.insert(port, user, 0).map_err(KernelError::add(
            "write whose a port is to",
            "PORT_USERS",
            PORT_USERS_MAX,
        ))
    }

    /// Ports that are somebody's.
    pub fn owned_ports(&self) -> BTreeSet<PortKey> {
        self.port_users.keys().flatten().collect()
    }

    /// Lets a port go: the next to bind it may be of any user.
    pub fn free_port(&mut self, port: PortKey) {
        let _ = self.port_users.remove(&port);
    }

    /// What is known of a socket whose bind was moved; nothing of others.
    pub fn hidden(&self, socket: &impl AsRawFd) -> Option<Hidden> {
        self.hidden.get(socket, 0).ok().filter(|hidden| hidden.port != 0)
    }

    /// What the kernel holds of a registered socket.
    pub fn socket(&self, cookie: u64) -> Option<SocketInfo> {
        self.sockets.get(&cookie, 0).ok()
    }
}
