//! How shared limits are divided, and how fast a backend may open listeners.

/// Number of parts into which a limit is divided. Each user of a limit may use one part, whatever the others use.
pub const SHARES: u32 = 64;

/// The part of a limit that each user may use, whatever the others use, as long as any is left.
pub const fn share(limit: u32) -> u32 {
    let share = limit / SHARES;
    if share == 0 { 1 } else { share }
}

/// While fewer than this many are in use, each user may take more than its [`share`].
pub const fn common(limit: u32) -> u32 {
    limit - limit / 4
}

/// Whether a user that has `own` of the `used` ones may take one more: always below its [`share`], otherwise only while
/// less than three quarters are in use. So the last quarter is left to users below their share, and it takes sixteen of
/// them to fill it. This does not check whether any is left at all.
pub const fn may_take(limit: u32, used: u32, own: u32) -> bool {
    own < share(limit) || used < common(limit)
}

/// Listeners a second that a backend may open for any length of time. A server of passive FTP opens one for each
/// transfer; none is known to make more than a few hundred transfers a second.
pub const LISTENS_PER_S: u64 = 512;
/// Listeners that it may open at once after a quiet period: a range of 1,024 ports for both families.
pub const LISTENS_BURST: u64 = 2_048;
/// Time that one listener accounts for.
const LISTEN_NS: u64 = 1_000_000_000 / LISTENS_PER_S;

/// The virtual scheduling algorithm of ITU-T I.371 (the generic cell rate algorithm): `next_ns` is the theoretical
/// arrival time of the next listener. Returns that of the listener after it, or `None` if this one comes too early.
pub const fn next_listen(next_ns: u64, now_ns: u64) -> Option<u64> {
    if next_ns > now_ns.saturating_add((LISTENS_BURST - 1) * LISTEN_NS) {
        return None;
    }
    Some(if next_ns > now_ns { next_ns } else { now_ns } + LISTEN_NS)
}

/// State of the rate at which a backend opens listeners.
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

/// Minimum time between two reports of left-out listeners of one backend.
pub const TELL_EVERY_NS: u64 = 1_000_000_000;

/// Reason why a listener is left out: its backend has as many registered sockets as it may have.
pub const LEFT_OUT_MANY: u32 = 1;
/// The same: its backend opens listeners too fast.
pub const LEFT_OUT_FAST: u32 = 2;

/// Index of the number of all registered sockets in the map of counts. The numbers of the backends follow it.
pub const COUNT_OF_ALL: u32 = 0;

/// Index of the number of a backend's registered sockets.
pub const fn count_of(backend: u32) -> u32 {
    backend.wrapping_add(1)
}
