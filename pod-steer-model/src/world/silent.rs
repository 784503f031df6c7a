//! Running backends that do not listen on their ports: they listen elsewhere, or no longer listen.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Backend, Phase, World,
    scope::{Facts, Scope},
};
use crate::{
    condition::{Condition, Reason},
    ids::BackendIndex,
    ports::{Port, PortMap},
};

/// What is known of where a backend listens, besides its serving sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listening {
    /// Whether it has had a serving socket since it was started.
    pub has_listened: bool,
    /// Other ports on which its processes listened when they were last inspected.
    pub elsewhere: BTreeSet<Port>,
}

impl World {
    /// Records which backends listen. The record of a backend that is started again, or that got the index of another,
    /// begins anew.
    pub(super) fn note_listening(&mut self, scope: &Scope) {
        let facts = Facts::new(self, scope);
        let sockets = facts.sockets();
        let mut now: BTreeMap<BackendIndex, Listening> = BTreeMap::new();
        for backend in facts.backends.iter().filter(|backend| backend.phase != Phase::Created) {
            let known = self.listening.get(&backend.index);
            if sockets.of(backend.index).any(|(_, socket)| backend.serves_by(socket)) {
                now.insert(backend.index, Listening { has_listened: true, elsewhere: BTreeSet::new() });
            } else if let Some(known) = known.filter(|_| backend.phase != Phase::Exited) {
                now.insert(backend.index, known.clone());
            }
        }
        drop(sockets);
        drop(facts);
        self.listening.retain(|index, _| !scope.has_index(*index));
        self.listening.append(&mut now);
    }

    /// Why a running backend without a serving socket does not listen, if that is known. One that has never listened
    /// may be about to.
    pub(super) fn not_listening(&self, backend: &Backend) -> Option<Condition> {
        let known = self.listening.get(&backend.index)?;
        let targets: BTreeSet<Port> = backend.spec.ports.iter().map(PortMap::target_port).collect();
        // It listens on one of its ports, so something else is wrong.
        if !known.elsewhere.is_disjoint(&targets) {
            return None;
        }
        let (ports, elsewhere) = (listed(&targets, "or"), listed(&known.elsewhere, "and"));
        let condition = |message: String, remedy: String| Some(Condition::new(Reason::NotListening, message, remedy));
        let restart = || "see its log, and restart it".to_owned();
        match (known.has_listened, known.elsewhere.is_empty()) {
            (false, true) => None,
            (false, false) => {
                let port = backend.spec.ports.first().map_or(0, |map| map.port);
                let target = known.elsewhere.first().copied().unwrap_or_default();
                condition(
                    format!("it listens on {elsewhere}, not on {ports}"),
                    format!("configure the server to listen on {ports}, or declare its port as {port}:{target}"),
                )
            }
            (true, true) => condition(format!("it no longer listens on {ports}"), restart()),
            (true, false) => condition(format!("it no longer listens on {ports}, but on {elsewhere}"), restart()),
        }
    }
}

/// Names the ports on which a backend does not listen, if it listens on others. The ports of a range do not count: a
/// server may open them on demand.
pub fn missing_ports(world: &World, backend: &Backend) -> Option<Condition> {
    let own = world.sockets.values().filter(|socket| socket.backend == backend.index);
    let open: BTreeSet<Port> = own.map(|socket| socket.port).collect();
    let serves = backend.spec.ports.iter().any(|map| open.contains(&map.target_port()));
    let in_ranges: BTreeSet<Port> = backend.ranges().flatten().map(PortMap::target_port).collect();
    let both = backend.spec.ports.iter().map(|map| (map.target_port(), map.service_port()));
    let missing = both.filter(|(target, _)| !open.contains(target) && !in_ranges.contains(target));
    let (targets, ports): (BTreeSet<Port>, BTreeSet<Port>) = missing.unzip();
    let is_told = serves && backend.phase == Phase::Running && !targets.is_empty();
    is_told.then(|| {
        let (targets, of_clients) = (listed(&targets, "or"), listed(&ports, "and"));
        let message = format!("it does not listen on {targets}, so it gets no clients of port {of_clients}");
        Condition::without_remedy(Reason::PortWithoutListener, message)
    })
}

/// Maximum number of ports that are named.
const NAMED_MAX: usize = 4;

/// `8080`, `8080 and 9090`, `1, 2, 3, 4 and 5 more`.
pub fn listed(ports: &BTreeSet<Port>, word: &str) -> String {
    let names: Vec<String> = ports.iter().map(Port::to_string).collect();
    match names.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        names if names.len() > NAMED_MAX => {
            format!("{} {word} {} more", names[..NAMED_MAX].join(", "), names.len() - NAMED_MAX)
        }
        [some @ .., last] => format!("{} {word} {last}", some.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SocketCookie;
    use crate::world::{
        State,
        tests::{backend, reasons, socket, world},
    };

    #[test]
    fn ports_are_listed() {
        let set = |ports: &[u16]| ports.iter().copied().map(Port::tcp).collect::<BTreeSet<Port>>();
        assert_eq!(listed(&set(&[8080]), "or"), "8080");
        assert_eq!(listed(&set(&[1, 2, 3]), "or"), "1, 2 or 3");
        assert_eq!(listed(&set(&[1, 2, 3, 4, 5, 6]), "and"), "1, 2, 3, 4 and 2 more");
    }

    #[test]
    fn a_port_without_a_listener_is_named() {
        let said = |ports: &str, listens: &[u16]| {
            let sockets: Vec<_> = listens.iter().map(|port| socket(0, "0.0.0.0", *port)).collect();
            let mut world = world([backend(0, "web", ports)], []);
            world.sockets = (100..).map(SocketCookie).zip(sockets).collect();
            missing_ports(&world, &world.backends["id0"]).map(|condition| condition.to_string())
        };
        let text = "it does not listen on 8814, so it gets no clients of port 82";
        assert_eq!(said("81:8813,82:8814", &[8813, 7777]).as_deref(), Some(text));
        assert_eq!(said("81:8813,82:8814", &[8813, 8814]), None);
        assert_eq!(said("81:8813,82:8814", &[7777]), None, "it listens elsewhere, which has a message of its own");
        assert_eq!(said("21,30000-30009", &[21]), None, "it opens them on demand");
    }

    #[test]
    fn a_backend_that_does_not_listen_says_why() {
        let mut world = world([backend(0, "web", "80:8080")], []);
        assert_eq!(world.plan().states[&BackendIndex(0)], State::Starting, "it may be about to listen");
        world.listening.entry(BackendIndex(0)).or_default().elsewhere.insert(Port::tcp(9999));
        let plan = world.plan();
        assert_eq!(plan.states[&BackendIndex(0)], State::NotListening);
        assert_eq!(reasons(&plan, 0), [Reason::NotListening]);
        assert_eq!(plan.conditions[&BackendIndex(0)][0].message, "it listens on 9999, not on 8080");
        world.sockets.insert(SocketCookie(100), socket(0, "0.0.0.0", 8080));
        let plan = world.plan();
        assert_eq!((plan.states[&BackendIndex(0)], plan.conditions.len()), (State::Ready, 0));
        world.sockets.clear();
        let plan = world.plan();
        assert_eq!(plan.states[&BackendIndex(0)], State::NotListening);
        assert_eq!(reasons(&plan, 0), [Reason::NotListening]);
        assert_eq!(plan.conditions[&BackendIndex(0)][0].message, "it no longer listens on 8080");
        // Started again, it may be about to listen.
        world.backends.get_mut("id0").unwrap().phase = Phase::Exited;
        world.plan();
        world.backends.get_mut("id0").unwrap().phase = Phase::Running;
        assert_eq!(world.plan().states[&BackendIndex(0)], State::Starting);
    }
}
