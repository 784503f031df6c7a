//! Resets connections of other processes (`SOCK_DESTROY` of sock_diag(7)).

use std::{collections::BTreeSet, fs::File, io};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::IPPROTO_TCP,
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use rustix::{io::Errno, net::netlink::SOCK_DIAG};

use super::{Connection, OPEN, connection, dump, only};
use crate::{ids::NetnsCookie, netlink, netns, ports::Port};

/// `SOCK_DESTROY` (`linux/sock_diag.h`). Linux 4.9, with `CONFIG_INET_DIAG_DESTROY`.
const SOCK_DESTROY: u16 = 21;
/// Where a netlink message has its type.
const KIND: std::ops::Range<usize> = 4..6;

/// Resets the TCP connections by these local ports for which `wanted` holds, in the namespace behind an open `ns/net` file, if that is
/// still the one with this cookie. Their processes get `ECONNABORTED`. Returns how many there were. Needs `CAP_NET_ADMIN` there.
pub fn reset(
    ns: &File,
    cookie: NetnsCookie,
    ports: &BTreeSet<Port>,
    wanted: impl Fn(&Connection) -> bool + Sync,
) -> io::Result<u64> {
    netns::run_in(ns, cookie, || {
        let mut found = Vec::new();
        dump(&OPEN, ExtensionFlags::empty(), only(ports), &mut |response| {
            let own = connection(response);
            if ports.contains(&own.port) && wanted(&own) {
                found.push((response.header.family, response.header.socket_id.clone()));
            }
        })?;
        let (mut socket, mut number) = (netlink::Socket::open(Some(SOCK_DIAG))?, 0);
        for (family, id) in found {
            match socket.ask::<SockDiagMessage>(&destroy(family, id), &mut |_| Ok(())) {
                Ok(_) => number += 1,
                // It has ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => {
                    return Err(io::Error::other("the kernel cannot: it lacks CONFIG_INET_DIAG_DESTROY"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(number)
    })
}

/// The socket is named by its addresses and its cookie: the kernel takes no other for it.
fn destroy(family: u8, socket_id: SocketId) -> Vec<u8> {
    let (extensions, states) = (ExtensionFlags::empty(), StateFlags::all());
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
    let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(request));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    // The library knows no message of this type, which has the same body.
    if let Some(kind) = bytes.get_mut(KIND) {
        kind.copy_from_slice(&SOCK_DESTROY.to_ne_bytes());
    }
    bytes
}
