//! The connections of each backend. Several backends may listen on one port of a namespace: a connection belongs to the backend in whose
//! cgroup its listener was made, or whose process holds it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
};

use pod_steer_ebpf::PROBE_SOURCE_V4;

use super::{
    BackendFacts,
    limits::{Limits, Unseen},
    processes::Held,
    servers::{Owner, Places, Servers},
};
use crate::{
    api::sockets::{BackendConnections, ConnectionStatus},
    ids::NetnsCookie,
    listening::{self, Established},
};

/// Maximum number of connections that are listed; further ones are only counted.
const LISTED_MAX: usize = 20_000;
/// Maximum number of connections that are kept until the process that holds each is known.
const UNSETTLED_MAX: usize = 20_000;
/// A connection on which no data has moved for so long is idle.
const IDLE_MS: u64 = 1_000;

/// The connections of backends.
#[derive(Debug)]
pub struct Connections<'a> {
    backends: &'a [BackendFacts],
    /// The places of the backends that may listen in a namespace.
    by_netns: BTreeMap<NetnsCookie, Vec<usize>>,
    /// The namespaces that were read.
    read: BTreeSet<NetnsCookie>,
    /// The answer, in the order of the backends.
    found: Vec<BackendConnections>,
    listed: usize,
    not_listed: usize,
    /// Connections that may belong to one of several backends.
    unsettled: Vec<(Places, Established)>,
    not_settled: usize,
}

impl<'a> Connections<'a> {
    /// No connections yet.
    pub fn new(backends: &'a [BackendFacts]) -> Self {
        let mut by_netns: BTreeMap<NetnsCookie, Vec<usize>> = BTreeMap::new();
        for (at, backend) in backends.iter().enumerate() {
            backend.namespaces().into_iter().for_each(|netns| by_netns.entry(netns).or_default().push(at));
        }
        let empty = |backend: &BackendFacts| BackendConnections {
            service: backend.service.clone(),
            version: backend.version.clone(),
            backend: backend.name.clone(),
            backend_id: backend.id.clone(),
            active: 0,
            idle: 0,
            list: Vec::new(),
        };
        Self {
            backends,
            by_netns,
            read: BTreeSet::new(),
            found: backends.iter().map(empty).collect(),
            listed: 0,
            not_listed: 0,
            unsettled: Vec::new(),
            not_settled: 0,
        }
    }

    /// Reads those of a namespace. Connections of unmanaged servers are not kept.
    pub fn read(&mut self, ns: &File, netns: NetnsCookie, limits: &Limits<'_>) -> io::Result<()> {
        let Some(places) = self.by_netns.get(&netns) else { return Ok(()) };
        let backends: Vec<(usize, &BackendFacts)> = places.iter().map(|at| (*at, &self.backends[*at])).collect();
        let servers = Servers::of(netns, &backends, &listening::cgroups_of_listeners(ns, netns)?);
        self.read.insert(netns);
        let probes = IpAddr::from(Ipv4Addr::from(PROBE_SOURCE_V4));
        listening::each_established(ns, netns, &servers.ports(), |one| {
            limits.check()?;
            if one.client.ip() != probes {
                self.add(&servers, one);
            }
            Ok(())
        })
    }

    fn add(&mut self, servers: &Servers, one: Established) {
        match servers.owner(one.local.port(), one.cgroup) {
            Owner::Is(at) => self.give(at, &one),
            Owner::MayBe(places) if self.unsettled.len() < UNSETTLED_MAX => self.unsettled.push((places, one)),
            Owner::MayBe(_) => self.not_settled += 1,
            Owner::Unmanaged => {}
        }
    }

    fn give(&mut self, at: usize, one: &Established) {
        let Some(own) = self.found.get_mut(at) else { return };
        let status = status(one);
        if status.active {
            own.active += 1;
        } else {
            own.idle += 1;
        }
        if self.listed < LISTED_MAX {
            self.listed += 1;
            own.list.push(status);
        } else {
            self.not_listed += 1;
        }
    }

    /// The inodes of the connections whose holders decide.
    pub fn inodes(&self) -> impl Iterator<Item = u64> {
        self.unsettled.iter().map(|(_, one)| one.inode).filter(|inode| *inode != 0)
    }

    /// The connections of each backend, those with the latest traffic first. A backend whose namespaces were not read is left out.
    pub fn settled(mut self, held: &Held, unseen: &mut Unseen) -> Vec<BackendConnections> {
        for (places, one) in std::mem::take(&mut self.unsettled) {
            let mut backends = held.of_any(one.inode).iter().filter_map(|holding| holding.backend);
            match backends.find(|at| places.binary_search(at).is_ok()) {
                Some(at) => self.give(at, &one),
                // An unmanaged server may hold it.
                None => self.not_settled += 1,
            }
        }
        for own in &mut self.found {
            own.list.sort_by(|a, b| (a.idle_ms, &a.client).cmp(&(b.idle_ms, &b.client)));
        }
        if self.not_listed > 0 {
            let count = self.not_listed;
            unseen.add(format!("{count} further connections were counted and not listed: at most {LISTED_MAX} are"));
        }
        if self.not_settled > 0 {
            unseen.add(format!(
                "{} connections by ports of these services were not counted: neither a cgroup nor a process tells their backend",
                self.not_settled
            ));
        }
        let is_read = |(_, backend): &(_, &BackendFacts)| !backend.namespaces().is_disjoint(&self.read);
        self.found.into_iter().zip(self.backends).filter(is_read).map(|(own, _)| own).collect()
    }
}

fn status(one: &Established) -> ConnectionStatus {
    let idle_ms = one.said.map(|said| u64::from(said.idle_ms()));
    ConnectionStatus {
        client: one.client.to_string(),
        local: one.local.to_string(),
        state: if one.half_closed { "close-wait" } else { "established" }.to_owned(),
        active: one.queued || idle_ms.is_some_and(|idle_ms| idle_ms < IDLE_MS),
        idle_ms,
        waiting: one.inode == 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::SocketCookie,
        listening::Said,
        sockets::{
            processes::Holding,
            tests::{NETNS, backend},
        },
    };

    fn one(idle_ms: u32, cgroup: Option<u64>) -> Established {
        let address = "10.0.0.1:80".parse().unwrap();
        Established {
            local: address,
            client: address,
            inode: 7,
            cookie: SocketCookie(7),
            cgroup,
            half_closed: false,
            is_shut: false,
            queued: false,
            said: Some(Said { sent_ms: idle_ms, received_ms: 60_000, ..Said::default() }),
        }
    }

    #[test]
    fn all_are_counted_a_number_is_listed_and_others_cost_nothing() {
        let backends = [backend("a"), backend("b")];
        let mut all = Connections::new(&backends);
        all.read.insert(NETNS);
        let servers = Servers::from_list(&[(0, 80, Some(7)), (1, 80, Some(8))]);
        (0..3).for_each(|_| all.add(&servers, one(10, Some(99))));
        (0..LISTED_MAX + 5).for_each(|_| all.add(&servers, one(10, Some(7))));
        all.add(&servers, one(5_000, Some(8)));
        let mut unseen = Unseen::default();
        let found = all.settled(&Held::default(), &mut unseen);
        assert_eq!((found[0].active, found[0].list.len()), (LISTED_MAX as u32 + 5, LISTED_MAX));
        assert_eq!((found[1].active, found[1].idle, found[1].list.len()), (0, 1, 0), "the list was full");
        let lines = unseen.into_lines();
        assert!(lines.len() == 1 && lines[0].starts_with("6 further connections"), "{lines:?}");
    }

    #[test]
    fn the_holder_decides_between_backends_of_one_cgroup() {
        let backends = [backend("a"), backend("b")];
        let settled = |holder| {
            let mut all = Connections::new(&backends);
            all.read.insert(NETNS);
            all.add(&Servers::from_list(&[(0, 80, Some(7)), (1, 80, Some(7))]), one(10, Some(7)));
            assert_eq!(all.inodes().collect::<Vec<_>>(), [7]);
            let held = Held::of_one(7, Holding { backend: holder, count: 1, ..Holding::default() });
            let mut unseen = Unseen::default();
            let counts: Vec<u32> = all.settled(&held, &mut unseen).iter().map(|own| own.active).collect();
            (counts, unseen.into_lines().len())
        };
        assert_eq!(
            (settled(Some(1)), settled(None), settled(Some(2))),
            ((vec![0, 1], 0), (vec![0, 0], 1), (vec![0, 0], 1))
        );
        let unread = Connections::new(&backends).settled(&Held::default(), &mut Unseen::default());
        assert!(unread.is_empty(), "their namespace was not read");
    }

    #[test]
    fn a_connection_is_active_while_data_moves_or_waits() {
        let active = |one: Established| status(&one).active;
        let queued = Established { queued: true, ..one(5_000, None) };
        let unknown = Established { said: None, ..one(0, None) };
        assert_eq!([one(999, None), one(1_000, None), queued, unknown].map(active), [true, false, true, false]);
    }
}
