//! Numbers and names by which things are known. Each has a type of its own, so that an index is not taken for a cookie, nor the cookie
//! of a socket for that of a namespace. The number itself (`.0`) is needed only where it is written to the kernel or read from it. Pure.
#![forbid(unsafe_code)]

use std::{borrow::Borrow, fmt, num::ParseIntError, ops::Deref, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A type around a number, displayed, read and stored as the bare number.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident($of:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
        )]
        #[serde(transparent)]
        #[schema(value_type = $of)]
        pub struct $name(pub $of);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;

            fn from_str(text: &str) -> Result<Self, ParseIntError> {
                text.parse().map(Self)
            }
        }
    };
}

number! {
    /// Index of a backend in the kernel's maps: the daemon gives each backend the smallest free one and stores it. It is given to
    /// another backend after its own has gone and no connection is counted there any more.
    BackendIndex(u32)
}

number! {
    /// Index of a service in the kernel's maps, where its counters and its switch are: the daemon gives it out, and to another service
    /// once no rule and no backend needs it.
    ServiceIndex(u32)
}

number! {
    /// Cookie of a socket (`SO_COOKIE`, Linux 4.12): the kernel gives it to the socket when it is first asked for. It is the same for
    /// every file descriptor of the socket, and no other socket gets it before the machine restarts.
    SocketCookie(u64)
}

number! {
    /// Cookie of a network namespace (`SO_NETNS_COOKIE`, Linux 5.14): the kernel gives it to the namespace when that is made. No other
    /// namespace gets it before the machine restarts, while an inode number of nsfs is used again.
    NetnsCookie(u64)
}

number! {
    /// Id of a cgroup v2, which is the inode number of its directory: the kernel gives it out, and a 64-bit kernel does not give it to
    /// another cgroup before the machine restarts.
    CgroupId(u64)
}

/// A backend's name for ever: a container's full id, or the name that the daemon made for `exec` or `register`. Maps that are keyed by it
/// can be asked with a `&str`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct BackendId(String);

impl BackendId {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for BackendId {
    fn from(id: String) -> Self {
        Self(id)
    }
}

impl From<&str> for BackendId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

impl From<BackendId> for String {
    fn from(id: BackendId) -> Self {
        id.0
    }
}

impl Borrow<str> for BackendId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Deref for BackendId {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for BackendId {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
