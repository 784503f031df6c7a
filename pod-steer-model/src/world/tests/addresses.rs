//! Which clients come to a socket by its address, its device and its family.

use super::*;

/// The rules of a port that lead somewhere, with the cookies of their members.
fn steered(plan: &Plan, port: u16) -> Vec<(RuleKey, Vec<u64>)> {
    let rules = plan.rules.iter().filter(|(key, rule)| key.port.number == port && rule.table.is_some());
    rules.map(|(key, _)| (*key, members(plan, *key))).collect()
}

fn on(key: RuleKey, ifindex: u32) -> RuleKey {
    RuleKey { ifindex, ..key }
}

fn bound_to(ifindex: u32, socket: Socket) -> Socket {
    Socket { ifindex, ..socket }
}

const FOUR: fn(u16) -> RuleKey = |port| key(FAMILY_V4, port);

#[test]
fn each_address_has_a_rule_of_its_own() {
    let sockets = [socket(0, "127.0.0.2", 8080), socket(0, "127.0.0.3", 8080)];
    let plan = world([backend(0, "web", "80:8080")], sockets).plan();
    let (two, three) = (at(FOUR(80), "127.0.0.2"), at(FOUR(80), "127.0.0.3"));
    assert_eq!(steered(&plan, 80), [(two, vec![100]), (three, vec![101])]);
    assert_eq!((plan.rules[&FOUR(80)].flags, plan.rules[&two].flags), (RULE_HAS_ADDRESSES, RULE_OF_PORT));
    assert!(plan.rules[&FOUR(80)].service.is_none(), "no backend listens on every address");
    let titles: Vec<_> = plan.coverage["web"].iter().map(Coverage::title).collect();
    assert_eq!(titles, ["port 80 at 127.0.0.2", "port 80 at 127.0.0.3"]);
}

#[test]
fn each_backend_serves_an_address_by_its_best_socket() {
    let sockets = [
        socket(0, "0.0.0.0", 80),
        socket(0, "127.0.0.2", 80),
        socket(1, "::", 80),
        socket(2, "0.0.0.0", 80),
        socket(2, "::", 80),
    ];
    let plan = world([0, 1, 2].map(|index| backend(index, "web", "80")), sockets).plan();
    assert_eq!(members(&plan, FOUR(80)), [100, 102, 103], "an IPv4 socket is preferred to a dual-stack one");
    assert_eq!(members(&plan, at(FOUR(80), "127.0.0.2")), [101, 102, 103]);
    assert_eq!(members(&plan, key(FAMILY_V6, 80)), [102, 104]);
}

#[test]
fn each_device_has_a_rule_of_its_own() {
    let on_device = |backend, ifindex| bound_to(ifindex, socket(backend, "0.0.0.0", 80));
    let mut world = world([0, 1].map(|index| backend(index, "web", "80")), [on_device(0, 5), on_device(1, 6)]);
    let plan = world.plan();
    assert_eq!(steered(&plan, 80), [(on(FOUR(80), 5), vec![100]), (on(FOUR(80), 6), vec![101])]);
    assert_eq!(plan.rules[&FOUR(80)].flags, RULE_HAS_DEVICES);

    // One of any device serves the others, and takes its share beside those of a device.
    world.backends.insert("id2".into(), backend(2, "web", "80"));
    world.sockets.insert(SocketCookie(102), socket(2, "0.0.0.0", 80));
    let plan = world.plan();
    let shared = [(FOUR(80), vec![102]), (on(FOUR(80), 5), vec![100, 102]), (on(FOUR(80), 6), vec![101, 102])];
    assert_eq!(steered(&plan, 80), shared);

    // An address of one and a device of another: clients that come to both may be either's.
    world.sockets.insert(SocketCookie(102), socket(2, "127.0.0.2", 80));
    world.claimed.clear();
    let plan = world.plan();
    let both = at(FOUR(80), "127.0.0.2");
    assert_eq!(
        steered(&plan, 80),
        [
            (on(FOUR(80), 5), vec![100]),
            (on(FOUR(80), 6), vec![101]),
            (both, vec![102]),
            (on(both, 5), vec![100, 102]),
            (on(both, 6), vec![101, 102]),
        ]
    );
    assert_eq!(plan.rules[&FOUR(80)].flags, RULE_HAS_DEVICES | RULE_HAS_ADDRESSES);
}

#[test]
fn a_mapped_address_takes_ipv4_clients_of_that_address_alone() {
    let plan = world([backend(0, "web", "80")], [socket(0, "::ffff:10.9.1.1", 80)]).plan();
    assert_eq!(steered(&plan, 80), [(at(FOUR(80), "10.9.1.1"), vec![100])]);
    let titles: Vec<_> = plan.coverage["web"].iter().map(Coverage::title).collect();
    assert_eq!(titles, ["port 80 at 10.9.1.1"], "and counts for nothing else");
}

#[test]
fn a_claim_of_an_address_is_served_by_sockets_that_take_it() {
    let backends = [0, 1, 2].map(|index| backend(index, "dns", "10.9.1.1:53:5353"));
    let sockets = [socket(0, "10.9.1.1", 5353), socket(1, "0.0.0.0", 5353), socket(2, "127.0.0.1", 5353)];
    let mut world = world(backends, sockets);
    let plan = world.plan();
    assert_eq!(steered(&plan, 53), [(at(FOUR(53), "10.9.1.1"), vec![100, 101])]);
    assert_eq!(reasons(&plan, 2), [Reason::OtherAddress]);
    let said = &plan.conditions[&BackendIndex(2)][0].message;
    assert!(said.contains("listens on 127.0.0.1:5353, not at 10.9.1.1"), "{said}");
    assert_eq!((plan.conditions.len(), plan.states[&BackendIndex(2)]), (1, State::NotSteered));
    // It has no other address any more.
    world.sockets.remove(&SocketCookie(102));
    assert_eq!(reasons(&world.plan(), 2), [Reason::NotListening]);
}

#[test]
fn a_claim_of_an_address_precedes_a_claim_of_the_port() {
    let sockets = [socket(0, "0.0.0.0", 80), socket(1, "127.0.0.2", 8080), socket(1, "127.0.0.3", 8080)];
    let mut world = world([backend(0, "one", "127.0.0.2:80"), backend(1, "rest", "80:8080")], sockets);
    let (two, three) = (at(FOUR(80), "127.0.0.2"), at(FOUR(80), "127.0.0.3"));
    let plan = world.plan();
    assert_eq!(steered(&plan, 80), [(two, vec![100]), (three, vec![102])]);
    assert_eq!(plan.rules[&two].service.as_deref(), Some("one"));
    // When the claim of the address ends, the port has it.
    world.backends.remove("id0");
    let plan = world.plan();
    assert_eq!((members(&plan, two), plan.rules[&two].service.as_deref()), (vec![101], Some("rest")));
}

#[test]
fn an_address_stays_claimed_while_a_backend_that_listened_on_it_exists() {
    let sockets = [socket(0, "127.0.0.2", 80), socket(1, "127.0.0.3", 80)];
    let mut world = world([backend(0, "web", "80"), backend(1, "web", "80")], sockets);
    let two = at(FOUR(80), "127.0.0.2");
    world.plan();
    world.sockets.remove(&SocketCookie(100));
    let plan = world.plan();
    assert!(plan.rules.contains_key(&two) && members(&plan, two).is_empty(), "its clients are refused by rule");
    // A new daemon knows the rules, but not the backends for which they were made.
    for claimed in world.claimed.values_mut() {
        claimed.listeners = None;
    }
    assert!(world.plan().rules.contains_key(&two));
    world.backends.remove("id0");
    assert!(world.plan().rules.contains_key(&two), "it may have been the other one");
    world.claimed.get_mut(&two).unwrap().listeners = Some(BTreeSet::from(["id0".into()]));
    let plan = world.plan();
    assert!(!plan.rules.contains_key(&two), "{:?}", plan.rules.keys());
    assert!(plan.rules.contains_key(&at(FOUR(80), "127.0.0.3")));
}

#[test]
fn a_paused_service_keeps_the_clients_of_its_addresses() {
    let mut world = world([backend(0, "web", "80")], [bound_to(5, socket(0, "127.0.0.2", 80))]);
    let rule = on(at(FOUR(80), "127.0.0.2"), 5);
    world.plan();
    world.pause_cookie = Some(SocketCookie(7));
    world.decisions.insert("web".to_owned(), Decision { paused: true, ..Decision::default() });
    assert_eq!(members(&world.plan(), rule), [7]);
    world.backends.clear();
    for _ in 0..2 {
        let plan = world.plan();
        assert_eq!((members(&plan, rule), plan.rules[&rule].flags), (vec![7], RULE_OF_PORT));
        assert!(world.claimed[&rule].of_port);
    }
}

#[test]
fn one_address_of_a_port_that_another_service_serves_is_not_claimed() {
    let claim = |held: &[&str], claim: &str| {
        let sockets = held.iter().map(|ip| socket(0, ip, 8080));
        let mut world = world([backend(0, "web", "8080")], sockets);
        world.plan();
        world.backends.insert("id1".into(), backend(1, "other", claim));
        world.sockets.insert(SocketCookie(200), socket(1, "0.0.0.0", 19090));
        let plan = world.plan();
        let reasons = reasons(&plan, 1);
        (plan, reasons)
    };
    for (held, taken) in
        [(["0.0.0.0"], "127.0.0.1:8080:19090"), (["127.0.0.1"], "127.0.0.1:8080:19090"), (["::"], "[::1]:8080:19090")]
    {
        let (plan, reasons) = claim(&held, taken);
        assert_eq!(reasons, [Reason::PortOfOtherService], "{held:?} {taken}");
        assert!(plan.rules.values().all(|rule| rule.service.as_deref() != Some("other")), "{held:?} {taken}");
    }
    // Nor by a server that listens on every address itself.
    let (_, reasons) = claim(&["0.0.0.0"], "127.0.0.1:19090");
    assert_eq!(reasons, [], "it is another port");
    let mut same = world([backend(0, "web", "8080")], [socket(0, "0.0.0.0", 8080)]);
    same.plan();
    same.backends.insert("id1".into(), backend(1, "other", "127.0.0.1:8080"));
    assert!(same.plan().conditions.is_empty(), "it is not known yet where it will listen");
    same.sockets.insert(SocketCookie(200), socket(1, "127.0.0.1", 8080));
    assert_eq!(members(&same.plan(), at(FOUR(8080), "127.0.0.1")), [200], "the kernel prefers it too");
    same.sockets.clear();
    same.sockets.insert(SocketCookie(100), socket(0, "0.0.0.0", 8080));
    same.sockets.insert(SocketCookie(200), socket(1, "0.0.0.0", 8080));
    same.claimed.retain(|_, claimed| claimed.service == "web");
    assert!(same.plan().conditions.contains_key(&BackendIndex(1)));
    // Where no socket of that service listens, the address is free.
    let (plan, reasons) = claim(&["127.0.0.2"], "127.0.0.1:8080:19090");
    assert_eq!((reasons, members(&plan, at(FOUR(8080), "127.0.0.1"))), (vec![], vec![200]));
    assert_eq!(members(&plan, at(FOUR(8080), "127.0.0.2")), [100]);
}
