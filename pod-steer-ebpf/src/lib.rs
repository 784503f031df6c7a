//! The contract between the kernel programs and the daemon: every type that crosses it, and every limit both sides
//! must agree on. Integers have a fixed width and native byte order unless a field says otherwise; padding is explicit.
//!
//! A change here that an older daemon or program would misread increases [`ABI_VERSION`].
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

mod contract;
#[cfg(feature = "user")]
mod user;

pub use contract::*;

/// Version of this contract, kept in [`Meta`]. A daemon brings the pinned maps of an earlier version to its own (`kernel/layouts.rs`), and
/// leaves those of a later one alone.
pub const ABI_VERSION: u32 = 6 + IN_LATER as u32 + IN_MORE as u32;

/// Whether this is the contract of a later release, as tests upgrade to it: some types have a field more, 64 bits at their end.
const IN_LATER: bool = cfg!(feature = "test-layout");
/// The same of the release after that one.
const IN_MORE: bool = cfg!(feature = "test-layout-more");
/// Bytes of such fields.
const LATER: usize = 8 * IN_LATER as usize;
const MORE: usize = 8 * IN_MORE as usize;

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
pub const SERVICES_MAX: u32 = 16_384 << IN_MORE as u32;
/// Most backends at one time unless the daemon asks for another number; one [`BackendCounters`] each.
pub const BACKENDS_MAX_DEFAULT: u32 = 4_096;
/// Most networks with a table of their own at one time, over all rules and both sides.
pub const SOURCES_MAX: u32 = 65_536;
/// Most probes under way at one time.
pub const PROBES_UNDER_WAY_MAX: u32 = 4_096;
/// Most listening sockets at one time.
pub const SOCKETS_MAX: u32 = 65_536;
/// Most [`ManagedBlock`]s at one time.
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
/// Most [`OwnListener`]s at one time: every socket's with its backend and without.
pub const OWN_LISTENERS_MAX: u32 = 2 * SOCKETS_MAX;
/// Most [`OwnBlock`]s at one time: both families of every managed block.
pub const OWN_PORTS_MAX: u32 = 2 * MANAGED_PORTS_MAX;
/// Most connections of backends to their own ports at one time; one more is steered as any client's.
pub const OWN_CONNECTIONS_MAX: u32 = 65_536;
/// Counters in front of the map of own connections, see [`own_source`].
pub const OWN_SOURCES: u32 = 2_048;
/// Bytes of the event ring.
pub const EVENTS_BYTES: u32 = 1 << 20;
/// Slots that are tried by hash before the table's members are walked one by one.
pub const PROBES_MAX: u32 = 8;
/// Members of a table that one walk visits, if there are so many; it visits at most twice as many. A try takes up to a
/// microsecond, and a packet must not keep the kernel busy for longer than a thousand of them.
pub const WALK_MAX: u32 = 512;

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

/// Sizes are part of the contract: a field that changes them without [`ABI_VERSION`] does not compile.
const _: () = {
    assert!(size_of::<Meta>() == 16);
    assert!(size_of::<RuleKey>() == 32);
    assert!(core::mem::offset_of!(RuleKey, port) == 24);
    assert!(core::mem::offset_of!(RuleKey, ifindex) == 28);
    assert!(size_of::<Rule>() == 24 + LATER);
    // A table is one of the values of a port, and none of those with a meaning of their own.
    assert!(TABLES_MAX < ASK_RULES as u32);
    assert!(size_of::<ProbeKey>() == 32);
    assert!(size_of::<PortUser>() == 16);
    assert!(size_of::<Slot>() == 16 + MORE);
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
    assert!(size_of::<ServiceCounters>() == 96);
    assert!(size_of::<Event>() == 72 + LATER);
    assert!(size_of::<ListenRate>() == 24);
    assert!(core::mem::offset_of!(Event, socket) == 16);
};
