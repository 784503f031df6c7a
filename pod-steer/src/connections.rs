//! Counts the connections of a process that was registered. It has no cgroup of its own, so no kernel program counts them:
//! they are the sockets that it holds, and those that wait in its listeners' accept queues.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
};

use pod_steer_ebpf::PROBE_SOURCE_V4;

use crate::{listening, netns::Netns, procs::Process};

/// Connections by one of these local ports that a process, or one below it, holds or has yet to accept.
pub fn count(pid: i32, netns: Netns, ports: &BTreeSet<u16>) -> io::Result<u64> {
    let process = Process::open(pid)?;
    let ns = process.netns()?;
    // What cannot be read is an error of the process itself; one below it that has ended meanwhile holds nothing.
    drop(process.seats()?);
    let seats = process.tree().into_iter().filter_map(|process| process.seats().ok()).flatten();
    let held: BTreeSet<u64> = seats.map(|seat| seat.inode).collect();
    let ours = |port: u16, inode: u64| ports.contains(&port) && held.contains(&inode);
    let probes = IpAddr::from(Ipv4Addr::from(PROBE_SOURCE_V4));
    let accepted = listening::connections(&ns, netns.cookie)?;
    let accepted = accepted.iter().filter(|one| ours(one.port, one.inode) && one.from.to_canonical() != probes).count();
    let listeners = listening::listeners(&ns, netns.cookie)?;
    let waiting: u64 = listeners.iter().filter(|one| ours(one.port, one.inode)).map(|one| u64::from(one.waiting)).sum();
    Ok(accepted as u64 + waiting)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::netns;

    #[test]
    fn counts_what_is_accepted_and_what_waits() {
        let own = i32::try_from(std::process::id()).unwrap();
        let netns = netns::identify(&Process::open(own).unwrap().netns().unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let count = || count(own, netns, &BTreeSet::from([address.port()])).unwrap();
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
}
