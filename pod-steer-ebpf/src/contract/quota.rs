//! How shared limits are divided, and how fast a backend may open listeners.

/// Part of a limit that each may use whatever the others use: one of so many parts.
pub const SHARES: u32 = 64;

/// What each may use of a limit whatever the others use, as long as there is anything left.
pub const fn share(limit: u32) -> u32 {
    let share = limit / SHARES;
    if share == 0 { 1 } else { share }
}

/// While fewer than this many are in use, each may take more than its [`share`].
pub const fn common(limit: u32) -> u32 {
    limit - limit / 4
}

/// Whether one that has `own` of the `used` ones may have one more: always below its [`share`], else only while less than three quarters
/// are in use. So the last quarter is left to those with less than their share, of which it takes sixteen to fill it. Whether any is left
/// at all is another question.
pub const fn may_take(limit: u32, used: u32, own: u32) -> bool {
    own < share(limit) || used < common(limit)
}

/// Listeners a second that a backend may open for any length of time. A server of passive FTP opens one for each transfer; none is known
/// to make more than some hundred transfers a second.
pub const LISTENS_PER_S: u64 = 512;
/// Listeners that it may open at once, after it has opened none for a while: a range of 1,024 ports for both families.
pub const LISTENS_BURST: u64 = 2_048;
/// Time that one listener stands for.
const LISTEN_NS: u64 = 1_000_000_000 / LISTENS_PER_S;

/// The virtual scheduling algorithm of ITU-T I.371 (the generic cell rate algorithm): `next_ns` is the theoretical arrival time of the
/// next listener. Returns the one of the listener after this, or nothing if this one comes too early.
pub const fn next_listen(next_ns: u64, now_ns: u64) -> Option<u64> {
    if next_ns > now_ns.saturating_add((LISTENS_BURST - 1) * LISTEN_NS) {
        return None;
    }
    Some(if next_ns > now_ns { next_ns } else { now_ns } + LISTEN_NS)
}

/// What is kept of a backend for its rate of listeners.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenRate {
    /// See [`next_listen`]; in nanoseconds of `CLOCK_MONOTONIC`.
    pub next_ns: u64,
    /// When the daemon was last told that a listener was left out.
    pub told_ns: u64,
    /// Listeners that were left out.
    pub left_out: u64,
}

/// The daemon is told of listeners that are left out no more often than this.
pub const TELL_EVERY_NS: u64 = 1_000_000_000;

/// Why a listener is left out: its backend has as many registered sockets as it may have.
pub const LEFT_OUT_MANY: u32 = 1;
/// The same: its backend opens listeners too fast.
pub const LEFT_OUT_FAST: u32 = 2;

/// Index of the number of all registered sockets in the map of counts; that of a backend is behind it.
pub const COUNT_OF_ALL: u32 = 0;

/// Where a backend's registered sockets are counted.
pub const fn count_of(backend: u32) -> u32 {
    backend.wrapping_add(1)
}
