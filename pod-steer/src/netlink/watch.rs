//! Watches for changes of a network namespace: of its devices, or of its firewall.

use std::{io, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind,
        netlink::{self, SocketAddrNetlink},
        recv, socket_with,
    },
};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// What a [`Watch`] is told of.
#[derive(Clone, Copy, Debug)]
pub enum Changes {
    /// Devices that come, go or change, and what is attached to them by tc(8) (`RTMGRP_LINK`, `RTMGRP_TC`).
    Links,
    /// Rules of nftables, those of iptables-nft among them (`NFNLGRP_NFTABLES`). Changes by iptables-legacy are not reported.
    Rules,
}

impl Changes {
    /// The protocol, and the bit of the group of messages (`include/uapi/linux/rtnetlink.h`, `.../netfilter/nfnetlink.h`).
    fn group(self) -> (Option<Protocol>, u32) {
        match self {
            Self::Links => (None, 1 | 1 << 3),
            Self::Rules => (Some(netlink::NETFILTER), 1 << 6),
        }
    }
}

/// A message is not read, only seen.
const MESSAGE_BYTES: usize = 64;

/// A netlink(7) socket that is told of each change.
#[derive(Debug)]
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Opens one in the namespace of the calling thread. [`Changes::Rules`] needs CAP_NET_ADMIN.
    pub fn open(changes: Changes) -> io::Result<Self> {
        let (protocol, group) = changes.group();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, group))?;
        sys::readable(fd).map(Self)
    }

    /// Returns when something has changed since it was called last. Changes that come together are one.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut message = [0; MESSAGE_BYTES];
        loop {
            match recv(self.0.get_ref(), &mut message[..], RecvFlags::empty()) {
                // There were more than the socket has room for.
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
