//! Listening sockets as the kernel describes them. Pure.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::{ids::SocketCookie, ports::Port};

/// A listening TCP socket, as the kernel's own tables describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its cookie; `None` if it was read from `/proc/net`.
    pub cookie: Option<SocketCookie>,
    /// Address that it is bound to. That of an `AF_INET6` socket may be an IPv4-mapped one.
    pub ip: IpAddr,
    /// Port that it is bound to.
    pub port: Port,
    /// Whether an `AF_INET6` socket takes IPv6 clients only; `None` if it was read from `/proc/net`.
    pub v6only: Option<bool>,
    /// Index of the device that it is bound to (`SO_BINDTODEVICE`), or zero; zero if it was read from `/proc/net`.
    pub ifindex: u32,
    /// The user that made it.
    pub uid: u32,
    /// Its inode, as in `/proc/PID/fd`.
    pub inode: u64,
    /// Whether it is the TCP socket below an MPTCP listener. Its cookie is then not that of the MPTCP socket.
    pub mptcp: bool,
    /// Number of connections that wait to be accepted.
    pub waiting: u32,
    /// Its backlog, the limit of that number; zero if it was read from `/proc/net`.
    pub backlog: u32,
    /// Packets that it has dropped since it was made, mostly because its accept queue or its queue of SYNs was full; zero if it was read
    /// from `/proc/net`.
    pub drops: u32,
}
