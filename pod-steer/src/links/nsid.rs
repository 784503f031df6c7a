//! The numbers by which a network namespace knows others. Each namespace has numbers of its own, and gives the number of one that has
//! ended to another.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use super::{dump::Socket, message};

/// The number by which the namespace of this socket knows the one behind a descriptor; `None` if it does not.
pub fn of(socket: &mut Socket, ns: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let nsid = socket.nsid(&message::nsid(ns.as_raw_fd()))?;
    // NETNSA_NSID_NOT_ASSIGNED is -1.
    Ok(nsid.filter(|nsid| *nsid >= 0))
}
