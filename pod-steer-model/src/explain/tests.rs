use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use pod_steer_ebpf::{
    ASK_ADDRESSES, ASK_RULES, DAEMON_COOKIE, Destination, FALLBACK_PASS, FAMILY_V4, FAMILY_V6, NONE, OwnListener,
    Packet, Rule, RuleKey, SLOT_WAY_SHIFT, Slot, SocketInfo, V6_ONLY, WAY_FORWARD, WAY_SOCKET, slot_backend, switch,
    table_index,
};

use super::*;

const NETNS: u64 = 9;

/// Tables of one rule for port 80.
#[derive(Default)]
struct Fake {
    word: u16,
    rule: Rule,
    by_key: BTreeMap<RuleKey, Rule>,
    switch: u32,
    network: Option<(u32, u32)>,
    tables: BTreeMap<u32, Vec<Slot>>,
    closed: BTreeSet<u64>,
    sockets: BTreeMap<u64, SocketInfo>,
    destinations: BTreeMap<u32, Destination>,
    newest: Option<u64>,
}

impl Tables for Fake {
    fn seed(&self) -> u64 {
        7
    }

    fn netns(&self) -> u64 {
        NETNS
    }

    fn port(&self, port: u16, _: u8) -> u16 {
        if port == 80 { self.word } else { 0 }
    }

    fn rule(&self, key: &RuleKey) -> Option<Rule> {
        self.by_key.get(key).copied()
    }

    fn rule_of_table(&self, _: u32) -> Option<Rule> {
        Some(self.rule)
    }

    fn switch(&self, _: u32) -> u32 {
        self.switch
    }

    fn network(&self, _: u32, _: &[u32; 4]) -> Option<(u32, u32)> {
        self.network
    }

    fn table(&self, index: u32) -> Rc<[Slot]> {
        self.tables.get(&index).cloned().unwrap_or_default().into()
    }

    fn is_listening(&self, cookie: u64) -> bool {
        !self.closed.contains(&cookie)
    }

    fn socket(&self, cookie: u64) -> Option<SocketInfo> {
        self.sockets.get(&cookie).copied()
    }

    fn is_forwarded(&self, _: u16) -> bool {
        true
    }

    fn destination(&self, backend: u32) -> Option<Destination> {
        self.destinations.get(&backend).copied()
    }

    fn newest(&self, _: &OwnListener) -> Option<u64> {
        self.newest
    }
}

/// A table whose backends are numbered; the cookie of each one's socket is 100 more.
fn table(members: &[u32], reserve: &[u32], withheld: &[u32]) -> Vec<Slot> {
    let entry = |slots| move |backend: &u32| Slot::new(100 + u64::from(backend & 0xff), *backend, slots);
    let (slots, count) = ((members.len() * 4).next_power_of_two(), |of: &[u32]| of.len() as u32);
    let slots = if members.is_empty() { 0 } else { slots };
    let header = Slot::header(slots as u32, count(members), count(reserve), count(withheld));
    let hashed = members.iter().cycle().take(slots).map(entry(slots as u32));
    let rest = members.iter().chain(reserve).chain(withheld).map(entry(0));
    [header].into_iter().chain(hashed).chain(rest).collect()
}

fn fake(members: &[u32], reserve: &[u32], withheld: &[u32]) -> Fake {
    let made = table(members, reserve, withheld);
    let rule = Rule { table: 3, service: 1, slots: made[0].backend, only: NONE, ..Rule::default() };
    let tables = BTreeMap::from([(table_index(3, 1), made)]);
    Fake { word: 4, rule, switch: switch(1, false, 0), tables, ..Fake::default() }
}

fn packet(port: u16) -> Packet {
    Packet {
        family: FAMILY_V4.into(),
        protocol: 6,
        local_port: 80,
        remote_port: port.to_be(),
        ifindex: 2,
        local: [u32::from_ne_bytes([10, 0, 0, 1]), 0, 0, 0],
        remote: [u32::from_ne_bytes([203, 0, 113, 5]), 0, 0, 0],
    }
}

fn chosen(fake: &Fake, port: u16) -> Option<u32> {
    match path(fake, &packet(port), None).verdict {
        Verdict::Socket { backend, .. } => Some(backend),
        _ => None,
    }
}

#[test]
fn every_member_gets_its_share_and_a_closed_one_none() {
    let mut tables = fake(&[1, 2, 3, 4], &[], &[]);
    let served: BTreeSet<u32> = (0..200).filter_map(|port| chosen(&tables, port)).collect();
    assert_eq!(served, BTreeSet::from([1, 2, 3, 4]));
    tables.closed = BTreeSet::from([101, 102, 103]);
    assert!((0..200).all(|port| chosen(&tables, port) == Some(4)));
    tables.closed.insert(104);
    let all_gone = path(&tables, &packet(1), None);
    assert_eq!(all_gone.verdict, Verdict::Refused);
    let tried: BTreeSet<u32> = all_gone.visited[0].tries.iter().map(|tried| tried.slot.backend).collect();
    assert_eq!(tried, BTreeSet::from([1, 2, 3, 4]), "each was tried");
    assert!(all_gone.visited[0].tries.iter().all(|tried| tried.declined == Some(Declined::Gone)));
}

#[test]
fn the_reserve_serves_when_no_member_does_and_a_withheld_socket_never() {
    let mut tables = fake(&[1], &[2], &[3]);
    tables.closed.insert(101);
    assert_eq!(chosen(&tables, 5), Some(2));
    tables.closed.insert(102);
    tables.closed.insert(DAEMON_COOKIE);
    assert_eq!(
        path(&tables, &packet(5), None).verdict,
        Verdict::Refused,
        "the kernel's own lookup could find the third"
    );
    tables.closed.insert(103);
    assert_eq!(path(&tables, &packet(5), None).verdict, Verdict::PassedNoDaemon);
    tables.rule.fallback = FALLBACK_PASS;
    assert_eq!(path(&tables, &packet(5), None).verdict, Verdict::PassedNoBackend);
    (tables.rule.only, tables.newest) = (8, Some(555));
    assert_eq!(path(&tables, &packet(5), None).verdict, Verdict::OnDemand { cookie: 555, backend: 8 });
}

#[test]
fn a_table_of_the_client_s_network_comes_first() {
    let mut tables = fake(&[1], &[], &[]);
    tables.network = Some((8, 5));
    tables.tables.insert(table_index(5, 1), table(&[2], &[], &[]));
    assert_eq!(chosen(&tables, 5), Some(1), "the switch says that there are none");
    tables.switch = switch(1, true, 0);
    let of_network = path(&tables, &packet(5), None);
    assert_eq!(of_network.verdict, Verdict::Socket { cookie: 102, backend: 2 });
    let sockets = BTreeMap::from([(1, BTreeSet::from([101])), (2, BTreeSet::from([102])), (3, BTreeSet::new())]);
    let stands = BTreeMap::from([(1, Standing::OtherNetwork), (3, Standing::NotListening)]);
    assert_eq!(standing(&tables, &of_network, &sockets), stands);
    tables.closed.insert(102);
    let of_rule = path(&tables, &packet(5), None);
    assert_eq!((of_rule.verdict, of_rule.visited.len()), (Verdict::Socket { cookie: 101, backend: 1 }, 2));
    let stands = standing(&tables, &of_rule, &sockets);
    assert_eq!(stands.get(&2), Some(&Standing::Declined { reason: Declined::Gone }));
}

#[test]
fn a_pause_discards_and_every_backend_waits() {
    let mut tables = fake(&[NONE], &[], &[1]);
    tables.tables.get_mut(&table_index(3, 1)).unwrap().iter_mut().skip(1).for_each(|slot| slot.cookie += 7);
    assert!(matches!(path(&tables, &packet(5), None).verdict, Verdict::Paused { .. }));
    let sockets = BTreeMap::from([(1, BTreeSet::from([101]))]);
    let stands = standing(&tables, &path(&tables, &packet(5), None), &sockets);
    assert_eq!(stands, BTreeMap::from([(1, Standing::Paused)]));
}

#[test]
fn a_forwarded_backend_serves_only_by_a_device_with_a_program() {
    let far = slot_backend(2, WAY_FORWARD);
    assert_eq!((far >> SLOT_WAY_SHIFT, 1 >> SLOT_WAY_SHIFT), (WAY_FORWARD, WAY_SOCKET));
    let mut tables = fake(&[far], &[], &[]);
    let address = [u32::from_ne_bytes([172, 17, 0, 2]), 0, 0, 0];
    let destination = Destination { ingress_cookie: NETNS, v4: address[0], device: 4, ..Destination::default() };
    tables.destinations.insert(2, destination);
    let socket = SocketInfo { port: 8080, family: FAMILY_V6, ..SocketInfo::default() };
    tables.sockets.insert(102, socket);
    let by = |tables: &Fake, device| path(tables, &packet(5), device);
    assert_eq!(by(&tables, None).verdict, Verdict::Refused);
    let forwarded = Verdict::Forwarded { cookie: 102, backend: 2, address, port: 8080 };
    assert_eq!(by(&tables, Some(2)).verdict, forwarded);
    // On its own link it is answered by an address of the host, which it has to know.
    let declined = |tables: &Fake, device| by(tables, Some(device)).visited.last().unwrap().tries[0].declined;
    assert_eq!(by(&tables, Some(4)).verdict, Verdict::Refused);
    tables.destinations.insert(2, Destination { gateway_v4: 1, ..destination });
    assert_eq!(by(&tables, Some(4)).verdict, forwarded);
    tables.sockets.insert(102, SocketInfo { addr: [1; 16], ..socket });
    assert_eq!(by(&tables, Some(2)).verdict, Verdict::Refused, "it listens on another address");
    tables.destinations.clear();
    assert_eq!(declined(&tables, 2), Some(Declined::NotForwarded), "then the lookup has tried it too");
}

#[test]
fn an_ipv6_only_socket_gets_no_ipv4_client() {
    let mut tables = fake(&[1, 2], &[], &[]);
    tables.sockets.insert(101, SocketInfo { family: FAMILY_V6, v6only: V6_ONLY, ..SocketInfo::default() });
    assert!((0..50).all(|port| chosen(&tables, port) == Some(2)));
}

#[test]
fn rules_of_addresses_and_devices_come_in_the_kernel_s_order() {
    let mut tables = fake(&[1], &[], &[]);
    assert_eq!(rule_for(&tables, &Packet { local_port: 81, ..packet(5) }), None);
    tables.word = ASK_RULES | ASK_ADDRESSES | pod_steer_ebpf::ASK_DEVICES;
    let local = bytes(&packet(5).local);
    let key = |addr, ifindex| RuleKey { netns_cookie: NETNS, addr, port: 80, proto: 6, family: FAMILY_V4, ifindex };
    // From the last one that is looked for to the first.
    let keys = [key([0; 16], 0), key([0; 16], 2), key(local, 0), key(local, 2)];
    for (service, own) in (0..).zip(keys) {
        tables.by_key.insert(own, Rule { service, ..tables.rule });
        let found = rule_for(&tables, &packet(5)).unwrap();
        assert_eq!((found.0, found.1.service), (own, service));
    }
    let other = Packet { ifindex: 0, local: [1, 0, 0, 0], ..packet(5) };
    assert_eq!(rule_for(&tables, &other).unwrap().0, keys[0]);
    let none = Rule { table: NONE, ..tables.rule };
    tables.by_key.insert(keys[3], none);
    assert_eq!(rule_for(&tables, &packet(5)), None, "the first one decides, even if it has no table");
}

#[test]
fn the_parts_of_a_table_follow_its_header() {
    let made = table(&[1, 2], &[3], &[4]);
    let roles: Vec<Option<Role>> = (0..made.len() as u32 + 1).map(|entry| Role::of(&made[0], entry)).collect();
    let (slots, rest) = roles[1..].split_at(8);
    assert!(slots.iter().all(|role| *role == Some(Role::Slot)) && roles[0].is_none());
    let [member, again, reserve, withheld, behind] = rest else { panic!("{rest:?}") };
    assert_eq!([member, again], [&Some(Role::Member); 2]);
    assert_eq!([reserve, withheld, behind], [&Some(Role::Reserve), &Some(Role::Withheld), &None]);
}
