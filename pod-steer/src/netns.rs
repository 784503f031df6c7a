//! Network namespaces: how one is named, opened and asked for its cookie.

use std::{fmt, fs::File, io, os::fd::AsFd, os::unix::fs::MetadataExt as _, thread};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use crate::kernel::sys;

/// An ingress namespace. The cookie is what the kernel programs know it by: it is never used again before the machine
/// restarts, while an inode number may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Netns {
    /// Device of its `ns/net` file.
    pub dev: u64,
    /// Inode of its `ns/net` file.
    pub inode: u64,
    /// `SO_NETNS_COOKIE` of a socket in it (Linux 5.14).
    pub cookie: u64,
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.dev, self.inode)
    }
}

/// Identifies the namespace behind an open `ns/net` file.
pub fn identify(ns: &File) -> io::Result<Netns> {
    let meta = ns.metadata()?;
    // A namespace is a property of a thread: a thread of its own enters and ends, and nobody else ever sees it.
    let cookie = thread::scope(|scope| {
        let entered = scope.spawn(|| {
            move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::Network))?;
            sys::own_netns_cookie()
        });
        entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread that entered the namespace died")))
    })?;
    Ok(Netns { dev: meta.dev(), inode: meta.ino(), cookie })
}

/// Runs `inside` on a thread of its own in another network namespace, if that is still the one with this cookie.
pub fn run_in<T: Send>(ns: &File, cookie: u64, inside: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let entered = scope.spawn(|| {
            move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::Network))?;
            if sys::own_netns_cookie()? != cookie {
                return Err(io::Error::other("its network namespace is another by now"));
            }
            inside()
        });
        entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread that entered the namespace died")))
    })
}
