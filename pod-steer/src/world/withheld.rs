//! Sockets that are withheld from clients: of drained backends, of versions that wait, those behind a hidden port. A table names
//! them, so that the kernel refuses clients as long as one of them listens, even when the daemon is dead: the kernel's own lookup
//! might give the clients to it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Plan, World, score::Bound};
use crate::slots::Member;

/// The service that a socket serves there, if it is to be reached at all; its cookie, and the index of its backend.
type Candidate<'a> = (Option<&'a str>, u64, u32);

/// Completes the tables of the plan.
pub(super) fn withhold(world: &World, plan: &mut Plan) {
    let by_index: BTreeMap<u32, _> = world.backends.values().map(|backend| (backend.index, backend)).collect();
    // By namespace and port: the service whose clients come there, and the sockets that serve them or could.
    let mut sockets: BTreeMap<(u64, u16), BTreeSet<Candidate<'_>>> = BTreeMap::new();
    for (cookie, socket) in &world.sockets {
        let Some(backend) = by_index.get(&socket.backend) else { continue };
        let served = backend.spec.ports.iter().filter(|map| map.target == socket.port);
        let served = served.map(|map| (map.port, Some(backend.spec.service.as_str())));
        // No client may reach a hidden port, whichever service it belongs to.
        for (port, service) in served.chain(socket.hidden_port.map(|port| (port, None))) {
            sockets.entry((socket.netns_cookie, port)).or_default().insert((service, *cookie, socket.backend));
        }
    }
    for (key, rule) in &mut plan.rules {
        let Some(table) = &mut rule.table else { continue };
        let here = sockets.get(&(key.netns_cookie, key.port)).into_iter().flatten();
        let own = here.filter(|(service, ..)| service.is_none() || *service == rule.service.as_deref());
        // One that serves by a better socket is not withheld by the others.
        let serves: BTreeSet<u32> = table.members.iter().chain(&table.reserve).map(|member| member.backend).collect();
        let takes = |cookie| world.sockets.get(cookie).is_some_and(|socket| Bound::from(socket).score(key).is_some());
        let withheld = own.filter(|(_, cookie, backend)| !serves.contains(backend) && takes(cookie));
        let withheld: BTreeSet<Member> =
            withheld.map(|(_, cookie, backend)| Member { cookie: *cookie, backend: *backend, weight: 0 }).collect();
        table.withheld = withheld.into_iter().collect();
    }
}

#[cfg(test)]
mod tests {
    use pod_steer_ebpf::FAMILY_V4;

    use super::*;
    use crate::{
        rollout::{Decision, Part},
        world::tests::{at, backend, key, members, socket, world},
    };

    fn withheld(plan: &Plan, port: u16) -> Vec<u64> {
        let table = plan.rules[&key(FAMILY_V4, port)].table.as_ref().unwrap();
        table.withheld.iter().map(|member| member.cookie).collect()
    }

    #[test]
    fn a_drained_backend_is_withheld() {
        let backends = [backend(0, "web", "80:8080"), backend(1, "web", "80:8080")];
        let mut world = world(backends, [socket(0, "0.0.0.0", 8080), socket(1, "0.0.0.0", 8080)]);
        let plan = world.plan();
        assert_eq!((members(&plan, key(FAMILY_V4, 80)), withheld(&plan, 80)), (vec![100, 101], vec![]));
        let drained = [Part::Backend("id1".to_owned())].into();
        world.decisions.insert("web".to_owned(), Decision { drained, ..Decision::default() });
        let plan = world.plan();
        assert_eq!((members(&plan, key(FAMILY_V4, 80)), withheld(&plan, 80)), (vec![100], vec![101]));
    }

    #[test]
    fn a_socket_at_another_address_is_not_withheld() {
        let backends = [backend(0, "web", "80"), backend(1, "web", "80")];
        let sockets = [socket(0, "127.0.0.2", 80), socket(0, "0.0.0.0", 80), socket(1, "127.0.0.3", 80)];
        let mut world = world(backends, sockets);
        let drained = [Part::Backend("id1".to_owned())].into();
        world.decisions.insert("web".to_owned(), Decision { drained, ..Decision::default() });
        world.plan();
        let plan = world.plan();
        let withheld = |key| plan.rules[&key].table.as_ref().unwrap().withheld.len();
        assert_eq!([at(key(FAMILY_V4, 80), "127.0.0.2"), key(FAMILY_V4, 80)].map(withheld), [0, 0]);
    }

    #[test]
    fn a_socket_behind_a_hidden_port_is_withheld_there_alone() {
        let mut hidden = socket(1, "0.0.0.0", 8080);
        hidden.hidden_port = Some(45_000);
        let backends = [backend(0, "web", "80:8080"), backend(1, "web", "80:8080")];
        let mut world = world(backends, [socket(0, "0.0.0.0", 8080), hidden]);
        let plan = world.plan();
        assert_eq!((withheld(&plan, 80), withheld(&plan, 45_000)), (vec![], vec![101]));
    }
}
