//! Addresses of a backend's ports that another service has claimed.

use std::collections::BTreeMap;

use super::{
    Backend, World,
    claims::{keys, of_rule},
    score::{ANY_ADDRESS, Bound},
};
use crate::{
    address::address_from_bytes,
    condition::{Condition, Reason},
    ports::Port,
    rule::RuleKey,
};

/// The clients that a backend on every address does not get, because another service has claimed their address. One
/// condition for each port and service.
pub fn addresses_of_others(world: &World, backend: &Backend) -> Vec<Condition> {
    let Some(netns) = backend.ingress() else { return Vec::new() };
    let mut others: BTreeMap<(Port, &str), Vec<String>> = BTreeMap::new();
    for (rule, claimed) in world.claimed.iter().filter(|(_, claimed)| claimed.service != backend.spec.service) {
        let claim = of_rule(rule, claimed.of_port);
        if claim.addr == ANY_ADDRESS {
            continue;
        }
        let of_any = RuleKey { addr: ANY_ADDRESS, ..claim };
        let mut maps = backend.spec.ports.iter().filter(|map| keys(netns.cookie, map).any(|key| key == of_any));
        let takes = |target: Port| {
            let own = world.sockets.values().filter(|socket| (socket.backend, socket.port) == (backend.index, target));
            own.filter_map(|socket| backend.seen_from_ingress(socket))
                .any(|socket| Bound::from(&*socket).score(&claim).is_some())
        };
        if maps.any(|map| takes(map.target_port())) {
            let address = address_from_bytes(claim.family, claim.addr).to_string();
            others.entry((claim.port, claimed.service.as_str())).or_default().push(address);
        }
    }
    let condition = |((port, service), addresses): ((Port, &str), Vec<String>)| {
        let more = if addresses.len() > 1 { format!(" and {} more", addresses.len() - 1) } else { String::new() };
        let message =
            format!("it gets no clients of port {port} at {}{more}, claimed by the service `{service}`", addresses[0]);
        Condition::without_remedy(Reason::AddressOfOtherService, message)
    };
    others.into_iter().map(condition).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SocketCookie;
    use crate::world::tests::{backend, socket, world};

    #[test]
    fn a_backend_on_every_address_is_told_which_are_others() {
        let backends = [backend(0, "one", "127.0.0.2:80,127.0.0.3:80"), backend(1, "rest", "80:8080")];
        let sockets = [socket(0, "127.0.0.2", 80), socket(0, "127.0.0.3", 80), socket(1, "0.0.0.0", 8080)];
        let mut world = world(backends, sockets);
        let plan = world.plan();
        assert!(plan.conditions.is_empty(), "{:?}", plan.conditions);
        let said = |world: &World, id: &str| -> Vec<String> {
            let conditions = addresses_of_others(world, &world.backends[id]);
            conditions.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            said(&world, "id1"),
            ["it gets no clients of port 80 at 127.0.0.2 and 1 more, claimed by the service `one`"]
        );
        assert!(said(&world, "id0").is_empty());
        // A backend that does not listen there would not get them anyway.
        world.sockets.get_mut(&SocketCookie(102)).unwrap().ip = "127.0.0.9".parse().unwrap();
        assert!(said(&world, "id1").is_empty());
        world.sockets.get_mut(&SocketCookie(102)).unwrap().ip = "0.0.0.0".parse().unwrap();
        world.backends.remove("id0");
        world.plan();
        assert!(said(&world, "id1").is_empty(), "the service is gone");
    }
}
