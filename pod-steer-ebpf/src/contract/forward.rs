//! Containers in network namespaces of their own: what their backends' slots look like, where packets go, and which connections do.

/// How a slot's socket is reached, in bits 30 and 31 of [`crate::Slot::backend`]: it is in the ingress namespace.
pub const WAY_SOCKET: u32 = 0;
/// Its packets are rewritten and forwarded.
pub const WAY_FORWARD: u32 = 1;
/// It holds the clients of a paused service, in the ingress namespace. Higher values stand for the listener of a pause.
pub const WAY_HOLD: u32 = 2;

/// Number of bits of [`crate::Slot::backend`] below the way.
pub const SLOT_WAY_SHIFT: u32 = 30;

/// The word of a slot for a backend that is reached in this way.
pub const fn slot_backend(index: u32, way: u32) -> u32 {
    index | way << SLOT_WAY_SHIFT
}

/// Maximum number of [`Flow`]s of established connections: two for each.
pub const FLOWS_MAX: u32 = 262_144;
/// Maximum number of [`Flow`]s that may be evicted: of connections of which no live socket has been seen yet, of those that have ended, and
/// of those that were kept. The oldest ones make room.
pub const PENDING_MAX: u32 = 65_536;
/// Number of 64-bit words of the map of forwarded ports: a bit for each port that clients come to, then one for each port that
/// forwarded packets go to.
pub const FORWARDED_WORDS: u32 = 2_048;
/// Maximum number of connections that are known not to be forwarded.
pub const MISSES_MAX: u32 = 8_192;
/// The mark of a rewritten packet, by which a firewall knows it (`skb->mark`). Docker, Kubernetes and firewalld use other bits.
pub const FORWARD_MARK: u32 = 0x4000_0000;

/// Maximum number of [`Candidate`]s, over all services and ports.
pub const CANDIDATES_MAX: u32 = 65_536;
/// Steps by which each processor looks for connections whose entries are lost, in a second. A step is a look for one socket of one server, some
/// 200 ns: all of them cost about a fifth of the processor.
pub const ADOPTION_STEPS_PER_S: u64 = 1_000_000;
/// What each look costs besides, in steps.
pub const ADOPTION_STEPS: u64 = 10;

/// Place of a port in the map of forwarded ports: the word, and the bit in it.
pub const fn forwarded_place(port: u16, is_target: bool) -> (u32, u32) {
    ((port >> 6) as u32 | (is_target as u32) << 10, (port & 63) as u32)
}

/// One direction of a connection, as its packets have it. Key of the maps of flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// In network byte order, IPv4 in the first word.
    pub source: [u32; 4],
    /// The same.
    pub destination: [u32; 4],
    /// In network byte order.
    pub source_port: u16,
    /// In network byte order.
    pub destination_port: u16,
    /// [`crate::FAMILY_V4`] or [`crate::FAMILY_V6`].
    pub family: u8,
    /// 1 for the direction from the container. [`EXPECTED_SYN`] for the key of a SYN that has another source where it leaves.
    pub reply: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// [`Tuple::reply`] of a key that finds a SYN by its sequence number, which is in the place of the source.
pub const EXPECTED_SYN: u8 = 2;

impl Tuple {
    /// The other direction of packets like these.
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            family: self.family,
            reply: 1 - self.reply,
            pad: [0; 2],
        }
    }
}

/// What becomes of the packets of one direction of a connection. Its layout never changes: see `kernel/layouts.rs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// What they become. The entry of the other direction leads back.
    pub to: Tuple,
    /// Cookie of the listener that was chosen for the SYN; 0 if the connection was adopted.
    pub cookie: u64,
    /// Time of the last packet by the kernel's coarse clock, at most a second late.
    pub seen_ns: u64,
    /// Index of the backend.
    pub backend: u32,
    /// Index of the service.
    pub service: u32,
    /// The container's network namespace, as the ingress namespace numbers it.
    pub nsid: i32,
    /// Some of the `FLOW_` flags.
    pub flags: u32,
    /// Index of the device by which its packets are handed over, past the kernel's forwarding; zero if they are forwarded.
    pub device: u32,
    /// Sequence number of the SYN, in network byte order.
    pub sequence: u32,
}

/// The choice was a socket of the ingress namespace: its packets pass, and `sk_lookup` assigns the cookie.
pub const FLOW_LOCAL: u32 = 1;
/// The source is rewritten too.
pub const FLOW_SOURCE: u32 = 2;
/// The client has sent FIN.
pub const FLOW_FIN: u32 = 4;
/// The server has sent FIN.
pub const FLOW_FIN_REPLY: u32 = 8;
/// One of them has sent RST.
pub const FLOW_RST: u32 = 16;
/// It was found by the server's socket, after its entries were lost.
pub const FLOW_ADOPTED: u32 = 32;
/// The client's packets are handed over into the container's namespace, past the kernel's forwarding.
pub const FLOW_PEER: u32 = 64;

/// The rewrite of a reply, computed at ingress and applied at egress. Its layout never changes, as that of [`Flow`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The reply as it came.
    pub tuple: Tuple,
    /// What it becomes.
    pub to: Tuple,
    /// Its sequence number, in network byte order.
    pub sequence: u32,
    /// Flags of its TCP header.
    pub flags: u32,
    /// Index of the service.
    pub service: u32,
    /// Where its TCP header begins; zero if there was no reply yet.
    pub tcp: u32,
}

/// Where the packets of a backend go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// Cookie of the ingress namespace.
    pub ingress_cookie: u64,
    /// Cookie of the container's.
    pub netns_cookie: u64,
    /// The container's address, in network byte order; zero if it has none.
    pub v4: u32,
    /// The container's network namespace, as the ingress namespace numbers it.
    pub nsid: i32,
    /// The same, of IPv6.
    pub v6: [u32; 4],
    /// An address of the ingress namespace that the container reaches on its link: by rule its next hop; zero if it has none.
    pub gateway_v4: u32,
    /// Index of the device that leads to the container: its bridge, or the end of its pair.
    pub device: u32,
    /// The same as `gateway_v4`, of IPv6.
    pub gateway_v6: [u32; 4],
}

/// A backend, and a device by which clients come that it would answer past this machine: by another of its devices, or by another router.
/// In place of the addresses of these clients, which are in the entry's [`Network`], it sees that of [`Destination::gateway_v4`] or its like.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Link {
    /// Index of the backend.
    pub backend: u32,
    /// Index of the device.
    pub device: u32,
    /// [`crate::FAMILY_V4`] or [`crate::FAMILY_V6`].
    pub family: u32,
}

/// Addresses that are equal in the bits of a mask. Both are in network byte order, IPv4 in the first word.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// One of the addresses.
    pub address: [u32; 4],
    /// The bits that count.
    pub mask: [u32; 4],
}

/// Maximum number of [`Link`]s.
pub const LINKS_MAX: u32 = 65_536;

/// Of the tries for another source port, so many take one above those that programs get from the kernel. Then no program that connects to the
/// container directly gets the same, and no translation of the firewall, which keeps a client's port if it can.
const TRIES_ABOVE: u32 = 6;
/// If there are fewer ports above, those above the default range take their place.
const PORTS_ABOVE_MIN: u16 = 1_024;
const DEFAULT_LOCAL_MAX: u16 = 60_999;
/// The try after those takes the client's own port, as a translation of the firewall does: the clients of one address have different ones.
const TRY_OWN: u32 = TRIES_ABOVE;
/// The other tries take one of those below the default range, but for the well-known ones. Few clients have one of them, unless their range
/// was changed. Those within it are in use, for a minute each, if a client opens connections all the time.
const SOURCE_PORT_MIN: u16 = 1_024;
const SOURCE_PORT_END: u16 = 32_768;

/// The source port for the try with this number, by a hash. `own` is the client's, and `local_max` the last port that programs get from the
/// kernel.
pub const fn source_port(hash: u64, number: u32, own: u16, local_max: u16) -> u16 {
    if number == TRY_OWN {
        return own;
    }
    if number > TRY_OWN {
        let ports = (SOURCE_PORT_END - SOURCE_PORT_MIN) as u32;
        return SOURCE_PORT_MIN + ((hash as u16 as u32 * ports) >> 16) as u16;
    }
    let below = if u16::MAX - local_max < PORTS_ABOVE_MIN { DEFAULT_LOCAL_MAX } else { local_max };
    let above = (u16::MAX - below) as u32;
    below + 1 + ((hash as u16 as u32 * above) >> 16) as u16
}

/// Key of a backend that may have a connection. Number 0 is that of the [`Candidate`] which holds their count.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CandidateKey {
    /// Index of the service.
    pub service: u32,
    /// Port that its clients come to.
    pub front: u16,
    /// From 1.
    pub number: u16,
}

/// A backend that may have a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Its index; for the number 0, how many there are.
    pub backend: u32,
    /// Port on which it listens.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}
