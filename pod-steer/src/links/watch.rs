//! Hears of changes of the network devices of the own namespace.

use std::{io, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recv, socket_with},
};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// `RTMGRP_LINK`: devices that come, go or change.
const LINKS: u32 = 1;
/// A message is not read, only seen.
const MESSAGE_BYTES: usize = 64;

/// A socket of rtnetlink(7) that is told of each change.
#[derive(Debug)]
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Opens one in the namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&fd, &SocketAddrNetlink::new(0, LINKS))?;
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
