//! The users that listening sockets belong to, for services that restrict them. The kernel programs do not report it: a look at each
//! new socket finds it out, or the kernel's own table of listeners.

use std::collections::{BTreeMap, BTreeSet};

use tracing::warn;

use super::control::Control;
use crate::{
    ids::{NetnsCookie, SocketCookie},
    process_set::listeners_of_netns,
};

impl Control {
    /// Asks the kernel whose the sockets are that get no clients before that is known: those that were there before this daemon, and
    /// those that a look has missed.
    pub(super) fn learn_users(&mut self) {
        let unknown = self.world.sockets_of_unknown_users();
        let wanted: BTreeSet<NetnsCookie> = unknown.iter().map(|(_, netns_cookie)| *netns_cookie).collect();
        if wanted.is_empty() {
            return;
        }
        let mut users = BTreeMap::new();
        for (_, (netns, sets)) in self.namespaces().into_iter().filter(|(cookie, _)| wanted.contains(cookie)) {
            match listeners_of_netns(netns, &sets) {
                Ok(listeners) => users.extend(listeners.iter().filter_map(|one| Some((one.cookie?, one.uid)))),
                Err(error) => {
                    warn!(%netns, %error, "cannot read the users of the listeners of a network namespace")
                }
            }
        }
        for (cookie, _) in unknown {
            if let Some(uid) = users.get(&cookie) {
                self.note_user(cookie, *uid);
            }
        }
    }

    /// A socket belongs to this user.
    pub(super) fn note_user(&mut self, cookie: SocketCookie, uid: u32) {
        let Some(socket) = self.world.sockets.get_mut(&cookie).filter(|socket| socket.uid != Some(uid)) else { return };
        socket.uid = Some(uid);
        let index = socket.backend;
        let Some(backend) = self.world.by_index(index) else { return };
        let service = backend.spec.service.clone();
        // Elsewhere it decides nothing.
        if self.world.configured.users(&service).is_some() {
            self.sockets_changed(&service);
        }
    }
}
