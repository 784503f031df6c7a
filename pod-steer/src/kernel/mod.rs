//! The only module that writes steering state to the kernel; everything else asks it. What is decided elsewhere (which
//! socket, which weight, which namespace) arrives here as a finished [`Plan`].
//!
//! Everything is pinned below one directory of bpffs, so traffic needs neither this process nor its restart:
//!
//! ```text
//! DIR/maps/NAME              every map
//! DIR/netns/COOKIE           the sk_lookup link of an ingress namespace
//! DIR/cgroups/CGROUP-INDEX/  the links of a backend's cgroup: bind4 bind6 sock_create sockops
//! ```
#![expect(
    deprecated,
    reason = "aya calls cgroup storage deprecated; its successor needs Linux 6.2 and no sock_ops has it"
)]

mod attach;
mod counters;
mod error;
mod migrate;
mod object;
mod publish;
pub mod sys;
mod unload;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{CgroupStorage, HashMap, MapData, PerCpuArray, RingBuf, SockHash},
};
use pod_steer_ebpf::{BackendCounters, ManagedPort, Move, NONE, Rule, RuleKey, ServiceCounters, SocketInfo};

pub use attach::{Cgroup, NamespaceAttachment, attached_cgroups};
pub use counters::{sum_backend, sum_service};
pub use error::KernelError;
pub use migrate::QueueMigration;
pub use object::{ProbedProgram, TABLES, probe};
pub use publish::Settled;
pub use unload::{Unloaded, unload};

use crate::world::{Plan, PlannedTable};

type Result<T> = std::result::Result<T, KernelError>;

/// The steering state, open for writing.
pub struct Kernel {
    dir: PathBuf,
    /// The programs that are attached to cgroups and sockets; each ingress namespace has an instance of its own.
    programs: Ebpf,
    log_level: u8,
    seed: u64,
    backends_max: u32,
    rules: HashMap<MapData, RuleKey, Rule>,
    sockets: HashMap<MapData, u64, SocketInfo>,
    listeners: SockHash<MapData, u64>,
    managed_ports: HashMap<MapData, ManagedPort, u32>,
    moved: HashMap<MapData, u64, Move>,
    cgroups: CgroupStorage<MapData, u64>,
    backend_counters: PerCpuArray<MapData, BackendCounters>,
    service_counters: PerCpuArray<MapData, ServiceCounters>,
    events_lost: PerCpuArray<MapData, u64>,
    publisher: publish::Publisher,
    /// What is published: the rules as they stand in the map, and what each table was built from, if that is known.
    published: BTreeMap<RuleKey, (Rule, Option<PlannedTable>)>,
    /// Sockets that were found closed when they were last looked through.
    closed: BTreeSet<u64>,
    ports_written: BTreeMap<ManagedPort, u32>,
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
}

impl Kernel {
    /// Opens the state below `dir`, or makes it. Links that exist stay as they are: nothing is detached for a moment.
    pub fn open(dir: &Path, backends_max: u32, log_decisions: bool) -> Result<Opened> {
        object::open(dir, backends_max, log_decisions)
    }

    /// Brings the kernel to the plan, and returns what tells when nobody uses the former tables any more. Tables come
    /// before the rules that lead to them, and rules go before their tables.
    pub fn apply(&mut self, plan: &Plan, services: &BTreeMap<String, u32>) -> Result<Vec<Settled>> {
        self.apply_managed_ports(&plan.managed_ports)?;
        let mut settled = Vec::new();
        for (key, planned) in &plan.rules {
            let known = self.published.get(key);
            let mut table = known.map_or(NONE, |(rule, _)| rule.table);
            let mut freed = None;
            if planned.table.is_none() && table != NONE {
                freed = Some(std::mem::replace(&mut table, NONE));
            }
            if let Some(wanted) = &planned.table {
                let fresh = table == NONE;
                if fresh {
                    table = self.publisher.reserve()?;
                }
                let current = known.and_then(|(_, table)| table.as_ref());
                if fresh || current != Some(wanted) {
                    settled.extend(self.publisher.publish(table, wanted, !fresh && current.is_none())?);
                    self.name_heirs(table, wanted);
                }
            }
            let service = planned.service.as_ref().and_then(|name| services.get(name)).copied().unwrap_or(NONE);
            let rule = Rule { table, service, fallback: planned.fallback, flags: planned.flags };
            if self.published.get(key).is_none_or(|(published, _)| *published != rule) {
                self.rules.insert(key, rule, 0).map_err(KernelError::map("write a rule to", "RULES"))?;
            }
            self.published.insert(*key, (rule, planned.table.clone()));
            if let Some(table) = freed {
                settled.extend(self.publisher.clear(table)?);
            }
        }
        let gone: Vec<RuleKey> = self.published.keys().filter(|key| !plan.rules.contains_key(key)).copied().collect();
        for key in gone {
            let _ = self.rules.remove(&key);
            if let Some((rule, _)) = self.published.remove(&key)
                && rule.table != NONE
            {
                settled.extend(self.publisher.clear(rule.table)?);
            }
        }
        Ok(settled)
    }

    /// The rules that are in force.
    pub fn rules(&self) -> impl Iterator<Item = (RuleKey, Rule)> {
        self.published.iter().map(|(key, (rule, _))| (*key, *rule))
    }

    /// Tells the migrate program which table's members take over when one of these sockets closes.
    fn name_heirs(&mut self, table: u32, planned: &PlannedTable) {
        for member in &planned.members {
            if let Ok(mut info) = self.sockets.get(&member.cookie, 0)
                && info.table != table
            {
                info.table = table;
                let _ = self.sockets.insert(member.cookie, info, 0);
            }
        }
    }

    fn apply_managed_ports(&mut self, wanted: &BTreeMap<ManagedPort, u32>) -> Result<()> {
        for port in self.ports_written.keys().filter(|port| !wanted.contains_key(port)) {
            let _ = self.managed_ports.remove(port);
        }
        for (port, purpose) in wanted.iter().filter(|(port, purpose)| self.ports_written.get(port) != Some(purpose)) {
            let written = self.managed_ports.insert(port, purpose, 0);
            written.map_err(KernelError::map("write a port to", "MANAGED_PORTS"))?;
        }
        self.ports_written.clone_from(wanted);
        Ok(())
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
        self.closed = closed;
        kept
    }

    /// Registers a socket that listened before its backend was managed.
    pub fn register_socket(&mut self, cookie: u64, socket: &impl std::os::fd::AsRawFd, info: SocketInfo) -> Result<()> {
        self.listeners
            .insert(cookie, socket.as_raw_fd(), 0)
            .map_err(KernelError::map("put a socket into", "LISTENERS"))?;
        self.sockets.insert(cookie, info, 0).map_err(KernelError::map("describe a socket in", "SOCKETS"))
    }

    /// Takes a socket out of the socket map; the socket itself is not touched.
    pub fn forget_socket(&mut self, cookie: u64) {
        let _ = self.listeners.remove(&cookie);
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
