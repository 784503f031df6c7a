//! The client of an API connection, and its role.

use std::{
    fmt,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    net::{UCred, sockopt::socket_peercred},
    process::geteuid,
};

use super::caller::Peer;
use crate::{
    procs::{ProcessId, process_id},
    sys,
};

/// The role of a client of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// May do everything.
    Operator,
    /// May only read.
    Viewer,
}

/// The groups whose members may use the API, besides root and the daemon's own user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Group of the operators.
    pub operators: Option<u32>,
    /// Group of the viewers.
    pub viewers: Option<u32>,
}

impl Access {
    /// The role of a user with these groups.
    fn role(self, trusted: bool, groups: &[u32]) -> Option<Role> {
        let is_member = |group: Option<u32>| group.is_some_and(|group| groups.contains(&group));
        if trusted || is_member(self.operators) {
            Some(Role::Operator)
        } else if is_member(self.viewers) {
            Some(Role::Viewer)
        } else {
            None
        }
    }
}

/// A client, with the credentials that the kernel recorded when it connected.
#[derive(Clone, Debug)]
pub struct ConnectedPeer(Arc<Known>);

#[derive(Debug)]
struct Known {
    cred: UCred,
    role: Option<Role>,
    pidfd: Option<OwnedFd>,
    accepted: Option<ProcessId>,
}

impl ConnectedPeer {
    /// Reads the credentials of a connection's client.
    pub fn of(stream: &impl AsFd, access: Access) -> std::io::Result<Self> {
        let socket = stream.as_fd();
        let cred = socket_peercred(socket)?;
        let mut groups = sys::peer_groups(socket).unwrap_or_default();
        groups.push(cred.gid.as_raw());
        let role = access.role(is_trusted(&cred), &groups);
        let pidfd = sys::peer_pidfd(socket).ok();
        let accepted = match &pidfd {
            Some(_) => None,
            None => process_id(cred.pid.as_raw_nonzero().get()).ok(),
        };
        Ok(Self(Arc::new(Known { cred, role, pidfd, accepted })))
    }

    /// Its role; `None` if it may not use the API.
    pub fn role(&self) -> Option<Role> {
        self.0.role
    }

    /// Whether it is root, or the user that the daemon runs as.
    pub fn is_trusted(&self) -> bool {
        is_trusted(&self.0.cred)
    }

    /// Its effective user id.
    pub fn uid(&self) -> u32 {
        self.0.cred.uid.as_raw()
    }

    /// The calling process.
    pub fn process(&self) -> std::io::Result<Peer> {
        let pidfd = self.0.pidfd.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Peer { cred: self.0.cred, pidfd, accepted: self.0.accepted })
    }

    /// Name of the client for messages: `root (uid 0, pid 4242)`.
    pub async fn who(&self) -> String {
        let (uid, pid) = (self.uid(), self.0.cred.pid.as_raw_nonzero());
        let passwd = tokio::fs::read_to_string("/etc/passwd").await.unwrap_or_default();
        match user_name(&passwd, uid) {
            Some(name) => format!("{name} (uid {uid}, pid {pid})"),
            None => format!("uid {uid} (pid {pid})"),
        }
    }
}

/// Root, and the user that the daemon runs as.
fn is_trusted(cred: &UCred) -> bool {
    cred.uid.is_root() || cred.uid == geteuid()
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
        write!(f, "pid {} uid {}", self.0.cred.pid.as_raw_nonzero(), self.0.cred.uid.as_raw())
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

    #[test]
    fn a_role_follows_from_user_and_groups() {
        let access = Access { operators: Some(10), viewers: Some(20) };
        let role = |groups: &[u32]| access.role(false, groups);
        assert_eq!((role(&[1, 10]), role(&[20]), role(&[1])), (Some(Role::Operator), Some(Role::Viewer), None));
        assert_eq!(role(&[20, 10]), Some(Role::Operator), "a member of both");
        assert_eq!(access.role(true, &[20]), Some(Role::Operator), "root");
        assert_eq!(Access::default().role(false, &[0, 10, 20]), None, "no group was configured");
    }
}
