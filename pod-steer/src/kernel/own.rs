//! The backends' own listeners and ports, by which the kernel programs lead a backend's connections to itself
//! (`pod-steer-ebpf/src/own.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError},
};
use pod_steer_ebpf::{NONE, OWN_SOURCES, OwnConnection, OwnListener, OwnPort, OwnSocket, OwnTarget, own_source};
use rustix::time::{ClockId, clock_gettime};

use super::{KernelError, Result, object::map, sys::Counters};

/// `BPF_NOEXIST`: the kernel program's entry is newer than ours.
const NO_EXIST: u64 = 1;
/// When the handshake of a connection is over, whatever became of it: Linux sends its last SYN after 63 seconds and gives
/// up after 127 (`tcp_syn_retries`). After that no program needs its entry.
const HANDSHAKE_MAX: Duration = Duration::from_secs(180);

/// The maps of `own.rs` in the kernel.
pub(super) struct Own {
    listeners: HashMap<MapData, OwnListener, u64>,
    ports: HashMap<MapData, OwnPort, OwnTarget>,
    connections: HashMap<MapData, OwnConnection, OwnSocket>,
    sources: Counters,
    ports_written: BTreeMap<OwnPort, OwnTarget>,
}

impl Own {
    pub fn open(programs: &mut Ebpf) -> Result<Self> {
        let ports: HashMap<MapData, OwnPort, OwnTarget> = map(programs, "OWN_PORTS")?;
        let Some(Map::Array(sources)) = programs.take_map("OWN_SOURCES") else {
            return Err(KernelError::map("open", "OWN_SOURCES")(MapError::KeyNotFound));
        };
        let sources = Counters::open(sources.fd().as_fd(), OWN_SOURCES);
        let ports_written = ports.iter().flatten().collect();
        Ok(Self {
            listeners: map(programs, "OWN_LISTENERS")?,
            ports,
            connections: map(programs, "OWN_CONNECTIONS")?,
            sources: sources.map_err(KernelError::io("map into memory", "OWN_SOURCES"))?,
            ports_written,
        })
    }

    /// A socket that listened before its backend was managed.
    pub fn listens(&mut self, key: OwnListener, cookie: u64) -> Result<()> {
        self.listeners.insert(key, cookie, 0).map_err(KernelError::map("write a listener to", "OWN_LISTENERS"))
    }

    /// A listener has closed; `other` is one that still listens for the same address.
    pub fn closed(&mut self, key: OwnListener, cookie: u64, other: Option<u64>) {
        if self.listeners.get(&key, 0).is_ok_and(|newest| newest == cookie) {
            let _ = self.listeners.remove(&key);
        }
        if let Some(other) = other {
            let _ = self.listeners.insert(key, other, NO_EXIST);
        }
    }

    /// Forgets listeners that are not among `live` (cookies with the indices of their backends), and connections whose end
    /// no program reported, since their cgroup was removed before.
    pub fn sweep(&mut self, live: &BTreeSet<(u64, u32)>) {
        let cookies: BTreeSet<u64> = live.iter().map(|(cookie, _)| *cookie).collect();
        let stale = |(key, cookie): &(OwnListener, u64)| match key.backend {
            NONE => !cookies.contains(cookie),
            backend => !live.contains(&(*cookie, backend)),
        };
        for (key, cookie) in self.listeners.iter().flatten().filter(stale).collect::<Vec<_>>() {
            self.closed(key, cookie, None);
        }
        let now = clock_gettime(ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or(0));
        let is_over = |own: &OwnSocket| now.saturating_sub(Duration::from_nanos(own.born_ns)) > HANDSHAKE_MAX;
        let over = self.connections.iter().flatten().filter(|(_, own)| is_over(own)).collect::<Vec<_>>();
        for (key, was) in over {
            // A new connection may have the ports of this one.
            if self.connections.get(&key, 0).is_ok_and(|own| own.born_ns != was.born_ns) {
                continue;
            }
            // The side that removes an entry counts it: the daemon or a kernel program.
            if self.connections.remove(&key).is_ok() {
                self.sources.decrement(own_source(key.source_port));
            }
        }
    }

    /// Brings what the backends serve to what is planned. One that cannot be written keeps no other from it.
    pub fn apply_ports(&mut self, wanted: &BTreeMap<OwnPort, OwnTarget>) -> Result<()> {
        if self.ports_written == *wanted {
            return Ok(());
        }
        for port in self.ports_written.keys().filter(|port| !wanted.contains_key(port)) {
            let _ = self.ports.remove(port);
        }
        self.ports_written.retain(|port, _| wanted.contains_key(port));
        let mut failed = None;
        for (port, target) in wanted {
            if self.ports_written.get(port) == Some(target) {
                continue;
            }
            match self.ports.insert(port, target, 0) {
                Ok(()) => drop(self.ports_written.insert(*port, *target)),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), |error| Err(KernelError::map("write a port to", "OWN_PORTS")(error)))
    }
}
