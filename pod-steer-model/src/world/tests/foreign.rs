//! Unmanaged listeners keep their clients.

use super::*;

const FOUR: fn(u16) -> RuleKey = |port| key(FAMILY_V4, port);

/// Cookies of the members of each rule of a port that has a table; `None` for each that leaves clients to the kernel.
fn rules(plan: &Plan, port: u16) -> Vec<(RuleKey, Option<Vec<u64>>)> {
    let of_port = plan.rules.iter().filter(|(key, rule)| key.port.number == port && rule.service.is_some());
    of_port.map(|(key, rule)| (*key, rule.table.is_some().then(|| members(plan, *key)))).collect()
}

fn beside(world: &mut World, listeners: &[Listener]) -> Plan {
    world.note_foreign(HOST.cookie, listeners.to_vec());
    world.plan()
}

#[test]
fn an_address_beside_another_is_free() {
    let mut world = world([backend(0, "web", "8080")], [socket(0, "127.0.0.2", 8080)]);
    let plan = beside(&mut world, &[listener("127.0.0.3", 8080)]);
    assert_eq!(rules(&plan, 8080), [(at(FOUR(8080), "127.0.0.2"), Some(vec![100]))]);
    assert!(plan.conditions.is_empty() && without_clients(&world, &plan).is_empty());
    assert_eq!(plan.states[&BackendIndex(0)], State::Ready);
}

#[test]
fn a_claim_of_an_address_yields_only_to_listeners_that_take_its_clients() {
    let claims = |listeners: &[Listener]| {
        let sockets = [socket(0, "10.9.1.1", 5353)];
        let plan = beside(&mut world([backend(0, "dns", "10.9.1.1:53:5353")], sockets), listeners);
        (!rules(&plan, 53).is_empty(), plan.conditions.get(&BackendIndex(0)).cloned().unwrap_or_default())
    };
    assert_eq!(claims(&[listener("127.0.0.53", 53), listener("::1", 53)]), (true, vec![]));
    assert_eq!(claims(&[Listener { v6only: Some(true), ..listener("::", 53) }]), (true, vec![]));
    for own in ["10.9.1.1", "::ffff:10.9.1.1", "0.0.0.0", "::"] {
        let (claimed, said) = claims(&[listener(own, 53)]);
        assert!(!claimed && said[0].message.contains("does not manage already listens on port 53"), "{own}: {said:?}");
    }
}

#[test]
fn a_single_address_keeps_its_clients_beside_a_wildcard() {
    let mut world = world([backend(0, "web", "80:8080")], [socket(0, "0.0.0.0", 8080)]);
    let three = at(FOUR(80), "127.0.0.3");
    let on_device = Listener { ifindex: 7, cookie: Some(SocketCookie(5)), ..listener("0.0.0.0", 80) };
    let device = RuleKey { ifindex: 7, ..FOUR(80) };
    let both = [listener("127.0.0.3", 80), on_device];
    let left = [(FOUR(80), Some(vec![100])), (device, None), (three, None)];
    let plan = beside(&mut world, &both);
    assert_eq!(rules(&plan, 80), left);
    assert_eq!(plan.rules[&three].flags, RULE_FOREIGN);
    assert_eq!(plan.rules[&FOUR(80)].flags, RULE_OF_PORT | RULE_HAS_ADDRESSES | RULE_HAS_DEVICES);
    assert!(without_clients(&world, &plan).is_empty() && !world.claimed.contains_key(&three));
    // That holds as long as they listen, also for a new daemon that has not enumerated listeners yet.
    assert_eq!(rules(&world.plan(), 80), left);
    world.foreign.clear();
    world.left.values_mut().for_each(|cookie| *cookie = None);
    assert_eq!(rules(&world.plan(), 80), left);
    assert_eq!(rules(&beside(&mut world, &both), 80), left);
    assert_eq!(rules(&beside(&mut world, &[on_device]), 80), left[..2]);
    // One that comes later, at the same place, gets no clients.
    let later = Listener { cookie: Some(SocketCookie(6)), ..listener("127.0.0.3", 80) };
    let plan = beside(&mut world, &[later, on_device]);
    assert_eq!(rules(&plan, 80), left[..2]);
    assert_eq!(without_clients(&world, &plan), BTreeMap::from([("127.0.0.3:80".to_owned(), "web".to_owned())]));
}

#[test]
fn the_address_of_an_unmanaged_listener_is_not_claimed() {
    let mut world = world(
        [backend(0, "web", "80:8080"), backend(1, "web", "80:8080")],
        [socket(0, "127.0.0.3", 8080), socket(1, "127.0.0.2", 8080)],
    );
    let plan = beside(&mut world, &[listener("127.0.0.3", 80)]);
    assert_eq!(rules(&plan, 80), [(at(FOUR(80), "127.0.0.2"), Some(vec![101]))]);
    assert!(plan.conditions[&BackendIndex(0)][0].message.contains("at 127.0.0.3:80"), "{:?}", plan.conditions);
    assert_eq!((plan.states[&BackendIndex(0)], plan.states[&BackendIndex(1)]), (State::NotSteered, State::Ready));
    // It gets the address when the other listener has closed, and then keeps it.
    let plan = beside(&mut world, &[]);
    assert_eq!(plan.states[&BackendIndex(0)], State::Ready);
    let plan = beside(&mut world, &[listener("127.0.0.3", 80)]);
    assert_eq!((plan.states[&BackendIndex(0)], without_clients(&world, &plan).len()), (State::Ready, 1));
}

#[test]
fn a_family_with_an_unmanaged_listener_is_left_out() {
    let mut six = socket(0, "::", 8080);
    six.v6only = Some(true);
    let mut only_six = world([backend(0, "web", "8080")], [six]);
    let plan = beside(&mut only_six, &[listener("0.0.0.0", 8080)]);
    assert_eq!(rules(&plan, 8080), [(key(FAMILY_V6, 8080), Some(vec![100]))]);
    assert!(plan.conditions.is_empty(), "{:?}", plan.conditions);
    let mut dual = world([backend(0, "web", "8080")], [socket(0, "::", 8080)]);
    let plan = beside(&mut dual, &[listener("0.0.0.0", 8080)]);
    assert_eq!(rules(&plan, 8080), [(key(FAMILY_V6, 8080), Some(vec![100]))]);
    assert!(plan.conditions[&BackendIndex(0)][0].message.contains("at 0.0.0.0:8080"), "{:?}", plan.conditions);
    assert_eq!(plan.states[&BackendIndex(0)], State::Ready);
}

#[test]
fn a_second_port_does_not_get_past_the_check() {
    let mut world = world([backend(0, "web", "8443:9000,18443:8443")], [socket(0, "0.0.0.0", 9000)]);
    let plan = beside(&mut world, &[listener("0.0.0.0", 8443)]);
    assert!(rules(&plan, 8443).is_empty());
    assert!(
        plan.conditions[&BackendIndex(0)][0].message.contains("does not manage already listens on port 8443"),
        "{:?}",
        plan.conditions
    );
    // Its own listener there does not count as unmanaged once it is known.
    world.sockets.insert(SocketCookie(1000 + 8443), socket(0, "0.0.0.0", 8443));
    assert!(world.plan().conditions.is_empty());
}

#[test]
fn a_listener_without_a_cookie_is_known_by_its_place() {
    let mut world = world([backend(0, "web", "8080")], [socket(0, "0.0.0.0", 8080)]);
    let own = Listener { cookie: None, ..listener("0.0.0.0", 8080) };
    assert_eq!(rules(&beside(&mut world, &[own]), 8080).len(), 1);
    world.claimed.clear();
    let other = Listener { cookie: None, ..listener("::", 8080) };
    assert!(rules(&beside(&mut world, &[own, other]), 8080).is_empty());
}

#[test]
fn the_fallback_pass_allows_unmanaged_listeners() {
    let mut passing = backend(0, "web", "80:8080");
    passing.spec.options.fallback = Some(Fallback::Pass);
    let mut world = world([passing], [socket(0, "0.0.0.0", 8080)]);
    let plan = beside(&mut world, &[listener("0.0.0.0", 80), listener("127.0.0.3", 80)]);
    assert_eq!(rules(&plan, 80), [(FOUR(80), Some(vec![100]))]);
    assert!(plan.conditions.is_empty() && without_clients(&world, &plan).is_empty());
}

#[test]
fn a_claimed_port_is_not_lost_to_a_later_listener() {
    let mut world = world([backend(0, "web", "80:8080")], [socket(0, "0.0.0.0", 8080)]);
    world.plan();
    let plan = beside(&mut world, &[listener("0.0.0.0", 80)]);
    assert_eq!(rules(&plan, 80), [(FOUR(80), Some(vec![100]))]);
    assert_eq!(without_clients(&world, &plan).keys().collect::<Vec<_>>(), ["0.0.0.0:80"]);
    // Nor do later backends of the service lose it, though the other family was never claimed.
    world.backends.insert("id1".into(), backend(1, "web", "80:8080"));
    world.sockets.insert(SocketCookie(101), socket(1, "0.0.0.0", 8080));
    let plan = beside(&mut world, &[listener("::", 80)]);
    assert_eq!((members(&plan, FOUR(80)), plan.conditions.len()), (vec![100, 101], 0));
}

#[test]
fn a_backend_that_does_not_listen_keeps_no_port_from_others() {
    let mut silent = backend(0, "alpha", "80:9000");
    silent.seen = 1;
    let mut newer = backend(1, "beta", "80:8080");
    newer.seen = 2;
    let mut world = world([silent, newer], []);
    assert!(world.plan().conditions.is_empty(), "neither listens");
    world.sockets.insert(SocketCookie(101), socket(1, "0.0.0.0", 8080));
    let plan = world.plan();
    assert!(!plan.conditions.contains_key(&BackendIndex(1)), "{:?}", plan.conditions);
    assert_eq!(members(&plan, key(FAMILY_V4, 80)), [101]);
    // It has the port now, whichever is older.
    world.sockets.insert(SocketCookie(100), socket(0, "0.0.0.0", 9000));
    let plan = world.plan();
    assert!(
        plan.conditions[&BackendIndex(0)]
            .iter()
            .any(|said| said.message.contains("already belongs to the service `beta`"))
    );
    assert_eq!(members(&plan, key(FAMILY_V4, 80)), [101]);
}
