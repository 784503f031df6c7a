//! Listening sockets, as the kernel describes them. Pure.
#![forbid(unsafe_code)]

use std::net::IpAddr;

/// A listening TCP socket, as the kernel's own tables describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its cookie; not known if it was read from `/proc/net`.
    pub cookie: Option<u64>,
    /// Address that it is bound to. That of an `AF_INET6` socket may be an IPv4-mapped one.
    pub ip: IpAddr,
    /// Port that it is bound to.
    pub port: u16,
    /// An `AF_INET6` socket takes IPv6 clients only; not known if it was read from `/proc/net`.
    pub v6only: Option<bool>,
    /// Index of the device that it is bound to (`SO_BINDTODEVICE`), or zero: also if it was read from `/proc/net`.
    pub ifindex: u32,
    /// The user that made it.
    pub uid: u32,
    /// Its inode, as in `/proc/PID/fd`.
    pub inode: u64,
    /// It is the TCP socket below an MPTCP listener, and its cookie is not that of the MPTCP socket.
    pub mptcp: bool,
    /// Connections that wait to be accepted.
    pub waiting: u32,
    /// As many may wait; zero if it was read from `/proc/net`.
    pub backlog: u32,
}
