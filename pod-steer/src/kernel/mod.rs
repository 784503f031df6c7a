//! The only module that writes steering state to the kernel; everything else asks it. What is decided elsewhere (which
//! socket, which weight, which namespace) arrives here as a finished [`Plan`](crate::world::Plan).
//!
//! Everything is pinned below one directory of bpffs, so traffic needs neither this process nor its restart:
//!
//! ```text
//! DIR/maps/NAME              every map that all share
//! DIR/netns/COOKIE           the sk_lookup link of an ingress namespace
//! DIR/ports/COOKIE           what each of its ports leads to
//! DIR/cgroups/CGROUP-INDEX/  the links of a backend's cgroup: bind4 bind6 getsockname4 getsockname6 sock_create sockops
//! ```
#![expect(
    deprecated,
    reason = "aya calls cgroup storage deprecated; its successor needs Linux 6.2 and no sock_ops has it"
)]

mod alive;
mod apply;
mod attach;
mod bpf;
mod counters;
mod error;
pub mod limits;
mod lock;
mod migrate;
mod notes;
mod object;
mod own;
mod pins;
mod ports;
mod probes;
mod publish;
mod sources;
mod switch;
pub mod sys;
mod unload;
mod users;
mod workers;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap as StdHashMap},
    path::{Path, PathBuf},
    time::Instant,
};

use aya::{
    Ebpf,
    maps::{CgroupStorage, HashMap, MapData, PerCpuArray, RingBuf, SkStorage, SockHash},
};
use pod_steer_ebpf::{
    BackendCounters, DAEMON_COOKIE, Hidden, ManagedPort, Move, NONE, OwnListener, PortKey, RuleKey, SOCKETS_MAX,
    ServiceCounters, SocketInfo, V6_BOTH, V6_ONLY,
};

pub use apply::Applied;
pub use attach::{Cgroup, NamespaceAttachment, attached_cgroups};
pub use counters::{sum_backend, sum_service};
pub use error::KernelError;
pub use lock::{Lock, LockError};
pub use migrate::QueueMigration;
pub use notes::Notes;
pub use object::{ProbedProgram, TABLES, probe};
pub use pins::{LinkFault, PinsCheck};
pub use probes::{ProbeUnderWay, Probes};
pub use publish::Settled;
pub use unload::{Unloaded, unload};

/// As the description of a socket has it.
pub const fn v6only(only: bool) -> u16 {
    if only { V6_ONLY } else { V6_BOTH }
}

type Result<T> = std::result::Result<T, KernelError>;

/// The steering state, open for writing.
pub struct Kernel {
    dir: PathBuf,
    /// The programs that are attached to cgroups and sockets; each ingress namespace has an instance of its own.
    programs: Ebpf,
    pins: pins::Pins,
    log_level: u8,
    seed: u64,
    backends_max: u32,
    rules: ports::Rules,
    sockets: HashMap<MapData, u64, SocketInfo>,
    listeners: SockHash<MapData, u64>,
    _alive: alive::Alive,
    managed_ports: HashMap<MapData, ManagedPort, u32>,
    moved: HashMap<MapData, u64, Move>,
    cgroups: CgroupStorage<MapData, u64>,
    port_users: HashMap<MapData, PortKey, u32>,
    hidden: SkStorage<MapData, Hidden>,
    backend_counters: PerCpuArray<MapData, BackendCounters>,
    service_counters: PerCpuArray<MapData, ServiceCounters>,
    events_lost: PerCpuArray<MapData, u64>,
    publisher: publish::Publisher,
    switches: switch::Switches,
    switched: Option<Instant>,
    sources: sources::Sources,
    /// What is published, as far as it is known.
    published: BTreeMap<RuleKey, apply::Published>,
    /// What the migrate program was told: by cookie, the rule whose table's members take a socket's queue over.
    heirs: StdHashMap<u64, apply::Heirs>,
    /// Sockets of these that were forgotten since the last plan.
    forgotten: BTreeSet<u64>,
    /// Sockets that were found closed when they were last looked through.
    closed: BTreeSet<u64>,
    ports_written: BTreeMap<ManagedPort, u32>,
    own: own::Own,
}

/// What [`Kernel::open`] found.
pub struct Opened {
    /// The state.
    pub kernel: Kernel,
    /// Events of the kernel programs.
    pub events: RingBuf<MapData>,
    /// Decision logs, if they were asked for.
    pub logs: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    /// True if an earlier daemon's state was there.
    pub adopted: bool,
    /// Maps whose pins were gone, and that the attached programs still had.
    pub recovered: Vec<&'static str>,
}

impl Kernel {
    /// Opens the state below `dir`, or makes it. Links that exist stay as they are: nothing is detached for a moment.
    pub fn open(dir: &Path, backends_max: u32, log_decisions: bool) -> Result<Opened> {
        object::open(dir, backends_max, log_decisions)
    }

    /// Every registered socket that still listens. What is known of a closed one is removed by the second call that
    /// finds it closed: the migrate program needs it until the socket's queue is empty.
    pub fn live_sockets(&mut self) -> Vec<(u64, SocketInfo)> {
        let live: BTreeSet<u64> = self.listeners.keys().flatten().collect();
        let all: Vec<(u64, SocketInfo)> = self.sockets.iter().flatten().collect();
        let (kept, closed): (Vec<_>, Vec<_>) = all.into_iter().partition(|(cookie, _)| live.contains(cookie));
        let closed: BTreeSet<u64> = closed.into_iter().map(|(cookie, _)| cookie).collect();
        for cookie in closed.intersection(&self.closed) {
            let _ = self.sockets.remove(cookie);
        }
        self.heirs.retain(|cookie, _| !closed.contains(cookie));
        self.closed = closed;
        self.own.sweep(&kept.iter().map(|(cookie, info)| (*cookie, info.backend)).collect());
        kept
    }

    /// Registers a socket that listened before its backend was managed. False if there is no room for what is known of it: clients
    /// come to it all the same.
    pub fn register_socket(
        &mut self,
        cookie: u64,
        socket: &impl std::os::fd::AsRawFd,
        info: SocketInfo,
    ) -> Result<bool> {
        self.listeners.insert(cookie, socket.as_raw_fd(), 0).map_err(KernelError::add(
            "put a socket into",
            "LISTENERS",
            SOCKETS_MAX,
        ))?;
        self.heirs.remove(&cookie);
        for key in info.own_listener().into_iter().chain(info.any_listener()) {
            self.own.listens(key, cookie)?;
        }
        Ok(self.describe(cookie, info).is_ok())
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

    /// Cookies of sockets in the socket map of which nothing is known: the map of descriptions was full, or lost its entry.
    pub fn undescribed(&self) -> BTreeSet<u64> {
        let described: BTreeSet<u64> = self.sockets.keys().flatten().collect();
        self.listening_cookies()
            .into_iter()
            .filter(|cookie| *cookie != DAEMON_COOKIE && !described.contains(cookie))
            .collect()
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
        if self.heirs.remove(&cookie).is_none() && !self.forgotten.contains(&cookie) {
            return;
        }
        let has = |table: &crate::world::PlannedTable| table.members.iter().any(|member| member.cookie == cookie);
        for published in self.published.values_mut().filter(|published| published.table.as_ref().is_some_and(has)) {
            published.ours = false;
        }
    }

    /// Puts the listener of paused services into the socket map; it belongs to no backend.
    pub fn register_pause(&mut self, cookie: u64, socket: &impl std::os::fd::AsRawFd) -> Result<()> {
        let written = self.listeners.insert(cookie, socket.as_raw_fd(), 0);
        written.map_err(KernelError::map("put a socket into", "LISTENERS"))
    }

    /// Whether a socket is in the socket map, which a socket that closes leaves by itself.
    pub fn is_listening(&self, cookie: u64) -> bool {
        self.listeners.keys().flatten().any(|listening| listening == cookie)
    }

    /// A socket was closed, or stopped to listen. The kernel has taken it out of the socket map itself; it may be there again
    /// already, if it listens anew.
    pub fn closed(&mut self, cookie: u64) {
        if self.heirs.remove(&cookie).is_some() {
            self.forgotten.insert(cookie);
        }
    }

    /// Cookies of the sockets in the socket map, which a socket that closes leaves by itself.
    pub fn listening_cookies(&self) -> BTreeSet<u64> {
        self.listeners.keys().flatten().collect()
    }

    /// Takes a socket out of the socket map; the socket itself is not touched.
    pub fn forget_socket(&mut self, cookie: u64) {
        self.closed(cookie);
        let _ = self.listeners.remove(&cookie);
        self.disown_socket(cookie);
    }

    /// A socket belongs to no backend any more: not to one that gets the index of its former one either.
    pub fn disown_socket(&mut self, cookie: u64) {
        if let Ok(info) = self.sockets.get(&cookie, 0) {
            let _ = self.sockets.insert(cookie, SocketInfo { backend: NONE, ..info }, 0);
        }
    }

    /// Indices of the backends to which connections have moved that live still.
    pub fn moved_to(&self) -> impl Iterator<Item = u32> {
        self.moved.iter().flatten().map(|(_, moved)| moved.to)
    }

    /// Gives up on connections that moved away from this backend: its cgroup is gone, so nobody sees them end. Returns
    /// the index of the backend that each went to.
    pub fn write_off_moved(&mut self, from: u32) -> Vec<u32> {
        let gone: Vec<(u64, Move)> = self.moved.iter().flatten().filter(|(_, moved)| moved.from == from).collect();
        for (cookie, _) in &gone {
            let _ = self.moved.remove(cookie);
        }
        gone.into_iter().map(|(_, moved)| moved.to).collect()
    }

    /// Most backends that the counters have room for.
    pub fn backends_max(&self) -> u32 {
        self.backends_max
    }
}
