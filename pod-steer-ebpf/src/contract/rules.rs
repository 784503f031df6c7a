//! From a packet to a slot: rules, maps of ports, switches, networks, probes and slot tables.

#[cfg(doc)]
use crate::{FAMILY_V4, NONE, PROTO_TCP, PROTO_UDP, slot_backend};
use crate::{FAMILY_V6, SLOT_WAY_SHIFT, WAY_HOLD};

/// Key of a rule. A lookup tries keys in the kernel's own order: address and device, address, device, neither.
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

/// The service that a rule's traffic belongs to, and how to find its sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Index of the slot table, or [`NONE`] to leave the packet to the kernel's own lookup. Each table has two sides;
    /// see [`table_index`].
    pub table: u32,
    /// Index of the service: of its counters and of its switch.
    pub service: u32,
    /// [`FALLBACK_REFUSE`] or [`FALLBACK_PASS`].
    pub fallback: u16,
    /// Some of the `RULE_` flags.
    pub flags: u16,
    /// A hint: the number of slots of its table. If it is right, a lookup need not read the table's header. Each slot
    /// shows whether it is ([`Slot::slots`]).
    pub slots: u32,
    /// Index of the only backend that may serve its clients, or [`NONE`] if there are several or none. If no table has
    /// a socket for a client, the client gets this backend's newest listener, which the daemon may not know yet.
    pub only: u32,
    /// Port that this backend listens on.
    pub target: u16,
    /// Number of leading bits of an IPv4 client's address that alone select its slot; 0 if the 4-tuple does.
    pub client_bits_v4: u8,
    /// The same for an IPv6 client.
    pub client_bits_v6: u8,
    /// Zero. A field of the later release to which tests upgrade.
    #[cfg(feature = "test-layout")]
    pub later: u64,
}

/// If no backend is left, the client is refused.
pub const FALLBACK_REFUSE: u16 = 0;
/// If no backend is left, the kernel's own lookup decides.
pub const FALLBACK_PASS: u16 = 1;
/// Flag of a rule for any address and any device: rules for single addresses exist too and come first.
pub const RULE_HAS_ADDRESSES: u16 = 1;
/// Flag of a rule for any address and any device: rules for single devices exist too and come first.
pub const RULE_HAS_DEVICES: u16 = 2;
/// Flag: the rule belongs to a claim on every address of its port. Only a later daemon and own connections look at it.
pub const RULE_OF_PORT: u16 = 4;
/// Flag: an unmanaged listener keeps its clients, and the rule claims nothing. Only a later daemon and own connections
/// look at it.
pub const RULE_FOREIGN: u16 = 8;
/// Flag: clients that come to this port reach no socket, and the rule claims nothing. Only a later daemon and own
/// connections look at it.
pub const RULE_HIDDEN: u16 = 16;
/// Flag: no backend has listened there yet. The rule claims nothing, and leads to listeners that are opened on demand.
/// Only a later daemon and own connections look at it.
pub const RULE_ON_DEMAND: u16 = 32;

/// Number of entries in a namespace's map of ports. Each holds two ports in both families ([`port_place`]).
pub const PORT_WORDS: u32 = 32_768;
/// Value in a namespace's map of ports: look up the rules, because some are for single addresses or devices, as the
/// bits [`ASK_ADDRESSES`] and [`ASK_DEVICES`] tell. Zero means that there is no rule; any smaller value is the rule's
/// table plus one.
pub const ASK_RULES: u16 = 0xfffc;
/// See [`ASK_RULES`].
pub const ASK_ADDRESSES: u16 = 1;
/// See [`ASK_RULES`].
pub const ASK_DEVICES: u16 = 2;

/// Place of a TCP port in a namespace's map of ports: the entry, and the lowest of its 16 bits.
pub const fn port_place(port: u16, family: u8) -> (u32, u32) {
    ((port >> 1) as u32, ((port & 1) as u32) << 5 | ((family == FAMILY_V6) as u32) << 4)
}

/// The switch of a service: one word, so that one write changes all its tables.
///
/// Bit 0 is the side that lookups use. Bit 1 tells that networks have tables of their own on that side. The other bits
/// are the revision of the operator's decision that is in force ([`switch`]).
pub const SWITCH_SIDE: u32 = 1;
/// See [`SWITCH_SIDE`].
pub const SWITCH_HAS_SOURCES: u32 = 2;
/// Number of bits below the revision.
pub const SWITCH_REVISION_SHIFT: u32 = 2;

/// Builds a switch. The 30 lowest bits of a revision are kept.
pub const fn switch(side: u32, has_sources: bool, revision: u32) -> u32 {
    side & SWITCH_SIDE | (has_sources as u32) << 1 | revision << SWITCH_REVISION_SHIFT
}

/// Index of one side of a table in the map of tables.
pub const fn table_index(table: u32, side: u32) -> u32 {
    table << 1 | side & SWITCH_SIDE
}

/// A network whose clients have a table of their own: key of a longest-prefix-match map, in which the prefix length
/// precedes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceKey {
    /// [`table_index`] of the rule's table, in network byte order, because a prefix begins at the first bit.
    pub scope: [u8; 4],
    /// The client's address in network byte order; IPv4 in the first four bytes.
    pub addr: [u8; 16],
}

/// Bits of a [`SourceKey`] before the address.
pub const SOURCE_SCOPE_BITS: u32 = 32;

/// Key of a probe. The probe must also come from a loopback address.
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
    /// The key in the terms of a kernel program: addresses and the source port in network byte order, the other port in
    /// host byte order.
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

/// One entry of a slot table. Entry 0 is the header ([`Slot::header`]). Then come the slots, whose number the header
/// holds (a power of two); then the members, which are the table's distinct sockets; then the reserve; then the
/// withheld sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Cookie of the listening socket. In the header: the numbers of members and reserve.
    pub cookie: u64,
    /// Index of the backend that owns the socket and the way to it ([`slot_backend`]), or [`NONE`] for the listener of a pause, which
    /// discards SYNs. In the header: the number of slots.
    pub backend: u32,
    /// In a slot: the number of slots of the table. In the header: the number of withheld sockets. Zero in every other entry.
    pub slots: u32,
    /// Zero. A field of the later release to which tests upgrade.
    #[cfg(feature = "test-layout-more")]
    pub later: u64,
}

impl Slot {
    /// An entry made of its three numbers.
    pub const fn new(cookie: u64, backend: u32, slots: u32) -> Self {
        Self {
            cookie,
            backend,
            slots,
            #[cfg(feature = "test-layout-more")]
            later: 0,
        }
    }

    /// The header of a table with `slots` slots (a power of two, or 0), `members` members, `reserve` sockets that serve
    /// only while no member does, and `withheld` sockets that never serve.
    pub const fn header(slots: u32, members: u32, reserve: u32, withheld: u32) -> Self {
        Self::new((reserve as u64) << 32 | members as u64, slots, withheld)
    }

    /// How the socket is reached: one of the `WAY_` constants, or another number for the listener of a pause.
    pub const fn way(&self) -> u32 {
        self.backend >> SLOT_WAY_SHIFT
    }

    /// Whether clients wait there because the service is paused.
    pub const fn waits(&self) -> bool {
        self.way() >= WAY_HOLD
    }

    /// Index of the backend, unless it is [`NONE`].
    pub const fn index(&self) -> u32 {
        self.backend & ((1 << SLOT_WAY_SHIFT) - 1)
    }

    /// The numbers of members and of the reserve, for a header.
    pub const fn counts(&self) -> (u32, u32) {
        (self.cookie as u32, (self.cookie >> 32) as u32)
    }
}
