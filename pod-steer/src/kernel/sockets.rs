//! The socket map, and what is known of each socket in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsRawFd,
};

use pod_steer_ebpf::{DAEMON_COOKIE, NONE, OwnListener, SOCKETS_MAX, SocketInfo};

use super::{Kernel, KernelError, Result, alive::Alive, v6only};

/// What the maps of sockets hold, each read once.
pub struct SocketMaps {
    /// Read first: a kernel program writes a listener here after it has put the socket into the socket map.
    own_listeners: Vec<(OwnListener, u64)>,
    listening: BTreeSet<u64>,
    described: BTreeMap<u64, SocketInfo>,
}

impl SocketMaps {
    /// Cookies of sockets in the socket map of which nothing is known: the map of descriptions was full, or lost its entry.
    pub fn undescribed(&self) -> BTreeSet<u64> {
        let unknown = |cookie: &&u64| **cookie != DAEMON_COOKIE && !self.described.contains_key(cookie);
        self.listening.iter().filter(unknown).copied().collect()
    }

    /// Whether the socket map has the daemon's own socket.
    pub fn has_daemon(&self) -> bool {
        self.listening.contains(&DAEMON_COOKIE)
    }
}

/// What became of a socket that has entered the socket map: clients come to it whatever else failed.
pub struct Registered {
    /// There is room for what is known of it.
    pub described: bool,
    /// Its backend may not reach it by connections of its own.
    pub own_listener: Result<()>,
}

impl Kernel {
    /// Reads the maps of sockets.
    pub fn socket_maps(&self) -> SocketMaps {
        // In this order: a socket enters the socket map first and the map of own listeners last.
        let own_listeners = self.own.read();
        let listening = self.listening_cookies();
        SocketMaps { own_listeners, listening, described: self.sockets.iter().flatten().collect() }
    }

    /// Every registered socket that still listens. What is known of a closed one is removed by the second call that
    /// finds it closed: the migrate program needs it until the socket's queue is empty.
    pub fn live_sockets(&mut self, maps: SocketMaps) -> Vec<(u64, SocketInfo)> {
        let SocketMaps { listening, described, .. } = maps;
        let (live, closed): (Vec<_>, Vec<_>) =
            described.into_iter().partition(|(cookie, _)| listening.contains(cookie));
        let closed: BTreeSet<u64> = closed.into_iter().map(|(cookie, _)| cookie).collect();
        for cookie in closed.intersection(&self.closed) {
            let _ = self.sockets.remove(cookie);
        }
        self.heirs.retain(|cookie, _| !closed.contains(cookie));
        (self.closed, self.listening) = (closed, None);
        live
    }

    /// Brings the map of own listeners to what listens, and forgets own connections that have ended unseen.
    pub fn sweep_own(&mut self, maps: &SocketMaps) -> Result<()> {
        self.own.sweep_connections();
        self.own.sweep_listeners(&maps.own_listeners, &maps.listening, &maps.described)
    }

    /// Puts the daemon's own socket into the socket map, where the kernel programs look for it, unless it `is_there`.
    pub fn announce(&mut self, is_there: bool) -> Result<()> {
        if !is_there || self.alive.is_none() {
            self.alive = Some(Alive::announce(&mut self.listeners)?);
        }
        Ok(())
    }

    /// Registers a socket that listened before its backend was managed.
    pub fn register_socket(&mut self, cookie: u64, socket: &impl AsRawFd, info: SocketInfo) -> Result<Registered> {
        let before = self.sockets.get(&cookie, 0).ok();
        // As soon as it is in the socket map it may close, and the migrate program asks what it was.
        let described = self.describe(cookie, info).is_ok();
        if let Err(error) = self.listeners.insert(cookie, socket.as_raw_fd(), 0) {
            match before {
                Some(before) => drop(self.sockets.insert(cookie, before, 0)),
                None => drop(self.sockets.remove(&cookie)),
            }
            return Err(KernelError::add("put a socket into", "LISTENERS", SOCKETS_MAX)(error));
        }
        let counted = before.map(|before| before.backend).filter(|backend| *backend != NONE);
        self.socket_counts.moves(counted, Some(info.backend));
        self.listening = None;
        self.heirs.remove(&cookie);
        let mut keys = info.own_listener().into_iter().chain(info.any_listener());
        let own_listener = keys.try_for_each(|key| self.own.listens(key, cookie));
        Ok(Registered { described, own_listener })
    }

    /// Writes what is known of a socket in the socket map. What is known of closed ones makes room if there is none.
    pub fn describe(&mut self, cookie: u64, info: SocketInfo) -> Result<()> {
        if self.sockets.insert(cookie, info, 0).is_ok() {
            return Ok(());
        }
        let live = self.listening_cookies();
        let closed: Vec<u64> = self.sockets.keys().flatten().filter(|cookie| !live.contains(cookie)).collect();
        for cookie in closed {
            let _ = self.sockets.remove(&cookie);
        }
        self.sockets.insert(cookie, info, 0).map_err(KernelError::add("describe a socket in", "SOCKETS", SOCKETS_MAX))
    }

    /// The same, also in what was read before.
    pub fn describe_in(&mut self, maps: &mut SocketMaps, cookie: u64, info: SocketInfo) -> Result<()> {
        self.describe(cookie, info)?;
        maps.described.insert(cookie, info);
        Ok(())
    }

    /// A listener has closed; `other` is one that still listens for this key.
    pub fn own_listener_closed(&mut self, key: OwnListener, cookie: u64, other: Option<u64>) {
        self.own.closed(key, cookie, other);
    }

    /// Remembers for a later daemon which clients a socket takes.
    pub fn note_v6only(&mut self, cookie: u64, only: bool) {
        // One that has closed meanwhile has no description any more.
        if let Ok(info) = self.sockets.get(&cookie, 0) {
            let _ = self.sockets.insert(cookie, SocketInfo { v6only: v6only(only), ..info }, 0);
        }
    }

    /// Remembers for a later daemon which device a socket is bound to.
    pub fn note_device(&mut self, cookie: u64, ifindex: u32) {
        // One that has closed meanwhile has no description any more.
        if let Ok(info) = self.sockets.get(&cookie, 0) {
            let _ = self.sockets.insert(cookie, SocketInfo { ifindex, ..info }, 0);
        }
    }

    /// A socket has begun to listen, maybe once more: its description is new, so the migrate program is to be told again.
    pub fn listens_anew(&mut self, cookie: u64) {
        self.listening = None;
        if self.heirs.remove(&cookie).is_none() && !self.forgotten.contains(&cookie) {
            return;
        }
        let has = |table: &std::sync::Arc<crate::world::PlannedTable>| {
            table.members.binary_search_by_key(&cookie, |member| member.cookie).is_ok()
        };
        for published in self.published.values_mut().filter(|published| published.table.as_ref().is_some_and(has)) {
            published.ours = false;
        }
    }

    /// Puts the listener of paused services into the socket map; it belongs to no backend.
    pub fn register_pause(&mut self, cookie: u64, socket: &impl AsRawFd) -> Result<()> {
        self.listening = None;
        let written = self.listeners.insert(cookie, socket.as_raw_fd(), 0);
        written.map_err(KernelError::map("put a socket into", "LISTENERS"))
    }

    /// Whether a socket is in the socket map, from which the kernel removes one that closes.
    pub fn is_listening(&self, cookie: u64) -> bool {
        self.listeners.keys().flatten().any(|listening| listening == cookie)
    }

    /// Cookies of the sockets in the socket map, from which the kernel removes one that closes.
    pub fn listening_cookies(&self) -> BTreeSet<u64> {
        self.listeners.keys().flatten().collect()
    }

    /// The same, read once in a turn of the loop; a socket that has closed since may be among them, and none that began to listen
    /// since is missing.
    pub fn listening_in_turn(&mut self) -> &BTreeSet<u64> {
        let listeners = &self.listeners;
        self.listening.get_or_insert_with(|| listeners.keys().flatten().collect())
    }

    /// A turn of the loop is over.
    pub fn end_turn(&mut self) {
        self.listening = None;
    }

    /// A socket was closed, or stopped to listen. The kernel has taken it out of the socket map itself; it may be there again
    /// already, if it listens anew.
    pub fn closed(&mut self, cookie: u64) {
        if self.heirs.remove(&cookie).is_some() {
            self.forgotten.insert(cookie);
        }
    }

    /// Takes a socket out of the socket map; the socket itself is not touched.
    pub fn forget_socket(&mut self, cookie: u64) {
        self.closed(cookie);
        // The kernel program has counted the end of one that has closed.
        let was_there = self.listeners.remove(&cookie).is_ok();
        let of = self.disown_socket(cookie);
        if was_there {
            self.socket_counts.moves(of, None);
        }
    }

    /// No socket belongs to a backend with this index any more, which becomes another's: whatever was registered since the former one
    /// ended leaves the socket map.
    pub fn disown_index(&mut self, index: u32) {
        let of_index = |(cookie, info): (u64, SocketInfo)| (info.backend == index).then_some(cookie);
        let cookies: Vec<u64> = self.sockets.iter().flatten().filter_map(of_index).collect();
        cookies.into_iter().for_each(|cookie| self.forget_socket(cookie));
    }

    /// A socket belongs to no backend any more: not to one that gets the index of its former one either. Returns the former one.
    pub fn disown_socket(&mut self, cookie: u64) -> Option<u32> {
        let info = self.sockets.get(&cookie, 0).ok()?;
        let _ = self.sockets.insert(cookie, SocketInfo { backend: NONE, ..info }, 0);
        (info.backend != NONE).then_some(info.backend)
    }
}
