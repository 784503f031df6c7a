//! The backends' own listeners and ports, by which the kernel programs steer a backend's connections to itself
//! (`pod-steer-ebpf/src/own.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::AsFd as _,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError},
};
use pod_steer_ebpf::{
    NONE, OWN_LISTENERS_MAX, OWN_SOURCES, OwnConnection, OwnListener, OwnSocket, SocketInfo, own_source,
};
use rustix::time::{ClockId, clock_gettime};

use super::{KernelError, Result, object::map};
use crate::{ids::SocketCookie, sys::Counters};

/// `BPF_NOEXIST`: an entry that the kernel program has written is newer than ours.
const NO_EXIST: u64 = 1;
/// Time after which the handshake of a connection is over, whatever its result: Linux sends the last SYN after 63
/// seconds and gives up after 127 (`tcp_syn_retries`). After that no program needs its entry.
const HANDSHAKE_MAX: Duration = Duration::from_secs(180);

/// Differences between the map of own listeners and the sockets that listen.
#[derive(Debug, Default, PartialEq, Eq)]
struct Swept {
    /// Entries of sockets that no longer listen, or that are another backend's.
    stale: Vec<(OwnListener, SocketCookie)>,
    /// Keys without an entry, each with its newest listener.
    missing: BTreeMap<OwnListener, SocketCookie>,
}

/// Keeps an entry of a socket without a description: the map of descriptions may be full, or the socket is so new that
/// it has none yet.
fn swept(
    written: &[(OwnListener, SocketCookie)],
    listening: &BTreeSet<SocketCookie>,
    described: &BTreeMap<SocketCookie, SocketInfo>,
) -> Swept {
    let is_anothers = |key: &OwnListener, cookie: &SocketCookie| {
        key.backend != NONE && described.get(cookie).is_some_and(|info| info.backend != key.backend)
    };
    let is_stale =
        |(key, cookie): &&(OwnListener, SocketCookie)| !listening.contains(cookie) || is_anothers(key, cookie);
    let stale: Vec<_> = written.iter().filter(is_stale).copied().collect();
    let mut missing = BTreeMap::new();
    // In the order of cookies, which is roughly that of age.
    for (cookie, info) in described.iter().filter(|(cookie, _)| listening.contains(cookie)) {
        let own = info.own_listener().filter(|key| key.backend != NONE);
        missing.extend(own.into_iter().chain(info.any_listener()).map(|key| (key, *cookie)));
    }
    for (key, cookie) in written {
        if !is_stale(&&(*key, *cookie)) {
            missing.remove(key);
        }
    }
    Swept { stale, missing }
}

/// The maps of `own.rs` in the kernel.
pub(super) struct Own {
    listeners: HashMap<MapData, OwnListener, u64>,
    connections: HashMap<MapData, OwnConnection, OwnSocket>,
    sources: Counters,
}

impl Own {
    pub fn open(programs: &mut Ebpf) -> Result<Self> {
        let Some(Map::Array(sources)) = programs.take_map("OWN_SOURCES") else {
            return Err(KernelError::map("open", "OWN_SOURCES")(MapError::KeyNotFound));
        };
        let sources = Counters::open(sources.fd().as_fd(), OWN_SOURCES);
        Ok(Self {
            listeners: map(programs, "OWN_LISTENERS")?,
            connections: map(programs, "OWN_CONNECTIONS")?,
            sources: sources.map_err(KernelError::io("map into memory", "OWN_SOURCES"))?,
        })
    }

    /// The entries in the map.
    pub fn read(&self) -> Vec<(OwnListener, SocketCookie)> {
        self.listeners.iter().flatten().map(|(key, cookie)| (key, SocketCookie(cookie))).collect()
    }

    /// Records a socket that listened before its backend was managed. An entry that a kernel program has written is
    /// newer and stays.
    pub fn listens(&mut self, key: OwnListener, cookie: SocketCookie) -> Result<()> {
        match self.listeners.insert(key, cookie.0, NO_EXIST) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            written => written.map_err(KernelError::add("write a listener to", "OWN_LISTENERS", OWN_LISTENERS_MAX)),
        }
    }

    /// Removes the record of a closed listener; `other` still listens for the same address.
    pub fn closed(&mut self, key: OwnListener, cookie: SocketCookie, other: Option<SocketCookie>) {
        if self.listeners.get(&key, 0).is_ok_and(|newest| newest == cookie.0) {
            let _ = self.listeners.remove(&key);
        }
        if let Some(other) = other {
            let _ = self.listeners.insert(key, other.0, NO_EXIST);
        }
    }

    /// Corrects `written`, which was read before the two others, to match the sockets that listen.
    pub fn sweep_listeners(
        &mut self,
        written: &[(OwnListener, SocketCookie)],
        listening: &BTreeSet<SocketCookie>,
        described: &BTreeMap<SocketCookie, SocketInfo>,
    ) -> Result<()> {
        let Swept { stale, missing } = swept(written, listening, described);
        for (key, cookie) in stale {
            self.closed(key, cookie, None);
        }
        let mut failed = Ok(());
        for (key, cookie) in missing {
            failed = failed.and(self.listens(key, cookie));
        }
        failed
    }

    /// Removes connections whose end no program reported, because their cgroup had been removed.
    pub fn sweep_connections(&mut self) {
        let now = clock_gettime(ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or(0));
        let is_over = |own: &OwnSocket| now.saturating_sub(Duration::from_nanos(own.born_ns)) > HANDSHAKE_MAX;
        let over = self.connections.iter().flatten().filter(|(_, own)| is_over(own)).collect::<Vec<_>>();
        for (key, was) in over {
            // A new connection may use the same ports.
            if self.connections.get(&key, 0).is_ok_and(|own| own.born_ns != was.born_ns) {
                continue;
            }
            // The side that removes an entry decrements the counter: the daemon or a kernel program.
            if self.connections.remove(&key).is_ok() {
                self.sources.decrement(own_source(key.source_port));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pod_steer_ebpf::FAMILY_V4;

    use super::*;

    fn socket(backend: u32) -> SocketInfo {
        SocketInfo { netns_cookie: 1, backend, port: 80, family: FAMILY_V4, ..SocketInfo::default() }
    }

    fn key(backend: u32) -> OwnListener {
        OwnListener { netns_cookie: 1, backend, port: 80, family: FAMILY_V4, ..OwnListener::default() }
    }

    #[test]
    fn a_sweep_finds_stale_and_missing_own_listeners() {
        let described = [(7, socket(0)), (8, socket(1)), (9, socket(1)), (11, socket(3)), (12, socket(3))];
        let described = described.map(|(cookie, info)| (SocketCookie(cookie), info)).into();
        let listening = [0, 7, 9, 10, 11, 12].map(SocketCookie).into();
        // In this order: correct; closed; without a description (twice); now another backend's.
        let of = |(backend, cookie)| (key(backend), SocketCookie(cookie));
        let written = [(0, 7), (1, 8), (2, 10), (NONE, 10), (4, 11)].map(of);
        let swept = swept(&written, &listening, &described);
        assert_eq!(swept.stale, [(1, 8), (4, 11)].map(of));
        assert_eq!(swept.missing, BTreeMap::from([(1, 9), (3, 12)].map(of)));
    }

    #[test]
    fn hidden_and_disowned_sockets_get_no_entry_without_backend() {
        let mut hidden = socket(2);
        hidden.hidden_port = 45_000;
        let mut lost = hidden;
        lost.backend = NONE;
        let described = BTreeMap::from([(SocketCookie(7), hidden), (SocketCookie(8), lost)]);
        let swept = swept(&[], &BTreeSet::from([7, 8].map(SocketCookie)), &described);
        assert_eq!(swept, Swept { stale: vec![], missing: BTreeMap::from([(key(2), SocketCookie(7))]) });
    }
}
