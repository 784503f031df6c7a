//! The contract between the kernel programs and the daemon: every type that crosses it, and every limit both sides
//! must agree on. Integers have a fixed width and native byte order unless a field says otherwise; padding is explicit.
//!
//! Increase [`ABI_VERSION`] with every change that an older daemon or program would misread.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

mod choice;
mod contract;
#[cfg(feature = "user")]
mod user;

pub use choice::*;
pub use contract::*;

/// Version of this contract, stored in [`Meta`]. The daemon migrates the pinned maps of an earlier version to its own
/// (`kernel/layouts.rs`) and leaves those of a later version unchanged.
pub const ABI_VERSION: u32 = 7 + IN_LATER as u32 + IN_MORE as u32;

/// Whether to build the contract of a later release, to which tests upgrade: some types get one more field of 64 bits
/// at their end.
const IN_LATER: bool = cfg!(feature = "test-layout");
/// The same for the release after that one.
const IN_MORE: bool = cfg!(feature = "test-layout-more");
/// Size of these fields, in bytes.
const LATER: usize = 8 * IN_LATER as usize;
const MORE: usize = 8 * IN_MORE as usize;

/// Protocol number of TCP (`IPPROTO_TCP`).
pub const PROTO_TCP: u8 = 6;
/// Protocol number of UDP (`IPPROTO_UDP`). The key has room for it, but UDP is not steered yet.
pub const PROTO_UDP: u8 = 17;
/// Protocol number of MPTCP (`IPPROTO_MPTCP`). It deliberately does not fit in the 8 bits of an IP header.
pub const PROTO_MPTCP: u32 = 262;
/// Address family of IPv4 (`AF_INET`).
pub const FAMILY_V4: u8 = 2;
/// Address family of IPv6 (`AF_INET6`).
pub const FAMILY_V6: u8 = 10;

/// Maximum number of slot tables, and so of rules.
pub const TABLES_MAX: u32 = 32_768;
/// Maximum number of services; each has one [`ServiceCounters`].
pub const SERVICES_MAX: u32 = 16_384 << IN_MORE as u32;
/// Maximum number of backends, unless the daemon sets another; each has one [`BackendCounters`].
pub const BACKENDS_MAX_DEFAULT: u32 = 4_096;
/// Maximum number of networks with a table of their own, over all rules and both sides.
pub const SOURCES_MAX: u32 = 65_536;
/// Maximum number of probes under way.
pub const PROBES_UNDER_WAY_MAX: u32 = 4_096;
/// Maximum number of listening sockets.
pub const SOCKETS_MAX: u32 = 65_536;
/// Maximum number of [`ManagedBlock`]s.
pub const MANAGED_PORTS_MAX: u32 = 131_072;
/// Maximum number of ports whose user is known.
pub const PORT_USERS_MAX: u32 = 32_768;
/// Index of the counter of events that were lost because the ring was full.
pub const LOST_EVENTS: u32 = 0;
/// Index of the counter of listening sockets whose description was lost because its map was full.
pub const LOST_DESCRIPTIONS: u32 = 1;
/// Number of these counters.
pub const LOST_MAX: u32 = 2;
/// Size of one part of a note, in bytes.
pub const NOTE_BYTES: usize = 512;
/// Maximum number of parts of notes.
pub const NOTES_MAX: u32 = 262_144;
/// Maximum number of [`OwnListener`]s: one with and one without its backend for every socket.
pub const OWN_LISTENERS_MAX: u32 = 2 * SOCKETS_MAX;
/// Maximum number of [`OwnBlock`]s: both families of every managed block.
pub const OWN_PORTS_MAX: u32 = 2 * MANAGED_PORTS_MAX;
/// Maximum number of connections from backends to their own ports. Any further one is steered like a client's.
pub const OWN_CONNECTIONS_MAX: u32 = 65_536;
/// Number of counters in front of the map of own connections, see [`own_source`].
pub const OWN_SOURCES: u32 = 2_048;
/// Size of the event ring, in bytes.
pub const EVENTS_BYTES: u32 = 1 << 20;
/// Number of slots that are tried by hash before the table's members are walked one by one.
pub const PROBES_MAX: u32 = 8;
/// Number of members that a walk visits, if the table has that many; it visits at most twice as many. A try takes up to
/// a microsecond, and one packet must not keep the kernel busy for longer than a thousand tries.
pub const WALK_MAX: u32 = 512;

/// Key of the daemon's own socket in the map of listeners; no listening socket has this cookie. The kernel removes the
/// socket when the daemon ends, however it ends.
pub const DAEMON_COOKIE: u64 = 0;

/// "No index", for a table, a backend or a service.
pub const NONE: u32 = u32::MAX;

/// Written once, when the state is created; read by every later daemon.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// [`ABI_VERSION`] of the daemon that created the state.
    pub abi: u32,
    /// Number of entries in the map of backend counters.
    pub backends_max: u32,
    /// Secret seed of the hash of a connection. It outlives the daemon: the final ACK of a SYN cookie must find the
    /// slot of its SYN.
    pub seed: u64,
}

/// Sizes are part of the contract. A field that changes one does not compile: increase [`ABI_VERSION`] with it.
const _: () = {
    assert!(size_of::<Meta>() == 16);
    assert!(size_of::<RuleKey>() == 32);
    assert!(core::mem::offset_of!(RuleKey, port) == 24);
    assert!(core::mem::offset_of!(RuleKey, ifindex) == 28);
    assert!(size_of::<Rule>() == 24 + LATER);
    // The entry of a port is a table's index plus one, or one of the special values: they must not overlap.
    assert!(TABLES_MAX < ASK_RULES as u32);
    assert!(size_of::<ProbeKey>() == 32);
    assert!(size_of::<PortUser>() == 16);
    assert!(size_of::<Slot>() == 16 + MORE);
    assert!(BACKENDS_MAX_DEFAULT < 1 << SLOT_WAY_SHIFT);
    assert!(size_of::<Heard>() == 16);
    assert!(size_of::<Traced>() == 80);
    assert!(size_of::<Observed>() == 8 * (15 + GENERATIONS + FIRST_BYTE_BUCKETS));
    assert!(first_byte_end_ns(FIRST_BYTE_BUCKETS - 1) == 1 << 36);
    assert!(size_of::<Tuple>() == 40);
    assert!(size_of::<Flow>() == 80);
    assert!(size_of::<Destination>() == 64);
    assert!(size_of::<CandidateKey>() == 8);
    assert!(size_of::<Candidate>() == 8);
    assert!(size_of::<Link>() == 12 && size_of::<Network>() == 32);
    assert!(size_of::<SocketInfo>() == 56 + LATER);
    assert!(size_of::<SourceKey>() == 20);
    assert!(core::mem::offset_of!(SocketInfo, backend) == 24);
    assert!(core::mem::offset_of!(SocketInfo, port) == 32);
    assert!(core::mem::offset_of!(SocketInfo, users) == 44);
    assert!(core::mem::offset_of!(SocketInfo, ifindex) == 52);
    assert!(size_of::<PortKey>() == 16);
    assert!(size_of::<Hidden>() == 12);
    assert!(size_of::<ManagedBlock>() == 8);
    assert!(size_of::<ManagedPorts>() == 16);
    assert!(size_of::<OwnListener>() == 32);
    assert!(size_of::<OwnBlock>() == 24);
    assert!(size_of::<OwnPorts>() == 144);
    assert!(size_of::<OwnConnection>() == 48);
    assert!(size_of::<OwnSocket>() == 32);
    assert!(OWN_SOURCES.is_power_of_two());
    assert!(size_of::<Move>() == 8);
    assert!(size_of::<NoteKey>() == 16);
    assert!(size_of::<BackendCounters>() == 72 + LATER);
    assert!(size_of::<ServiceCounters>() == 152);
    assert!(size_of::<Event>() == 72 + LATER);
    assert!(size_of::<ListenRate>() == 24);
    assert!(core::mem::offset_of!(Event, socket) == 16);
};
