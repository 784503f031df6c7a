//! A map beside the socket map describes each listening socket. A description that could not be written, or was removed, is
//! written again from what the daemon knows.

use std::{collections::BTreeSet, io, net::IpAddr};

use pod_steer_ebpf::{FAMILY_V4, FAMILY_V6, NONE, SOCKETS_MAX, SocketInfo, V6_ONLY, V6_UNKNOWN};

use super::control::Control;
use crate::{
    condition::{Condition, Reason},
    ids::{BackendIndex, NetnsCookie, SocketCookie},
    kernel::{KernelError, SocketMaps, limits::limit, v6only},
    ports::{Port, Proto},
    procs::{address_bytes, address_from_bytes},
    world::Socket,
};

/// Subjects of conditions.
const SOCKETS: &str = "map SOCKETS";
const LISTENERS: &str = "map LISTENERS";
const OWN_LISTENERS: &str = "map OWN_LISTENERS";

impl Control {
    /// Writes again what is not known of sockets that listen. Returns the sockets of which nothing can be written now.
    pub(super) fn describe_sockets(&mut self, maps: &mut SocketMaps) -> BTreeSet<SocketCookie> {
        let mut left = BTreeSet::new();
        let mut failure = None;
        let mut unknown = false;
        for cookie in maps.undescribed() {
            let Some(socket) = self.world.sockets.get(&cookie) else {
                // The listener of paused services has no description.
                unknown |= self.world.pause_cookie != Some(cookie);
                continue;
            };
            let info = description(socket);
            match self.kernel.describe_in(maps, cookie, info) {
                Ok(()) => self.kernel.listens_anew(cookie),
                Err(error) => {
                    failure = Some(crate::chain(&error));
                    left.insert(cookie);
                }
            }
        }
        if unknown {
            // A look finds out whose they are, and registers them.
            self.compare_holders();
        }
        match failure {
            None => self.conditions.clear(Reason::SocketsNotDescribed, SOCKETS),
            Some(error) => {
                let message = format!(
                    "{} listening sockets have no description ({error}), {} so far: clients come to them, but what waits in their \
                     queues is lost when they close, and the next daemon has to find them again",
                    left.len(),
                    self.kernel.counters().descriptions_lost()
                );
                self.conditions.set(SOCKETS, Condition::without_remedy(Reason::SocketsNotDescribed, message));
            }
        }
        left
    }

    /// The daemon's own socket, by which the kernel programs know that it lives.
    pub(super) fn announce(&mut self, is_there: bool) {
        match self.kernel.announce(is_there) {
            Ok(()) => self.conditions.clear(Reason::DaemonNotAnnounced, LISTENERS),
            Err(error) => {
                let message = format!(
                    "the daemon's own socket cannot enter it, which is tried again ({}): as if no daemon ran, clients of services \
                     without a backend are left to the kernel's own lookup",
                    crate::chain(&error)
                );
                self.conditions.set(LISTENERS, Condition::without_remedy(Reason::DaemonNotAnnounced, message));
            }
        }
    }

    /// Says whether each backend reaches its listeners by connections of its own.
    pub(super) fn note_own_listeners(&mut self, written: Result<(), KernelError>) {
        match written {
            Ok(()) => self.conditions.clear(Reason::OwnListenersUnknown, OWN_LISTENERS),
            Err(error) => {
                let message = format!(
                    "listeners cannot enter it, which is tried again ({}): connections of those backends to their own ports, as \
                     health checks make, may be refused",
                    crate::chain(&error)
                );
                self.conditions.set(OWN_LISTENERS, Condition::without_remedy(Reason::OwnListenersUnknown, message));
            }
        }
    }

    /// A socket of a backend listens and has no place in the socket map.
    pub(super) fn note_no_place(&mut self, index: BackendIndex, port: Port, error: &io::Error) {
        let (why, remedy) = match error.raw_os_error() {
            Some(libc::E2BIG) => {
                let places = limit("LISTENERS", SOCKETS_MAX);
                let why = format!("the socket map is full: all {places} places are in use");
                (why, "end backends that are not needed")
            }
            _ => (error.to_string(), ""),
        };
        let message = format!("its socket on port {port} cannot enter the socket map, which is tried again: {why}");
        let Some(backend) = self.world.by_index_mut(index) else { return };
        backend.set_condition(Condition::new(Reason::ListenerNotRegistered, message, remedy));
        self.touch_backend(index);
    }

    /// It has one.
    pub(super) fn clear_no_place(&mut self, index: BackendIndex) {
        if let Some(backend) = self.world.by_index_mut(index)
            && backend.end_condition(Reason::ListenerNotRegistered)
        {
            self.touch_backend(index);
        }
    }
}

/// A socket as the kernel programs describe it. Whose queue it is, is written by the next plan.
pub(crate) fn description(socket: &Socket) -> SocketInfo {
    SocketInfo {
        netns_cookie: socket.netns_cookie.0,
        addr: address_bytes(socket.ip),
        backend: socket.backend.0,
        table: NONE,
        port: socket.port.number,
        proto: socket.port.proto.number(),
        family: match socket.ip {
            IpAddr::V4(_) => FAMILY_V4,
            IpAddr::V6(_) => FAMILY_V6,
        },
        service: NONE,
        hidden_port: socket.hidden_port.map_or(0, |port| port.number),
        v6only: socket.v6only.map_or(V6_UNKNOWN, v6only),
        users: [0; 2],
        ifindex: socket.ifindex,
        #[cfg(feature = "test-layout")]
        later: 0,
    }
}

/// The reverse: a socket from the kernel programs' description.
pub(crate) fn described(info: &SocketInfo) -> Socket {
    // The programs describe TCP sockets alone.
    let proto = Proto::from_number(info.proto).unwrap_or_default();
    let port = |number| Port { number, proto };
    Socket {
        backend: BackendIndex(info.backend),
        netns_cookie: NetnsCookie(info.netns_cookie),
        ip: address_from_bytes(info.family, info.addr),
        port: port(info.port),
        hidden_port: (info.hidden_port != 0).then(|| port(info.hidden_port)),
        v6only: match (info.family, info.v6only) {
            (FAMILY_V6, V6_UNKNOWN) => None,
            (_, v6only) => Some(v6only == V6_ONLY),
        },
        ifindex: info.ifindex,
        // No kernel program reports it.
        uid: None,
    }
}
