//! What the kernel programs of `pod-steer trace` report (`trace.rs`), and the words for it.

use super::Tuple;
#[cfg(doc)]
use crate::NONE;

/// The choice for one packet that begins a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traced {
    /// The packet, as its client sent it.
    pub tuple: Tuple,
    /// Time by the kernel's monotonic clock.
    pub time_ns: u64,
    /// Cookie of the socket that it gets, or zero.
    pub cookie: u64,
    /// Index of the service.
    pub service: u32,
    /// Index of the backend whose socket it is, or [`NONE`].
    pub backend: u32,
    /// Index of the table in which the socket was found, with its side; [`NONE`] if it is in none.
    pub table: u32,
    /// Number of its entry in that table.
    pub entry: u32,
    /// Some of the `TRACE_` bits: one way out, and what happened before.
    pub reasons: u32,
    /// Number of slots of the table, if that entry is one of them; zero if it is one of the members or of the reserve.
    pub slots: u32,
}

/// Size of the ring of [`Traced`], in bytes.
pub const TRACED_BYTES: u32 = 1 << 18;

/// Ways out: a socket here, a forward to a backend in another namespace, a listener of a pause.
pub const TRACE_STEERED: u32 = 1;
/// See [`TRACE_STEERED`].
pub const TRACE_FORWARDED: u32 = 1 << 1;
/// See [`TRACE_STEERED`].
pub const TRACE_PAUSED: u32 = 1 << 2;
/// Way out: [`ServiceCounters::refused_no_backend`](crate::ServiceCounters::refused_no_backend).
pub const TRACE_REFUSED_NO_BACKEND: u32 = 1 << 3;
/// Way out: [`ServiceCounters::passed_no_backend`](crate::ServiceCounters::passed_no_backend).
pub const TRACE_PASSED_NO_BACKEND: u32 = 1 << 4;
/// Way out: [`ServiceCounters::passed_no_daemon`](crate::ServiceCounters::passed_no_daemon).
pub const TRACE_PASSED_NO_DAEMON: u32 = 1 << 5;
/// Way out: [`ServiceCounters::assign_eexist`](crate::ServiceCounters::assign_eexist).
pub const TRACE_ASSIGN_EEXIST: u32 = 1 << 6;
/// Before: [`ServiceCounters::by_network`](crate::ServiceCounters::by_network).
pub const TRACE_BY_NETWORK: u32 = 1 << 7;
/// Before: [`ServiceCounters::network_no_backend`](crate::ServiceCounters::network_no_backend).
pub const TRACE_NETWORK_NO_BACKEND: u32 = 1 << 8;
/// Before: [`ServiceCounters::stale_slots`](crate::ServiceCounters::stale_slots).
pub const TRACE_STALE_SLOTS: u32 = 1 << 9;
/// Before: [`ServiceCounters::not_forwarded`](crate::ServiceCounters::not_forwarded).
pub const TRACE_NOT_FORWARDED: u32 = 1 << 10;

/// The names of these bits, from the lowest one: those of the counters, where one counts it.
pub const TRACE_REASONS: [&str; 11] = [
    "steered",
    "forwarded",
    "paused",
    "refused_no_backend",
    "passed_no_backend",
    "passed_no_daemon",
    "assign_eexist",
    "by_network",
    "network_no_backend",
    "stale_slots",
    "not_forwarded",
];
