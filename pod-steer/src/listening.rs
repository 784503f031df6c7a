//! Who listens in a network namespace, whether it is managed or not.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufRead, BufReader},
    time::Duration,
};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with, sockopt,
};

use crate::netns;

/// The kernel makes no part of an answer longer (`netlink_dump` in `net/netlink/af_netlink.c`).
const ANSWER_BYTES: usize = 32 << 10;
/// The kernel answers as fast as it can read its own tables.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The TCP ports on which somebody listens in the namespace behind an open `ns/net` file, if that is still the one with
/// this cookie.
pub fn ports(ns: &File, cookie: u64) -> io::Result<BTreeSet<u16>> {
    // A kernel may lack sock_diag(7), or one of the modules that it needs for this; every kernel has the tables.
    netns::run_in(ns, cookie, || ask().or_else(|_| read_tables()))
}

/// Asks for the sockets in state `TCP_LISTEN` alone: then the kernel never looks at its table of connections, which takes
/// it a millisecond and more when there are none.
fn ask() -> io::Result<BTreeSet<u16>> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::SOCK_DIAG))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_MAX))?;
    let mut ports = BTreeSet::new();
    let mut answer = vec![0; ANSWER_BYTES];
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        send(&socket, &request(family, socket_id), SendFlags::empty())?;
        let mut ended = false;
        while !ended {
            let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
            ended = read_answer(answer.get(..length).unwrap_or_default(), &mut ports)?;
        }
    }
    Ok(ports)
}

fn request(family: u8, socket_id: SocketId) -> Vec<u8> {
    let (extensions, states) = (ExtensionFlags::empty(), StateFlags::LISTEN);
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
    let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(request));
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Takes the ports from one part of an answer. True when it is the last one.
fn read_answer(mut bytes: &[u8], ports: &mut BTreeSet<u16>) -> io::Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(bytes).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
                ports.insert(found.header.socket_id.source_port);
            }
            // Where inet_diag has nobody to ask about TCP, the end has the reason.
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
            }
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
        // Messages begin at multiples of four bytes; the last one may end before.
        let length = (message.header.length as usize).next_multiple_of(4);
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(false)
}

/// Reads the tables of the calling thread's namespace.
fn read_tables() -> io::Result<BTreeSet<u16>> {
    let mut ports: BTreeSet<u16> = listening(BufReader::new(File::open("/proc/thread-self/net/tcp")?)).collect();
    // A kernel without IPv6 has no second table.
    if let Ok(table) = File::open("/proc/thread-self/net/tcp6") {
        ports.extend(listening(BufReader::new(table)));
    }
    Ok(ports)
}

/// The local ports of the sockets in state 0A (`TCP_LISTEN`) of a table of `/proc/net` (proc_pid_net(5)). They come first
/// there, and nothing is read beyond them: on a busy machine the connections behind them take a tenth of a second and
/// more (`tcp_seq_start` in `net/ipv4/tcp_ipv4.c`).
fn listening(table: impl BufRead) -> impl Iterator<Item = u16> {
    table.lines().skip(1).map_while(Result::ok).map_while(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let port = local.rsplit(':').next()?;
        (state == "0A").then(|| u16::from_str_radix(port, 16).ok())?
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn reads_who_listens() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000\n   \
                     1: 0100007F:A3D2 0100007F:1F90 01 00000000:00000000 00:00000000\n  nonsense\n";
        assert_eq!(listening(table.as_bytes()).collect::<Vec<_>>(), [8080]);
    }

    #[test]
    fn the_kernel_and_its_tables_say_the_same() {
        // More than one part of an answer has room for.
        let listeners: Vec<TcpListener> = (0..600).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let six = TcpListener::bind("[::1]:0");
        let own: BTreeSet<u16> =
            listeners.iter().chain(&six).map(|listener| listener.local_addr().unwrap().port()).collect();
        // Other tests listen meanwhile; ours are there in any case.
        assert!(read_tables().unwrap().is_superset(&own));
        assert!(ask().expect("sock_diag(7)").is_superset(&own));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        assert!(read_answer(&[1, 2, 3], &mut BTreeSet::new()).is_err());
        assert!(read_answer(&[0; 64], &mut BTreeSet::new()).is_err());
        assert!(!read_answer(&[], &mut BTreeSet::new()).unwrap());
        // As seen of a protocol without a handler: NLMSG_DONE, NLM_F_MULTI, and -ENOENT.
        let done = |code: i32| {
            let header = [20u32.to_ne_bytes(), [3, 0, 2, 0], [0; 4], [0; 4], code.to_ne_bytes()].concat();
            read_answer(&header, &mut BTreeSet::new())
        };
        assert!(done(0).unwrap());
        assert_eq!(done(-2).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
