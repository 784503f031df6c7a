//! The identity of a network namespace. Pure.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::NetnsCookie;

/// An ingress namespace. The kernel programs identify it by its cookie, which is not reused before the machine
/// restarts; an inode number may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Netns {
    /// Device of its `ns/net` file.
    pub dev: u64,
    /// Inode of its `ns/net` file.
    pub inode: u64,
    /// `SO_NETNS_COOKIE` of a socket in it (Linux 5.14).
    pub cookie: NetnsCookie,
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.dev, self.inode)
    }
}
