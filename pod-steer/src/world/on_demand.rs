//! Ports that a server opens on demand, such as those of passive FTP: a range of which a listener is opened for one
//! connection and closed after it. The daemon hears of each when the client has come already, so the kernel program finds
//! the listener by itself, if only one backend of the service can have opened it.
//!
//! Two servers of one service cannot share such a range: a client of one could be given the other's connection.

use std::collections::{BTreeMap, BTreeSet};

use pod_steer_ebpf::RuleKey;

use super::{Backend, Phase, Sockets, World, claims::keys};
use crate::ports::{PortMap, compact};

/// A server that has been ready for so long, in milliseconds, and listens on no port of a range, opens them on demand.
const SETTLE_MS: i64 = 1_000;

impl Backend {
    /// The ranges of its ports.
    fn ranges(&self) -> impl Iterator<Item = &[PortMap]> {
        self.spec.ports.chunk_by(PortMap::continues_with).filter(|range| range.len() > 1)
    }

    /// Those that it opens on demand, as far as that can be told: it closes listeners of them and goes on, or it is ready
    /// and has opened none. An ordinary server that listens on some of its ports may be about to open the others.
    fn on_demand(&self, sockets: &Sockets<'_>, now_ms: i64) -> impl Iterator<Item = &[PortMap]> {
        let open: BTreeSet<u16> = sockets.of(self.index).map(|(_, socket)| socket.port).collect();
        let runs = self.phase == Phase::Running;
        let has_settled = self.ready_since_ms.is_some_and(|since_ms| now_ms - since_ms >= SETTLE_MS);
        self.ranges().filter(move |range| {
            let opened = range.iter().filter(|map| open.contains(&map.target)).count();
            let closes = range.iter().any(|map| self.closed_ports.contains(&map.target));
            runs && opened < range.len() && (closes || (opened == 0 && has_settled))
        })
    }
}

/// Backends that declare ports which an older one of their service opens on demand: by index, a sentence with the remedy.
pub(super) fn conflicts(world: &World, sockets: &Sockets<'_>, by_age: &[&Backend]) -> BTreeMap<u32, String> {
    let mut held: BTreeMap<(&str, RuleKey), (&Backend, &[PortMap])> = BTreeMap::new();
    let mut conflicts = BTreeMap::new();
    for backend in by_age.iter().filter(|backend| backend.phase != Phase::Exited) {
        let Some(netns) = backend.netns else { continue };
        let service = backend.spec.service.as_str();
        let of = |maps: &[PortMap]| maps.iter().flat_map(|map| keys(netns.cookie, map)).collect::<Vec<RuleKey>>();
        let clash = of(&backend.spec.ports).into_iter().find_map(|key| held.get(&(service, key)));
        if let Some((holder, range)) = clash {
            conflicts.insert(
                backend.index,
                format!(
                    "{} of the same service opens the ports {} on demand, and a client of one server could get the \
                     other's connection; give each server a range of its own",
                    holder.name,
                    compact(range)
                ),
            );
            continue;
        }
        for range in backend.on_demand(sockets, world.now_ms) {
            held.extend(of(range).into_iter().map(|key| ((service, key), (*backend, range))));
        }
    }
    conflicts
}

/// The claims on ranges whose ports the servers know by other numbers: without a rule, clients of a listener that has just
/// been opened would find nobody there. (By the same number the kernel's own lookup finds it.)
pub(super) fn claims(backends: &[&Backend]) -> BTreeSet<RuleKey> {
    let mut claims = BTreeSet::new();
    for backend in backends {
        let Some(netns) = backend.netns else { continue };
        let moved = backend.ranges().filter(|range| range.iter().any(|map| map.port != map.target));
        claims.extend(moved.flatten().flat_map(|map| keys(netns.cookie, map)));
    }
    claims
}

/// When it is next known of a backend whether it opens a range on demand.
pub(super) fn next_ms(world: &World) -> Option<i64> {
    let waits = world.backends.values().filter(|backend| backend.ranges().next().is_some());
    let due = waits.filter_map(|backend| backend.ready_since_ms).map(|since_ms| since_ms + SETTLE_MS);
    due.filter(|at_ms| *at_ms > world.now_ms).min()
}

#[cfg(test)]
mod tests {
    use pod_steer_ebpf::{FALLBACK_PASS, FALLBACK_REFUSE, FAMILY_V4, RULE_ON_DEMAND};

    use super::*;
    use crate::world::tests::{backend, key, members, socket, world};

    const PORTS: &str = "21:2121,30000-30001:31000-31001";

    fn two_servers() -> World {
        let backends = [backend(0, "ftp", PORTS), backend(1, "ftp", PORTS)];
        world(backends, [socket(0, "0.0.0.0", 2121), socket(1, "0.0.0.0", 2121)])
    }

    #[test]
    fn the_second_server_with_the_same_ports_on_demand_is_hindered() {
        let mut world = two_servers();
        world.now_ms = 10_000;
        let plan = world.plan();
        assert!(plan.hindrances.is_empty(), "it may be about to listen: {:?}", plan.hindrances);
        assert_eq!((members(&plan, key(FAMILY_V4, 21)), plan.next_ms), (vec![100, 101], Some(11_000)));
        world.now_ms = 11_000;
        let plan = world.plan();
        assert!(plan.hindrances[&1][0].contains("ports 30000-30001:31000-31001 on demand"), "{:?}", plan.hindrances);
        assert_eq!((members(&plan, key(FAMILY_V4, 21)), plan.hindrances.len()), (vec![100], 1));
    }

    #[test]
    fn what_a_server_closes_while_it_runs_it_opens_on_demand() {
        let mut world = two_servers();
        world.sockets.insert(200, socket(0, "0.0.0.0", 31_000));
        (world.now_ms, world.backends.get_mut("id0").unwrap().ready_since_ms) = (99_000, Some(0));
        assert!(world.plan().hindrances.is_empty(), "some of its ports are not up");
        world.backends.get_mut("id0").unwrap().closed_ports.insert(31_001);
        assert!(world.plan().hindrances.contains_key(&1));
        world.sockets.insert(201, socket(0, "0.0.0.0", 31_001));
        assert!(world.plan().hindrances.is_empty(), "all of them are up");
    }

    #[test]
    fn a_rule_names_the_only_backend_that_may_serve() {
        let mut world = world([backend(0, "ftp", PORTS)], [socket(0, "0.0.0.0", 2121)]);
        let plan = world.plan();
        let early = &plan.rules[&key(FAMILY_V4, 30_000)];
        assert_eq!((early.only, early.fallback, early.flags), (Some((0, 31_000)), FALLBACK_PASS, RULE_ON_DEMAND));
        assert!(!world.claimed.contains_key(&key(FAMILY_V4, 30_000)), "nobody has listened there");
        assert_eq!(plan.rules[&key(FAMILY_V4, 21)].only, Some((0, 2121)));

        world.sockets.insert(200, socket(0, "0.0.0.0", 31_000));
        let claimed = &world.plan().rules[&key(FAMILY_V4, 30_000)];
        assert_eq!((claimed.only, claimed.fallback), (Some((0, 31_000)), FALLBACK_REFUSE));
        world.sockets.remove(&200);
        assert_eq!(world.plan().rules[&key(FAMILY_V4, 30_000)].only, Some((0, 31_000)), "between two transfers");

        // With a second one nobody knows whose listener it would be; and one that is drained gets nobody.
        world.backends.insert("id1".to_owned(), backend(1, "ftp", "21:2121"));
        world.sockets.insert(101, socket(1, "0.0.0.0", 2121));
        let plan = world.plan();
        assert_eq!(plan.rules[&key(FAMILY_V4, 21)].only, None);
        assert_eq!(plan.rules[&key(FAMILY_V4, 30_000)].only, Some((0, 31_000)));
        let drained = [crate::rollout::Part::Backend("id0".to_owned())].into();
        world.decisions.insert("ftp".to_owned(), crate::rollout::Decision { drained, ..Default::default() });
        let plan = world.plan();
        assert_eq!(plan.rules[&key(FAMILY_V4, 21)].only, Some((1, 2121)));
        assert_eq!(plan.rules[&key(FAMILY_V4, 30_000)].only, None);
    }
}
