use pod_steer_ebpf::{
    FAMILY_V4, FAMILY_V6, ManagedBlock, PORT_LISTENS, RULE_FOREIGN, RULE_HAS_ADDRESSES, RULE_HAS_DEVICES, RULE_OF_PORT,
    block_of,
};

use super::*;
use crate::{
    check::{CheckKind, CheckSpec},
    condition::Reason,
    labels::Spec,
    namespace::Netns,
    ports,
    settings::{Allowed, Fallback, GivenOptions, Settings},
};

mod addresses;
mod foreign;
mod serving;
mod stopping;

pub(super) const HOST: Netns = Netns { dev: 4, inode: 1, cookie: NetnsCookie(10) };
pub const POD: Netns = Netns { dev: 4, inode: 2, cookie: NetnsCookie(20) };

pub(super) fn backend(index: u32, service: &str, ports: &str) -> Backend {
    let spec = Spec {
        service: service.to_owned(),
        version: "v1".to_owned(),
        weight: 1,
        via: Default::default(),
        ports: ports::parse(ports).unwrap(),
        ranges: ports::ranges(ports),
        options: GivenOptions::default(),
        check: None,
    };
    Backend {
        name: format!("name{index}"),
        created_ms: index.into(),
        phase: Phase::Running,
        network: Network::Host,
        netns: Some(HOST),
        ..Backend::new(format!("id{index}"), Kind::Exec, BackendIndex(index), spec)
    }
}

pub(super) fn socket(backend: u32, ip: &str, port: u16) -> Socket {
    let (backend, ip, port, v6only) = (BackendIndex(backend), ip.parse().unwrap(), Port::tcp(port), Some(false));
    Socket { backend, netns_cookie: HOST.cookie, ip, port, hidden_port: None, v6only, ifindex: 0, uid: None }
}

/// An unmanaged listener.
pub(super) fn listener(ip: &str, port: u16) -> Listener {
    Listener {
        cookie: Some(SocketCookie(1000 + u64::from(port))),
        ip: ip.parse().unwrap(),
        port: Port::tcp(port),
        v6only: Some(false),
        ifindex: 0,
        uid: 0,
        inode: 0,
        mptcp: false,
        waiting: 0,
        backlog: 128,
        drops: 0,
    }
}

pub(super) fn world(backends: impl IntoIterator<Item = Backend>, sockets: impl IntoIterator<Item = Socket>) -> World {
    World {
        backends: backends.into_iter().map(|backend| (backend.id.clone(), backend)).collect(),
        sockets: (100..).map(SocketCookie).zip(sockets).collect(),
        steered: BTreeSet::from([HOST.cookie, POD.cookie]),
        ..World::default()
    }
}

pub(super) fn key(family: u8, port: u16) -> RuleKey {
    RuleKey { netns_cookie: HOST.cookie, addr: [0; 16], port: Port::tcp(port), family, ifindex: 0 }
}

/// The same at one address.
pub(super) fn at(key: RuleKey, ip: &str) -> RuleKey {
    RuleKey { addr: crate::address::address_bytes(ip.parse().unwrap()), ..key }
}

/// Cookies of the members of a rule's table.
pub(super) fn members(plan: &Plan, key: RuleKey) -> Vec<u64> {
    let table = plan.rules.get(&key).and_then(|rule| rule.table.as_ref());
    table.map(|table| table.members.iter().map(|member| member.cookie.0).collect()).unwrap_or_default()
}

/// The reasons of a backend's conditions.
pub(super) fn reasons(plan: &Plan, backend: u32) -> Vec<Reason> {
    plan.conditions.get(&BackendIndex(backend)).into_iter().flatten().map(|condition| condition.reason).collect()
}

#[test]
fn a_port_leads_to_the_sockets_behind_it() {
    let mut world = world([backend(0, "web", "80:8080")], [socket(0, "0.0.0.0", 8080), socket(0, "0.0.0.0", 9999)]);
    let plan = world.plan();
    assert_eq!(members(&plan, key(FAMILY_V4, 80)), [100]);
    assert!(!plan.rules.contains_key(&key(FAMILY_V6, 80)), "no socket takes IPv6");
    assert_eq!(plan.states[&BackendIndex(0)], State::Ready);
}

#[test]
fn sockets_get_the_families_that_the_kernel_would_give_them() {
    let mut only = socket(0, "::", 80);
    only.v6only = Some(true);
    let mut world = world([backend(0, "web", "80")], [socket(0, "::", 80), only, socket(0, "::1", 80)]);
    let plan = world.plan();
    assert_eq!(members(&plan, key(FAMILY_V4, 80)), [100], "the dual-stack one alone");
    assert_eq!(members(&plan, key(FAMILY_V6, 80)), [100, 101]);
    assert_eq!(members(&plan, at(key(FAMILY_V6, 80), "::1")), [102], "an address is looked for first");
}

#[test]
fn nothing_is_claimed_for_a_socket_that_may_not_take_it() {
    let mut unknown = socket(0, "::", 80);
    unknown.v6only = None;
    let mut world = world([backend(0, "web", "80"), backend(1, "web", "80")], [unknown]);
    let claimed = |world: &mut World| {
        let plan = world.plan();
        (members(&plan, key(FAMILY_V4, 80)), members(&plan, key(FAMILY_V6, 80)))
    };
    assert_eq!(claimed(&mut world), (vec![], vec![100]));
    world.sockets.insert(SocketCookie(101), socket(1, "0.0.0.0", 80));
    assert_eq!(claimed(&mut world), (vec![101], vec![100]), "it is not given to clients that it may not take");
    world.sockets.get_mut(&SocketCookie(100)).unwrap().v6only = Some(true);
    assert_eq!(claimed(&mut world), (vec![101], vec![100]));
    world.sockets.remove(&SocketCookie(101));
    world.claimed.clear();
    assert!(!world.plan().rules.contains_key(&key(FAMILY_V4, 80)));
    world.sockets.get_mut(&SocketCookie(100)).unwrap().v6only = Some(false);
    assert_eq!(claimed(&mut world), (vec![100], vec![100]));
}

#[test]
fn a_backends_weight_is_shared_by_its_sockets() {
    let mut heavy = backend(1, "web", "80");
    heavy.spec.weight = 3;
    let sockets = [socket(0, "0.0.0.0", 80), socket(0, "0.0.0.0", 80), socket(1, "0.0.0.0", 80)];
    let plan = world([backend(0, "web", "80"), heavy], sockets).plan();
    let table = plan.rules[&key(FAMILY_V4, 80)].table.clone().unwrap();
    let weights: Vec<u64> = table.members.iter().map(|member| member.weight).collect();
    assert_eq!((weights[0], weights[1]), (weights[2] / 6, weights[2] / 6));
}

#[test]
fn a_service_keeps_its_port_without_a_backend_that_can_serve() {
    let mut world = world([backend(0, "web", "80")], [socket(0, "0.0.0.0", 80)]);
    world.plan();
    for phase in [Phase::Created, Phase::Paused, Phase::Exited] {
        world.backends.get_mut("id0").unwrap().phase = phase;
        let plan = world.plan();
        assert!(plan.rules.contains_key(&key(FAMILY_V4, 80)), "{phase:?}: clients are refused by rule");
        assert!(members(&plan, key(FAMILY_V4, 80)).is_empty(), "{phase:?}");
    }
    world.backends.clear();
    assert!(world.plan().rules.is_empty());
}

#[test]
fn an_unhealthy_backend_gets_nothing() {
    let sockets = [socket(0, "0.0.0.0", 80), socket(1, "0.0.0.0", 80)];
    let mut world = world([backend(0, "web", "80"), backend(1, "web", "80")], sockets);
    for (health, gets) in
        [(Health::Starting, false), (Health::Healthy, true), (Health::Unhealthy, false), (Health::Unchecked, true)]
    {
        world.backends.get_mut("id0").unwrap().health = health;
        assert_eq!(members(&world.plan(), key(FAMILY_V4, 80)).contains(&100), gets, "{health:?}");
        world.backends.get_mut("id0").unwrap().health = Health::Unchecked;
        world.backends.get_mut("id0").unwrap().probed = health;
        assert_eq!(members(&world.plan(), key(FAMILY_V4, 80)).contains(&100), gets, "{health:?}");
        world.backends.get_mut("id0").unwrap().probed = Health::Unchecked;
    }
}

#[test]
fn a_port_has_one_service() {
    let sockets = [socket(0, "0.0.0.0", 80), socket(1, "0.0.0.0", 8080)];
    let mut world = world([backend(0, "web", "80"), backend(1, "api", "80:8080")], sockets);
    let plan = world.plan();
    assert_eq!(members(&plan, key(FAMILY_V4, 80)), [100], "the older one has it");
    assert!(
        plan.conditions[&BackendIndex(1)][0].message.contains("belongs to the service `web`"),
        "{:?}",
        plan.conditions
    );
    assert_eq!(plan.states[&BackendIndex(1)], State::NotSteered);

    // The holder keeps it, also against an older backend that comes later.
    let mut older = backend(2, "api", "80:8080");
    older.created_ms = -1;
    world.backends.insert("id2".into(), older);
    assert_eq!(members(&world.plan(), key(FAMILY_V4, 80)), [100]);
}

#[test]
fn holding_one_port_gives_no_right_to_another() {
    let sockets =
        [socket(0, "0.0.0.0", 80), socket(1, "0.0.0.0", 90), socket(2, "0.0.0.0", 91), socket(3, "0.0.0.0", 92)];
    let mut world = world([backend(0, "x", "80"), backend(1, "y", "90")], sockets);
    world.plan();
    // x wants y's port too, and waits; then a younger backend replaces y's first one.
    world.backends.insert("id2".into(), backend(2, "x", "90:91"));
    world.backends.insert("id3".into(), backend(3, "y", "90:92"));
    world.plan();
    world.backends.remove("id1");
    assert_eq!(members(&world.plan(), key(FAMILY_V4, 90)), [103]);
}

#[test]
fn an_unmanaged_listener_keeps_its_port() {
    let mut world = world([backend(0, "web", "22:2222")], [socket(0, "0.0.0.0", 2222)]);
    world.note_foreign(HOST.cookie, vec![listener("0.0.0.0", 22), listener("0.0.0.0", 2222)]);
    let plan = world.plan();
    assert!(plan.rules.is_empty());
    assert!(
        plan.conditions[&BackendIndex(0)][0].message.contains("does not manage already listens on port 22"),
        "{:?}",
        plan.conditions
    );
    world.backends.get_mut("id0").unwrap().spec.options.fallback = Some(Fallback::Pass);
    assert_eq!(members(&world.plan(), key(FAMILY_V4, 22)), [100], "`pass` shares it knowingly");
}

#[test]
fn a_service_takes_its_port_when_it_listens() {
    let mut world = world([backend(0, "web", "80")], []);
    assert!(world.plan().rules.is_empty());
    world.sockets.insert(SocketCookie(1), socket(0, "0.0.0.0", 80));
    assert_eq!(members(&world.plan(), key(FAMILY_V4, 80)), [1]);
    world.sockets.clear();
    assert!(world.plan().rules.contains_key(&key(FAMILY_V4, 80)));
}

#[test]
fn no_backend_is_ready_before_its_namespace_is_steered() {
    let mut world = world([backend(0, "web", "80")], [socket(0, "0.0.0.0", 80)]);
    world.steered.clear();
    assert_eq!(world.plan().states[&BackendIndex(0)], State::Starting);
    world.steered.insert(HOST.cookie);
    assert_eq!(world.plan().states[&BackendIndex(0)], State::Ready);
    // Its link is lost and is being attached again.
    let since = world.backends.values().next().unwrap().ready_since_ms;
    world.steered.clear();
    world.repairing.insert(HOST.cookie);
    world.now_ms += 500;
    assert_eq!(world.plan().states[&BackendIndex(0)], State::Ready);
    assert_eq!(world.backends.values().next().unwrap().ready_since_ms, since);
}

#[test]
fn the_policy_limits_the_ports() {
    let mut world = world([backend(0, "web", "80")], [socket(0, "0.0.0.0", 80)]);
    world.policy = PortPolicy::parse("443, 8000-8999").unwrap();
    let plan = world.plan();
    assert!(plan.rules.is_empty() && reasons(&plan, 0) == [Reason::PortNotAllowed]);
    world.policy = PortPolicy::default();
    let allowed = |list: &str| Allowed { ports: PortPolicy::parse(list), ..Allowed::default() };
    let table = Settings { allowed: allowed("8000-8999"), ..Settings::default() };
    world.configured.named.insert("web".to_owned(), table);
    let plan = world.plan();
    assert!(plan.rules.is_empty() && plan.conditions[&BackendIndex(0)][0].message.contains("[service.web]"));
    world.configured.named.insert("web".to_owned(), Settings { allowed: allowed("80"), ..Settings::default() });
    assert_eq!(members(&world.plan(), key(FAMILY_V4, 80)), [100]);
    for bad in ["", "0", "9-8", "x", "80,", "70000"] {
        assert_eq!(PortPolicy::parse(bad), None, "{bad}");
    }
}

#[test]
fn a_private_namespace_is_steered_only_if_it_is_a_pod() {
    let mut own = backend(0, "web", "80");
    (own.network, own.netns) = (Network::Own, Some(POD));
    let in_pod = Socket { netns_cookie: POD.cookie, ..socket(0, "0.0.0.0", 80) };
    let mut world = world([own], [in_pod]);
    let plan = world.plan();
    assert!(plan.rules.is_empty() && reasons(&plan, 0) == [Reason::OwnNetwork]);
    assert_eq!(plan.states[&BackendIndex(0)], State::NotSteered);
    world.backends.get_mut("id0").unwrap().phase = Phase::Exited;
    assert!(world.plan().conditions.is_empty(), "its network has ended with it");
    world.backends.get_mut("id0").unwrap().phase = Phase::Running;

    let mut joined = backend(1, "web", "80");
    (joined.network, joined.netns) = (Network::Joined, Some(POD));
    world.backends.insert(joined.id.clone(), joined);
    let plan = world.plan();
    assert_eq!(members(&plan, RuleKey { netns_cookie: POD.cookie, ..key(FAMILY_V4, 80) }), [100]);
    assert_eq!(plan.namespaces(), BTreeSet::from([POD.cookie]));
}

#[test]
fn a_socket_of_another_namespace_is_no_member() {
    let elsewhere = Socket { netns_cookie: POD.cookie, ..socket(0, "0.0.0.0", 80) };
    assert!(world([backend(0, "web", "80")], [elsewhere]).plan().rules.is_empty());
}

#[test]
fn the_rule_of_a_port_marks_rules_with_addresses() {
    let sockets = [socket(0, "0.0.0.0", 80), socket(1, "0.0.0.0", 8080)];
    let plan = world([backend(0, "web", "127.0.0.1:80"), backend(1, "api", "80:8080")], sockets).plan();
    let one = at(key(FAMILY_V4, 80), "127.0.0.1");
    assert_eq!((members(&plan, one), members(&plan, key(FAMILY_V4, 80))), (vec![100], vec![101]));
    assert_eq!(plan.rules[&key(FAMILY_V4, 80)].flags, RULE_HAS_ADDRESSES | RULE_OF_PORT);
    assert_eq!(plan.rules[&one].flags, 0);
}

#[test]
fn a_backend_that_is_checked_gets_nothing_before_it_passes() {
    let mut checked = backend(0, "web", "80:8080");
    checked.spec.check = Some(CheckSpec { port: Some(9000), ..CheckSpec::new(CheckKind::Tcp) });
    let mut world = world([checked], [socket(0, "0.0.0.0", 8080), socket(0, "0.0.0.0", 9000)]);
    let block = ManagedBlock { backend: 0, block: block_of(9000), proto: 6, pad: 0 };
    for (probed, state, cookies) in [
        (Health::Starting, State::Starting, &[][..]),
        (Health::Healthy, State::Ready, &[100]),
        // The last one that passed; see `when_all_checks_fail_the_last_set_stays`.
        (Health::Unhealthy, State::Unhealthy, &[100]),
    ] {
        world.by_index_mut(BackendIndex(0)).unwrap().probed = probed;
        let plan = world.plan();
        assert_eq!(
            (plan.states[&BackendIndex(0)], members(&plan, key(FAMILY_V4, 80)).as_slice()),
            (state, cookies),
            "{probed:?}"
        );
        assert_eq!(plan.managed_ports[&block].purposes(9000), PORT_LISTENS, "the check's port is shared too");
    }
    // Backends are probed only where their service is steered: the condition is what matters.
    let own = world.by_index_mut(BackendIndex(0)).unwrap();
    (own.probed, own.network, own.netns) = (Health::Starting, Network::Own, Some(POD));
    assert_eq!(world.plan().states[&BackendIndex(0)], State::NotSteered);
}
