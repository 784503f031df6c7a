//! What the kernel programs report to the daemon (counters, moves, events), and the notes that a daemon leaves for the
//! next one.

use super::SocketInfo;

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
    /// Connections of a closing listener that had no migration target, a live socket of the same reuseport group: they
    /// were reset.
    pub not_moved: u64,
    /// Zero. A field of the later release to which tests upgrade.
    #[cfg(feature = "test-layout")]
    pub later: u64,
}

/// Counters of one service, kept per CPU: why a lookup did not find a socket, or not at once.
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
    /// Packets that were discarded because the service is paused. Clients retransmit their SYNs.
    pub paused: u64,
    /// Lookups that the table of the client's network answered.
    pub by_network: u64,
    /// Lookups in which the table of the client's network had no live socket, so the service's own table was used.
    pub network_no_backend: u64,
    /// Slots whose socket is in another network namespace, for a packet that came by a device without a forwarding program.
    pub not_forwarded: u64,
    /// Slots whose backend has no address of the client's family, or none that is known.
    pub no_destination: u64,
    /// Established connections for which the map of flows had no room: the oldest unestablished ones are forgotten first.
    pub flows_full: u64,
    /// Packets that could not be rewritten, and were dropped.
    pub not_rewritten: u64,
    /// Connections whose entries were lost, and that were found again by the socket of their server.
    pub adopted: u64,
    /// SYNs that were dropped, since every source port that their clients could get is in use on the server's side. Clients repeat them.
    pub ports_exhausted: u64,
    /// Packets of unknown connections for which no server was looked for, since there were too many at once.
    pub adopt_limited: u64,
}

/// Key of one part of a note, which a daemon leaves for the next one in addition to its files. Kernel programs do not
/// read notes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NoteKey {
    /// One of the `NOTE_` constants for kinds of notes.
    pub kind: u32,
    /// Index of the backend or service.
    pub index: u32,
    /// Number of this part, from 0. The first part begins with the length of the whole note in four bytes.
    pub part: u32,
    /// Zero.
    pub pad: u32,
}

/// A note of a backend: the content of its file in the runtime directory.
pub const NOTE_BACKEND: u32 = 1;
/// A note of a service: its name.
pub const NOTE_SERVICE: u32 = 2;
/// The note, of index 0, of what the daemon has counted as a whole.
pub const NOTE_TOTALS: u32 = 3;
/// A note of what the daemon has counted for a service.
pub const NOTE_SERVICE_TOTALS: u32 = 4;
/// A note of what the daemon has counted for a backend.
pub const NOTE_BACKEND_TOTALS: u32 = 5;
/// A note of the ports of a hold, by the index of its process.
pub const NOTE_HOLD: u32 = 6;

/// A connection that changed its backend before it was accepted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Move {
    /// Index of the backend where it was born, whose programs will see its end.
    pub from: u32,
    /// Index of the backend that has it.
    pub to: u32,
}

/// An event that a kernel program reports to the daemon.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// One of the `EVENT_` constants.
    pub kind: u32,
    /// For [`EVENT_NOT_REGISTERED`] and [`EVENT_NOT_SHARED`] the error number, positive; for [`EVENT_LISTENING`] why
    /// the socket has no description; for [`EVENT_LEFT_OUT`] one of the `LEFT_OUT_` constants; else zero.
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
/// A managed socket listens, but could not enter the socket map.
pub const EVENT_NOT_REGISTERED: u32 = 3;
/// `SO_REUSEPORT` could not be set on a bind to a managed port.
pub const EVENT_NOT_SHARED: u32 = 4;
/// A managed container asked for an MPTCP socket and was refused; it is expected to ask for TCP next.
pub const EVENT_MPTCP_REFUSED: u32 = 5;
/// A managed socket listens, but is not registered: its backend has reached its quota or its rate. One event may stand
/// for many sockets.
pub const EVENT_LEFT_OUT: u32 = 6;

/// What the iterator of idle connections tells of each TCP socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The socket's cookie.
    pub cookie: u64,
    /// The sequence number after the last byte that the client has sent.
    pub rcv_nxt: u32,
    /// That of the client's last segment that acknowledged something new.
    pub snd_wl1: u32,
}
