//! Who is at the other end of the API's socket.

use std::{
    fmt,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use rustix::net::{UCred, sockopt::socket_peercred};
use tokio::net::UnixListener;

use crate::{daemon::Peer, kernel::sys};

/// A client, as the kernel vouches for it at the moment it connected.
#[derive(Clone, Debug)]
pub struct ConnectedPeer(Option<Arc<Known>>);

#[derive(Debug)]
struct Known {
    cred: UCred,
    groups: Vec<u32>,
    pidfd: Option<OwnedFd>,
}

impl Connected<IncomingStream<'_, UnixListener>> for ConnectedPeer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let socket = stream.io().as_fd();
        let Ok(cred) = socket_peercred(socket) else { return Self(None) };
        let mut groups = sys::peer_groups(socket).unwrap_or_default();
        groups.push(cred.gid.as_raw());
        Self(Some(Arc::new(Known { cred, groups, pidfd: sys::peer_pidfd(socket).ok() })))
    }
}

impl ConnectedPeer {
    /// Root, the daemon's own user, and members of the group.
    pub fn may_use(&self, group: Option<u32>) -> bool {
        self.0.as_ref().is_some_and(|known| {
            known.cred.uid.is_root()
                || known.cred.uid == rustix::process::geteuid()
                || group.is_some_and(|group| known.groups.contains(&group))
        })
    }

    /// The process, to be acted upon.
    pub fn process(&self) -> std::io::Result<Peer> {
        let known = self.0.as_ref().ok_or_else(|| std::io::Error::other("the kernel does not say"))?;
        let pidfd = known.pidfd.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Peer { cred: known.cred, pidfd })
    }
}

impl ConnectedPeer {
    /// The client for people, as in `root (uid 0, pid 4242)`.
    pub async fn who(&self) -> String {
        let Some(known) = &self.0 else { return "unknown".to_owned() };
        let (uid, pid) = (known.cred.uid.as_raw(), known.cred.pid.as_raw_nonzero());
        let passwd = tokio::fs::read_to_string("/etc/passwd").await.unwrap_or_default();
        match user_name(&passwd, uid) {
            Some(name) => format!("{name} (uid {uid}, pid {pid})"),
            None => format!("uid {uid} (pid {pid})"),
        }
    }
}

fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

impl fmt::Display for ConnectedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(known) => write!(f, "pid {} uid {}", known.cred.pid.as_raw_nonzero(), known.cred.uid.as_raw()),
            None => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\nodd\nweb:x:33:33::/:/bin/false\n";
        assert_eq!(
            (user_name(passwd, 0), user_name(passwd, 33), user_name(passwd, 7)),
            (Some("root"), Some("web"), None)
        );
    }
}
