//! Requests to the kernel by netlink(7), and their answers, which come in parts. What a message says is read by the module that asks.
#![forbid(unsafe_code)]

mod watch;

use std::{io, os::fd::OwnedFd, time::Duration};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with, sockopt,
};

pub use watch::{Changes, Watch};

/// Maximum size of one part of an answer (`netlink_dump` in `net/netlink/af_netlink.c`).
const ANSWER_BYTES: usize = 32 << 10;
/// Time limit for a part of an answer. The kernel only reads its own tables.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// A request: the header, then the body. One request at a time needs neither a sequence number nor a port.
pub fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = size_of::<[u32; 4]>() + body.len();
    let mut bytes = (length as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

/// A netlink socket, which asks about the namespace that its thread was in when it was opened.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    answer: Vec<u8>,
}

impl Socket {
    /// Opens a socket of this protocol; `None` is rtnetlink(7), whose number is zero.
    pub fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_MAX))?;
        Ok(Self { fd, answer: vec![0; ANSWER_BYTES] })
    }

    /// Sends a request, which is a dump or asks for an acknowledgement, and reads its whole answer. Returns the number of its parts. An
    /// error of `each` ends that; the socket is of no use afterwards.
    pub fn ask<M: NetlinkDeserializable>(
        &mut self,
        request: &[u8],
        each: &mut dyn FnMut(M) -> io::Result<()>,
    ) -> io::Result<usize> {
        send(&self.fd, request, SendFlags::empty())?;
        let mut parts = 0;
        loop {
            let (length, _) = recv(&self.fd, &mut self.answer[..], RecvFlags::empty())?;
            parts += 1;
            if read_part(self.answer.get(..length).unwrap_or_default(), each)? {
                return Ok(parts);
            }
        }
    }
}

/// Reads the messages of one part of an answer. True when it is the last one.
pub fn read_part<M: NetlinkDeserializable>(
    mut bytes: &[u8],
    each: &mut dyn FnMut(M) -> io::Result<()>,
) -> io::Result<bool> {
    while !bytes.is_empty() {
        let message = NetlinkMessage::<M>::deserialize(bytes).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::InnerMessage(found) => each(found)?,
            // Some errors are in the end of a dump, such as that of sock_diag(7) without the module tcp_diag.
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
            }
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            // The acknowledgement.
            NetlinkPayload::Error(_) => return Ok(true),
            _ => {}
        }
        // Messages begin at multiples of four bytes; the last one may end before.
        let length = (message.header.length as usize).next_multiple_of(4);
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use netlink_packet_sock_diag::SockDiagMessage;

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<bool> {
        read_part::<SockDiagMessage>(bytes, &mut |_| Ok(()))
    }

    #[test]
    fn a_malformed_answer_is_an_error() {
        assert!(read(&[1, 2, 3]).is_err());
        assert!(read(&[0; 64]).is_err());
        assert!(!read(&[]).unwrap());
    }

    #[test]
    fn an_answer_ends_with_its_last_message_or_an_error() {
        let message = |kind: u8, code: i32| {
            let header = [20u32.to_ne_bytes(), [kind, 0, 2, 0], [0; 4], [0; 4], code.to_ne_bytes()].concat();
            read(&header)
        };
        let (error, done) = (2, 3);
        assert!(message(done, 0).unwrap());
        // As seen of a protocol without a handler: NLMSG_DONE, NLM_F_MULTI, and -ENOENT.
        assert_eq!(message(done, -2).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(message(error, 0).unwrap(), "an acknowledgement");
        assert_eq!(message(error, -2).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
