//! Packets that no socket of their sender has made: SYNs with spoofed sources, whose senders never answer, and strays of no connection.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    ops::Range,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use crate::{host::Client, netns::NetNs, segments::checksum};

/// The sources are in this network. The host has a route for it to the sender, which discards the answers.
const SOURCES: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 0);
/// Number of addresses there.
const ADDRESSES: u64 = 1 << 16;
/// The sender pauses after so many SYNs, so that other processes get a turn on a machine with few processors.
const BATCH: u64 = 256;
const PAUSE: Duration = Duration::from_millis(1);

/// A flood that is under way.
#[derive(Debug)]
pub struct Flood {
    sender: JoinHandle<Result<()>>,
    sent: Arc<AtomicU64>,
}

impl Flood {
    /// Sends `count` SYNs from a client's namespace, each from another address and port.
    pub fn start(host: &NetNs, client: &Client, target: SocketAddrV4, count: u64) -> Result<Self> {
        host.ip(&format!("route replace {SOURCES}/16 via {}", client.ip4))?;
        let (ns, sent) = (client.ns.try_clone()?, Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&sent);
        let packets = move |number| syn(number, target);
        let sender = thread::spawn(move || send_all(&ns, target, count, packets, &counter));
        Ok(Self { sender, sent })
    }

    /// SYNs that were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether all were sent.
    pub fn is_over(&self) -> bool {
        self.sender.is_finished()
    }

    /// Waits until all were sent.
    pub fn join(self) -> Result<()> {
        self.sender.join().map_err(|_| anyhow!("the sender panicked"))?
    }
}

/// Sends acknowledgements of connections that do not exist from an address of the calling thread's namespace: one from each of these ports.
pub fn strays(ns: &NetNs, source: Ipv4Addr, ports: Range<u16>, target: SocketAddrV4) -> Result<()> {
    let first = ports.start;
    let packets = move |number| {
        let source = SocketAddrV4::new(source, first + number as u16);
        segment(source, target, scattered(number), scattered(number + 1), ACK)
    };
    send_all(ns, target, ports.len() as u64, packets, &AtomicU64::new(0))
}

fn send_all(
    ns: &NetNs,
    target: SocketAddrV4,
    count: u64,
    packets: impl Fn(u64) -> [u8; 40],
    sent: &AtomicU64,
) -> Result<()> {
    let raw = ns.run(|| socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW)));
    let raw = raw.context("opening a raw socket")?;
    for number in 0..count {
        send(&raw, &packets(number), target)?;
        sent.store(number + 1, Ordering::Relaxed);
        if number % BATCH == BATCH - 1 {
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// A number of 32 bits that is far from those of its neighbours.
fn scattered(number: u64) -> u32 {
    (number as u32).wrapping_mul(2_654_435_761)
}

const SYN: u8 = 2;
const ACK: u8 = 16;

/// An IPv4 packet with a SYN. The number determines its source.
fn syn(number: u64, target: SocketAddrV4) -> [u8; 40] {
    let source = Ipv4Addr::from(u32::from(SOURCES) + (number % ADDRESSES) as u32);
    let port = 1024 + (number / ADDRESSES) as u16;
    segment(SocketAddrV4::new(source, port), target, scattered(number), 0, SYN)
}

/// An IPv4 packet with a TCP header and nothing behind it.
fn segment(source: SocketAddrV4, target: SocketAddrV4, sequence: u32, acknowledged: u32, flags: u8) -> [u8; 40] {
    let mut packet = [0; 40];
    // The kernel sets the IP header's checksum and id (raw(7)).
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&40u16.to_be_bytes());
    packet[8..10].copy_from_slice(&[64, 6]);
    packet[12..16].copy_from_slice(&source.ip().octets());
    packet[16..20].copy_from_slice(&target.ip().octets());
    packet[20..22].copy_from_slice(&source.port().to_be_bytes());
    packet[22..24].copy_from_slice(&target.port().to_be_bytes());
    packet[24..28].copy_from_slice(&sequence.to_be_bytes());
    packet[28..32].copy_from_slice(&acknowledged.to_be_bytes());
    // A header of five words, the flags, and a window.
    packet[32..36].copy_from_slice(&[5 << 4, flags, 0xff, 0xff]);
    let pseudo = [&packet[12..20], &[0, 6, 0, 20], &packet[20..]].concat();
    packet[36..38].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    packet
}

fn send(raw: &OwnedFd, packet: &[u8], target: SocketAddrV4) -> Result<()> {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(target.ip().octets()) },
        sin_zero: [0; 8],
    };
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the packet and the address live during the call and have the lengths that are passed.
    let sent = unsafe {
        libc::sendto(raw.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, (&raw const address).cast(), length)
    };
    ensure!(sent == packet.len() as isize, "sending a packet: {}", std::io::Error::last_os_error());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_has_its_own_source_and_a_valid_checksum() {
        let target = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 80);
        let (first, last) = (syn(1, target), syn(ADDRESSES + 1, target));
        assert_eq!(first[12..16], [10, 66, 0, 1]);
        assert_eq!(first[12..16], last[12..16]);
        assert_ne!(first[20..22], last[20..22], "another port");
        let pseudo = [&first[12..20], &[0, 6, 0, 20], &first[20..]].concat();
        assert_eq!(checksum(&pseudo), 0);
    }
}
