//! Reading the counters; they are kept per CPU and only ever grow while a backend or service has its index.

use aya::maps::PerCpuValues;
use pod_steer_ebpf::{BackendCounters, LOST_DESCRIPTIONS, LOST_EVENTS, ServiceCounters};

use super::{Kernel, KernelError, Result};

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
    }
);

impl Kernel {
    /// Counters of the backend with this index; zero if they cannot be read.
    pub fn backend_counters(&self, index: u32) -> BackendCounters {
        let Ok(cpus) = self.backend_counters.get(&index, 0) else { return BackendCounters::default() };
        sum_backend(cpus.iter().chain(&self.backend_totals.get(&index, 0).ok()))
    }

    /// Counters of the service with this index; zero if they cannot be read.
    pub fn service_counters(&self, index: u32) -> ServiceCounters {
        let Ok(cpus) = self.service_counters.get(&index, 0) else { return ServiceCounters::default() };
        sum_service(cpus.iter().chain(&self.service_totals.get(&index, 0).ok()))
    }

    /// Adds what programs of an earlier layout, which are still attached to sockets, have counted. To be called by every resync.
    pub fn add_late_counters(&mut self) {
        self.late.add();
    }

    /// Events that were lost because the ring was full.
    pub fn events_lost(&self) -> u64 {
        self.lost(LOST_EVENTS)
    }

    /// Listening sockets whose description was not written because the map was full.
    pub fn descriptions_lost(&self) -> u64 {
        self.lost(LOST_DESCRIPTIONS)
    }

    fn lost(&self, what: u32) -> u64 {
        self.events_lost.get(&what, 0).map(|cpus| cpus.iter().sum()).unwrap_or_default()
    }

    /// Starts the counters of an index from zero, before a backend gets it.
    pub fn reset_backend_counters(&mut self, index: u32) -> Result<()> {
        let failed = || KernelError::map("reset", "BACKEND_COUNTERS");
        let cpus = self.backend_counters.get(&index, 0).map_err(failed())?.len();
        let zero = PerCpuValues::try_from(vec![BackendCounters::default(); cpus]);
        let zero = zero.map_err(|e| failed()(e.into()))?;
        self.backend_counters.set(index, zero, 0).map_err(failed())?;
        let _ = self.backend_totals.remove(&index);
        self.socket_counts.reset(index)
    }

    /// Starts the counters and the switch of an index from zero, before a service gets it.
    pub fn reset_service(&mut self, index: u32) -> Result<()> {
        self.reset_switch(index)?;
        let failed = || KernelError::map("reset", "SERVICE_COUNTERS");
        let cpus = self.service_counters.get(&index, 0).map_err(failed())?.len();
        let zero = PerCpuValues::try_from(vec![ServiceCounters::default(); cpus]);
        let zero = zero.map_err(|e| failed()(e.into()))?;
        let _ = self.service_totals.remove(&index);
        self.service_counters.set(index, zero, 0).map_err(failed())
    }
}
