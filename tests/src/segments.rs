//! A TCP client whose every segment is written by the test: a peer behind a TUN device, without a TCP stack of its own that
//! would answer, retransmit or reset by itself.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};

use crate::netns::NetNs;

/// Flags of a segment.
pub const FIN: u8 = 1;
/// See [`FIN`].
pub const SYN: u8 = 2;
/// See [`FIN`].
pub const RST: u8 = 4;
/// See [`FIN`].
pub const ACK: u8 = 16;

/// The host's address on the way to the peer.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// The peer's own.
const PEER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// How long the host may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The peer.
#[derive(Debug)]
pub struct Peer {
    tun: File,
    /// Ports that its connections come from.
    next_port: u16,
}

/// A segment from the host.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Port of the peer that it is for.
    port: u16,
    /// Its flags.
    pub flags: u8,
    seq: u32,
    /// What it acknowledges.
    pub ack: u32,
    /// Its options.
    pub options: Vec<u8>,
    /// Its data.
    pub data: Vec<u8>,
}

/// A connection of the peer, with the state that its segments have established.
#[derive(Debug)]
pub struct Connection<'a> {
    peer: &'a mut Peer,
    from: u16,
    to: u16,
    seq: u32,
    ack: u32,
    /// The window that its segments announce.
    pub window: u16,
}

impl Peer {
    /// A peer that is connected to a host's namespace.
    pub fn new(net: &NetNs) -> Result<Self> {
        let tun = net.run(open_tun)?;
        net.ip(&format!("addr add {HOST}/24 dev tun0"))?;
        net.ip("link set tun0 up")?;
        Ok(Self { tun, next_port: 20_000 })
    }

    /// A connection to a port of the host, from a port that had none before; nothing is sent yet.
    pub fn connection(&mut self, to: u16) -> Connection<'_> {
        self.next_port += 1;
        let from = self.next_port;
        Connection { peer: self, from, to, seq: u32::from(from) * 1000, ack: 0, window: 65_000 }
    }

    /// A connection that was begun before.
    pub fn resume(&mut self, state: State) -> Connection<'_> {
        let State { from, to, seq, ack } = state;
        Connection { peer: self, from, to, seq, ack, window: 65_000 }
    }

    /// The next segment of the host's for one of the peer's ports.
    fn receive(&mut self, port: u16) -> Result<Segment> {
        let deadline = Instant::now() + ANSWER_MAX;
        let mut packet = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            if poll(&mut [PollFd::new(&self.tun.as_fd(), PollFlags::IN)], Some(&left))? == 0 {
                bail!("the host has not answered port {port} within {ANSWER_MAX:?}");
            }
            let length = match self.tun.read(&mut packet) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error).context("reading a packet"),
            };
            if let Some(segment) = read(&packet[..length])
                && segment.port == port
            {
                return Ok(segment);
            }
        }
    }
}

/// The saved state of a connection, while the peer uses others.
#[derive(Clone, Copy, Debug)]
pub struct State {
    from: u16,
    to: u16,
    seq: u32,
    ack: u32,
}

impl Connection<'_> {
    /// Its state, to continue with it later.
    pub fn state(&self) -> State {
        State { from: self.from, to: self.to, seq: self.seq, ack: self.ack }
    }

    /// Sends a segment, and advances the sequence number.
    pub fn send(&mut self, flags: u8, options: &[u8], data: &[u8]) -> Result<()> {
        let ack = if flags & ACK == 0 { 0 } else { self.ack };
        let segment = tcp(self.from, self.to, self.seq, ack, flags, self.window, options, data);
        self.peer.tun.write_all(&ip(&segment)).context("sending a packet")?;
        self.seq = self.seq.wrapping_add(data.len() as u32 + u32::from(flags & (SYN | FIN) != 0));
        Ok(())
    }

    /// Waits for a segment of the host that has all these flags, and consumes the segments before it.
    pub fn expect(&mut self, flags: u8) -> Result<Segment> {
        loop {
            let segment = self.peer.receive(self.from)?;
            ensure!(segment.flags & RST == 0 || flags & RST != 0, "the host has reset the connection: {segment:?}");
            let end = u32::from(segment.flags & (SYN | FIN) != 0) + segment.data.len() as u32;
            if segment.flags & SYN != 0 || segment.seq == self.ack {
                self.ack = segment.seq.wrapping_add(end);
            }
            if segment.flags & flags == flags {
                return Ok(segment);
            }
        }
    }

    /// The first two segments of the handshake.
    pub fn half_open(&mut self) -> Result<Segment> {
        self.send(SYN, &[], &[])?;
        self.expect(SYN | ACK)
    }

    /// The complete handshake.
    pub fn open(&mut self) -> Result<()> {
        self.half_open()?;
        self.send(ACK, &[], &[])
    }

    /// The reset of a peer.
    pub fn reset(&mut self) -> Result<()> {
        self.send(RST | ACK, &[], &[])
    }

    /// Closes first: waits for the host's own end, and acknowledges it.
    pub fn close(&mut self) -> Result<()> {
        self.send(FIN | ACK, &[], &[])?;
        self.expect(FIN)?;
        self.send(ACK, &[], &[])
    }
}

fn open_tun() -> Result<File> {
    /// `struct ifreq`, as far as `TUNSETIFF` reads it.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let tun = File::options().read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
    let mut name = [0; libc::IFNAMSIZ];
    name[..4].copy_from_slice(b"tun0");
    let request = Request { name, flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short, rest: [0; 22] };
    // SAFETY: the descriptor is open, and the request lives through the call and has the size of a `struct ifreq`.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw const request) };
    ensure!(result == 0, "making a TUN device: {}", std::io::Error::last_os_error());
    Ok(tun)
}

#[expect(clippy::too_many_arguments, reason = "the fields of a header")]
fn tcp(from: u16, to: u16, seq: u32, ack: u32, flags: u8, window: u16, options: &[u8], data: &[u8]) -> Vec<u8> {
    let mut options = options.to_vec();
    options.resize(options.len().next_multiple_of(4), 1);
    let words = 5 + options.len() / 4;
    let mut segment = Vec::new();
    segment.extend(from.to_be_bytes());
    segment.extend(to.to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([(words as u8) << 4, flags]);
    segment.extend(window.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(options);
    segment.extend(data);
    let length = segment.len() as u16;
    let pseudo = [&PEER.octets()[..], &HOST.octets(), &[0, 6], &length.to_be_bytes(), &segment].concat();
    segment[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    segment
}

fn ip(segment: &[u8]) -> Vec<u8> {
    let length = 20 + segment.len() as u16;
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    header.extend(PEER.octets());
    header.extend(HOST.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header, segment].concat()
}

/// The checksum of RFC 1071.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// A TCP segment over IPv4; `None` for any other packet.
fn read(packet: &[u8]) -> Option<Segment> {
    let (first, protocol) = (*packet.first()?, *packet.get(9)?);
    if first >> 4 != 4 || protocol != 6 {
        return None;
    }
    let tcp = packet.get(usize::from(first & 15) * 4..)?;
    let word = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
    let header = usize::from(*tcp.get(12)? >> 4) * 4;
    Some(Segment {
        port: u16::from_be_bytes(tcp.get(2..4)?.try_into().ok()?),
        flags: *tcp.get(13)?,
        seq: word(4)?,
        ack: word(8)?,
        options: tcp.get(20..header)?.to_vec(),
        data: tcp.get(header..)?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_internets() {
        // The example of RFC 1071.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&ip(&[])[..20]), 0, "a header with its checksum adds up");
    }

    #[test]
    fn written_values_are_read_back() {
        let packet = ip(&tcp(1, 2, 3, 4, SYN | ACK, 5, &[2, 4, 5, 180], b"data"));
        let segment = read(&packet).expect("it is one");
        assert_eq!((segment.port, segment.flags, segment.seq, segment.ack), (2, SYN | ACK, 3, 4));
        assert_eq!((segment.options, segment.data), (vec![2, 4, 5, 180], b"data".to_vec()));
        assert!(read(&[0x60, 0]).is_none() && read(&packet[..15]).is_none());
    }
}
