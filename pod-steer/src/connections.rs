//! Counts connections that the kernel programs do not count, because their listener was created outside of an attached cgroup: those of a
//! registered process, or of an inherited listener. They are the sockets that the backend's processes hold, and those that wait in the
//! listeners' accept queues.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    net::{IpAddr, Ipv4Addr},
};

use pod_steer_ebpf::PROBE_SOURCE_V4;

use crate::{
    ids::{BackendId, NetnsCookie},
    listening::{self, Connection},
    netns::Netns,
    ports::Port,
    process_set::{ProcessSet, open_netns},
};

/// A backend whose connections are to be counted.
#[derive(Clone, Debug)]
pub struct Question {
    /// The backend.
    pub id: BackendId,
    /// Its namespace.
    pub netns: Netns,
    /// Its processes.
    pub processes: ProcessSet,
    /// The local ports of its connections.
    pub ports: BTreeSet<Port>,
}

/// Groups questions by namespace: each is dumped once.
pub fn by_netns(questions: Vec<Question>) -> impl Iterator<Item = Vec<Question>> {
    let mut by_netns: BTreeMap<NetnsCookie, Vec<Question>> = BTreeMap::new();
    for question in questions {
        by_netns.entry(question.netns.cookie).or_default().push(question);
    }
    by_netns.into_values()
}

/// Counts the connections of each backend: those that its processes hold, and those that wait in its listeners. Each namespace is dumped
/// once, because a dump walks the kernel's whole table of connections.
pub fn count(questions: Vec<Question>) -> Vec<(BackendId, io::Result<u64>)> {
    let mut counts = Vec::new();
    for questions in by_netns(questions) {
        let table = Table::read(&questions).map_err(|error| error.to_string());
        for question in questions {
            let counted = match &table {
                Ok(table) => table.count(&question),
                Err(error) => Err(io::Error::other(error.clone())),
            };
            counts.push((question.id, counted));
        }
    }
    counts
}

/// Resets the connections that the processes of these backends hold. Returns how many, and the first failure.
pub fn reset(questions: Vec<Question>) -> (u64, Option<String>) {
    let (mut number, mut failure) = (0, None);
    for question in questions {
        match reset_one(&question) {
            Ok(own) => number += own,
            Err(error) => drop(failure.get_or_insert_with(|| format!("{}: {error}", question.id))),
        }
    }
    (number, failure)
}

fn reset_one(question: &Question) -> io::Result<u64> {
    // Without a process there is no connection either.
    let Ok(held) = held(&question.processes) else { return Ok(0) };
    let ns = open_netns(question.netns, std::slice::from_ref(&question.processes))?;
    listening::reset(&ns, question.netns.cookie, &question.ports, |one| held.contains(&one.inode))
}

/// The sockets of one namespace.
struct Table {
    /// Port and inode of each listener, and how many connections wait there.
    waiting: Vec<(Port, u64, u32)>,
    connections: Vec<Connection>,
}

impl Table {
    fn read(questions: &[Question]) -> io::Result<Self> {
        let Some(netns) = questions.first().map(|question| question.netns) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let ports: BTreeSet<Port> = questions.iter().flat_map(|question| question.ports.iter().copied()).collect();
        let sets: Vec<ProcessSet> = questions.iter().map(|question| question.processes.clone()).collect();
        let ns = open_netns(netns, &sets)?;
        // Read in the order of a connection's progress, so that none is missed: it waits in a queue, it is accepted, a process has a
        // descriptor of it.
        let listeners = listening::listeners(&ns, netns.cookie)?;
        let waiting = listeners.iter().map(|one| (one.port, one.inode, one.waiting)).collect();
        Ok(Self { waiting, connections: listening::connections(&ns, netns.cookie, &ports)? })
    }

    fn count(&self, question: &Question) -> io::Result<u64> {
        let held = held(&question.processes)?;
        let ours = |port: Port, inode: u64| question.ports.contains(&port) && held.contains(&inode);
        let probes = IpAddr::from(Ipv4Addr::from(PROBE_SOURCE_V4));
        let accepted = self.connections.iter();
        let accepted = accepted.filter(|one| ours(one.port, one.inode) && one.from.to_canonical() != probes).count();
        let waiting = self.waiting.iter().filter(|(port, inode, _)| ours(*port, *inode));
        let waiting: u64 = waiting.map(|(_, _, waiting)| u64::from(*waiting)).sum();
        Ok(accepted as u64 + waiting)
    }
}

/// The inodes of the sockets that these processes hold. A process that has ended holds none.
fn held(processes: &ProcessSet) -> io::Result<HashSet<u64>> {
    let (mut held, mut failure) = (None, io::Error::other("its processes have ended"));
    for process in processes.processes() {
        match process.seats() {
            Ok(seats) => held.get_or_insert_with(HashSet::new).extend(seats.map(|seat| seat.inode)),
            Err(error) => failure = error,
        }
    }
    held.ok_or(failure)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{netns, procs::process_id};

    fn question(id: &str, processes: ProcessSet, port: u16) -> Question {
        let netns = netns::identify(&File::open("/proc/self/ns/net").unwrap()).unwrap();
        Question { id: id.into(), netns, processes, ports: BTreeSet::from([Port::tcp(port)]) }
    }

    fn own() -> ProcessSet {
        ProcessSet { process: process_id(std::process::id().cast_signed()).ok(), ..ProcessSet::default() }
    }

    #[test]
    fn counts_what_is_accepted_and_what_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let count = || {
            let mut counts = count(vec![question("a", own(), address.port())]);
            counts.pop().unwrap().1.unwrap()
        };
        assert_eq!(count(), 0);
        let clients = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
        assert_eq!(count(), 2, "both wait; the clients' own ends come from other ports");
        let mut accepted = listener.accept().unwrap().0;
        assert_eq!(count(), 2);
        drop(clients);
        // The peer's end is seen before the socket is closed here.
        accepted.write_all(b"x").unwrap();
        let _ = accepted.read(&mut [0]);
        drop(accepted);
        drop(listener.accept().unwrap());
        assert_eq!(count(), 0);
    }

    #[test]
    fn connections_are_reset_and_listeners_stay() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // One of each family, on one listener.
        let clients = ["127.0.0.1", "::1"].map(|address| TcpStream::connect((address, port)).unwrap());
        let mut accepted = [listener.accept().unwrap().0, listener.accept().unwrap().0];
        let others = question("b", own(), port + 1);
        assert_eq!(reset(vec![others]), (0, None));
        let (number, failure) = reset(vec![question("a", own(), port)]);
        if failure.is_some() {
            // It takes a privilege, which a unit test need not have.
            assert!(!rustix::process::geteuid().is_root(), "{failure:?}");
            return;
        }
        assert_eq!(number, 2);
        for mut client in clients {
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
        for server in &mut accepted {
            assert_eq!(server.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        }
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(reset(vec![question("c", ProcessSet::default(), port)]), (0, None));
    }

    #[test]
    fn each_backend_of_a_namespace_has_its_own() {
        let listeners = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
        let [one, two] = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        let _clients = [one, two, two].map(|address| TcpStream::connect(address).unwrap());
        let none = ProcessSet::default();
        let questions =
            vec![question("a", own(), one.port()), question("b", own(), two.port()), question("c", none, 1)];
        let counts = count(questions).into_iter().map(|(id, count)| (id, count.map_err(|error| error.to_string())));
        let counts: BTreeMap<BackendId, Result<u64, String>> = counts.collect();
        assert_eq!(counts["a"], Ok(1));
        assert_eq!(counts["b"], Ok(2));
        assert_eq!(counts["c"], Err("its processes have ended".to_owned()));
    }
}
