//! The backends that may have the connections of a network namespace.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    os::unix::fs::MetadataExt as _,
    sync::Arc,
};

use super::BackendFacts;
use crate::{
    ids::{NetnsCookie, SocketCookie},
    ports::Port,
};

/// Places of backends, in ascending order.
pub type Places = Arc<[usize]>;

/// The backends with a listener in a namespace, by their ports and the cgroups of their listeners.
#[derive(Debug, Default)]
pub struct Servers {
    by_cgroup: HashMap<(u16, u64), Places>,
    /// Backends some of whose connections may be in any cgroup.
    of_any_cgroup: HashMap<u16, Places>,
    by_port: HashMap<u16, Places>,
}

/// The backend of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Owner {
    /// It belongs to this one.
    Is(usize),
    /// It belongs to the one of these whose process holds it.
    MayBe(Places),
    /// It belongs to an unmanaged server.
    Unmanaged,
}

impl Servers {
    /// The backends with these places, whose listeners have these cgroups.
    pub fn of(netns: NetnsCookie, backends: &[(usize, &BackendFacts)], cgroups: &BTreeMap<SocketCookie, u64>) -> Self {
        let mut all = Vec::new();
        for (at, backend) in backends {
            let sockets = backend.sockets.iter().filter(|(_, socket)| socket.netns_cookie == netns);
            let mut own: BTreeSet<Option<u64>> = sockets.map(|(cookie, _)| cgroups.get(cookie).copied()).collect();
            if own.is_empty() {
                // It no longer listens, and may still have connections, by listeners of cgroups below its own.
                let cgroup = backend.processes.cgroup.as_deref().and_then(|path| path.metadata().ok());
                own.extend([None, cgroup.map(|cgroup| cgroup.ino())]);
            }
            for port in backend.local_ports() {
                all.extend(own.iter().map(|cgroup| (*at, port.number, *cgroup)));
            }
        }
        Self::from_list(&all)
    }

    /// The same, from a place, a port and a cgroup each.
    pub(super) fn from_list(all: &[(usize, u16, Option<u64>)]) -> Self {
        fn grouped<K: std::hash::Hash + Eq>(all: impl Iterator<Item = (K, usize)>) -> HashMap<K, Places> {
            let mut groups: HashMap<K, BTreeSet<usize>> = HashMap::new();
            for (key, at) in all {
                groups.entry(key).or_default().insert(at);
            }
            groups.into_iter().map(|(key, places)| (key, places.into_iter().collect())).collect()
        }
        Self {
            by_cgroup: grouped(all.iter().filter_map(|(at, port, cgroup)| Some(((*port, (*cgroup)?), *at)))),
            of_any_cgroup: grouped(
                all.iter().filter(|(.., cgroup)| cgroup.is_none()).map(|(at, port, _)| (*port, *at)),
            ),
            by_port: grouped(all.iter().map(|(at, port, _)| (*port, *at))),
        }
    }

    /// The local ports of their connections.
    pub fn ports(&self) -> BTreeSet<Port> {
        self.by_port.keys().copied().map(Port::tcp).collect()
    }

    /// The backend of a connection by this port, whose listener had this cgroup: the only one with a listener of that cgroup.
    pub fn owner(&self, port: u16, cgroup: Option<u64>) -> Owner {
        let may_be =
            |places: Option<&Places>| places.map_or(Owner::Unmanaged, |places| Owner::MayBe(Arc::clone(places)));
        let Some(cgroup) = cgroup else { return may_be(self.by_port.get(&port)) };
        match self.by_cgroup.get(&(port, cgroup)) {
            Some(places) if places.len() == 1 => Owner::Is(places[0]),
            None => may_be(self.of_any_cgroup.get(&port)),
            several => may_be(several),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sockets::tests::{NETNS, backend};

    #[test]
    fn a_connection_belongs_to_the_cgroup_of_its_listener_or_to_its_holder() {
        let may_be = |places: &[usize]| Owner::MayBe(places.into());
        let apart = Servers::from_list(&[(0, 80, Some(7)), (1, 80, Some(8)), (1, 80, Some(8)), (2, 81, Some(7))]);
        assert_eq!(apart.owner(80, Some(8)), Owner::Is(1));
        assert_eq!(apart.owner(80, Some(9)), Owner::Unmanaged);
        assert_eq!(apart.owner(82, Some(7)), Owner::Unmanaged);
        assert_eq!(apart.owner(80, None), may_be(&[0, 1]), "the kernel does not report cgroups");
        assert_eq!(apart.ports(), BTreeSet::from([80, 81].map(Port::tcp)));
        let together = Servers::from_list(&[(1, 80, Some(7)), (0, 80, Some(7)), (2, 80, Some(8))]);
        assert_eq!(together.owner(80, Some(7)), may_be(&[0, 1]));
    }

    #[test]
    fn a_backend_that_no_longer_listens_may_have_connections_of_any_cgroup() {
        let (ended, other) = (backend("a"), backend("b"));
        let servers = Servers::of(NETNS, &[(3, &ended), (5, &other)], &BTreeMap::new());
        assert_eq!(servers.owner(8080, Some(9)), Owner::MayBe([3, 5].into()));
        assert_eq!(servers.owner(80, None), Owner::MayBe([3, 5].into()));
        assert_eq!(servers.owner(81, Some(9)), Owner::Unmanaged);
    }
}
