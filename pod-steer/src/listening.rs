//! Enumerates the TCP listeners of a network namespace, managed or not.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, Nla as _, NlasIterator};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, InetResponseHeader, SocketId, StateFlags, nlas::Nla},
};
use rustix::net::netlink::SOCK_DIAG;

use crate::{
    ids::{NetnsCookie, SocketCookie},
    netlink, netns,
    ports::Port,
};

mod established;
mod overflows;
mod reset;
mod said;

pub use established::{Established, cgroups_of_listeners, each_established};
pub use overflows::{TurnedAway, overflows, turned_away};
pub use reset::reset;
pub use said::Said;

pub use pod_steer_model::listener::Listener;

/// Maximum number of dumps, if sockets open and close in between.
const DUMPS_MAX: usize = 4;

/// `INET_DIAG_ULP_INFO`: the upper-layer protocol of a TCP socket; and in it its name (`INET_ULP_INFO_NAME`).
const ULP_INFO: u16 = 19;
const ULP_NAME: u16 = 1;

fn cookie(header: &InetResponseHeader) -> SocketCookie {
    let [low, high] = header.socket_id.cookie.as_chunks::<4>().0 else { unreachable!("eight bytes are two words") };
    SocketCookie(u64::from(u32::from_ne_bytes(*high)) << 32 | u64::from(u32::from_ne_bytes(*low)))
}

/// As a part of an answer says.
fn listener(response: &InetResponse) -> Listener {
    let header = &response.header;
    let v6only = response.nlas.iter().find_map(|nla| match nla {
        Nla::SkV6Only(only) => Some(*only),
        _ => None,
    });
    Listener {
        cookie: Some(cookie(header)),
        ip: header.socket_id.source_address,
        port: Port::tcp(header.socket_id.source_port),
        v6only,
        ifindex: header.socket_id.interface_id,
        uid: header.uid,
        inode: header.inode.into(),
        mptcp: response.nlas.iter().any(is_mptcp),
        waiting: header.recv_queue,
        backlog: header.send_queue,
        drops: response.nlas.iter().find_map(drops).unwrap_or(0),
    }
}

fn drops(nla: &Nla) -> Option<u32> {
    let Nla::MemInfo(memory) = nla else { return None };
    Some(memory.drops)
}

fn is_mptcp(nla: &Nla) -> bool {
    let Nla::Other(other) = nla else { return false };
    if other.kind() != ULP_INFO {
        return false;
    }
    let mut value = vec![0; other.value_len()];
    other.emit_value(&mut value);
    NlasIterator::new(&value).flatten().any(|own| own.kind() == ULP_NAME && own.value().starts_with(b"mptcp\0"))
}

/// The TCP listeners in the namespace behind an open `ns/net` file, if that is still the one with this cookie.
pub fn listeners(ns: &File, cookie: NetnsCookie) -> io::Result<Vec<Listener>> {
    // A kernel may lack sock_diag(7) or one of its modules. Every kernel has the tables in /proc.
    netns::run_in(ns, cookie, || ask().or_else(|_| read_tables()))
}

/// The inodes of the TCP listeners in the namespace behind an open `ns/net` file, as in `/proc/PID/fd`. That of an MPTCP listener is
/// the inode of the TCP socket below it as well.
pub fn inodes(ns: &File) -> io::Result<HashSet<u64>> {
    let listeners = netns::enter(ns, || ask().or_else(|_| read_tables()))?;
    Ok(listeners.into_iter().map(|listener| listener.inode).collect())
}

/// A TCP connection of a namespace that some process may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its local port, which the client connected to.
    pub port: Port,
    /// Address of its client.
    pub from: IpAddr,
    /// Its inode; zero if no process has it open.
    pub inode: u64,
}

/// The TCP connections by these local ports in the namespace behind an open `ns/net` file, if that is still the one with this
/// cookie. The kernel goes through its whole table of connections for it.
pub fn connections(ns: &File, cookie: NetnsCookie, ports: &BTreeSet<Port>) -> io::Result<Vec<Connection>> {
    netns::run_in(ns, cookie, || {
        let mut found = Vec::new();
        dump(&OPEN, ExtensionFlags::empty(), only(ports), &mut |response| {
            found.extend(Some(connection(response)).filter(|connection| ports.contains(&connection.port)));
        })?;
        Ok(found)
    })
}

/// The states of a connection that has not ended.
const OPEN: StateFlags = StateFlags::ESTABLISHED
    .union(StateFlags::SYN_RECV)
    .union(StateFlags::CLOSE_WAIT)
    .union(StateFlags::FIN_WAIT1)
    .union(StateFlags::FIN_WAIT2)
    .union(StateFlags::CLOSING)
    .union(StateFlags::LAST_ACK);

fn connection(response: &InetResponse) -> Connection {
    Connection {
        port: Port::tcp(response.header.socket_id.source_port),
        from: response.header.socket_id.destination_address,
        inode: response.header.inode.into(),
    }
}

/// The port filter of a dump: one port, or zero for all.
fn only(ports: &BTreeSet<Port>) -> u16 {
    if ports.len() == 1 { ports.first().map_or(0, |port| port.number) } else { 0 }
}

/// Which of these ports a TCP socket of the namespace is bound to, in any state: a connection keeps the port of its listener. Sockets in
/// `TIME_WAIT` do not count: they do not prevent other users from sharing a port (`inet_bind_conflict`).
pub fn in_use(ns: &File, cookie: NetnsCookie, ports: &BTreeSet<Port>) -> io::Result<BTreeSet<Port>> {
    netns::run_in(ns, cookie, || {
        let mut used = BTreeSet::new();
        let states = StateFlags::all() - StateFlags::TIME_WAIT;
        dump(&states, ExtensionFlags::empty(), only(ports), &mut |found| {
            used.insert(Port::tcp(found.header.socket_id.source_port));
        })?;
        used.retain(|port| ports.contains(port));
        Ok(used)
    })
}

/// Dumps only sockets in state `TCP_LISTEN`. So the kernel does not walk its table of connections, which takes a millisecond or more even
/// if it is empty.
fn ask() -> io::Result<Vec<Listener>> {
    // The kernel reports the upper-layer protocol of a socket only with `tcp_info` (`inet_sk_diag_fill`).
    let extensions = ExtensionFlags::INFO | ExtensionFlags::SKMEMINFO;
    complete(|each| dump(&StateFlags::LISTEN, extensions.clone(), 0, &mut |response| each(listener(response))))
}

/// The union of several dumps, each of which reports whether it may be incomplete. A dump whose answer has several parts may be: between
/// two parts the kernel remembers its position in a hash bucket, so if a socket of that bucket closes, it skips the next one
/// (`inet_diag_dump_icsk`).
fn complete(mut dump: impl FnMut(&mut dyn FnMut(Listener)) -> io::Result<bool>) -> io::Result<Vec<Listener>> {
    let (mut found, mut known) = (Vec::new(), HashSet::new());
    for number in 1..=DUMPS_MAX {
        let before = found.len();
        let may_miss = dump(&mut |listener| {
            if known.insert(listener.cookie) {
                found.push(listener);
            }
        })?;
        if !may_miss || number > 1 && found.len() == before {
            break;
        }
    }
    Ok(found)
}

/// Asks for the sockets of both families in some states, and with this local port unless it is zero. True if an
/// answer has several parts with sockets.
fn dump(
    states: &StateFlags,
    extensions: ExtensionFlags,
    port: u16,
    each: &mut dyn FnMut(&InetResponse),
) -> io::Result<bool> {
    dump_while(states, extensions, port, &mut |found| {
        each(found);
        Ok(())
    })
}

/// The same, until `each` fails.
fn dump_while(
    states: &StateFlags,
    extensions: ExtensionFlags,
    port: u16,
    each: &mut dyn FnMut(&InetResponse) -> io::Result<()>,
) -> io::Result<bool> {
    let mut socket = netlink::Socket::open(Some(SOCK_DIAG))?;
    let mut several = false;
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let socket_id = SocketId { source_port: port, ..socket_id };
        let parts = socket.ask(&request(family, states.clone(), extensions.clone(), socket_id), &mut |message| {
            if let SockDiagMessage::InetResponse(found) = &message { each(found) } else { Ok(()) }
        })?;
        // The last part has the end of the dump alone.
        several |= parts > 2;
    }
    Ok(several)
}

fn request(family: u8, states: StateFlags, extensions: ExtensionFlags, socket_id: SocketId) -> Vec<u8> {
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
    let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(request));
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Reads the tables of the calling thread's namespace.
fn read_tables() -> io::Result<Vec<Listener>> {
    let mut found: Vec<Listener> = listening(BufReader::new(File::open("/proc/thread-self/net/tcp")?)).collect();
    // A kernel without IPv6 has only one table.
    if let Ok(table) = File::open("/proc/thread-self/net/tcp6") {
        found.extend(listening(BufReader::new(table)));
    }
    Ok(found)
}

/// The sockets in state 0A (`TCP_LISTEN`) of a table of `/proc/net` (proc_pid_net(5)). They come first there, and nothing
/// is read beyond them: on a busy machine the connections behind them take a tenth of a second and more
/// (`tcp_seq_start` in `net/ipv4/tcp_ipv4.c`).
fn listening(table: impl BufRead) -> impl Iterator<Item = Listener> {
    table.lines().skip(1).map_while(Result::ok).map_while(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, "0A", queues, _, _, uid, _, inode, ..] = fields[..] else { return None };
        let (address, port) = local.rsplit_once(':')?;
        let waiting = queues.rsplit_once(':')?.1;
        Some(Listener {
            cookie: None,
            ip: table_address(address)?,
            port: Port::tcp(u16::from_str_radix(port, 16).ok()?),
            v6only: None,
            ifindex: 0,
            uid: uid.parse().ok()?,
            inode: inode.parse().ok()?,
            mptcp: false,
            waiting: u32::from_str_radix(waiting, 16).ok()?,
            backlog: 0,
            drops: 0,
        })
    })
}

/// An address of these tables: words in the machine's byte order, each of eight digits.
fn table_address(digits: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = digits.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    };
    match digits.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *four = word(at)?;
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
