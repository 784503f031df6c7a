//! The ports of backends as the kernel programs look them up: in blocks, so that a range of ports takes few entries and
//! little time to plan.

use std::collections::BTreeMap;

use pod_steer_ebpf::{ManagedBlock, ManagedPorts, NONE, OwnBlock, OwnPorts, bit_of, block_of};

use super::{claims::Claim, scope::Facts};
use crate::{
    ids::BackendIndex,
    ports::{Port, PortMap, Proto},
    rule::RuleKey,
};

/// The purposes of each port of each backend, including backends that have ended while their connections are counted.
pub(super) fn managed(facts: &Facts<'_>) -> BTreeMap<ManagedBlock, ManagedPorts> {
    let mut blocks: BTreeMap<ManagedBlock, ManagedPorts> = BTreeMap::new();
    for backend in &facts.backends {
        let (index, ports) = (backend.index, &backend.spec.ports);
        let check = facts.world.configured.check(&backend.spec).and_then(|check| check.port(ports));
        by_block(ports.iter().map(PortMap::target_port).chain(check), |(block, proto), bits| {
            blocks.entry(key(index, block, proto)).or_default().listens |= bits;
        });
        by_block(ports.iter().map(PortMap::service_port), |(block, proto), bits| {
            blocks.entry(key(index, block, proto)).or_default().served |= bits;
        });
    }
    for (index, lingering) in &facts.lingering {
        by_block(lingering.ports.iter().copied(), |(block, proto), bits| {
            blocks.entry(key(**index, block, proto)).or_default().served |= bits
        });
    }
    blocks
}

fn key(backend: BackendIndex, block: u16, proto: Proto) -> ManagedBlock {
    ManagedBlock { backend: backend.0, block, proto: proto.number(), pad: 0 }
}

/// Calls `take` with each block of these ports, its protocol, and their bits. Consecutive ports of one block, such as those of a
/// range, are passed together.
fn by_block(ports: impl Iterator<Item = Port>, mut take: impl FnMut((u16, Proto), u64)) {
    let mut current: Option<((u16, Proto), u64)> = None;
    for Port { number, proto } in ports {
        let of = (block_of(number), proto);
        match &mut current {
            Some((block, bits)) if *block == of => *bits |= bit_of(number),
            other => {
                if let Some((block, bits)) = other.replace((of, bit_of(number))) {
                    take(block, bits);
                }
            }
        }
    }
    if let Some((block, bits)) = current {
        take(block, bits);
    }
}

/// The ports that each backend serves of those that its service has claimed, and the service. Its index is not known
/// here.
pub(super) fn own(claims: &BTreeMap<RuleKey, Claim<'_>>) -> BTreeMap<OwnBlock, (String, OwnPorts)> {
    let mut blocks: BTreeMap<OwnBlock, (String, OwnPorts)> = BTreeMap::new();
    for (key, claim) in claims {
        for (backend, target) in &claim.parts {
            let (addr, block, family) = (key.addr, block_of(key.port.number), key.family);
            let own = OwnBlock { addr, backend: backend.index.0, block, family, pad: 0 };
            let entry = blocks.entry(own).or_insert_with(|| (claim.service.to_owned(), OwnPorts::of(NONE)));
            entry.1.add(key.port.number, target.number);
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use pod_steer_ebpf::{FAMILY_V4, PORT_LISTENS, PORT_SERVED};

    use super::*;
    use crate::world::{
        Lingering,
        tests::{backend, socket, world},
    };

    /// Each port of a backend and its purposes.
    fn purposes(blocks: &BTreeMap<ManagedBlock, ManagedPorts>, backend: u32) -> Vec<(u16, u32)> {
        let key = |port| key(BackendIndex(backend), block_of(port), Proto::Tcp);
        let purpose = |port: u16| blocks.get(&key(port)).map_or(0, |ports| ports.purposes(port));
        (0..=u16::MAX).map(|port| (port, purpose(port))).filter(|(_, purpose)| *purpose != 0).collect()
    }

    #[test]
    fn every_port_is_found_in_its_block() {
        let mut world = world([backend(0, "web", "63-64:64-65,80:8080"), backend(1, "api", "65535")], []);
        let lingering = Lingering { service: "web".to_owned(), ports: BTreeSet::from([0, 65_535].map(Port::tcp)) };
        world.lingering.insert(BackendIndex(2), lingering);
        let blocks = world.plan().managed_ports;
        let both = PORT_LISTENS | PORT_SERVED;
        let of_web = [(63, PORT_SERVED), (64, both), (65, PORT_LISTENS), (80, PORT_SERVED), (8080, PORT_LISTENS)];
        assert_eq!(purposes(&blocks, 0), of_web);
        assert_eq!(purposes(&blocks, 1), [(65_535, both)]);
        assert_eq!(purposes(&blocks, 2), [(0, PORT_SERVED), (65_535, PORT_SERVED)]);
    }

    #[test]
    fn a_range_takes_an_entry_for_each_block() {
        let (aligned, other) = (backend(0, "web", "1024-2047"), backend(1, "api", "3000-4023:13000-14023"));
        let mut world = world([aligned, other], [socket(0, "0.0.0.0", 1024), socket(1, "0.0.0.0", 13_000)]);
        let plan = world.plan();
        let count = |index: u32| plan.managed_ports.keys().filter(|block| block.backend == index).count();
        assert_eq!([0, 1].map(count), [16, 34]);
        let own = plan.own_ports.keys().filter(|block| block.backend == 1 && block.family == FAMILY_V4).count();
        assert_eq!(own, 17);
    }

    #[test]
    fn an_own_port_leads_to_its_target() {
        let mut world = world([backend(0, "web", "80:8080,81:9000,200:200")], [socket(0, "0.0.0.0", 8080)]);
        let plan = world.plan();
        let own = |port| {
            let block = OwnBlock { block: block_of(port), family: FAMILY_V4, ..OwnBlock::default() };
            plan.own_ports.get(&block).and_then(|(_, ports)| ports.target(port))
        };
        assert_eq!([80, 81, 82, 200, 8080].map(own), [Some(8080), Some(9000), None, Some(200), None]);
    }
}
