//! Writes the ports of backends: the purposes of each, and those that each backend serves of its service's claims.

use std::collections::BTreeMap;

use aya::{
    Pod,
    maps::{HashMap, MapData},
};
use pod_steer_ebpf::{MANAGED_PORTS_MAX, ManagedBlock, ManagedPorts, OWN_PORTS_MAX, OwnBlock, OwnPorts};

use super::{Kernel, KernelError, NO_SERVICE, tally::Tally};
use crate::{
    ids::{BackendIndex, ServiceIndex},
    world::Plan,
};

/// A map that only the daemon writes, and its contents.
pub(super) struct Blocks<K, V> {
    map: HashMap<MapData, K, V>,
    name: &'static str,
    /// Name of its entries in messages.
    what: &'static str,
    usual: u32,
    written: BTreeMap<K, V>,
}

impl<K: Pod + Ord, V: Pod + PartialEq> Blocks<K, V> {
    /// Takes over the contents of the map. `name` is the map's, `what` names its entries in messages, and `usual` is
    /// its usual size.
    pub fn new(map: HashMap<MapData, K, V>, name: &'static str, what: &'static str, usual: u32) -> Self {
        let written = map.iter().flatten().collect();
        Self { map, name, what, usual, written }
    }

    fn is(&self, wanted: &BTreeMap<K, V>) -> bool {
        self.written == *wanted
    }

    /// Makes the map hold exactly `wanted`. `backend` returns the index of a block's backend, and `owners` has the
    /// service of each backend. A backend whose block cannot be written is added to `failed`; all other blocks are
    /// written.
    fn write_all(
        &mut self,
        wanted: &BTreeMap<K, V>,
        backend: impl Fn(&K) -> BackendIndex,
        owners: &BTreeMap<BackendIndex, ServiceIndex>,
        failed: &mut BTreeMap<BackendIndex, KernelError>,
    ) {
        for block in self.written.keys().filter(|block| !wanted.contains_key(block)) {
            let _ = self.map.remove(block);
        }
        self.written.retain(|block, _| wanted.contains_key(block));
        let owner = |block: &K| owners.get(&backend(block)).copied().unwrap_or(NO_SERVICE);
        let mut tally = Tally::new(self.name, self.usual, self.what);
        self.written.keys().for_each(|block| tally.add(owner(block), 1));
        for (block, value) in wanted {
            let before = self.written.get(block);
            if before == Some(value) {
                continue;
            }
            let is_new = before.is_none();
            let admitted = if is_new { tally.admit(owner(block)) } else { Ok(()) };
            let failure = KernelError::add("write a port to", self.name, self.usual);
            match admitted.and_then(|()| self.map.insert(block, value, 0).map_err(failure)) {
                Ok(()) => {
                    self.written.insert(*block, *value);
                    tally.add(owner(block), u32::from(is_new));
                }
                Err(error) => drop(failed.entry(backend(block)).or_insert(error)),
            }
        }
    }
}

/// The maps of ports.
pub(super) struct BackendPorts {
    pub managed: Blocks<ManagedBlock, ManagedPorts>,
    pub own: Blocks<OwnBlock, OwnPorts>,
}

impl BackendPorts {
    pub fn new(
        managed: HashMap<MapData, ManagedBlock, ManagedPorts>,
        own: HashMap<MapData, OwnBlock, OwnPorts>,
    ) -> Self {
        Self {
            managed: Blocks::new(managed, "MANAGED_PORTS", "blocks of 64 ports", MANAGED_PORTS_MAX),
            own: Blocks::new(own, "OWN_PORTS", "blocks of 64 ports for connections to itself", OWN_PORTS_MAX),
        }
    }
}

impl Kernel {
    /// Writes the ports. Returns the backends with a port that could not be written, and the errors. `owners` returns
    /// the index of each backend's service.
    pub(super) fn apply_ports(
        &mut self,
        plan: &Plan,
        services: &BTreeMap<String, ServiceIndex>,
        owners: impl FnOnce() -> BTreeMap<BackendIndex, ServiceIndex>,
    ) -> BTreeMap<BackendIndex, KernelError> {
        let indexed = |(block, (service, ports)): (&OwnBlock, &(String, OwnPorts))| {
            let service = services.get(service)?.0;
            Some((*block, OwnPorts { service, ..*ports }))
        };
        let own = plan.own_ports.iter().filter_map(indexed).collect();
        let mut failed = BTreeMap::new();
        let BackendPorts { managed, own: own_ports } = &mut self.ports;
        if managed.is(&plan.managed_ports) && own_ports.is(&own) {
            return failed;
        }
        let owners = owners();
        managed.write_all(&plan.managed_ports, |block| BackendIndex(block.backend), &owners, &mut failed);
        own_ports.write_all(&own, |block| BackendIndex(block.backend), &owners, &mut failed);
        failed
    }
}
