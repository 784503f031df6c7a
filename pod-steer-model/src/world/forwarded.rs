//! Backends to which packets are forwarded: their sockets are in network namespaces of their own, and their clients come to the ingress
//! namespace that they are connected to. There, such a socket is planned for as if it were one of that namespace.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{Backend, Bridge, Network, Phase, Plan, Socket, World, scope::Facts};
use crate::{
    condition::{Condition, Reason},
    ids::NetnsCookie,
    namespace::Netns,
    settings::Via,
};

/// Where the packets of a backend go, and which of them are its.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The ingress namespace.
    pub ingress: NetnsCookie,
    /// The namespace of the backend.
    pub netns: NetnsCookie,
    /// [`Bridge::nsid`].
    pub nsid: i32,
    /// [`Bridge::v4`].
    pub v4: Option<Ipv4Addr>,
    /// [`Bridge::v6`].
    pub v6: Option<Ipv6Addr>,
    /// [`Bridge::device`].
    pub device: u32,
    /// [`Bridge::gateway_v4`].
    pub gateway_v4: Option<Ipv4Addr>,
    /// [`Bridge::gateway_v6`].
    pub gateway_v6: Option<Ipv6Addr>,
    /// [`Bridge::elsewhere`].
    pub elsewhere: BTreeSet<(u32, IpNet)>,
    /// [`Bridge::end`], if its packets are handed over to the other end.
    pub peer: Option<u32>,
    /// The service.
    pub service: String,
    /// By port that its clients come to: the ports on which it may listen for them.
    pub ports: BTreeMap<u16, BTreeSet<u16>>,
}

impl Destination {
    /// Adds the ports of what it was before, on which connections may go on.
    pub fn keep_ports_of(&mut self, before: &Self) {
        for (front, targets) in &before.ports {
            self.ports.entry(*front).or_default().extend(targets);
        }
    }
}

/// How a socket of a forwarded backend looks to clients of the ingress namespace.
enum Seen {
    /// As if it were there, bound like this.
    As(IpAddr, Option<bool>),
    /// No packet that is forwarded can reach it.
    Never,
}

impl Bridge {
    /// A packet goes to the backend's address, so a socket that takes that one takes all clients of its family.
    fn sees(&self, socket: &Socket) -> Seen {
        let any = |is_v4: bool| match is_v4 {
            true => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            false => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let own = |ip: IpAddr| self.addresses().any(|own| own == ip);
        // The programs do not find the connections of a socket that is bound to a device: a search from outside of its namespace has another
        // device's index.
        if socket.ifindex != 0 {
            return Seen::Never;
        }
        match socket.ip {
            IpAddr::V6(ip) if ip.is_unspecified() => match (self.v4, self.v6) {
                (Some(_), Some(_)) => Seen::As(socket.ip, socket.v6only),
                (None, Some(_)) => Seen::As(socket.ip, Some(true)),
                (Some(_), None) if socket.v6only == Some(false) => Seen::As(any(true), None),
                _ => Seen::Never,
            },
            IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
                Some(mapped) if own(mapped.into()) => Seen::As(any(true), None),
                None if own(ip.into()) => Seen::As(any(false), Some(true)),
                _ => Seen::Never,
            },
            IpAddr::V4(ip) if own(ip.into()) || ip.is_unspecified() && self.v4.is_some() => Seen::As(any(true), None),
            IpAddr::V4(_) => Seen::Never,
        }
    }
}

impl Bridge {
    /// The families of the clients that a socket takes of those that are forwarded: whether it is IPv4, for each.
    fn families(&self, socket: &Socket) -> &'static [bool] {
        match self.sees(socket) {
            Seen::As(IpAddr::V4(_), _) => &[true],
            Seen::As(IpAddr::V6(_), Some(true)) => &[false],
            Seen::As(IpAddr::V6(_), _) => &[true, false],
            Seen::Never => &[],
        }
    }
}

impl Backend {
    /// How it is connected, if packets are forwarded to it.
    pub fn forwarded(&self) -> Option<&Bridge> {
        // A container without a default route cannot answer, and its network is closed on purpose.
        self.bridge.as_ref().filter(|bridge| self.spec.via != Via::Socket && !bridge.is_internal)
    }

    /// The namespace to which its clients come, once it is known.
    pub fn ingress(&self) -> Option<Netns> {
        self.forwarded().map(|bridge| bridge.ingress).or(self.netns)
    }

    /// The namespace in which its service claims its ports for it: also while it is not connected, as during a restart.
    pub fn claims_in(&self) -> Option<Netns> {
        let before = self.ingress_before.filter(|_| self.network == Network::Own && self.spec.via != Via::Socket);
        self.forwarded().map(|bridge| bridge.ingress).or(before).or(self.netns)
    }

    /// The namespaces in which its service keeps ports for it: where its clients come to now, and where they came to before it lost its network.
    pub(super) fn keeps_ports_in(&self) -> impl Iterator<Item = Netns> + use<> {
        let now = self.ingress();
        now.into_iter().chain(self.claims_in().filter(|before| Some(*before) != now))
    }

    /// The namespaces that concern it: its own, unless that has ended with it, and the one in which its service claims its ports for it.
    pub fn places(&self) -> impl Iterator<Item = Netns> {
        let own = self.netns.filter(|_| self.network != Network::Own || self.phase != Phase::Exited);
        let claims = self.claims_in().filter(|claims| Some(*claims) != self.netns);
        own.into_iter().chain(claims)
    }

    /// One of its sockets as clients see it where they come to; `None` if they cannot reach it.
    pub(super) fn seen_from_ingress<'a>(&self, socket: &'a Socket) -> Option<Cow<'a, Socket>> {
        let here = |netns: Netns| netns.cookie == socket.netns_cookie;
        let Some(bridge) = self.forwarded().filter(|_| self.netns.is_some_and(here)) else {
            return Some(Cow::Borrowed(socket));
        };
        let Seen::As(ip, v6only) = bridge.sees(socket) else { return None };
        let netns_cookie = bridge.ingress.cookie;
        // No client comes to a hidden port there, and the device is one of the other namespace.
        Some(Cow::Owned(Socket { netns_cookie, ip, v6only, hidden_port: None, ifindex: 0, ..socket.clone() }))
    }
}

/// What a backend whose packets are to be handed over past the host's firewall has to know.
pub fn handed_over(world: &World, backend: &Backend) -> Option<Condition> {
    backend.forwarded().filter(|_| backend.spec.via == Via::Peer)?;
    Some(match &world.peer_refused {
        Some(why) => {
            let message = format!("its packets are forwarded instead of handed over: {why}");
            Condition::new(Reason::PeerRefused, message, "boot a kernel with the fix of CVE-2025-37959")
        }
        None => {
            let message = "its packets pass no rule of the host's firewall, and none of DOCKER-USER: it has the label `pod-steer.via=peer`";
            Condition::without_remedy(Reason::PastFirewall, message)
        }
    })
}

/// Adds the destination of each forwarded backend, and the conditions of those whose sockets no client can reach.
pub(super) fn destinations(facts: &Facts<'_>, plan: &mut Plan) {
    for backend in facts.backends.iter().filter(|backend| backend.phase != Phase::Exited) {
        let Some((bridge, netns)) = backend.forwarded().zip(backend.netns) else { continue };
        let own = facts.world.sockets.values().filter(|socket| socket.backend == backend.index);
        let own: Vec<&Socket> = own.filter(|socket| backend.serves_by(socket)).collect();
        let wants_peer = backend.spec.via == Via::Peer;
        let mut ports: BTreeMap<u16, BTreeSet<u16>> = BTreeMap::new();
        for map in &backend.spec.ports {
            let hidden = own.iter().filter(|socket| socket.port == map.target_port());
            let hidden = hidden.filter_map(|socket| Some(socket.hidden_port?.number));
            ports.entry(map.port).or_default().extend(hidden.chain([map.target]));
        }
        let destination = Destination {
            ingress: bridge.ingress.cookie,
            netns: netns.cookie,
            nsid: bridge.nsid,
            v4: bridge.v4,
            v6: bridge.v6,
            device: bridge.device,
            gateway_v4: bridge.gateway_v4,
            gateway_v6: bridge.gateway_v6,
            elsewhere: bridge.elsewhere.clone(),
            peer: (wants_peer && facts.world.peer_refused.is_none() && bridge.end != 0).then_some(bridge.end),
            service: backend.spec.service.clone(),
            ports,
        };
        plan.destinations.insert(backend.index, destination);
        let unseen: BTreeSet<String> = own
            .iter()
            .filter(|socket| backend.seen_from_ingress(socket).is_none())
            .map(|socket| {
                let address = std::net::SocketAddr::new(socket.ip, socket.port.number);
                if socket.ifindex == 0 {
                    address.to_string()
                } else {
                    format!("{address} by its device {}", socket.ifindex)
                }
            })
            .collect();
        if !unseen.is_empty() && unseen.len() == own.len() {
            let unseen = unseen.into_iter().collect::<Vec<_>>().join(" and ");
            let addresses: Vec<String> = bridge.addresses().map(|address| address.to_string()).collect();
            let message = format!("it listens on {unseen}, and its clients come to {}", addresses.join(" and "));
            let condition = Condition::new(Reason::NotReachable, message, "let it listen on every address");
            plan.add_condition(backend.index, condition);
        }
        if let Some((port, other)) = shared(facts, backend, bridge, &own) {
            let message = format!(
                "{} listens on port {port} of its network namespace too, and the kernel gives it some of the clients that are forwarded",
                other.name
            );
            let remedy = match other.spec.service == backend.spec.service {
                true => "let one of them listen on another port, or remove the label `pod-steer.via`",
                false => "let one of them listen on another port",
            };
            plan.add_condition(backend.index, Condition::new(Reason::ForwardedPortShared, message, remedy));
        }
    }
}

/// A backend in the namespace of a forwarded one that listens where packets for that one go, and the port. Packets have an address and a port,
/// and tell no listener.
fn shared<'a>(facts: &Facts<'a>, backend: &Backend, bridge: &Bridge, own: &[&Socket]) -> Option<(u16, &'a Backend)> {
    let port = |socket: &Socket| socket.hidden_port.unwrap_or(socket.port).number;
    let mut all = facts.world.sockets.values();
    all.find_map(|socket| {
        let here = |netns: Netns| netns.cookie == socket.netns_cookie;
        let is_other = socket.backend != backend.index && backend.netns.is_some_and(here);
        let meets = |own: &&Socket| {
            port(own) == port(socket)
                && bridge.families(own).iter().any(|family| bridge.families(socket).contains(family))
        };
        if !is_other || !own.iter().any(meets) {
            return None;
        }
        let other = facts.world.by_index(socket.backend).filter(|other| other.phase != Phase::Exited)?;
        Some((port(socket), other))
    })
}

#[cfg(test)]
mod tests;
