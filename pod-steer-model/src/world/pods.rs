//! Pods: network namespaces that backends have joined, so that clients arrive there.

use std::collections::{BTreeMap, BTreeSet};

use super::{Backend, Network, World};
use crate::{
    condition::{Condition, Reason},
    ids::NetnsCookie,
    settings::Via,
};

/// The namespaces that backends have joined, with the services of those.
#[derive(Debug)]
pub struct Pods<'a>(BTreeMap<NetnsCookie, BTreeSet<&'a str>>);

impl World {
    /// All of them.
    pub fn pods(&self) -> Pods<'_> {
        let mut pods = Pods(BTreeMap::new());
        for backend in self.backends.values().filter(|backend| backend.network == Network::Joined) {
            if let Some(netns) = backend.netns {
                pods.0.entry(netns.cookie).or_default().insert(&backend.spec.service);
            }
        }
        pods
    }
}

impl Pods<'_> {
    /// Whether the clients of a backend with a namespace of its own arrive there, and are not to be forwarded. Without a label, a sidecar of
    /// another service does not move a backend's clients.
    pub fn has(&self, backend: &Backend) -> bool {
        self.joined(backend).is_some_and(|services| match backend.spec.via {
            Via::Auto => services.contains(backend.spec.service.as_str()),
            Via::Socket => true,
            Via::Forward | Via::Peer => false,
        })
    }

    /// What the owner of a namespace has to know if its clients came to the host's port until another backend joined it.
    pub fn told(&self, backend: &Backend) -> Option<Condition> {
        let is_owner = backend.network == Network::Own && backend.spec.via == Via::Auto && self.has(backend);
        let message = "its clients come to the container's own address, and not to the host's port: another backend of its service shares its \
                       network namespace";
        let remedy = "label it `pod-steer.via=forward` if its clients are to come to the host's port";
        is_owner.then(|| Condition::new(Reason::InPod, message, remedy))
    }

    /// Whether its clients arrive there although nothing says that they are not to be forwarded: nothing can be forwarded to it.
    pub(super) fn has_unreached(&self, backend: &Backend) -> bool {
        let is_internal = backend.bridge.as_ref().is_some_and(|bridge| bridge.is_internal);
        let is_unreached = backend.unreached.is_some() || is_internal;
        is_unreached && backend.spec.via == Via::Auto && self.joined(backend).is_some()
    }

    fn joined(&self, backend: &Backend) -> Option<&BTreeSet<&str>> {
        self.0.get(&backend.netns?.cookie)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Unreached,
            tests::{POD, backend, world},
        },
        *,
    };

    #[test]
    fn a_sidecar_of_another_service_makes_no_pod_of_a_container_that_is_forwarded_to() {
        let with = |service: &str, via: Via| {
            let (mut own, mut joined) = (backend(0, "web", "80"), backend(1, service, "81"));
            (own.network, own.netns, own.spec.via) = (Network::Own, Some(POD), via);
            (joined.network, joined.netns) = (Network::Joined, Some(POD));
            world([own.clone(), joined], []).pods().has(&own)
        };
        let told = |service: &str| {
            let (mut own, mut joined) = (backend(0, "web", "80"), backend(1, service, "81"));
            (own.network, own.netns) = (Network::Own, Some(POD));
            (joined.network, joined.netns) = (Network::Joined, Some(POD));
            let world = world([own.clone(), joined.clone()], []);
            [own, joined].map(|backend| world.pods().told(&backend).map(|told| told.reason))
        };
        assert_eq!((told("web"), told("metrics")), ([Some(Reason::InPod), None], [None, None]));
        assert!(with("web", Via::Auto) && with("web", Via::Socket) && !with("web", Via::Forward));
        assert!(!with("metrics", Via::Auto) && with("metrics", Via::Socket) && !with("metrics", Via::Forward));
    }

    #[test]
    fn a_container_that_cannot_be_forwarded_to_is_a_pod_with_any_sidecar() {
        let (mut own, mut joined) = (backend(0, "web", "80"), backend(1, "metrics", "81"));
        (own.network, own.netns) = (Network::Own, Some(POD));
        (joined.network, joined.netns) = (Network::Joined, Some(POD));
        let is_pod = |own: &Backend| world([own.clone(), joined.clone()], []).pods().has_unreached(own);
        assert!(!is_pod(&own), "it is not known yet");
        own.unreached = Some(Unreached::Macvlan { device: "eth0".to_owned() });
        assert!(is_pod(&own));
        own.spec.via = Via::Forward;
        assert!(!is_pod(&own));
    }
}
