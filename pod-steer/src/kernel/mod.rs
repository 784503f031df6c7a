//! The only module that writes steering state to the kernel; all other modules call it. It decides nothing: which
//! sockets, weights and namespaces to use arrives as a finished [`Plan`](crate::world::Plan).
//!
//! Everything is pinned below one directory of bpffs, so traffic goes on without this process and through its restarts:
//!
//! ```text
//! DIR/maps/NAME              every shared map; `migration` describes `maps-new` and others beside it
//! DIR/netns/COOKIE           the sk_lookup link of an ingress namespace
//! DIR/ports/COOKIE           the map of its ports
//! DIR/cgroups/CGROUP-INDEX/  the links of a backend's cgroup: bind4 bind6 post_bind4 post_bind6 getsockname4 getsockname6 sock_create sockops
//! DIR/forward/               the maps of forwarding, and the links of network devices, or marks of those that have filters
//! ```
#![expect(
    deprecated,
    reason = "aya calls cgroup storage deprecated; its successor needs Linux 6.2 and no sock_ops has it"
)]

mod alive;
mod apply;
mod attach;
mod backend_ports;
mod bpf;
mod build_id;
mod clsact;
mod counters;
mod destinations;
mod devices;
pub mod dry_run;
mod elements;
mod error;
mod filling;
mod flows;
mod heard;
mod hook;
mod kept;
mod layouts;
pub mod limits;
mod lock;
mod marked;
mod members;
mod migrate;
mod migration;
mod notes;
mod object;
pub mod observer;
mod own;
mod peer;
mod pins;
mod placed;
mod ports;
mod probes;
mod publish;
mod quota;
mod sockets;
mod sources;
#[cfg(test)]
mod stacks;
mod switch;
mod tally;
pub mod trace;
mod unload;
mod upgrade;
mod users;
mod workers;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap as StdHashMap, HashSet},
    path::{Path, PathBuf},
    time::Instant,
};

use aya::{
    Ebpf,
    maps::{CgroupStorage, HashMap, MapData, RingBuf, SkStorage, SockHash},
};
use pod_steer_ebpf::{Hidden, Move, NONE, PortKey, PortUser, SocketInfo, V6_BOTH, V6_ONLY};

use crate::{
    ids::{BackendIndex, ServiceIndex, SocketCookie},
    rule::RuleKey,
};

pub use apply::Applied;
pub use attach::{Cgroup, NamespaceAttachment, attached_cgroups};
pub use clsact::{Filter, PRIORITY, read_filters};
pub use counters::{Counters, registered, sum_backend, sum_service};
pub use devices::{AttachedDevices, Device, DeviceAttachment, DeviceDetachment};
pub use error::KernelError;
pub use flows::{FlowSweep, Swept};
pub use heard::HeardIterator;
pub use hook::Hook;
pub use lock::{Lock, LockError};
pub use migrate::QueueMigration;
pub use migration::{Migrated, check_readable};
pub use notes::Notes;
pub use object::{FORWARDERS, ProbedProgram, TABLES, probe};
pub use peer::peer_refused;
pub use pins::{LinkFault, PinsCheck};
pub use placed::{described, pinned_tables};
pub use probes::{ProbeUnderWay, Probes};
pub use publish::Settled;
pub use quota::Usage;
pub use sockets::{Registered, SocketMaps};
pub use unload::{Unloaded, unload};
pub use upgrade::Replaced;

/// A socket's `v6only` in the form of the contract.
pub const fn v6only(only: bool) -> u16 {
    if only { V6_ONLY } else { V6_BOTH }
}

/// In place of the index of a service: none.
const NO_SERVICE: ServiceIndex = ServiceIndex(NONE);

type Result<T> = std::result::Result<T, KernelError>;

/// The steering state, open for writing.
pub struct Kernel {
    dir: PathBuf,
    /// The programs that are attached to cgroups and sockets; each ingress namespace has an instance of its own.
    programs: Ebpf,
    pins: pins::Pins,
    log_level: u8,
    /// The build of this process's programs.
    build: build_id::BuildMap,
    seed: u64,
    backends_max: u32,
    rules: ports::Rules,
    sockets: HashMap<MapData, u64, SocketInfo>,
    listeners: SockHash<MapData, u64>,
    socket_counts: quota::SocketCounts,
    /// `None` while the socket map has no room for it.
    alive: Option<alive::Alive>,
    ports: backend_ports::BackendPorts,
    moved: HashMap<MapData, u64, Move>,
    cgroups: CgroupStorage<MapData, u64>,
    port_users: HashMap<MapData, PortKey, PortUser>,
    hidden: SkStorage<MapData, Hidden>,
    counters: Counters,
    late: filling::LateCounters,
    publisher: publish::Publisher,
    switches: switch::Switches,
    switched: Option<Instant>,
    sources: sources::Sources,
    /// The published rules, as far as they are known.
    published: BTreeMap<RuleKey, apply::Published>,
    /// By cookie: the migration targets that the migrate program has for a socket's queue.
    migration_targets: StdHashMap<SocketCookie, apply::MigrationTargets>,
    /// The listeners that hold clients of paused services.
    holds: BTreeSet<SocketCookie>,
    /// Services and addresses of the tables whose members got their migration targets in this turn.
    targets_written: HashSet<(ServiceIndex, usize)>,
    /// Sockets whose migration targets were forgotten since the last plan.
    forgotten: BTreeSet<SocketCookie>,
    /// Sockets that the previous resync found closed.
    closed: BTreeSet<SocketCookie>,
    /// Cookies in the socket map, read once in this turn of the loop.
    listening: Option<BTreeSet<SocketCookie>>,
    own: own::Own,
    destinations: destinations::Destinations,
}

/// The result of [`Kernel::open`].
pub struct Opened {
    /// The state.
    pub kernel: Kernel,
    /// Events of the kernel programs.
    pub events: RingBuf<MapData>,
    /// Decision logs, if they were requested.
    pub logs: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    /// Whether an earlier daemon's state was found.
    pub adopted: bool,
    /// Maps whose pins were gone, recovered from the attached programs.
    pub recovered: Vec<&'static str>,
    /// Attached programs of another build, which were replaced.
    pub replaced: Replaced,
    /// Set if the state had an earlier layout.
    pub migrated: Option<Migrated>,
}

impl Kernel {
    /// Opens the state below `dir`, or creates it. Existing links stay attached throughout. A program of another build
    /// than this process's is replaced by a link update.
    pub fn open(dir: &Path, backends_max: u32, log_decisions: bool) -> Result<Opened> {
        object::open(dir, backends_max, log_decisions)
    }

    /// Indices of the backends that received connections by migration which are still open.
    pub fn moved_to(&self) -> impl Iterator<Item = BackendIndex> {
        self.moved.iter().flatten().map(|(_, moved)| BackendIndex(moved.to))
    }

    /// Writes off connections that moved away from this backend: its programs are to be detached, so none sees them end.
    /// Returns the index of the backend that each moved to.
    pub fn write_off_moved(&mut self, from: BackendIndex) -> Vec<BackendIndex> {
        let gone: Vec<(u64, Move)> = self.moved.iter().flatten().filter(|(_, moved)| moved.from == from.0).collect();
        for (cookie, _) in &gone {
            let _ = self.moved.remove(cookie);
        }
        gone.into_iter().map(|(_, moved)| BackendIndex(moved.to)).collect()
    }

    /// Maximum number of backends: the counters have room for so many.
    pub fn backends_max(&self) -> u32 {
        self.backends_max
    }
}
