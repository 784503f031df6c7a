//! Reads the counters. They are kept per CPU, and only grow while a backend or service has its index. Reading them needs
//! neither the loop nor a daemon.

use std::{collections::BTreeMap, path::Path};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use pod_steer_ebpf::{BackendCounters, LOST_DESCRIPTIONS, LOST_EVENTS, ServiceCounters, SocketInfo};

use super::{Kernel, KernelError, Result, bpf, object::map};
use crate::ids::{BackendIndex, ServiceIndex, SocketCookie};

macro_rules! sum {
    ($doc:literal, $name:ident, $counters:ident { $($(#[$attribute:meta])* $field:ident),+ $(,)? }) => {
        #[doc = $doc]
        pub fn $name<'a>(cpus: impl IntoIterator<Item = &'a $counters>) -> $counters {
            cpus.into_iter().fold($counters::default(), |sum, cpu| $counters {
                $($(#[$attribute])* $field: sum.$field.wrapping_add(cpu.$field)),+
            })
        }
    };
}

sum!(
    "Adds up the CPUs' counters of a backend.",
    sum_backend,
    BackendCounters {
        steered,
        opened,
        closed,
        moved_in,
        moved_in_closed,
        moved_out,
        moved_out_closed,
        moved_half_open,
        not_moved,
        #[cfg(feature = "test-layout")]
        later,
    }
);
sum!(
    "Adds up the CPUs' counters of a service.",
    sum_service,
    ServiceCounters {
        stale_slots,
        refused_no_backend,
        passed_no_backend,
        passed_no_daemon,
        assign_eafnosupport,
        assign_esocktnosupport,
        assign_eprototype,
        assign_eexist,
        assign_other,
        paused,
        by_network,
        network_no_backend,
        not_forwarded,
        no_destination,
        flows_full,
        not_rewritten,
        adopted,
        ports_exhausted,
        adopt_limited,
    }
);

/// Reads the counters of backends and services.
pub struct Counters {
    backends: PerCpuArray<MapData, BackendCounters>,
    services: PerCpuArray<MapData, ServiceCounters>,
    /// By index: sums of the counters from before they last started at zero, because their layout had changed.
    backend_totals: HashMap<MapData, u32, BackendCounters>,
    service_totals: HashMap<MapData, u32, ServiceCounters>,
    lost: PerCpuArray<MapData, u64>,
}

impl Counters {
    /// Opens the counters that are pinned below `dir`, for reading only, whether a daemon runs or not.
    pub fn open(dir: &Path) -> Result<Self> {
        Ok(Self {
            backends: read_only(dir, "BACKEND_COUNTERS", Map::PerCpuArray)?,
            services: read_only(dir, "SERVICE_COUNTERS", Map::PerCpuArray)?,
            backend_totals: read_only(dir, "BACKEND_TOTALS", Map::HashMap)?,
            service_totals: read_only(dir, "SERVICE_TOTALS", Map::HashMap)?,
            lost: read_only(dir, "EVENTS_LOST", Map::PerCpuArray)?,
        })
    }

    /// Takes the maps of these programs.
    pub(super) fn of(programs: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            backends: map(programs, "BACKEND_COUNTERS")?,
            services: map(programs, "SERVICE_COUNTERS")?,
            backend_totals: map(programs, "BACKEND_TOTALS")?,
            service_totals: map(programs, "SERVICE_TOTALS")?,
            lost: map(programs, "EVENTS_LOST")?,
        })
    }

    /// Counters of the backend with this index; zero if they cannot be read.
    pub fn backend(&self, index: BackendIndex) -> BackendCounters {
        let Ok(cpus) = self.backends.get(&index.0, 0) else { return BackendCounters::default() };
        sum_backend(cpus.iter().chain(&self.backend_totals.get(&index.0, 0).ok()))
    }

    /// Counters of the service with this index; zero if they cannot be read.
    pub fn service(&self, index: ServiceIndex) -> ServiceCounters {
        let Ok(cpus) = self.services.get(&index.0, 0) else { return ServiceCounters::default() };
        sum_service(cpus.iter().chain(&self.service_totals.get(&index.0, 0).ok()))
    }

    /// Number of events that were lost because the ring was full.
    pub fn events_lost(&self) -> u64 {
        self.lost(LOST_EVENTS)
    }

    /// Number of listening sockets whose description was not written because the map was full.
    pub fn descriptions_lost(&self) -> u64 {
        self.lost(LOST_DESCRIPTIONS)
    }

    fn lost(&self, what: u32) -> u64 {
        self.lost.get(&what, 0).map(|cpus| cpus.iter().sum()).unwrap_or_default()
    }
}

/// The registered sockets that are pinned below `dir`, and the backend of each, whether a daemon runs or not.
pub fn registered(dir: &Path) -> Result<BTreeMap<SocketCookie, BackendIndex>> {
    let sockets: HashMap<MapData, u64, SocketInfo> = read_only(dir, "SOCKETS", Map::HashMap)?;
    let found = sockets.iter().flatten();
    Ok(found.map(|(cookie, socket)| (SocketCookie(cookie), BackendIndex(socket.backend))).collect())
}

/// Opens a pinned map. The kernel refuses every write by this descriptor.
pub(super) fn read_only<T: TryFrom<Map, Error = MapError>>(
    dir: &Path,
    name: &'static str,
    kind: fn(MapData) -> Map,
) -> Result<T> {
    let pin = dir.join("maps").join(name);
    let fd = bpf::open_read_only(&pin).map_err(KernelError::io("open", &pin))?;
    MapData::from_fd(fd).map(kind).and_then(T::try_from).map_err(KernelError::map("open", name))
}

impl Kernel {
    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Adds what programs of an earlier layout that are still attached to sockets have counted. Every resync calls this.
    pub fn add_late_counters(&mut self) {
        self.late.add();
    }

    /// Resets the counters of an index to zero, before a backend gets it.
    pub fn reset_backend_counters(&mut self, index: BackendIndex) -> Result<()> {
        let failed = || KernelError::map("reset", "BACKEND_COUNTERS");
        let cpus = self.counters.backends.get(&index.0, 0).map_err(failed())?.len();
        let zero = PerCpuValues::try_from(vec![BackendCounters::default(); cpus]);
        let zero = zero.map_err(|e| failed()(e.into()))?;
        self.counters.backends.set(index.0, zero, 0).map_err(failed())?;
        let _ = self.counters.backend_totals.remove(&index.0);
        self.socket_counts.reset(index)
    }

    /// Resets the counters and the switch of an index to zero, before a service gets it.
    pub fn reset_service(&mut self, index: ServiceIndex) -> Result<()> {
        self.reset_switch(index)?;
        let failed = || KernelError::map("reset", "SERVICE_COUNTERS");
        let cpus = self.counters.services.get(&index.0, 0).map_err(failed())?.len();
        let zero = PerCpuValues::try_from(vec![ServiceCounters::default(); cpus]);
        let zero = zero.map_err(|e| failed()(e.into()))?;
        let _ = self.counters.service_totals.remove(&index.0);
        self.counters.services.set(index.0, zero, 0).map_err(failed())
    }
}
