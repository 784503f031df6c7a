//! Holding the clients of paused services, on values.

use pod_steer_ebpf::{FALLBACK_REFUSE, NONE};

use super::*;
use crate::{
    rollout::{Decision, Part, Traffic},
    world::tests::{HOST, backend, key, members, socket, world},
};

/// A service with a server on every IPv4 address, which is held by a listener with the cookie 900.
fn held() -> World {
    let mut world = world([backend(0, "web", "80:8080,81:8081")], [socket(0, "0.0.0.0", 8080)]);
    world.plan();
    world.pause_cookie = Some(SocketCookie(7));
    let sockets =
        BTreeMap::from([(SocketCookie(900), Socket { backend: BackendIndex(5), ..socket(0, "0.0.0.0", 8080) })]);
    let fronts = world.fronts("web");
    world.holds.insert(BackendIndex(5), Hold { service: "web".to_owned(), sockets, fronts });
    world.decisions.insert("web".to_owned(), Decision { paused: true, ..Decision::default() });
    world
}

#[test]
fn a_hold_is_the_only_member_and_the_silent_listener_its_reserve() {
    let mut world = held();
    let plan = world.plan();
    let table = plan.rules[&key(FAMILY_V4, 80)].table.clone().unwrap();
    assert_eq!(members(&plan, key(FAMILY_V4, 80)), [900]);
    assert_eq!(table.members[0].backend.0, slot_backend(5, WAY_HOLD));
    let reserve: Vec<_> = table.reserve.iter().map(|member| (member.cookie.0, member.backend.0)).collect();
    assert_eq!(reserve, [(7, NONE)]);
    assert_eq!(table.withheld.iter().map(|member| member.cookie.0).collect::<Vec<_>>(), [100], "the server");
    // Its clients are held without a server too.
    world.backends.clear();
    world.sockets.clear();
    assert_eq!(members(&world.plan(), key(FAMILY_V4, 80)), [900]);
    world.decisions.clear();
    assert!(world.plan().rules.get(&key(FAMILY_V4, 80)).is_none_or(|rule| {
        rule.table.as_ref().is_none_or(|table| table.members.is_empty() && table.reserve.is_empty())
    }));
}

#[test]
fn a_pause_that_is_over_refuses() {
    let mut world = held();
    let until_ms = world.now_ms + 1_000;
    world.decisions.get_mut("web").unwrap().pause_until_ms = Some(until_ms);
    assert_eq!(world.plan().next_ms(), Some(until_ms));
    world.now_ms = until_ms;
    let plan = world.plan();
    let rule = &plan.rules[&key(FAMILY_V4, 80)];
    let table = rule.table.as_ref().unwrap();
    assert!(table.members.is_empty() && table.reserve.is_empty() && rule.fallback == FALLBACK_REFUSE, "{rule:?}");
    assert_eq!(plan.next_ms(), None);
}

#[test]
fn only_the_servers_whose_group_can_be_joined_are_held() {
    let backends = [backend(0, "web", "80:8080"), backend(1, "web", "80:8081"), backend(2, "api", "90:9090")];
    let mut sockets = [socket(0, "0.0.0.0", 8080), socket(1, "::", 8081), socket(2, "0.0.0.0", 9090)];
    sockets[1].v6only = Some(false);
    let mut world = world(backends, sockets);
    let groups = world.groups("web", 0);
    assert_eq!(groups.values().map(|group| group.refused.is_none()).collect::<Vec<_>>(), [true, true]);
    let front = BTreeSet::from([Port::tcp(80)]);
    assert!(groups.values().all(|group| group.fronts == front));
    let set = |world: &mut World, change: fn(&mut Socket)| change(world.sockets.get_mut(&SocketCookie(101)).unwrap());
    let why = |world: &World| -> Vec<String> {
        world.groups("web", 0).into_values().filter_map(|group| group.refused).collect()
    };
    set(&mut world, |socket| socket.uid = Some(33));
    assert!(why(&world)[0].contains("user 33"), "{:?}", why(&world));
    set(&mut world, |socket| (socket.uid, socket.hidden_port) = (Some(0), Some(Port::tcp(45_000))));
    assert!(why(&world)[0].contains("several users"));
    set(&mut world, |socket| (socket.hidden_port, socket.ifindex) = (None, 3));
    assert!(why(&world)[0].contains("device"));
    set(&mut world, |socket| (socket.ifindex, socket.v6only) = (0, None));
    assert!(why(&world)[0].contains("inspected"));
    set(&mut world, |socket| socket.v6only = Some(true));
    assert!(why(&world).is_empty());
}

/// Two versions that listen in different ways. The first one has everything.
fn two_versions() -> World {
    let mut backends = [backend(0, "web", "80:8080"), backend(1, "web", "80:8080")];
    backends[1].spec.version = "v2".to_owned();
    let mut world = world(backends, [socket(0, "::", 8080), socket(1, "0.0.0.0", 8080)]);
    world.decisions.insert("web".to_owned(), shares("v1"));
    world
}

fn shares(version: &str) -> Decision {
    let weights = BTreeMap::from([(version.to_owned(), 1)]);
    Decision { traffic: Traffic { weights: Some(weights), ..Traffic::default() }, ..Decision::default() }
}

#[test]
fn clients_are_held_where_those_with_a_share_listen() {
    let mut world = two_versions();
    let forms = |world: &World| world.groups("web", 0).keys().map(|form| form.ip.to_string()).collect::<Vec<_>>();
    assert_eq!(forms(&world), ["::"]);
    world.decisions.insert("web".to_owned(), shares("v2"));
    assert_eq!(forms(&world), ["0.0.0.0", "::"], "the other one serves IPv6 clients");
    // Without a share, the version serves where it is the only one.
    world.sockets.remove(&SocketCookie(101));
    assert_eq!(forms(&world), ["::"]);
    world.decisions.get_mut("web").unwrap().drained.insert(Part::Service);
    assert_eq!(forms(&world), [""; 0]);
}

#[test]
fn clients_of_another_family_address_or_namespace_are_held_where_they_are_served() {
    let mut world = two_versions();
    let forms = |world: &World| world.groups("web", 0).keys().map(|form| form.ip.to_string()).collect::<Vec<_>>();
    world.decisions.insert("web".to_owned(), shares("v2"));
    let other = |world: &mut World, other: Socket| {
        world.sockets.insert(SocketCookie(100), Socket { backend: BackendIndex(0), ..other });
    };
    other(&mut world, socket(0, "127.0.0.2", 8080));
    assert_eq!(forms(&world), ["0.0.0.0"], "its clients are served by the version with the share");
    other(&mut world, Socket { v6only: Some(true), ..socket(0, "::", 8080) });
    assert_eq!(forms(&world), ["0.0.0.0", "::"]);
    other(&mut world, Socket { netns_cookie: NetnsCookie(HOST.cookie.0 + 1), ..socket(0, "0.0.0.0", 8080) });
    assert_eq!(forms(&world).len(), 2);
    // The version with the share listens at one address only.
    world.sockets.insert(SocketCookie(101), socket(1, "127.0.0.2", 8080));
    other(&mut world, socket(0, "0.0.0.0", 8080));
    assert_eq!(forms(&world), ["0.0.0.0", "127.0.0.2"]);
    // Backends of the weight 0 get no clients, whatever the share of their version.
    world.backends.values_mut().filter(|one| one.spec.version == "v2").for_each(|one| one.spec.weight = 0);
    assert_eq!(forms(&world), ["0.0.0.0"]);
}

#[test]
fn a_version_that_replaces_another_one_is_held_only_where_that_one_was() {
    let mut world = two_versions();
    world.decisions.insert("web".to_owned(), shares("v1"));
    let begun: BTreeSet<Form> = world.groups_to_hold("web", 0, None).into_keys().collect();
    world.sockets.remove(&SocketCookie(100));
    assert!(!world.groups_to_hold("web", 0, None).is_empty(), "the new version listens in another form");
    assert_eq!(world.groups_to_hold("web", 0, Some(&begun)), BTreeMap::new());
    let as_before = Socket { backend: BackendIndex(1), ..socket(0, "::", 8080) };
    world.sockets.insert(SocketCookie(102), as_before);
    assert_eq!(world.groups_to_hold("web", 0, Some(&begun)).into_keys().collect::<BTreeSet<_>>(), begun);
}

#[test]
fn each_part_is_held_where_its_servers_listen() {
    let mut world = two_versions();
    world.pause_cookie = Some(SocketCookie(7));
    let held = |ip: &str| Socket { backend: BackendIndex(5), ..socket(0, ip, 8080) };
    let sockets = BTreeMap::from([(SocketCookie(900), held("::")), (SocketCookie(901), held("0.0.0.0"))]);
    let fronts = world.fronts("web");
    world.holds.insert(BackendIndex(5), Hold { service: "web".to_owned(), sockets, fronts });
    let held = |world: &mut World, decision: Decision| {
        world.decisions.insert("web".to_owned(), Decision { paused: true, ..decision });
        let plan = world.plan();
        [FAMILY_V4, FAMILY_V6].map(|family| members(&plan, key(family, 80)))
    };
    assert_eq!(held(&mut world, shares("v1")), [vec![900], vec![900]]);
    assert_eq!(held(&mut world, shares("v2"))[0], [901], "IPv4 clients");
    let plan = world.plan();
    let withheld = &plan.rules[&key(FAMILY_V4, 80)].table.as_ref().unwrap().withheld;
    assert_eq!(withheld.iter().map(|member| member.cookie.0).collect::<Vec<_>>(), [100, 101, 900]);
    assert_eq!(held(&mut world, Decision::default())[0], [900, 901]);
    // No server is left: the kernel's preference.
    world.sockets.clear();
    assert_eq!(held(&mut world, shares("v1"))[0], [901]);
}

#[test]
fn a_listener_holds_only_clients_that_it_takes() {
    let mut world = held();
    let members = |world: &World, key: RuleKey| world.holding("web", &key, &[]).0.len();
    assert_eq!([(FAMILY_V4, 80), (FAMILY_V6, 80), (FAMILY_V4, 81)].map(|(f, p)| members(&world, key(f, p))), [1, 0, 0]);
    assert_eq!(world.holding("api", &key(FAMILY_V4, 80), &[]).0, []);
    let elsewhere = RuleKey { netns_cookie: NetnsCookie(HOST.cookie.0 + 1), ..key(FAMILY_V4, 80) };
    assert_eq!(members(&world, elsewhere), 0);
    let hold = world.holds.get_mut(&BackendIndex(5)).unwrap();
    hold.sockets.get_mut(&SocketCookie(900)).unwrap().ip = "127.0.0.2".parse().unwrap();
    assert_eq!(members(&world, key(FAMILY_V4, 80)), 0);
}

#[test]
fn the_ports_of_a_hold_are_known_without_a_backend() {
    let hold = held().holds.remove(&BackendIndex(5)).unwrap();
    assert_eq!(Hold::fronts_of(&hold.maps()), hold.fronts);
    let text = serde_json::to_string(&hold.maps()).unwrap();
    assert_eq!(serde_json::from_str::<Vec<PortMap>>(&text).unwrap(), hold.maps());
}
