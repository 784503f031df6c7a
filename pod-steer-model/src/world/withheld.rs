//! Sockets that are withheld from clients: those of drained backends and of versions that wait, and those behind a
//! hidden port. A table names them. As long as one of them listens, the kernel program refuses clients that the table
//! cannot serve, even when the daemon is dead: the kernel's own lookup might give the clients to it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{Plan, PlannedTable, Socket, scope::Facts, score::Bound, tables::Tables};
use crate::{
    ids::{BackendIndex, NetnsCookie, SocketCookie},
    ports::Port,
    rule::RuleKey,
    slots::Member,
};

/// The inputs of the withheld sockets: the destination without the port; the table; the backends that do not serve, or
/// not by all of their sockets, each with the port that it listens on; and the sockets that have this port as their
/// hidden one.
type Question = (RuleKey, *const PlannedTable, Vec<(BackendIndex, Port)>, BTreeSet<SocketCookie>);

/// Adds the withheld sockets to the tables of the plan.
pub(super) fn withhold(facts: &Facts<'_>, plan: &mut Plan, tables: &mut Tables) {
    let sockets = facts.sockets();
    // By service and port: its backends, and the port on which each listens for it.
    let mut parts: BTreeMap<(&str, Port), Vec<(BackendIndex, Port)>> = BTreeMap::new();
    // No lookup of the ingress namespace finds a socket of another one.
    for backend in facts.backends.iter().filter(|backend| backend.forwarded().is_none()) {
        for map in &backend.spec.ports {
            parts
                .entry((&backend.spec.service, map.service_port()))
                .or_default()
                .push((backend.index, map.target_port()));
        }
    }
    // No client may reach a hidden port, whichever service it belongs to.
    let hidden: BTreeSet<((NetnsCookie, Port), SocketCookie)> = facts
        .sockets
        .iter()
        .filter_map(|(cookie, socket)| Some(((socket.netns_cookie, socket.hidden_port?), *cookie)))
        .collect();
    let mut serving: HashMap<*const PlannedTable, BTreeSet<BackendIndex>> = HashMap::new();
    let mut answers: HashMap<Question, Arc<PlannedTable>> = HashMap::new();
    let refused = &facts.refused;
    let with_refused: BTreeSet<BackendIndex> = refused.values().map(|(backend, _)| *backend).collect();
    for (key, rule) in &mut plan.rules {
        let Some(table) = &mut rule.table else { continue };
        // If a backend serves by a better socket, its others are not withheld, unless they may not serve at all.
        let serves = serving
            .entry(Arc::as_ptr(table))
            .or_insert_with(|| table.members.iter().chain(&table.reserve).map(|member| member.backend).collect());
        let own = rule.service.as_deref().and_then(|service| parts.get(&(service, key.port)));
        let others: Vec<(BackendIndex, Port)> = own
            .into_iter()
            .flatten()
            .filter(|(backend, _)| !serves.contains(backend) || with_refused.contains(backend))
            .copied()
            .collect();
        let here = (key.netns_cookie, key.port);
        let hidden: BTreeSet<SocketCookie> =
            hidden.range((here, SocketCookie(0))..=(here, SocketCookie(u64::MAX))).map(|(_, cookie)| *cookie).collect();
        if others.is_empty() && hidden.is_empty() {
            continue;
        }
        let withheld = || {
            let theirs = others.iter().flat_map(|(backend, port)| {
                sockets
                    .of(*backend)
                    .filter(|(_, socket)| (socket.netns_cookie, socket.port) == (key.netns_cookie, *port))
            });
            let hidden = hidden.iter().filter_map(|cookie| Some((*cookie, facts.socket(*cookie)?)));
            let idle = theirs
                .chain(hidden)
                .filter(|(cookie, socket)| !serves.contains(&socket.backend) || refused.contains_key(cookie));
            let takes = idle.filter(|(_, socket)| Bound::from(*socket).score(key).is_some());
            let member = |(cookie, socket): (_, &Socket)| Member {
                cookie,
                backend: socket.backend,
                weight: 0,
                is_forwarded: false,
            };
            takes.map(member).collect::<BTreeSet<_>>()
        };
        let question = (key.without_port(), Arc::as_ptr(table), others.clone(), hidden.clone());
        *table = Arc::clone(answers.entry(question).or_insert_with(|| {
            let withheld: BTreeSet<Member> = table.withheld.iter().copied().chain(withheld()).collect();
            tables.one(PlannedTable { withheld: withheld.into_iter().collect(), ..PlannedTable::clone(table) })
        }));
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
        table.withheld.iter().map(|member| member.cookie.0).collect()
    }

    #[test]
    fn a_drained_backend_is_withheld() {
        let backends = [backend(0, "web", "80:8080"), backend(1, "web", "80:8080")];
        let mut world = world(backends, [socket(0, "0.0.0.0", 8080), socket(1, "0.0.0.0", 8080)]);
        let plan = world.plan();
        assert_eq!((members(&plan, key(FAMILY_V4, 80)), withheld(&plan, 80)), (vec![100, 101], vec![]));
        let drained = [Part::Backend("id1".into())].into();
        world.decisions.insert("web".to_owned(), Decision { drained, ..Decision::default() });
        let plan = world.plan();
        assert_eq!((members(&plan, key(FAMILY_V4, 80)), withheld(&plan, 80)), (vec![100], vec![101]));
    }

    #[test]
    fn a_socket_at_another_address_is_not_withheld() {
        let backends = [backend(0, "web", "80"), backend(1, "web", "80")];
        let sockets = [socket(0, "127.0.0.2", 80), socket(0, "0.0.0.0", 80), socket(1, "127.0.0.3", 80)];
        let mut world = world(backends, sockets);
        let drained = [Part::Backend("id1".into())].into();
        world.decisions.insert("web".to_owned(), Decision { drained, ..Decision::default() });
        world.plan();
        let plan = world.plan();
        let withheld = |key| plan.rules[&key].table.as_ref().unwrap().withheld.len();
        assert_eq!([at(key(FAMILY_V4, 80), "127.0.0.2"), key(FAMILY_V4, 80)].map(withheld), [0, 0]);
    }

    #[test]
    fn a_socket_behind_a_hidden_port_is_withheld_there_alone() {
        let mut hidden = socket(1, "0.0.0.0", 8080);
        hidden.hidden_port = Some(Port::tcp(45_000));
        let backends = [backend(0, "web", "80:8080"), backend(1, "web", "80:8080")];
        let mut world = world(backends, [socket(0, "0.0.0.0", 8080), hidden]);
        let plan = world.plan();
        assert_eq!((withheld(&plan, 80), withheld(&plan, 45_000)), (vec![], vec![101]));
    }
}
