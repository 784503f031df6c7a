//! Sockets that could not share the port that they asked for, because another user owns it, listen on a port of the
//! kernel's choice. Steering does not need the port. A client that connects to that port would bypass every claim, so
//! it is refused. Only the socket's own address, family and device refuse: other sockets may listen on the same port
//! elsewhere.

use std::sync::Arc;

use pod_steer_ebpf::{FALLBACK_REFUSE, FAMILY_V4, FAMILY_V6, RULE_HIDDEN};

use super::{Plan, scope::Facts, score::Bound};
use crate::rule::RuleKey;

/// Adds a rule without members for each hidden port. A port that a service claims stays the service's: its rule leads to
/// its own sockets only.
pub(super) fn hide(facts: &Facts<'_>, plan: &mut Plan) {
    for (_, socket) in &facts.sockets {
        let Some(port) = socket.hidden_port else { continue };
        let Some(backend) = facts.world.by_index(socket.backend) else { continue };
        let (netns_cookie, bound) = (socket.netns_cookie, Bound::from(&**socket).surely());
        for family in [FAMILY_V4, FAMILY_V6] {
            let Some(addr) = bound.address(family) else { continue };
            let key = RuleKey { netns_cookie, addr, port, family, ifindex: socket.ifindex };
            let rule = plan.rules.entry(key).or_default();
            if rule.table.is_none() {
                // The service whose counters the rule uses.
                rule.service = Some(backend.spec.service.clone());
                rule.flags |= RULE_HIDDEN;
                rule.fallback = FALLBACK_REFUSE;
                rule.table = Some(Arc::default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SocketCookie;
    use crate::listener::Listener;
    use crate::ports::Port;
    use crate::world::tests::{HOST, at, backend, key, listener, members, socket, world};

    #[test]
    fn a_hidden_port_is_steered_to_and_refuses_its_own_clients() {
        let mut hidden = socket(1, "::", 8080);
        hidden.hidden_port = Some(Port::tcp(45_000));
        let mut world =
            world([backend(0, "web", "80:8080"), backend(1, "web", "80:8080")], [socket(0, "0.0.0.0", 8080), hidden]);
        let plan = world.plan();
        assert_eq!(members(&plan, key(FAMILY_V4, 80)), [100, 101]);
        for family in [FAMILY_V4, FAMILY_V6] {
            let rule = &plan.rules[&key(family, 45_000)];
            assert_eq!((rule.service.as_deref(), rule.fallback), (Some("web"), FALLBACK_REFUSE));
            assert!(members(&plan, key(family, 45_000)).is_empty());
        }
        assert!(!world.claimed.contains_key(&key(FAMILY_V4, 45_000)), "a refusal is no claim");
    }

    #[test]
    fn a_claim_is_stronger_than_a_hidden_port() {
        let mut hidden = socket(0, "0.0.0.0", 8080);
        hidden.hidden_port = Some(Port::tcp(45_000));
        let sockets = [hidden, socket(1, "0.0.0.0", 9000)];
        let mut world = world([backend(0, "web", "80:8080"), backend(1, "api", "45000:9000")], sockets);
        let own = Listener { cookie: Some(SocketCookie(100)), ..listener("0.0.0.0", 45_000) };
        world.note_foreign(HOST.cookie, vec![own]);
        let plan = world.plan();
        assert_eq!(members(&plan, key(FAMILY_V4, 45_000)), [101]);
        assert!(plan.conditions.is_empty(), "{:?}", plan.conditions);
    }

    #[test]
    fn other_addresses_of_a_hidden_port_refuse() {
        let mut hidden = socket(0, "0.0.0.0", 8080);
        hidden.hidden_port = Some(Port::tcp(45_000));
        let sockets = [hidden, socket(1, "0.0.0.0", 9000)];
        let mut world = world([backend(0, "web", "80:8080"), backend(1, "api", "127.0.0.2:45000:9000")], sockets);
        let plan = world.plan();
        let rule = &plan.rules[&key(FAMILY_V4, 45_000)];
        let flags = RULE_HIDDEN | pod_steer_ebpf::RULE_HAS_ADDRESSES;
        assert_eq!((rule.flags, rule.service.as_deref()), (flags, Some("web")));
        assert!(rule.table.is_some());
    }

    #[test]
    fn only_the_hidden_sockets_own_address_refuses() {
        let mut four = socket(0, "127.0.0.2", 8080);
        (four.hidden_port, four.ifindex) = (Some(Port::tcp(45_000)), 7);
        let mut six = socket(0, "::", 8080);
        (six.hidden_port, six.v6only) = (Some(Port::tcp(46_000)), Some(true));
        let mut unknown = socket(0, "::", 8080);
        (unknown.hidden_port, unknown.v6only) = (Some(Port::tcp(47_000)), None);
        let mut mapped = socket(0, "::ffff:127.0.0.3", 8080);
        mapped.hidden_port = Some(Port::tcp(48_000));
        let plan = world([backend(0, "web", "80:8080")], [four, six, unknown, mapped]).plan();
        let refusing = plan.rules.iter().filter(|(key, rule)| key.port.number >= 45_000 && rule.table.is_some());
        let wanted = [
            RuleKey { ifindex: 7, ..at(key(FAMILY_V4, 45_000), "127.0.0.2") },
            key(FAMILY_V6, 46_000),
            key(FAMILY_V6, 47_000),
            at(key(FAMILY_V4, 48_000), "127.0.0.3"),
        ];
        let wanted = std::collections::BTreeSet::from(wanted);
        assert_eq!(refusing.map(|(key, _)| *key).collect::<std::collections::BTreeSet<_>>(), wanted);
    }
}
