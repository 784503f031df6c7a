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

impl Hold {
    /// Its ports, in the form in which they are kept for the next daemon: there may be no backend by then that has them.
    pub fn maps(&self) -> Vec<PortMap> {
        let map = |target: Port, front: &Port| PortMap {
            ip: None,
            port: front.number,
            target: target.number,
            proto: target.proto,
        };
        self.fronts.iter().flat_map(|(target, fronts)| fronts.iter().map(|front| map(*target, front))).collect()
    }

    /// The ports that clients come to, by the port that servers listen on.
    pub fn fronts_of<'a>(maps: impl IntoIterator<Item = &'a PortMap>) -> BTreeMap<Port, BTreeSet<Port>> {
        let mut fronts: BTreeMap<Port, BTreeSet<Port>> = BTreeMap::new();
        for map in maps {
            fronts.entry(map.target_port()).or_default().insert(map.service_port());
        }
        fronts
    }
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
        Hold::fronts_of(self.of_service(service).flat_map(|backend| &backend.spec.ports))
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
mod tests;
