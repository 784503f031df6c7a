//! Established connections, and since when nothing has been said on them.

use std::{collections::BTreeSet, fs::File, io, net::IpAddr};

use netlink_packet_sock_diag::inet::{ExtensionFlags, InetResponse, StateFlags, nlas::Nla};

use super::{dump, only};
use crate::{
    ids::{NetnsCookie, SocketCookie},
    netns,
    ports::Port,
};

/// Offsets of words in `struct tcp_info`.
const UNACKED: usize = 24;
const LAST_DATA_SENT: usize = 44;
const LAST_DATA_RECEIVED: usize = 52;
const LAST_ACK_RECEIVED: usize = 56;
const BYTES_RECEIVED: usize = 128;
/// `RCV_SHUTDOWN`
const RECEIVING: u8 = 1;

/// What `tcp_info` tells of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Segments that the client has not acknowledged.
    pub unacked: u32,
    /// Milliseconds since data was last sent to the client.
    pub sent_ms: u32,
    /// Milliseconds since data last came from the client.
    pub received_ms: u32,
    /// Milliseconds since the client last acknowledged something.
    pub acked_ms: u32,
    /// Number of bytes that came from the client.
    pub received: u64,
}

impl Said {
    /// Reads a `struct tcp_info`; nothing of one that is too short.
    pub fn read(info: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            unacked: word(UNACKED)?,
            sent_ms: word(LAST_DATA_SENT)?,
            received_ms: word(LAST_DATA_RECEIVED)?,
            acked_ms: word(LAST_ACK_RECEIVED)?,
            received: u64::from_ne_bytes(info.get(BYTES_RECEIVED..BYTES_RECEIVED + 8)?.try_into().ok()?),
        })
    }
}

/// An established connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Talk {
    /// Its local port, which the client connected to.
    pub port: Port,
    /// Address of its client.
    pub from: IpAddr,
    /// Its inode; zero if no process has it open.
    pub inode: u64,
    /// Its cookie.
    pub cookie: SocketCookie,
    /// Data waits to be read by the server, or to be sent.
    pub queued: bool,
    /// Its receiving side was shut down: the server sees the end of the client's data.
    pub is_shut: bool,
    /// What the kernel tells of it.
    pub said: Said,
}

fn talk(response: &InetResponse) -> Option<Talk> {
    let header = &response.header;
    let info = response.nlas.iter().find_map(|nla| match nla {
        Nla::TcpInfo(info) => Some(info),
        _ => None,
    })?;
    Some(Talk {
        port: Port::tcp(header.socket_id.source_port),
        from: header.socket_id.destination_address.to_canonical(),
        inode: header.inode.into(),
        cookie: super::cookie(header),
        is_shut: response.nlas.iter().any(|nla| matches!(nla, Nla::Shutdown(shut) if shut & RECEIVING != 0)),
        queued: header.recv_queue > 0 || header.send_queue > 0,
        said: Said::read(info)?,
    })
}

/// The established connections by these local ports in the namespace behind an open `ns/net` file, if that is still the one with this cookie,
/// and what `beside` returns there. The kernel goes through its whole table of connections for it.
pub fn talks<T: Send>(
    ns: &File,
    cookie: NetnsCookie,
    ports: &BTreeSet<Port>,
    beside: impl FnOnce() -> T + Send,
) -> io::Result<(Vec<Talk>, T)> {
    netns::run_in(ns, cookie, || {
        let mut found = Vec::new();
        dump(&StateFlags::ESTABLISHED, ExtensionFlags::INFO, only(ports), &mut |response| {
            found.extend(talk(response).filter(|talk| ports.contains(&talk.port)));
        })?;
        Ok((found, beside()))
    })
}
