//! From a packet to a slot: rules, maps of ports, switches, networks, probes and slot tables.

use crate::FAMILY_V6;
#[cfg(doc)]
use crate::{FAMILY_V4, NONE, PROTO_TCP, PROTO_UDP};

/// What a lookup is matched against. A lookup asks in the kernel's own order: address and device, address, device, neither.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleKey {
    /// The ingress namespace (`SO_NETNS_COOKIE`): unique until the machine restarts, unlike an inode number.
    pub netns_cookie: u64,
    /// Local address in network byte order, IPv4 in the first four bytes; all zero for any address of this family.
    pub addr: [u8; 16],
    /// Local port.
    pub port: u16,
    /// [`PROTO_TCP`] or [`PROTO_UDP`].
    pub proto: u8,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Index of the device that the packet comes by, as the kernel's own lookup sees it; zero for any.
    pub ifindex: u32,
}

/// The service that a rule's traffic belongs to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Index of the slot table, or [`NONE`]: the packet is left to the kernel's own lookup. Each table has two sides; see
    /// [`table_index`].
    pub table: u32,
    /// Index of the service: of its counters and of its switch.
    pub service: u32,
    /// [`FALLBACK_REFUSE`] or [`FALLBACK_PASS`].
    pub fallback: u16,
    /// Some of the `RULE_` flags.
    pub flags: u16,
    /// A hint: how many slots its table has. Where it is right, a lookup need not read the table's header; a slot says
    /// itself whether it is ([`Slot::slots`]).
    pub slots: u32,
    /// Index of the one backend that may serve its clients, or [`NONE`] where there are several or none. If no table has a
    /// socket for a client, this backend's newest listener is given to it, which the daemon may not know yet.
    pub only: u32,
    /// Port that this backend listens on.
    pub target: u16,
    /// Leading bits of an IPv4 client's address that alone choose its slot; 0 if the whole connection does.
    pub client_bits_v4: u8,
    /// The same for an IPv6 client.
    pub client_bits_v6: u8,
    /// Zero. Of a later release, as tests upgrade to it.
    #[cfg(feature = "test-layout")]
    pub later: u64,
}

/// No backend left: the client is refused.
pub const FALLBACK_REFUSE: u16 = 0;
/// No backend left: the kernel's own lookup decides.
pub const FALLBACK_PASS: u16 = 1;
/// On a rule for any address and any device: rules for single addresses exist too and come first.
pub const RULE_HAS_ADDRESSES: u16 = 1;
/// On a rule for any address and any device: rules for single devices exist too and come first.
pub const RULE_HAS_DEVICES: u16 = 2;
/// The rule belongs to a claim on every address of its port. Read by a later daemon only.
pub const RULE_OF_PORT: u16 = 4;
/// A listener that is not managed keeps its clients: the rule claims nothing. Read by a later daemon only.
pub const RULE_FOREIGN: u16 = 8;
/// Clients that come to this port reach no socket; the rule is no claim. Read by a later daemon only.
pub const RULE_HIDDEN: u16 = 16;
/// No backend has listened there yet: the rule claims nothing, and leads to listeners that are opened on demand. Read by a
/// later daemon only.
pub const RULE_ON_DEMAND: u16 = 32;

/// Entries of a namespace's map of ports: two ports each, and both families ([`port_place`]).
pub const PORT_WORDS: u32 = 32_768;
/// In a namespace's map of ports: ask the rules, since some are for single addresses or devices, as the bits
/// [`ASK_ADDRESSES`] and [`ASK_DEVICES`] say. Zero says that there is no rule, any smaller value is one more than the table
/// of the rule.
pub const ASK_RULES: u16 = 0xfffc;
/// See [`ASK_RULES`].
pub const ASK_ADDRESSES: u16 = 1;
/// See [`ASK_RULES`].
pub const ASK_DEVICES: u16 = 2;

/// Where a TCP port is in a namespace's map of ports: the entry, and the bit at which its 16 begin.
pub const fn port_place(port: u16, family: u8) -> (u32, u32) {
    ((port >> 1) as u32, ((port & 1) as u32) << 5 | ((family == FAMILY_V6) as u32) << 4)
}

/// The switch of a service: one word, so that all its tables change in one write.
///
/// Bit 0 is the side that lookups use, bit 1 says that networks have tables of their own there, and the other bits are the
/// revision of the operator's decisions that is in force ([`switch`]).
pub const SWITCH_SIDE: u32 = 1;
/// See [`SWITCH_SIDE`].
pub const SWITCH_HAS_SOURCES: u32 = 2;
/// Bits below the revision.
pub const SWITCH_REVISION_SHIFT: u32 = 2;

/// Puts a switch together; a revision keeps its 30 lowest bits.
pub const fn switch(side: u32, has_sources: bool, revision: u32) -> u32 {
    side & SWITCH_SIDE | (has_sources as u32) << 1 | revision << SWITCH_REVISION_SHIFT
}

/// Where one side of a table is in the map of tables.
pub const fn table_index(table: u32, side: u32) -> u32 {
    table << 1 | side & SWITCH_SIDE
}

/// Clients of one network have a table of their own: a key of a longest-prefix-match map, which wants the length first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceKey {
    /// [`table_index`] of the rule's table, in network byte order: a prefix of bits begins at the first one.
    pub scope: [u8; 4],
    /// The client's address in network byte order; IPv4 in the first four bytes.
    pub addr: [u8; 16],
}

/// Bits of a [`SourceKey`] before the address.
pub const SOURCE_SCOPE_BITS: u32 = 32;

/// What a probe is matched by, besides coming from a loopback address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeKey {
    /// Namespace in which the probe is made.
    pub netns_cookie: u64,
    /// Address that the probe goes to, in network byte order; IPv4 in the first four bytes.
    pub destination: [u8; 16],
    /// Port that it comes from, in host byte order.
    pub source_port: u16,
    /// Port that it goes to, in host byte order.
    pub destination_port: u16,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Zero.
    pub pad: [u8; 3],
}

impl ProbeKey {
    /// The key for what a kernel program sees: addresses and the source port in network byte order, the other in host byte order.
    #[inline(always)]
    pub fn seen(
        netns_cookie: u64,
        family: u8,
        source_port: u16,
        destination: &[u32; 4],
        destination_port: u16,
    ) -> Self {
        let mut addr = [0; 16];
        for (bytes, word) in addr.chunks_exact_mut(4).zip(destination) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        let source_port = u16::from_be(source_port);
        Self { netns_cookie, destination: addr, source_port, destination_port, family, pad: [0; 3] }
    }
}

/// IPv4 address that every probe comes from, in network byte order: 127.83.84.1. IPv6 probes come from ::1.
pub const PROBE_SOURCE_V4: [u8; 4] = [127, 83, 84, 1];

/// One entry of a slot table. Entry 0 is the header ([`Slot::header`]); then come the slots, as many as the header
/// says (a power of two); then every distinct socket of the table once, its members; then its reserve; then the sockets that are
/// withheld from clients.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Cookie of the listening socket. In the header: the numbers of members and reserve.
    pub cookie: u64,
    /// Index of the backend that owns the socket, or [`NONE`] for the socket of a paused service, which lets SYNs vanish.
    /// In the header: the number of slots.
    pub backend: u32,
    /// In a slot: the number of slots of the table. In the header: the number of withheld sockets. Zero in every other entry.
    pub slots: u32,
    /// Zero. Of a later release, as tests upgrade to it.
    #[cfg(feature = "test-layout-more")]
    pub later: u64,
}

impl Slot {
    /// An entry of its three numbers.
    pub const fn new(cookie: u64, backend: u32, slots: u32) -> Self {
        Self {
            cookie,
            backend,
            slots,
            #[cfg(feature = "test-layout-more")]
            later: 0,
        }
    }

    /// The first entry of a table of `slots` slots (a power of two, or 0), `members` members, `reserve` more that serve
    /// only while no member does, and `withheld` that never do.
    pub const fn header(slots: u32, members: u32, reserve: u32, withheld: u32) -> Self {
        Self::new((reserve as u64) << 32 | members as u64, slots, withheld)
    }

    /// Members and reserve of the table that this is the first entry of.
    pub const fn counts(&self) -> (u32, u32) {
        (self.cookie as u32, (self.cookie >> 32) as u32)
    }
}
