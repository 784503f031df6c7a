//! Listeners on a port of a service that are registered as no backend's.

use std::{collections::BTreeSet, net::SocketAddr};

use super::{
    BackendFacts,
    limits::Unseen,
    processes::{Held, Holders, Holding, PROCESSES_MAX},
};
use crate::{api::sockets::OtherSocket, ids::NetnsCookie, listening::Listener};

/// Maximum number of them that are listed.
const LISTED_MAX: usize = 256;

/// Such listeners. A backend may open any number of them.
#[derive(Debug, Default)]
pub struct Others {
    listed: Vec<Other>,
    more: usize,
}

#[derive(Debug)]
struct Other {
    services: Vec<String>,
    netns_cookie: NetnsCookie,
    listener: Listener,
}

impl Others {
    /// Adds a listener on a port of these services.
    pub fn add(&mut self, services: &BTreeSet<&str>, netns_cookie: NetnsCookie, listener: Listener) {
        if self.listed.len() == LISTED_MAX {
            self.more += 1;
            return;
        }
        let services = services.iter().map(|service| (*service).to_owned()).collect();
        self.listed.push(Other { services, netns_cookie, listener });
    }

    /// Their inodes.
    pub fn inodes(&self) -> impl Iterator<Item = u64> {
        self.listed.iter().map(|other| other.listener.inode)
    }

    /// The answer, by service and address.
    pub fn described(
        self,
        backends: &[BackendFacts],
        held: &Held,
        holders: Holders,
        unseen: &mut Unseen,
    ) -> Vec<OtherSocket> {
        if self.more > 0 {
            unseen.add(format!("{} further listeners that are no backend's were not listed", self.more));
        }
        let described = self.listed.into_iter().map(|other| describe(other, backends, held, holders));
        let mut all: Vec<OtherSocket> = described.collect();
        all.sort_by(|a, b| (&a.services, a.netns_cookie, &a.listens).cmp(&(&b.services, b.netns_cookie, &b.listens)));
        all
    }
}

fn describe(other: Other, backends: &[BackendFacts], held: &Held, holders: Holders) -> OtherSocket {
    let Other { services, netns_cookie, listener } = other;
    let holding = held.of_any(listener.inode);
    let owner = holding.iter().find_map(|own| backends.get(own.backend?));
    let is_seen = holders != Holders::Nowhere;
    let mut processes: Vec<_> = holding.iter().flat_map(|own| own.processes.clone()).collect();
    processes.truncate(PROCESSES_MAX);
    OtherSocket {
        services,
        netns_cookie: netns_cookie.0,
        listens: SocketAddr::new(listener.ip, listener.port.number).to_string(),
        ifindex: listener.ifindex,
        uid: is_seen.then_some(listener.uid),
        why: why(&listener, owner, holding, holders),
        waiting: listener.waiting,
        backlog: listener.backlog,
        drops: listener.drops,
        processes,
        holders: is_seen.then(|| holding.iter().map(|own| own.count).sum()),
    }
}

fn why(listener: &Listener, owner: Option<&BackendFacts>, holding: &[Holding], holders: Holders) -> String {
    let of = owner.map(|backend| format!(" of the backend {}", backend.name)).unwrap_or_default();
    if listener.mptcp {
        return format!("it is an MPTCP socket{of}, which the kernel cannot steer to");
    }
    match (owner, holders) {
        (Some(backend), _) => {
            format!("it is a socket{of} that is not registered, or not yet; see `pod-steer status {}`", backend.service)
        }
        (None, Holders::OfBackends) if !holding.is_empty() => {
            "its process belongs to none of these services".to_owned()
        }
        (None, Holders::OfBackends | Holders::Anywhere) if holding.is_empty() => {
            "it is not registered, and no process was found that holds it".to_owned()
        }
        _ => "it is registered as no backend's".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ports::Port,
        sockets::tests::{NETNS, backend},
    };

    fn add(others: &mut Others, mptcp: bool) {
        let listener = Listener {
            cookie: None,
            ip: "0.0.0.0".parse().unwrap(),
            port: Port::tcp(8080),
            v6only: None,
            ifindex: 0,
            uid: 1000,
            inode: 7,
            mptcp,
            waiting: 1,
            backlog: 2,
            drops: 3,
        };
        others.add(&BTreeSet::from(["web"]), NETNS, listener);
    }

    #[test]
    fn the_reason_follows_from_the_socket_and_its_holder() {
        let backends = [backend("a")];
        let mut unseen = Unseen::default();
        let mut describe = |mptcp, held: &Held, holders| {
            let mut others = Others::default();
            add(&mut others, mptcp);
            others.described(&backends, held, holders, &mut unseen).remove(0)
        };
        let none = Held::default();
        let of = |backend| Held::of_one(7, Holding { backend, count: 2, ..Holding::default() });
        let (own, strange) = (of(Some(0)), of(None));
        let mptcp = describe(true, &own, Holders::OfBackends);
        assert_eq!(
            (mptcp.services.as_slice(), mptcp.uid, mptcp.holders),
            (&["web".to_owned()][..], Some(1000), Some(2))
        );
        assert!(mptcp.why.contains("MPTCP socket of the backend a"), "{}", mptcp.why);
        assert!(
            describe(false, &own, Holders::OfBackends)
                .why
                .contains("not registered, or not yet; see `pod-steer status web`")
        );
        assert_eq!(describe(false, &strange, Holders::OfBackends).why, "its process belongs to none of these services");
        assert_eq!(describe(false, &strange, Holders::Anywhere).why, "it is registered as no backend's");
        assert!(describe(false, &none, Holders::Anywhere).why.contains("no process was found"));
        let shown = describe(false, &none, Holders::Nowhere);
        assert_eq!((shown.uid, shown.holders, shown.why.as_str()), (None, None, "it is registered as no backend's"));
    }

    #[test]
    fn a_number_is_listed() {
        let (mut others, mut unseen) = (Others::default(), Unseen::default());
        (0..LISTED_MAX + 2).for_each(|_| add(&mut others, false));
        let listed = others.described(&[], &Held::default(), Holders::Nowhere, &mut unseen);
        assert_eq!(listed.len(), LISTED_MAX);
        assert_eq!(unseen.into_lines(), ["2 further listeners that are no backend's were not listed"]);
    }
}
