//! Listeners of pod-steer's own that hold the clients of paused services. Each shares the port of the service's servers, in one
//! reuseport group with them: when it closes, the kernel moves the connections in its queue to the servers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use pod_steer_ebpf::{FAMILY_V4, FAMILY_V6, WAY_HOLD, slot_backend};

use super::{Backend, Socket, Sockets, World, score::Bound, serving::would_serve};
use crate::{
    ids::{BackendIndex, NetnsCookie, SocketCookie},
    ports::{Port, PortMap},
    rule::RuleKey,
    slots::Member,
};

/// The listeners of one process that holds clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The service whose clients it holds.
    pub service: String,
    /// Its listeners, by cookie.
    pub sockets: BTreeMap<SocketCookie, Socket>,
    /// By the port that the servers listen on: the ports that their clients come to.
    pub fronts: BTreeMap<Port, BTreeSet<Port>>,
}

/// What a listener has in common with all of its reuseport group, besides its user: the kernel compares this
/// (`inet_reuseport_add_sock`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Form {
    /// Cookie of its network namespace.
    pub netns_cookie: NetnsCookie,
    /// Address that it is bound to.
    pub ip: IpAddr,
    /// Port that it is bound to.
    pub port: Port,
    /// Whether an IPv6 socket takes IPv6 clients only.
    pub v6only: bool,
    /// Index of the device that it is bound to, or zero.
    pub ifindex: u32,
}

impl From<&Socket> for Form {
    fn from(socket: &Socket) -> Self {
        let v6only = Bound::from(socket).surely().v6only == Some(true) && socket.ip.is_ipv6();
        let Socket { netns_cookie, ip, port, ifindex, .. } = *socket;
        Self { netns_cookie, ip, port, v6only, ifindex }
    }
}

impl Form {
    fn bound(&self) -> Bound {
        Bound { ip: self.ip, v6only: Some(self.v6only), ifindex: self.ifindex }
    }
}

/// A group of listeners of a service, as far as a hold is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The ports that clients come to.
    pub fronts: BTreeSet<Port>,
    /// Why no listener of ours can join it; nothing if one may.
    pub refused: Option<String>,
}

impl World {
    /// The groups of listeners that serve a service, or would if it were not paused: what is held goes to them. `own_uid` is the user that our
    /// listeners belong to.
    pub fn groups(&self, service: &str, own_uid: u32) -> BTreeMap<Form, Group> {
        let mut groups: BTreeMap<Form, Group> = BTreeMap::new();
        let refused = self.refused_sockets();
        let own: BTreeMap<BackendIndex, &Backend> = self.of_service(service).map(|own| (own.index, own)).collect();
        let sockets: Vec<(&SocketCookie, &Socket)> = self
            .sockets
            .iter()
            .filter(|(cookie, socket)| own.contains_key(&socket.backend) && !refused.contains_key(cookie))
            .collect();
        // Those that serve without others do so only for the rules for which these do not listen.
        for serving in would_serve(self, &Sockets::new(sockets.iter().copied()), service) {
            let before = groups.clone();
            for (_, socket) in sockets.iter().filter(|(_, socket)| serving.contains(&socket.backend)) {
                let backend = own[&socket.backend];
                let mut fronts = fronts_of(backend, socket.port);
                fronts.retain(|front| serves_more(socket, *front, &before));
                if fronts.is_empty() || backend.spec.weight == 0 {
                    continue;
                }
                let refused = refusal(backend, socket, own_uid);
                let group = groups
                    .entry(Form::from(*socket))
                    .or_insert_with(|| Group { fronts: BTreeSet::new(), refused: refused.clone() });
                group.fronts.extend(fronts);
                // One server whose group we can join is enough.
                group.refused = group.refused.take().and(refused);
            }
        }
        groups
    }

    /// The groups in which a listener is to hold clients. While a version replaces another one, these are only those `begun` with: what is
    /// held goes to the version that is put back too, which knows no other ones.
    pub fn groups_to_hold(&self, service: &str, own_uid: u32, begun: Option<&BTreeSet<Form>>) -> BTreeMap<Form, Group> {
        let mut groups = self.groups(service, own_uid);
        groups.retain(|form, group| group.refused.is_none() && begun.is_none_or(|begun| begun.contains(form)));
        groups
    }

    /// Whether a server can get what listeners of this form hold: one with a share, or else another one.
    pub fn takes_held(&self, service: &str, form: &Form, own_uid: u32) -> bool {
        self.sockets.values().filter(|socket| Form::from(*socket) == *form).any(|socket| {
            let backend = self.by_index(socket.backend).filter(|backend| backend.spec.service == service);
            backend.is_some_and(|backend| refusal(backend, socket, own_uid).is_none())
        })
    }

    /// The ports that clients of a service come to, by the port that its backends listen on.
    pub fn fronts(&self, service: &str) -> BTreeMap<Port, BTreeSet<Port>> {
        let mut fronts: BTreeMap<Port, BTreeSet<Port>> = BTreeMap::new();
        for map in self.of_service(service).flat_map(|backend| &backend.spec.ports) {
            fronts.entry(map.target_port()).or_default().insert(map.service_port());
        }
        fronts
    }

    /// The backends of a service, in the order of their identities.
    pub(super) fn of_service(&self, service: &str) -> impl Iterator<Item = &Backend> {
        self.backends.values().filter(move |backend| backend.spec.service == service)
    }

    /// The listeners that hold the clients of a rule. `members` would serve them if the service were not paused: each part of the clients is held
    /// where it can go to its servers. Without such a listener, it is those that the kernel prefers. The others, which get no more clients, come second: what
    /// waits in the queue of one of their servers may go there.
    pub(super) fn holding(&self, service: &str, key: &RuleKey, members: &[Member]) -> (Vec<Member>, Vec<Member>) {
        let mut shares: BTreeMap<Form, u64> = BTreeMap::new();
        for member in members {
            if let Some(socket) = self.sockets.get(&member.cookie) {
                let share = shares.entry(Form::from(socket)).or_default();
                *share = share.saturating_add(member.weight);
            }
        }
        let mut fitting = Vec::new();
        for (index, hold) in self.holds.iter().filter(|(_, hold)| hold.service == service) {
            for (cookie, socket) in &hold.sockets {
                let leads = hold.fronts.get(&socket.port).is_some_and(|fronts| fronts.contains(&key.port));
                if !leads || socket.netns_cookie != key.netns_cookie {
                    continue;
                }
                if let Some(score) = Bound::from(socket).surely().score(key) {
                    // Marked, so that the kernel programs tell it from a server.
                    let backend = BackendIndex(slot_backend(index.0, WAY_HOLD));
                    let share = shares.get(&Form::from(socket)).copied();
                    let weight = share.unwrap_or(1);
                    let member = Member { cookie: *cookie, backend, weight, is_forwarded: false };
                    fitting.push((share.is_some(), score, member));
                }
            }
        }
        let has_share = fitting.iter().any(|(has_share, ..)| *has_share);
        let best = fitting.iter().map(|(_, score, _)| *score).max();
        let is_wanted = |own: &(bool, u8, Member)| if has_share { own.0 } else { Some(own.1) == best };
        let (wanted, others): (Vec<_>, Vec<_>) = fitting.into_iter().partition(is_wanted);
        let sorted = |of: Vec<(bool, u8, Member)>| {
            let members: BTreeSet<Member> = of.into_iter().map(|(.., member)| member).collect();
            members.into_iter().collect()
        };
        (sorted(wanted), sorted(others))
    }

    /// Whether this index belongs to a process that holds clients.
    pub fn is_hold(&self, index: BackendIndex) -> bool {
        self.holds.contains_key(&index)
    }
}

/// Whether a socket takes clients of a port that none of these groups takes. Rules tell them apart, by their namespace, address, family and
/// device.
fn serves_more(socket: &Socket, front: Port, groups: &BTreeMap<Form, Group>) -> bool {
    let &Socket { netns_cookie, ifindex, .. } = socket;
    [FAMILY_V4, FAMILY_V6].into_iter().any(|family| {
        let Some(addr) = Bound::from(socket).surely().address(family) else { return false };
        let key = RuleKey { netns_cookie, addr, port: front, family, ifindex };
        let takes = |(form, group): (&Form, &Group)| {
            form.netns_cookie == netns_cookie && group.fronts.contains(&front) && form.bound().score(&key).is_some()
        };
        !groups.iter().any(takes)
    })
}

/// The ports that clients of a backend come to if they are served on this one.
fn fronts_of(backend: &Backend, target: Port) -> BTreeSet<Port> {
    let maps = backend.spec.ports.iter().filter(|map| map.target_port() == target);
    maps.map(PortMap::service_port).collect()
}

/// Why no listener of ours can be in one group with this socket.
fn refusal(backend: &Backend, socket: &Socket, own_uid: u32) -> Option<String> {
    if backend.forwarded().is_some() {
        return Some("its servers are in network namespaces of their own".to_owned());
    }
    if socket.hidden_port.is_some() {
        return Some("its servers belong to several users".to_owned());
    }
    if socket.ifindex != 0 {
        return Some("its listener is bound to a network device".to_owned());
    }
    if socket.v6only.is_none() && matches!(socket.ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_none()) {
        return Some("its listener has not been inspected yet".to_owned());
    }
    let other = socket.uid.filter(|uid| *uid != own_uid);
    other.map(|uid| format!("its server belongs to the user {uid}, and only listeners of one user share a port"))
}

#[cfg(test)]
mod tests {
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
        let set =
            |world: &mut World, change: fn(&mut Socket)| change(world.sockets.get_mut(&SocketCookie(101)).unwrap());
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
        assert_eq!(
            [(FAMILY_V4, 80), (FAMILY_V6, 80), (FAMILY_V4, 81)].map(|(f, p)| members(&world, key(f, p))),
            [1, 0, 0]
        );
        assert_eq!(world.holding("api", &key(FAMILY_V4, 80), &[]).0, []);
        let elsewhere = RuleKey { netns_cookie: NetnsCookie(HOST.cookie.0 + 1), ..key(FAMILY_V4, 80) };
        assert_eq!(members(&world, elsewhere), 0);
        let hold = world.holds.get_mut(&BackendIndex(5)).unwrap();
        hold.sockets.get_mut(&SocketCookie(900)).unwrap().ip = "127.0.0.2".parse().unwrap();
        assert_eq!(members(&world, key(FAMILY_V4, 80)), 0);
    }
}
