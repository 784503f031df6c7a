//! The contract between the kernel programs and the daemon: every type that crosses it, and every limit both sides
//! must agree on. Integers have a fixed width and native byte order unless a field says otherwise; padding is explicit.
//!
//! A change here that an older daemon or program would misread increases [`ABI_VERSION`].
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

/// Version of this contract, kept in [`Meta`]. Pinned maps of another version are never adopted.
pub const ABI_VERSION: u32 = 4;

/// Protocol number of TCP (`IPPROTO_TCP`).
pub const PROTO_TCP: u8 = 6;
/// Protocol number of UDP (`IPPROTO_UDP`); the key has room for it, nothing steers it yet.
pub const PROTO_UDP: u8 = 17;
/// Protocol number of MPTCP (`IPPROTO_MPTCP`); it does not fit in the 8 bits of an IP header on purpose.
pub const PROTO_MPTCP: u32 = 262;
/// Address family of IPv4 (`AF_INET`).
pub const FAMILY_V4: u8 = 2;
/// Address family of IPv6 (`AF_INET6`).
pub const FAMILY_V6: u8 = 10;

/// Most slot tables, and so most rules, at one time.
pub const TABLES_MAX: u32 = 32_768;
/// Most services at one time; one [`ServiceCounters`] each.
pub const SERVICES_MAX: u32 = 16_384;
/// Most backends at one time unless the daemon asks for another number; one [`BackendCounters`] each.
pub const BACKENDS_MAX_DEFAULT: u32 = 4_096;
/// Most networks with a table of their own at one time, over all rules and both sides.
pub const SOURCES_MAX: u32 = 65_536;
/// Most probes under way at one time.
pub const PROBES_UNDER_WAY_MAX: u32 = 4_096;
/// Most listening sockets at one time.
pub const SOCKETS_MAX: u32 = 65_536;
/// Most (backend, container port) pairs at one time.
pub const MANAGED_PORTS_MAX: u32 = 131_072;
/// Most ports whose user is known at one time.
pub const PORT_USERS_MAX: u32 = 32_768;
/// Index of the count of events that found the ring full.
pub const LOST_EVENTS: u32 = 0;
/// Index of the count of listening sockets whose description found its map full.
pub const LOST_DESCRIPTIONS: u32 = 1;
/// Number of those counts.
pub const LOST_MAX: u32 = 2;
/// Bytes of one part of a note.
pub const NOTE_BYTES: usize = 512;
/// Most parts of notes at one time.
pub const NOTES_MAX: u32 = 262_144;
/// Most (backend, address, port) of [`OwnListener`]s at one time.
pub const OWN_LISTENERS_MAX: u32 = SOCKETS_MAX;
/// Most [`OwnPort`]s at one time: both families of every managed port.
pub const OWN_PORTS_MAX: u32 = 2 * MANAGED_PORTS_MAX;
/// Most connections of backends to their own ports at one time; one more is steered as any client's.
pub const OWN_CONNECTIONS_MAX: u32 = 65_536;
/// Counters in front of the map of own connections, see [`own_source`].
pub const OWN_SOURCES: u32 = 2_048;
/// Bytes of the event ring.
pub const EVENTS_BYTES: u32 = 1 << 20;
/// Slots that are tried by hash before the table's members are walked one by one.
pub const PROBES_MAX: u32 = 8;
/// Most members of a table that one walk visits.
pub const WALK_MAX: u32 = 65_536;

/// Key of the daemon's own socket among the listeners: no socket has this cookie. The kernel removes the socket when the daemon
/// ends, however it ends.
pub const DAEMON_COOKIE: u64 = 0;

/// "No such index": of a table, a backend, a service.
pub const NONE: u32 = u32::MAX;

/// Written once, when the state is made; read back by every later daemon.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// [`ABI_VERSION`] of the daemon that made the state.
    pub abi: u32,
    /// Number of entries of the backend counters.
    pub backends_max: u32,
    /// Secret of the 4-tuple hash. It outlives the daemon: a SYN cookie's final ACK must find the slot of its SYN.
    pub seed: u64,
}

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
    /// Zero.
    pub pad: u16,
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
/// Nobody is to come to a socket by this port: the rule claims nothing. Read by a later daemon only.
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

/// The client's end of a probe: what it is matched by, besides being a loopback address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeKey {
    /// Namespace in which the probe is made.
    pub netns_cookie: u64,
    /// Port that the probe comes from, in network byte order.
    pub port: u16,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Zero.
    pub pad: [u8; 5],
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
}

impl Slot {
    /// The first entry of a table of `slots` slots (a power of two, or 0), `members` members, `reserve` more that serve
    /// only while no member does, and `withheld` that never do.
    pub const fn header(slots: u32, members: u32, reserve: u32, withheld: u32) -> Self {
        Self { cookie: (reserve as u64) << 32 | members as u64, backend: slots, slots: withheld }
    }

    /// Members and reserve of the table that this is the first entry of.
    pub const fn counts(&self) -> (u32, u32) {
        (self.cookie as u32, (self.cookie >> 32) as u32)
    }
}

/// A listening socket, by its cookie, as the kernel saw it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketInfo {
    /// Namespace that the socket lives in.
    pub netns_cookie: u64,
    /// Address that it is bound to, in network byte order; IPv4 in the first four bytes.
    pub addr: [u8; 16],
    /// Index of its backend.
    pub backend: u32,
    /// Table whose members take over its queue when it closes, or [`NONE`]. Written by the daemon.
    pub table: u32,
    /// Port that its server asked for.
    pub port: u16,
    /// [`PROTO_TCP`] or [`PROTO_UDP`].
    pub proto: u8,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Index of the service of that table, or [`NONE`]. Written by the daemon.
    pub service: u32,
    /// Port that it is really bound to, if that is another: it could not share the one that it asked for.
    pub hidden_port: u16,
    /// Of an IPv6 socket, one of the `V6_` constants. Written by the daemon: no kernel program can ask for it.
    pub v6only: u16,
    /// With a hidden port: the user who asked, and the one whose port it was.
    pub users: [u32; 2],
    /// Index of the device that it is bound to (`SO_BINDTODEVICE`), or zero.
    pub ifindex: u32,
}

impl SocketInfo {
    /// The address and port by which it may be its backend's newest listener; nothing of one that is bound to a device,
    /// unless that is the loopback device (index 1 of every namespace), by which a machine's packets to itself come.
    #[inline(always)]
    pub fn own_listener(&self) -> Option<OwnListener> {
        let Self { netns_cookie, addr, backend, port, family, ifindex, .. } = *self;
        if ifindex > 1 {
            return None;
        }
        let key = OwnListener { netns_cookie, addr, backend, port, family, pad: 0 };
        let word = |at: usize| u32::from_ne_bytes([addr[at], addr[at + 1], addr[at + 2], addr[at + 3]]);
        if family == FAMILY_V6 && word(0) == 0 && word(4) == 0 && word(8) == 0xFFFFu32.to_be() {
            let mut mapped = [0; 16];
            mapped[..4].copy_from_slice(&word(12).to_ne_bytes());
            return Some(OwnListener { addr: mapped, family: FAMILY_V4, ..key });
        }
        Some(key)
    }
}

/// Nobody has looked yet whether the socket takes IPv4 clients too.
pub const V6_UNKNOWN: u16 = 0;
/// It takes both, as far as its address does.
pub const V6_BOTH: u16 = 1;
/// It takes IPv6 clients only (`IPV6_V6ONLY`).
pub const V6_ONLY: u16 = 2;

/// A port that managed sockets share: the kernel lets those of one user do so. The value is that user.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    /// The namespace.
    pub netns_cookie: u64,
    /// The port.
    pub port: u16,
    /// [`PROTO_TCP`] or [`PROTO_UDP`].
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// What a socket's storage holds if its bind was moved to a port of the kernel's choice, since the port that it asked for
/// is another user's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// Port that it asked for.
    pub asked: u16,
    /// Port that it listens on, or zero before it does.
    pub port: u16,
    /// The user who asked, and the one whose port it was.
    pub users: [u32; 2],
}

/// A port of a backend; the value is of [`PORT_LISTENS`] and [`PORT_SERVED`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManagedPort {
    /// Index of the backend.
    pub backend: u32,
    /// The port.
    pub port: u16,
    /// [`PROTO_TCP`] or [`PROTO_UDP`].
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

/// The backend listens on this port: binds may share it, and listeners are registered.
pub const PORT_LISTENS: u32 = 1;
/// Clients come to this port: so it is the local port of accepted connections, which are counted.
pub const PORT_SERVED: u32 = 2;

/// The newest listener of a backend for one address, by the port that its server asked for; the value is its cookie.
///
/// The kernel program writes it in the instant that the server listens. It may name a socket that has closed: nobody is
/// given to that one, since `LISTENERS` has lost it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnListener {
    /// Namespace that the socket lives in.
    pub netns_cookie: u64,
    /// Address that it is bound to, in network byte order; IPv4 in the first four bytes, also of an IPv6 socket that is
    /// bound to an IPv4 address.
    pub addr: [u8; 16],
    /// Index of its backend.
    pub backend: u32,
    /// Port that its server asked for.
    pub port: u16,
    /// Family of the address: [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Zero.
    pub pad: u8,
}

/// An address and a port that a backend's service has claimed and that the backend serves: a connection from the backend
/// itself reaches its own listener there. The value is an [`OwnTarget`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnPort {
    /// Local address in network byte order; all zero for any of this family.
    pub addr: [u8; 16],
    /// Index of the backend.
    pub backend: u32,
    /// Local port.
    pub port: u16,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Zero.
    pub pad: u8,
}

/// Where a backend serves an [`OwnPort`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnTarget {
    /// Index of its service.
    pub service: u32,
    /// Port that the backend listens on.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// A connection from a process of a backend to a port of this backend. The value is an [`OwnSocket`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnConnection {
    /// Namespace of the connecting socket.
    pub netns_cookie: u64,
    /// Address that it comes from, in network byte order; IPv4 in the first four bytes.
    pub source: [u8; 16],
    /// Address that it goes to.
    pub destination: [u8; 16],
    /// Port that it comes from, in host byte order.
    pub source_port: u16,
    /// Port that it goes to, in host byte order.
    pub destination_port: u16,
    /// [`FAMILY_V4`] or [`FAMILY_V6`]: of the addresses, not of the socket.
    pub family: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// The socket that an [`OwnConnection`] is for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnSocket {
    /// Cookie of the listener, or zero if the backend does not listen there: then the connection is refused.
    pub cookie: u64,
    /// When the connection began, in nanoseconds of the monotonic clock.
    pub born_ns: u64,
    /// Index of the backend.
    pub backend: u32,
    /// Index of the service that must hold the destination's rule, or [`NONE`] if the backend itself listens on the
    /// destination's port.
    pub service: u32,
}

/// Which of the counters in front of the map of own connections stands for connections from this port (in host byte order):
/// while it is zero there is none, and nobody pays for a look into the map. The kernel gives connecting sockets even
/// ports first, so the lowest bit does not count.
pub const fn own_source(port: u16) -> u32 {
    (port >> 1) as u32 & (OWN_SOURCES - 1)
}

/// Counters of one backend, kept per CPU.
///
/// A connection is *born* at the backend whose listener completed its handshake, and may *move* once, when that
/// listener closes before the connection is accepted. Live connections of a backend are
/// `(opened - closed) - (moved_out - moved_out_closed) + (moved_in - moved_in_closed)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounters {
    /// Lookups that chose a socket of this backend.
    pub steered: u64,
    /// Connections born here.
    pub opened: u64,
    /// Connections born here that are gone.
    pub closed: u64,
    /// Connections that came from a closing listener of another backend.
    pub moved_in: u64,
    /// Those of `moved_in` that are gone.
    pub moved_in_closed: u64,
    /// Connections that left a closing listener of this backend for another backend.
    pub moved_out: u64,
    /// Those of `moved_out` that are gone.
    pub moved_out_closed: u64,
    /// Half-open connections that left a closing listener of this backend.
    pub moved_half_open: u64,
    /// Connections of a closing listener for which the table had no live socket of the same reuseport group. The kernel
    /// then takes any other socket of the group, or resets them if there is none.
    pub not_moved: u64,
}

/// Counters of one service, kept per CPU: why a lookup did not end, or not at once, at a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounters {
    /// Slots whose socket was gone; another slot was tried in the same run.
    pub stale_slots: u64,
    /// Lookups refused because no backend was left.
    pub refused_no_backend: u64,
    /// Lookups left to the kernel because no backend was left.
    pub passed_no_backend: u64,
    /// Lookups left to the kernel because no backend and no daemon was left.
    pub passed_no_daemon: u64,
    /// `bpf_sk_assign` failed with `EAFNOSUPPORT`: an IPv6-only socket and an IPv4 client.
    pub assign_eafnosupport: u64,
    /// `bpf_sk_assign` failed with `ESOCKTNOSUPPORT`: the socket no longer listens.
    pub assign_esocktnosupport: u64,
    /// `bpf_sk_assign` failed with `EPROTOTYPE`: the socket speaks another protocol.
    pub assign_eprototype: u64,
    /// `bpf_sk_assign` failed with `EEXIST`: another program had chosen already.
    pub assign_eexist: u64,
    /// `bpf_sk_assign` failed with another error.
    pub assign_other: u64,
    /// Packets that were made to vanish because the service is paused: clients try again by themselves.
    pub paused: u64,
    /// Lookups in which the client's network decided on the table.
    pub by_network: u64,
    /// Lookups in which the table of the client's network had no live socket, so that the service's own was used.
    pub network_no_backend: u64,
}

/// A part of a note: what a daemon leaves for the next one beside its files. Kernel programs do not read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NoteKey {
    /// [`NOTE_BACKEND`] or [`NOTE_SERVICE`].
    pub kind: u32,
    /// Index of the backend or service.
    pub index: u32,
    /// Number of this part, from 0. The first one begins with the length of the whole in four bytes.
    pub part: u32,
    /// Zero.
    pub pad: u32,
}

/// A note of a backend: as its file in the runtime directory.
pub const NOTE_BACKEND: u32 = 1;
/// A note of a service: its name.
pub const NOTE_SERVICE: u32 = 2;

/// A connection that changed its backend before it was accepted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Move {
    /// Index of the backend where it was born, whose programs will see it end.
    pub from: u32,
    /// Index of the backend that has it.
    pub to: u32,
}

/// What a kernel program tells the daemon.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// One of the `EVENT_` constants.
    pub kind: u32,
    /// The error number of [`EVENT_NOT_REGISTERED`] and [`EVENT_NOT_SHARED`], positive; of [`EVENT_LISTENING`] why the socket has
    /// no description; else zero.
    pub errno: u32,
    /// Cookie of the socket, or zero.
    pub cookie: u64,
    /// The socket.
    pub socket: SocketInfo,
}

/// A managed socket listens and is in the socket map.
pub const EVENT_LISTENING: u32 = 1;
/// A managed listening socket was closed.
pub const EVENT_CLOSED: u32 = 2;
/// A managed socket listens and could not enter the socket map.
pub const EVENT_NOT_REGISTERED: u32 = 3;
/// `SO_REUSEPORT` could not be set on a bind to a managed port.
pub const EVENT_NOT_SHARED: u32 = 4;
/// A managed container asked for an MPTCP socket and was refused; it is expected to ask for TCP next.
pub const EVENT_MPTCP_REFUSED: u32 = 5;

/// Sizes are part of the contract: a field that changes them without [`ABI_VERSION`] does not compile.
const _: () = {
    assert!(size_of::<Meta>() == 16);
    assert!(size_of::<RuleKey>() == 32);
    assert!(core::mem::offset_of!(RuleKey, port) == 24);
    assert!(core::mem::offset_of!(RuleKey, ifindex) == 28);
    assert!(size_of::<Rule>() == 24);
    // A table is one of the values of a port, and none of those with a meaning of their own.
    assert!(TABLES_MAX < ASK_RULES as u32);
    assert!(size_of::<Slot>() == 16);
    assert!(size_of::<SocketInfo>() == 56);
    assert!(size_of::<SourceKey>() == 20);
    assert!(size_of::<ProbeKey>() == 16);
    assert!(core::mem::offset_of!(SocketInfo, backend) == 24);
    assert!(core::mem::offset_of!(SocketInfo, port) == 32);
    assert!(core::mem::offset_of!(SocketInfo, users) == 44);
    assert!(core::mem::offset_of!(SocketInfo, ifindex) == 52);
    assert!(size_of::<PortKey>() == 16);
    assert!(size_of::<Hidden>() == 12);
    assert!(size_of::<ManagedPort>() == 8);
    assert!(size_of::<OwnListener>() == 32);
    assert!(size_of::<OwnPort>() == 24);
    assert!(size_of::<OwnTarget>() == 8);
    assert!(size_of::<OwnConnection>() == 48);
    assert!(size_of::<OwnSocket>() == 24);
    assert!(OWN_SOURCES.is_power_of_two());
    assert!(size_of::<Move>() == 8);
    assert!(size_of::<NoteKey>() == 16);
    assert!(size_of::<BackendCounters>() == 72);
    assert!(size_of::<ServiceCounters>() == 96);
    assert!(size_of::<Event>() == 72);
    assert!(core::mem::offset_of!(Event, socket) == 16);
};

#[cfg(feature = "user")]
mod user;
