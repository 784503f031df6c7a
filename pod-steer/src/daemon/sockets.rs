//! Listening sockets: those that the kernel programs report, and those that were there before.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
};

use pod_steer_ebpf::{
    EVENT_CLOSED, EVENT_LEFT_OUT, EVENT_LISTENING, EVENT_MPTCP_REFUSED, EVENT_NOT_REGISTERED, EVENT_NOT_SHARED,
    Event as KernelEvent, FAMILY_V4, FAMILY_V6, LEFT_OUT_MANY, NONE, OwnListener, SocketInfo,
};
use rustix::net::sockopt::set_socket_reuseport;
use tracing::{debug, warn};

use super::{
    Event,
    control::Control,
    descriptions::{described, description},
};
use crate::{
    clock::boot_ms,
    condition::{Condition, Reason},
    ids::{BackendIndex, CgroupId, NetnsCookie, SocketCookie},
    kernel::{KernelError, v6only},
    ports::{Port, Proto},
    procs::{FoundSocket, address_bytes},
    world::{Backend, Network, Socket},
};

impl Control {
    pub(super) fn kernel_event(&mut self, event: &KernelEvent) {
        let info = &event.socket;
        let (cookie, index, netns_cookie) =
            (SocketCookie(event.cookie), BackendIndex(info.backend), NetnsCookie(info.netns_cookie));
        let port = Port { number: info.port, proto: Proto::from_number(info.proto).unwrap_or_default() };
        // The event names the backend whose process made the socket, the world the one that holds it.
        let holder = self.world.sockets.get(&cookie).map(|socket| socket.backend).filter(|_| event.cookie != 0);
        let Some(backend) = self.world.by_index(holder.unwrap_or(index)) else {
            // Made by a backend that has ended. A look finds the one that holds it, if one does. It must
            // not become the next one's that gets the index.
            if event.kind == EVENT_LISTENING {
                self.kernel.forget_socket(cookie);
            }
            return self.holders.look_at(netns_cookie);
        };
        let (id, service, name) = (backend.id.clone(), backend.spec.service.clone(), backend.name.clone());
        self.totals.count_listener(&service, event.kind);
        match event.kind {
            EVENT_LISTENING => {
                let v6only = described(info).v6only;
                debug!(%service, backend = %name, %port, %cookie, ?v6only, "listens");
                self.holders.renewed.insert(cookie);
                self.holders.silent.remove(&cookie);
                self.kernel.listens_anew(cookie);
                if holder.is_some_and(|holder| holder != index) {
                    // It was handed over: a search finds the process that made it listen again.
                    self.drop_socket(cookie);
                    self.touch_service(&service);
                    return self.holders.look_at(netns_cookie);
                }
                self.clear_no_place(index);
                if !self.world.sockets.contains_key(&cookie) {
                    self.world.opened_ms.insert(cookie, boot_ms());
                }
                self.add_socket(cookie, info);
                self.sockets_changed(&service);
                if event.errno != 0 {
                    self.describe_sockets(&mut self.kernel.socket_maps());
                }
                self.inspections.add(cookie, &id);
            }
            EVENT_CLOSED => {
                debug!(%service, backend = %name, %cookie, "no longer listens");
                self.drop_socket(cookie);
                self.kernel.closed(cookie);
                self.sockets_changed(&service);
            }
            EVENT_NOT_REGISTERED => {
                let error = std::io::Error::from_raw_os_error(event.errno as i32);
                self.note_no_place(index, port, &error);
            }
            EVENT_LEFT_OUT => self.note_left_out(index, netns_cookie, event.errno),
            EVENT_NOT_SHARED => {
                let error = std::io::Error::from_raw_os_error(event.errno as i32);
                warn!(%service, backend = %name, %port, %error, "SO_REUSEPORT could not be set on a bind");
            }
            EVENT_MPTCP_REFUSED => {
                debug!(%service, backend = %name, "asked for MPTCP; it is expected to fall back to TCP");
                self.tell(&service, &name, "mptcp-refused", "");
            }
            _ => {}
        }
    }

    fn add_socket(&mut self, cookie: SocketCookie, info: &SocketInfo) {
        let uid = self.world.sockets.get(&cookie).and_then(|socket| socket.uid);
        let socket = Socket { uid, ..described(info) };
        let index = socket.backend;
        let Some(backend) = self.world.by_index_mut(index) else { return };
        // The engine's word on the namespace may still be under way; a namespace where others serve is known.
        if backend.netns.is_none() && backend.network != Network::Own {
            backend.netns = self.netns.get(socket.netns_cookie);
        }
        let is_foreign = backend.netns.is_some_and(|netns| netns.cookie != socket.netns_cookie);
        self.world.sockets.insert(cookie, socket);
        if is_foreign {
            self.check_foreign(index);
        }
    }

    /// Says of a backend whether one of its sockets lives in another network namespace.
    pub(super) fn check_foreign(&mut self, index: BackendIndex) {
        let Some(netns) = self.world.by_index(index).and_then(|backend| backend.netns) else { return };
        let mut own = self.world.sockets.values().filter(|socket| socket.backend == index);
        let condition = own.find(|socket| socket.netns_cookie != netns.cookie).map(|socket| {
            let message = format!(
                "its socket on port {} lives in another network namespace than the container itself: a connection \
                 steered there would never complete",
                socket.port
            );
            Condition::new(Reason::ListenerElsewhere, message, "let it listen in the container's own")
        });
        let Some(backend) = self.world.by_index_mut(index) else { return };
        match condition {
            Some(condition) => backend.set_condition(condition),
            None => {
                backend.end_condition(Reason::ListenerElsewhere);
            }
        }
    }

    /// Looks for sockets that listened before the backend was managed.
    pub(super) fn look_for_sockets(&mut self, index: BackendIndex) {
        let Some(backend) = self.world.by_index(index) else { return };
        let ports = self.world.configured.listening_ports(&backend.spec);
        let (id, processes) = (backend.id.clone(), self.processes_of(backend));
        let cgroup = self.begin_search(&id, index);
        self.effects.run(Event::Found { id: id.clone(), cgroup, sockets: None }, move || {
            let wanted = |socket: &FoundSocket| !socket.mptcp && ports.contains(&socket.port());
            Event::Found { id, cgroup, sockets: Some(processes.listeners(wanted)) }
        });
    }

    /// Registers sockets that were found in this cgroup; nothing is known if the search failed.
    pub(super) fn found(&mut self, id: &str, cgroup: Option<CgroupId>, sockets: Option<Vec<FoundSocket>>) {
        if self.is_void(id, cgroup) {
            return;
        }
        let Some(backend) = self.world.backends.get(id) else { return };
        let (index, in_netns) = (backend.index, backend.netns.is_some());
        let Some(sockets) = sockets else { return self.search_failed(id) };
        self.end_search(id, &sockets);
        if !in_netns {
            return;
        }
        for socket in sockets {
            if !self.world.sockets.contains_key(&socket.cookie) {
                self.register_found(index, socket);
            }
        }
        self.tell_left_out();
        self.touch_backend(index);
    }

    /// Registers a socket of this backend that no kernel program has reported, or that was another backend's.
    pub(super) fn register_found(&mut self, index: BackendIndex, socket: FoundSocket) {
        // One that is registered keeps its place, whichever backend it is of.
        if !self.world.sockets.contains_key(&socket.cookie) && !self.kernel.socket_usage(index).may_take() {
            return self.leave_out(index, socket.netns_cookie, LEFT_OUT_MANY);
        }
        let hidden = self.kernel.hidden(&socket.fd);
        if hidden.is_none() {
            self.note_port_user(&socket);
        }
        let hidden = hidden.unwrap_or_default();
        let port = socket.port();
        let family = if socket.bound.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 };
        let info = SocketInfo {
            netns_cookie: socket.netns_cookie.0,
            addr: address_bytes(socket.bound.ip()),
            backend: index.0,
            table: NONE,
            port: port.number,
            proto: port.proto.number(),
            family,
            service: NONE,
            hidden_port: hidden.port,
            v6only: v6only(socket.v6only),
            users: hidden.users,
            ifindex: socket.ifindex,
            #[cfg(feature = "test-layout")]
            later: 0,
        };
        let registered = match self.kernel.register_socket(socket.cookie, &socket.fd, info) {
            Ok(registered) => registered,
            Err(error) => {
                let error = match error {
                    KernelError::Full { .. } => std::io::Error::from_raw_os_error(libc::E2BIG),
                    error => std::io::Error::other(crate::chain(&error)),
                };
                return self.note_no_place(index, port, &error);
            }
        };
        self.clear_no_place(index);
        if socket.reuseport {
            let _ = self.migration.attach(socket.fd.as_fd());
        } else if let Err(error) = set_socket_reuseport(&socket.fd, true) {
            // Set late it works all the same: the next bind looks at it, and the next listener makes the group.
            self.note_unshared(index, port, error.into());
        }
        // It may have been another backend's, of another service even.
        if let Some(former) = self.world.sockets.get(&socket.cookie).map(|socket| socket.backend) {
            self.drop_socket(socket.cookie);
            self.touch_backend(former);
        }
        if self.world.no_longer_foreign(socket.netns_cookie, socket.cookie) {
            self.touch();
        }
        self.holders.seats.insert(socket.cookie, socket.seat);
        self.holders.silent.insert(socket.cookie);
        self.holders.refused.remove(&socket.cookie);
        self.holders.watching = true;
        self.add_socket(socket.cookie, &info);
        self.note_user(socket.cookie, socket.uid);
        self.touch_backend(index);
        if !registered.described {
            self.describe_sockets(&mut self.kernel.socket_maps());
        }
        if registered.own_listener.is_err() {
            self.note_own_listeners(registered.own_listener);
        }
    }

    /// Registers a socket that was made outside of this backend's cgroup.
    pub(super) fn register_inherited(&mut self, index: BackendIndex, socket: FoundSocket) {
        let cookie = socket.cookie;
        self.register_found(index, socket);
        let live: BTreeSet<SocketCookie> = self.world.sockets.keys().copied().collect();
        let Some(backend) = self.world.by_index_mut(index) else { return };
        backend.inherited.retain(|cookie| live.contains(cookie));
        backend.inherited.insert(cookie);
        if let Err(error) = self.store.put(backend) {
            warn!(error = %crate::chain(&error), "a restart will not know that connections of this backend are not counted");
        }
    }

    /// Takes the kernel's word for which sockets listen.
    pub(super) fn read_sockets(&mut self) {
        let mut maps = self.kernel.socket_maps();
        self.announce(maps.has_daemon());
        let left = self.describe_sockets(&mut maps);
        let swept = self.kernel.sweep_own(&maps);
        self.note_own_listeners(swept);
        let live = self.kernel.live_sockets(maps);
        let before = self.world.sockets.len();
        let alive: BTreeSet<SocketCookie> = live.iter().map(|(cookie, _)| *cookie).chain(left).collect();
        let gone: Vec<SocketCookie> =
            self.world.sockets.keys().filter(|cookie| !alive.contains(cookie)).copied().collect();
        gone.into_iter().for_each(|cookie| self.drop_socket(cookie));
        let mut changed = self.world.sockets.len() != before;
        for (cookie, info) in live {
            if self.world.sockets.contains_key(&cookie) {
                continue;
            }
            let Some(backend) = self.world.by_index(BackendIndex(info.backend)) else {
                // Its backend has ended. It must not become the next one's that gets the index.
                if !self.engines.is_awaiting() && !self.is_of_hold(BackendIndex(info.backend)) {
                    self.kernel.disown_socket(cookie);
                }
                continue;
            };
            self.inspections.add(cookie, &backend.id);
            if backend.inherited.contains(&cookie) {
                self.holders.silent.insert(cookie);
            }
            self.add_socket(cookie, &info);
            changed = true;
        }
        if changed {
            self.touch();
        }
        self.learn_users();
    }

    /// Forgets the sockets of a backend that has ended.
    pub(super) fn forget_sockets(&mut self, index: BackendIndex) {
        let own = self.world.sockets.iter().filter(|(_, socket)| socket.backend == index);
        let cookies: Vec<SocketCookie> = own.map(|(cookie, _)| *cookie).collect();
        for cookie in cookies {
            self.forget_socket(cookie);
        }
    }

    /// Takes a socket out of steering, whether it listens or not.
    pub(super) fn forget_socket(&mut self, cookie: SocketCookie) {
        self.drop_socket(cookie);
        self.kernel.forget_socket(cookie);
    }

    /// A socket listens no more.
    fn drop_socket(&mut self, cookie: SocketCookie) {
        self.holders.forget(cookie);
        if let Some(socket) = self.world.remove_socket(cookie, boot_ms()) {
            self.dirty.note_closed(own_listeners(&socket).map(|key| (key, cookie)));
            let is_told = |backend: &Backend| backend.conditions.contains_key(&Reason::ListenerElsewhere);
            if self.world.by_index(socket.backend).is_some_and(is_told) {
                self.check_foreign(socket.backend);
            }
        }
    }

    /// Finds another listener for the address of each that has closed, of the same backend and of any. The kernel program keeps
    /// the newest one only.
    pub(super) fn renew_own_listeners(&mut self) {
        let closed = self.dirty.take_closed();
        if closed.is_empty() {
            return;
        }
        let keys: BTreeSet<OwnListener> = closed.iter().map(|(key, _)| *key).collect();
        let mut others = BTreeMap::new();
        // In the order of the cookies, which is about that of the sockets' age.
        for (cookie, socket) in &self.world.sockets {
            for key in own_listeners(socket).filter(|key| keys.contains(key)) {
                others.insert(key, *cookie);
            }
        }
        for (key, cookie) in closed {
            self.kernel.own_listener_closed(key, cookie, others.get(&key).copied());
        }
    }
}

/// The keys by which a socket may be the newest listener: with its backend and without.
fn own_listeners(socket: &Socket) -> impl Iterator<Item = OwnListener> + use<> {
    let info = description(socket);
    info.own_listener().into_iter().chain(info.any_listener())
}
