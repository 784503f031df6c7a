//! The socket map, and the descriptions of the sockets in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsRawFd,
};

use pod_steer_ebpf::{DAEMON_COOKIE, NONE, OwnListener, SOCKETS_MAX, SocketInfo};

use super::{Kernel, KernelError, Result, alive::Alive, v6only};
use crate::ids::{BackendIndex, SocketCookie};

/// The contents of the maps of sockets, each read once.
pub struct SocketMaps {
    /// Read first: a kernel program writes a listener here after it has added the socket to the socket map.
    own_listeners: Vec<(OwnListener, SocketCookie)>,
    listening: BTreeSet<SocketCookie>,
    described: BTreeMap<SocketCookie, SocketInfo>,
}

impl SocketMaps {
    /// Cookies of sockets in the socket map without a description: the map of descriptions was full, or lost its entry.
    pub fn undescribed(&self) -> BTreeSet<SocketCookie> {
        let unknown = |cookie: &&SocketCookie| cookie.0 != DAEMON_COOKIE && !self.described.contains_key(cookie);
        self.listening.iter().filter(unknown).copied().collect()
    }

    /// Whether the socket map has the daemon's own socket.
    pub fn has_daemon(&self) -> bool {
        self.listening.contains(&SocketCookie(DAEMON_COOKIE))
    }
}

/// The result of adding a socket to the socket map: it gets clients, whatever else failed.
pub struct Registered {
    /// Whether there was room for its description.
    pub described: bool,
    /// Whether connections of its backend to itself can reach it.
    pub own_listener: Result<()>,
}

impl Kernel {
    fn descriptions(&self) -> impl Iterator<Item = (SocketCookie, SocketInfo)> {
        self.sockets.iter().flatten().map(|(cookie, info)| (SocketCookie(cookie), info))
    }

    /// Reads the maps of sockets.
    pub fn socket_maps(&self) -> SocketMaps {
        // In this order: a socket enters the socket map first and the map of own listeners last.
        let own_listeners = self.own.read();
        let listening = self.listening_cookies();
        SocketMaps { own_listeners, listening, described: self.descriptions().collect() }
    }

    /// Every registered socket that still listens. The description of a closed one is removed by the second call that
    /// finds it closed: the migrate program needs it until the socket's queue is empty.
    pub fn live_sockets(&mut self, maps: SocketMaps) -> Vec<(SocketCookie, SocketInfo)> {
        let SocketMaps { listening, described, .. } = maps;
        let (live, closed): (Vec<_>, Vec<_>) =
            described.into_iter().partition(|(cookie, _)| listening.contains(cookie));
        let closed: BTreeSet<SocketCookie> = closed.into_iter().map(|(cookie, _)| cookie).collect();
        for cookie in closed.intersection(&self.closed) {
            let _ = self.sockets.remove(&cookie.0);
        }
        self.migration_targets.retain(|cookie, _| !closed.contains(cookie));
        (self.closed, self.listening) = (closed, None);
        live
    }

    /// Corrects the map of own listeners to match the sockets that listen, and removes own connections whose end no
    /// program reported.
    pub fn sweep_own(&mut self, maps: &SocketMaps) -> Result<()> {
        self.own.sweep_connections();
        let of_backends = maps.described.iter().filter(|(cookie, _)| !self.holds.contains(cookie));
        let of_backends = of_backends.map(|(cookie, info)| (*cookie, *info)).collect();
        self.own.sweep_listeners(&maps.own_listeners, &maps.listening, &of_backends)
    }

    /// Adds the daemon's own socket to the socket map, where the kernel programs look for it, unless it `is_there`.
    pub fn announce(&mut self, is_there: bool) -> Result<()> {
        if !is_there || self.alive.is_none() {
            self.alive = Some(Alive::announce(&mut self.listeners)?);
        }
        Ok(())
    }

    /// Registers a socket that listened before its backend was managed.
    pub fn register_socket(
        &mut self,
        cookie: SocketCookie,
        socket: &impl AsRawFd,
        info: SocketInfo,
    ) -> Result<Registered> {
        let before = self.sockets.get(&cookie.0, 0).ok();
        // Once in the socket map, it may close at any moment, and then the migrate program needs its description.
        let described = self.describe(cookie, info).is_ok();
        if let Err(error) = self.listeners.insert(cookie.0, socket.as_raw_fd(), 0) {
            match before {
                Some(before) => drop(self.sockets.insert(cookie.0, before, 0)),
                None => drop(self.sockets.remove(&cookie.0)),
            }
            return Err(KernelError::add("add a socket to", "LISTENERS", SOCKETS_MAX)(error));
        }
        let counted = before.map(|before| before.backend).filter(|backend| *backend != NONE).map(BackendIndex);
        self.socket_counts.moves(counted, Some(BackendIndex(info.backend)));
        self.listening = None;
        self.migration_targets.remove(&cookie);
        let mut keys = info.own_listener().into_iter().chain(info.any_listener());
        let own_listener = keys.try_for_each(|key| self.own.listens(key, cookie));
        Ok(Registered { described, own_listener })
    }

    /// Writes the description of a socket in the socket map. If the map is full, descriptions of closed sockets make
    /// room.
    pub fn describe(&mut self, cookie: SocketCookie, info: SocketInfo) -> Result<()> {
        if self.sockets.insert(cookie.0, info, 0).is_ok() {
            return Ok(());
        }
        let live = self.listening_cookies();
        let described = self.sockets.keys().flatten().map(SocketCookie);
        let closed: Vec<SocketCookie> = described.filter(|cookie| !live.contains(cookie)).collect();
        for cookie in closed {
            let _ = self.sockets.remove(&cookie.0);
        }
        self.sockets.insert(cookie.0, info, 0).map_err(KernelError::add(
            "write the description of a socket to",
            "SOCKETS",
            SOCKETS_MAX,
        ))
    }

    /// The same, and also updates what was read before.
    pub fn describe_in(&mut self, maps: &mut SocketMaps, cookie: SocketCookie, info: SocketInfo) -> Result<()> {
        self.describe(cookie, info)?;
        maps.described.insert(cookie, info);
        Ok(())
    }

    /// Removes the record of a closed listener; `other` still listens for this key.
    pub fn own_listener_closed(&mut self, key: OwnListener, cookie: SocketCookie, other: Option<SocketCookie>) {
        self.own.closed(key, cookie, other);
    }

    /// Records for a later daemon which clients a socket takes.
    pub fn note_v6only(&mut self, cookie: SocketCookie, only: bool) {
        // A socket that has closed meanwhile has no description.
        if let Ok(info) = self.sockets.get(&cookie.0, 0) {
            let _ = self.sockets.insert(cookie.0, SocketInfo { v6only: v6only(only), ..info }, 0);
        }
    }

    /// Records for a later daemon which device a socket is bound to.
    pub fn note_device(&mut self, cookie: SocketCookie, ifindex: u32) {
        // A socket that has closed meanwhile has no description.
        if let Ok(info) = self.sockets.get(&cookie.0, 0) {
            let _ = self.sockets.insert(cookie.0, SocketInfo { ifindex, ..info }, 0);
        }
    }

    /// A socket has begun to listen, maybe again: its description is new, so its migration targets have to be written
    /// again.
    pub fn listens_anew(&mut self, cookie: SocketCookie) {
        self.listening = None;
        if self.migration_targets.remove(&cookie).is_none() && !self.forgotten.contains(&cookie) {
            return;
        }
        let has = |table: &std::sync::Arc<crate::world::PlannedTable>| {
            table.members.binary_search_by_key(&cookie, |member| member.cookie).is_ok()
        };
        for published in self.published.values_mut().filter(|published| published.table.as_ref().is_some_and(has)) {
            published.ours = false;
        }
    }

    /// Adds the listener of paused services to the socket map. It belongs to no backend.
    pub fn register_pause(&mut self, cookie: SocketCookie, socket: &impl AsRawFd) -> Result<()> {
        self.listening = None;
        let written = self.listeners.insert(cookie.0, socket.as_raw_fd(), 0);
        written.map_err(KernelError::map("add a socket to", "LISTENERS"))
    }

    /// Adds a listener that holds clients of a paused service, with its description. It is no backend's newest listener.
    pub fn register_hold(&mut self, cookie: SocketCookie, socket: &impl AsRawFd, info: SocketInfo) -> Result<()> {
        self.listening = None;
        self.describe(cookie, info)?;
        self.adopt_hold(cookie);
        let written = self.listeners.insert(cookie.0, socket.as_raw_fd(), 0);
        written.map_err(KernelError::add("add a socket to", "LISTENERS", SOCKETS_MAX)).inspect_err(|_| {
            self.forget_hold(cookie);
            let _ = self.sockets.remove(&cookie.0);
        })
    }

    /// An earlier daemon has registered this listener, which holds clients.
    pub fn adopt_hold(&mut self, cookie: SocketCookie) {
        self.holds.insert(cookie);
    }

    /// This listener holds no clients any more.
    pub fn forget_hold(&mut self, cookie: SocketCookie) {
        self.holds.remove(&cookie);
    }

    /// Takes the migration targets from a socket: what waits in its queue is reset when it closes.
    pub fn strand(&mut self, cookie: SocketCookie) {
        self.closed(cookie);
        if let Ok(info) = self.sockets.get(&cookie.0, 0) {
            let _ = self.sockets.insert(cookie.0, SocketInfo { table: NONE, ..info }, 0);
        }
    }

    /// Whether a socket is in the socket map. The kernel removes one that closes.
    pub fn is_listening(&self, cookie: SocketCookie) -> bool {
        self.listeners.keys().flatten().any(|listening| listening == cookie.0)
    }

    /// Cookies of the sockets in the socket map. The kernel removes one that closes.
    pub fn listening_cookies(&self) -> BTreeSet<SocketCookie> {
        self.listeners.keys().flatten().map(SocketCookie).collect()
    }

    /// The same, read once in a turn of the loop. It may contain a socket that has closed since, but lacks none that
    /// began to listen since.
    pub fn listening_in_turn(&mut self) -> &BTreeSet<SocketCookie> {
        let listeners = &self.listeners;
        self.listening.get_or_insert_with(|| listeners.keys().flatten().map(SocketCookie).collect())
    }

    /// Ends a turn of the loop.
    pub fn end_turn(&mut self) {
        self.listening = None;
    }

    /// A socket was closed, or stopped listening. The kernel has already removed it from the socket map. It may be
    /// there again, if it listens again.
    pub fn closed(&mut self, cookie: SocketCookie) {
        if self.migration_targets.remove(&cookie).is_some() {
            self.forgotten.insert(cookie);
        }
    }

    /// Removes a socket from the socket map. The socket itself does not change.
    pub fn forget_socket(&mut self, cookie: SocketCookie) {
        self.closed(cookie);
        // If it has closed, the kernel program has counted its end.
        let was_there = self.listeners.remove(&cookie.0).is_ok();
        let of = self.disown_socket(cookie);
        if was_there {
            self.socket_counts.moves(of, None);
        }
    }

    /// Removes the sockets of an index that is about to go to another backend: all that were registered since the
    /// former backend ended.
    pub fn disown_index(&mut self, index: BackendIndex) {
        let of_index = self.descriptions().filter(|(_, info)| info.backend == index.0);
        let cookies: Vec<SocketCookie> = of_index.map(|(cookie, _)| cookie).collect();
        cookies.into_iter().for_each(|cookie| self.forget_socket(cookie));
    }

    /// Separates a socket from its backend, also from one that gets the same index later. Returns the former backend.
    pub fn disown_socket(&mut self, cookie: SocketCookie) -> Option<BackendIndex> {
        let info = self.sockets.get(&cookie.0, 0).ok()?;
        let _ = self.sockets.insert(cookie.0, SocketInfo { backend: NONE, ..info }, 0);
        (info.backend != NONE).then_some(BackendIndex(info.backend))
    }
}
