//! How a container with a network namespace of its own is connected: behind a bridge of an ingress namespace, or in a way in which no
//! packet can be forwarded to it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Backend, Network};
use crate::{
    condition::{Condition, Reason},
    namespace::Netns,
    settings::Via,
};

/// The remedy of every condition here: then its sockets are in a namespace where clients arrive.
const SHARE: &str = "start it with `--network host`, or let it join a pod with `--network container:ID`";
/// The same for a container to which packets can be forwarded.
const FORWARD: &str = "remove its label `pod-steer.via=socket`, start it with `--network host`, or let it join a pod with `--network container:ID`";

/// A connection to an ingress namespace: a virtual Ethernet pair, of which that namespace has one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// The ingress namespace.
    pub ingress: Netns,
    /// The number by which the ingress namespace knows the container's. The kernel gives it to another namespace when that one has ended.
    pub nsid: i32,
    /// Index of the end of the pair in the ingress namespace; zero if an earlier version has stored this.
    #[serde(default)]
    pub end: u32,
    /// Index of the bridge in the ingress namespace, or of the end of the pair there if no bridge has it.
    pub device: u32,
    /// The name of that device.
    pub name: String,
    /// The container's address, if it has one that is not only valid on the link.
    pub v4: Option<Ipv4Addr>,
    /// The same for IPv6: a global address or a unique local one.
    pub v6: Option<Ipv6Addr>,
    /// The ingress namespace's address on the container's link: the next hop of the container's default route, if that leads to the ingress
    /// namespace.
    pub gateway_v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub gateway_v6: Option<Ipv6Addr>,
    /// Clients that the container would answer past the ingress namespace: the device by which they come, and their network. Those on its
    /// other networks, and those on the host if its default route leads to another router.
    #[serde(default)]
    pub elsewhere: BTreeSet<(u32, IpNet)>,
    /// The container has no default route: it answers only clients of its own network.
    pub is_internal: bool,
}

/// Why no packet can be forwarded to a container. The devices are those of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum Unreached {
    /// It has no network device that is up, besides its loopback device.
    NoNetwork,
    /// A macvlan or macvtap device: its packets do not pass the network layer of the namespace with the parent device.
    Macvlan {
        /// Its name.
        device: String,
    },
    /// An ipvlan or ipvtap device: the same.
    Ipvlan {
        /// Its name.
        device: String,
    },
    /// A tun device: a process outside of the kernel moves its packets.
    Tun {
        /// Its name.
        device: String,
    },
    /// One end of a virtual Ethernet pair whose other end is not in the ingress namespace.
    Elsewhere {
        /// Its name.
        device: String,
    },
    /// A device of another kind.
    OtherDevice {
        /// Its name.
        device: String,
        /// The kernel's name of its kind; nothing for hardware.
        kind: String,
    },
    /// The device has no address that can be forwarded to.
    NoAddress {
        /// Its name.
        device: String,
    },
}

impl Bridge {
    /// The container's addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::from).into_iter().chain(self.v6.map(IpAddr::from))
    }

    fn condition(&self) -> Condition {
        let addresses: Vec<String> = self.addresses().map(|address| address.to_string()).collect();
        let message = format!(
            "it has a network namespace of its own behind {} ({}), so it is not steered",
            self.name,
            addresses.join(" and ")
        );
        if self.is_internal {
            let message = format!("{message}; its network is an internal one, without a default route");
            return Condition::new(Reason::OwnNetwork, message, SHARE);
        }
        Condition::new(Reason::OwnNetwork, message, FORWARD)
    }
}

impl Unreached {
    fn condition(&self) -> Condition {
        let (reason, message) = match self {
            Self::NoNetwork => (
                Reason::NoNetwork,
                "it has no network device but its loopback device, so no client can reach it".to_owned(),
            ),
            Self::Macvlan { device } => (
                Reason::MacvlanNetwork,
                format!("its network device {device} is a macvlan, whose packets pod-steer does not see"),
            ),
            Self::Ipvlan { device } => (
                Reason::IpvlanNetwork,
                format!("its network device {device} is an ipvlan, whose packets pod-steer does not see"),
            ),
            Self::Tun { device } => (
                Reason::UserModeNetwork,
                format!(
                    "its network device {device} is a tun device, whose packets are moved by a process such as pasta or \
                     slirp4netns of a rootless engine"
                ),
            ),
            Self::Elsewhere { device } => (
                Reason::BridgeElsewhere,
                format!(
                    "the other end of its network device {device} is not in pod-steer's own network namespace, as with an \
                     overlay network, a rootless engine, or an engine in a container"
                ),
            ),
            Self::OtherDevice { device, kind } if kind.is_empty() => (
                Reason::OtherNetworkDevice,
                format!("its network device {device} is hardware of its own, whose packets pod-steer does not see"),
            ),
            Self::OtherDevice { device, kind } => (
                Reason::OtherNetworkDevice,
                format!("its network device {device} is of the kind `{kind}`, which pod-steer does not support"),
            ),
            Self::NoAddress { device } => (
                Reason::NoAddress,
                format!(
                    "its network device {device} has no address, or only addresses that are valid on the link alone"
                ),
            ),
        };
        Condition::new(reason, message, SHARE)
    }
}

impl Backend {
    /// It is connected like this, as a look found. True if that is news.
    pub fn connected(&mut self, found: Result<Bridge, Unreached>) -> bool {
        let (bridge, unreached) = match found {
            Ok(bridge) => (Some(bridge), None),
            Err(unreached) => (None, Some(unreached)),
        };
        let is_news = (&self.bridge, &self.unreached) != (&bridge, &unreached);
        // An internal network is closed on purpose.
        let is_closed = bridge.as_ref().is_some_and(|bridge| bridge.is_internal);
        self.disconnected();
        self.ingress_before = self.ingress_before.filter(|_| !is_closed);
        (self.bridge, self.unreached) = (bridge, unreached);
        is_news
    }

    /// How it is connected is not known, or it does not run.
    pub fn disconnected(&mut self) {
        self.ingress_before = self.forwarded().map(|bridge| bridge.ingress).or(self.ingress_before);
        (self.bridge, self.unreached) = (None, None);
    }

    /// It shares its namespace with other backends of its service: clients come to that.
    pub fn becomes_pod(&mut self) {
        self.disconnected();
        self.ingress_before = None;
    }

    /// Why its sockets cannot be steered to, if it has a network namespace of its own in which no other container is.
    pub(super) fn own_network(&self) -> Condition {
        match (&self.bridge, &self.unreached) {
            (Some(bridge), _) => bridge.condition(),
            (None, Some(unreached)) => unreached.condition(),
            (None, None) => {
                let message = "it has a network namespace of its own, so it is not steered";
                Condition::new(Reason::OwnNetwork, message, SHARE)
            }
        }
    }
}

/// That the label which asks for forwarding has no effect: no packet needs to be forwarded to a namespace where clients arrive.
pub fn via_ignored(backend: &Backend) -> Option<Condition> {
    let place = match backend.network {
        Network::Host => "it is on the host's network",
        Network::Joined => "it has joined another container's network",
        Network::Own | Network::Unknown => return None,
    };
    let via = backend.spec.via;
    matches!(via, Via::Forward | Via::Peer).then(|| {
        let message =
            format!("{place}, so clients come to its sockets: its label `pod-steer.via={}` has no effect", via.word());
        Condition::new(Reason::ViaIgnored, message, "remove the label, or start it on a bridge's network")
    })
}

#[cfg(test)]
mod tests {
    use super::{super::tests::backend, *};
    use crate::ids::NetnsCookie;

    fn bridge() -> Bridge {
        Bridge {
            ingress: Netns { dev: 4, inode: 4_026_531_840, cookie: NetnsCookie(1) },
            nsid: 0,
            end: 9,
            device: 3,
            name: "docker0".to_owned(),
            v4: Some(Ipv4Addr::new(172, 17, 0, 2)),
            v6: None,
            gateway_v4: Some(Ipv4Addr::new(172, 17, 0, 1)),
            gateway_v6: None,
            elsewhere: BTreeSet::from([(4, "172.18.0.0/16".parse().unwrap())]),
            is_internal: false,
        }
    }

    fn unreached() -> [Unreached; 8] {
        let device = || "eth0".to_owned();
        [
            Unreached::NoNetwork,
            Unreached::Macvlan { device: device() },
            Unreached::Ipvlan { device: device() },
            Unreached::Tun { device: device() },
            Unreached::Elsewhere { device: device() },
            Unreached::OtherDevice { device: device(), kind: String::new() },
            Unreached::OtherDevice { device: device(), kind: "wireguard".to_owned() },
            Unreached::NoAddress { device: device() },
        ]
    }

    #[test]
    fn the_condition_says_how_a_backend_is_connected() {
        let mut own = backend(0, "web", "80");
        own.network = Network::Own;
        assert_eq!(own.own_network().reason, Reason::OwnNetwork);
        assert!(own.connected(Ok(bridge())) && !own.connected(Ok(bridge())));
        let said = own.own_network();
        assert_eq!(said.reason, Reason::OwnNetwork);
        assert!(said.message.contains("behind docker0 (172.17.0.2)"), "{said}");
        let both = Bridge { v6: Some("fd00::2".parse().unwrap()), ..bridge() };
        assert!(own.connected(Ok(both)));
        assert!(own.own_network().message.contains("172.17.0.2 and fd00::2"), "{}", own.own_network());
        own.disconnected();
        assert_eq!((&own.bridge, &own.unreached), (&None, &None));
        assert_eq!(own.claims_in(), Some(bridge().ingress), "it may be connected again");
        own.connected(Err(Unreached::NoNetwork));
        assert_eq!(own.claims_in(), Some(bridge().ingress));
        own.connected(Ok(Bridge { is_internal: true, ..bridge() }));
        assert_eq!(own.claims_in(), own.netns);
        own.connected(Ok(bridge()));
        own.becomes_pod();
        assert_eq!(own.claims_in(), own.netns);
    }

    #[test]
    fn each_way_that_cannot_be_reached_has_its_reason() {
        let mut own = backend(0, "web", "80");
        let mut reasons = BTreeSet::new();
        for unreached in unreached() {
            assert!(own.connected(Err(unreached.clone())) && own.bridge.is_none());
            let said = own.own_network();
            assert!(said.message.contains("eth0") || unreached == Unreached::NoNetwork, "{said}");
            assert!(said.remedy.contains("--network host"), "{said}");
            reasons.insert(said.reason);
        }
        assert_eq!(reasons.len(), unreached().len() - 1, "hardware and other kinds have one reason");
        assert!(!reasons.contains(&Reason::OwnNetwork));
    }

    #[test]
    fn the_next_daemon_knows_it() {
        let mut own = backend(0, "web", "80");
        let stored = |backend: &Backend| serde_json::to_value(backend).unwrap();
        let found = unreached().into_iter().map(Err).chain([Ok(bridge())]);
        for found in found {
            own.connected(found);
            assert_eq!(serde_json::from_value::<Backend>(stored(&own)).unwrap(), own);
        }
        let mut earlier = stored(&own);
        for field in ["bridge", "unreached"] {
            earlier.as_object_mut().unwrap().remove(field);
        }
        let read: Backend = serde_json::from_value(earlier).unwrap();
        assert_eq!((read.bridge, read.unreached), (None, None), "an earlier version did not store it");
    }

    #[test]
    fn a_label_that_asks_for_forwarding_in_vain_is_told() {
        let mut own = backend(1, "web", "80:8080");
        for (network, via, is_told) in [
            (Network::Host, Via::Forward, true),
            (Network::Host, Via::Peer, true),
            (Network::Joined, Via::Forward, true),
            (Network::Host, Via::Auto, false),
            (Network::Host, Via::Socket, false),
            (Network::Own, Via::Forward, false),
            (Network::Unknown, Via::Forward, false),
        ] {
            (own.network, own.spec.via) = (network, via);
            let told = via_ignored(&own);
            assert_eq!(
                told.as_ref().map(|told| told.reason),
                is_told.then_some(Reason::ViaIgnored),
                "{network:?} {via:?}"
            );
            assert!(told.is_none_or(|told| told.message.contains(&format!("`pod-steer.via={}`", via.word()))));
        }
    }
}
