//! Counts connections that no kernel program counts, since their listener was made outside of an attached cgroup: of a process
//! that was registered, or of a listener that was inherited. They are the sockets that the backend's processes hold, and those that
//! wait in their listeners' accept queues.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use pod_steer_ebpf::PROBE_SOURCE_V4;

use crate::{
    listening,
    netns::Netns,
    procs::{Process, processes_in_cgroup},
};

/// Connections by one of these local ports that the processes of a cgroup hold or have yet to accept; if there is none, or no
/// process in it, those of this process and its descendants.
pub fn count(cgroup: Option<&Path>, pid: Option<i32>, netns: Netns, ports: &BTreeSet<u16>) -> io::Result<u64> {
    let mut processes = cgroup.map(processes_in_cgroup).unwrap_or_default();
    if processes.is_empty() {
        let process = Process::open(pid.ok_or_else(|| io::Error::other("it has no process"))?)?;
        // What cannot be read is an error of the process itself; one below it that has ended meanwhile holds nothing.
        drop(process.seats()?);
        processes = process.tree();
    }
    let mut namespaces = processes.iter().filter_map(|process| process.netns().ok());
    let ns = namespaces.next().ok_or_else(|| io::Error::other("its processes have ended"))?;
    let seats = processes.iter().filter_map(|process| process.seats().ok()).flatten();
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
        let count = || count(None, Some(own), netns, &BTreeSet::from([address.port()])).unwrap();
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
