//! The established TCP connections of a network namespace, and the cgroups of sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    net::SocketAddr,
};

use netlink_packet_core::Nla as _;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetResponse, StateFlags, nlas::Nla};

use super::{Said, dump, dump_while, listener};
use crate::{
    ids::{NetnsCookie, SocketCookie},
    netns,
    ports::Port,
};

/// `INET_DIAG_CGROUP_ID`: the id of a socket's cgroup v2 (Linux 5.8).
const CGROUP_ID: u16 = 21;
/// `TCP_CLOSE_WAIT`
const CLOSE_WAIT: u8 = 8;
/// Up to this number, the kernel is asked for each port alone. Each time it walks its whole table of connections, which takes some
/// milliseconds; more ports are selected from the answer for all.
const DUMPS_MAX: usize = 8;
/// `RCV_SHUTDOWN`
const RECEIVING: u8 = 1;

/// An established connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Established {
    /// Its own address and port.
    pub local: SocketAddr,
    /// Its client.
    pub client: SocketAddr,
    /// Its inode; zero if no process has it open: it has not been accepted.
    pub inode: u64,
    /// Its cookie.
    pub cookie: SocketCookie,
    /// Id of its cgroup, which is that of the listener that it came by.
    pub cgroup: Option<u64>,
    /// The client has closed its side.
    pub half_closed: bool,
    /// Its receiving side was shut down: the server sees the end of the client's data.
    pub is_shut: bool,
    /// Data is queued: the server has not read it, or the client has not acknowledged it.
    pub queued: bool,
    /// What was said on it; `None` if the kernel does not tell.
    pub said: Option<Said>,
}

fn established(response: &InetResponse) -> Established {
    let header = &response.header;
    let id = &header.socket_id;
    Established {
        local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
        client: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
        inode: header.inode.into(),
        cookie: super::cookie(header),
        cgroup: cgroup(response),
        half_closed: header.state == CLOSE_WAIT,
        is_shut: response.nlas.iter().any(|nla| matches!(nla, Nla::Shutdown(shut) if shut & RECEIVING != 0)),
        queued: header.recv_queue > 0 || header.send_queue > 0,
        said: response.nlas.iter().find_map(said),
    }
}

fn cgroup(response: &InetResponse) -> Option<u64> {
    let other = response.nlas.iter().find_map(|nla| match nla {
        Nla::Other(other) if other.kind() == CGROUP_ID => Some(other),
        _ => None,
    })?;
    let mut bytes = [0; 8];
    if other.value_len() != bytes.len() {
        return None;
    }
    other.emit_value(&mut bytes);
    Some(u64::from_ne_bytes(bytes))
}

fn said(nla: &Nla) -> Option<Said> {
    let Nla::TcpInfo(info) = nla else { return None };
    Said::read(info)
}

/// The established connections by these local ports in the namespace behind an open `ns/net` file, if that is still the one with this
/// cookie. `each` is given one after the other, and its error ends the walk.
pub fn each_established(
    ns: &File,
    cookie: NetnsCookie,
    ports: &BTreeSet<Port>,
    mut each: impl FnMut(Established) -> io::Result<()> + Send,
) -> io::Result<()> {
    let filters: Vec<u16> =
        if ports.len() > DUMPS_MAX { vec![0] } else { ports.iter().map(|port| port.number).collect() };
    netns::run_in(ns, cookie, || {
        let states = StateFlags::ESTABLISHED | StateFlags::CLOSE_WAIT;
        for filter in filters {
            dump_while(&states, ExtensionFlags::INFO, filter, &mut |response| {
                let is_wanted = ports.contains(&Port::tcp(response.header.socket_id.source_port));
                if is_wanted { each(established(response)) } else { Ok(()) }
            })?;
        }
        Ok(())
    })
}

/// The cgroup of each listener in such a namespace, by the listener's cookie. Empty if the kernel does not report cgroups.
pub fn cgroups_of_listeners(ns: &File, cookie: NetnsCookie) -> io::Result<BTreeMap<SocketCookie, u64>> {
    netns::run_in(ns, cookie, || {
        let mut found = BTreeMap::new();
        dump(&StateFlags::LISTEN, ExtensionFlags::empty(), 0, &mut |response| {
            if let (Some(cookie), Some(cgroup)) = (listener(response).cookie, cgroup(response)) {
                found.insert(cookie, cgroup);
            }
        })?;
        Ok(found)
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        thread::sleep,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::sys;

    /// The connections to a port of this thread's namespace.
    fn all(port: u16, others: impl IntoIterator<Item = u16>) -> Vec<Established> {
        let ns = File::open("/proc/self/ns/net").unwrap();
        let ports = others.into_iter().chain([port]).map(Port::tcp).collect();
        let mut found = Vec::new();
        let each = |one| {
            found.push(one);
            Ok(())
        };
        each_established(&ns, sys::own_netns_cookie().unwrap(), &ports, each).unwrap();
        found
    }

    /// Waits until the only connection to a port is as described.
    fn seen(port: u16, is: impl Fn(&Established) -> bool) -> Established {
        let began = Instant::now();
        loop {
            let found = all(port, []);
            assert_eq!(found.len(), 1, "{found:?}");
            if is(&found[0]) {
                return found[0];
            }
            assert!(began.elapsed() < Duration::from_secs(20), "it stays {found:?}");
            sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_connection_is_seen_with_its_client_and_its_idle_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let port = address.port();
        let mut client = TcpStream::connect(address).unwrap();
        let waiting = seen(port, |_| true);
        assert_eq!((waiting.local, waiting.client, waiting.inode), (address, client.local_addr().unwrap(), 0));
        let mut accepted = listener.accept().unwrap().0;
        assert_ne!(seen(port, |_| true).inode, 0);
        client.write_all(b"x").unwrap();
        seen(port, |one| one.queued);
        accepted.read_exact(&mut [0]).unwrap();
        let idle = seen(port, |one| !one.queued && one.said.is_some_and(|said| said.idle_ms() >= 100));
        let cookie = sys::socket_cookie(&listener).unwrap();
        let ns = File::open("/proc/self/ns/net").unwrap();
        let cgroups = cgroups_of_listeners(&ns, sys::own_netns_cookie().unwrap()).unwrap();
        assert_eq!(cgroups.get(&cookie).copied(), idle.cgroup);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        seen(port, |one| one.half_closed);
    }

    #[test]
    fn the_ports_are_selected_by_the_kernel_or_from_its_answer() {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = [0, 1].map(|at: usize| listeners[at].local_addr().unwrap().port());
        let _clients = [0, 1].map(|at: usize| TcpStream::connect(("127.0.0.1", ports[at])).unwrap());
        let local = |found: Vec<Established>| -> BTreeSet<u16> { found.iter().map(|one| one.local.port()).collect() };
        assert_eq!(local(all(ports[0], [])), BTreeSet::from([ports[0]]));
        assert_eq!(local(all(ports[0], [ports[1]])), BTreeSet::from(ports));
        // These have no server: ports of clients begin above them.
        let many = 1..=DUMPS_MAX as u16;
        assert_eq!(local(all(ports[0], many)), BTreeSet::from([ports[0]]));
    }

    #[test]
    fn an_error_ends_the_walk() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _clients = [(); 3].map(|()| TcpStream::connect(address).unwrap());
        let ns = File::open("/proc/self/ns/net").unwrap();
        let mut count = 0;
        let each = |_| {
            count += 1;
            Err(io::ErrorKind::TimedOut.into())
        };
        let ports = BTreeSet::from([Port::tcp(address.port())]);
        let error = each_established(&ns, sys::own_netns_cookie().unwrap(), &ports, each).unwrap_err();
        assert_eq!((error.kind(), count), (io::ErrorKind::TimedOut, 1));
    }
}
