//! Registered sockets, as the kernel program counts them for its limits (`pod-steer-ebpf/src/quota.rs`). The program
//! does not see everything, for example not the end of a socket that was made elsewhere; this module corrects its
//! numbers.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::AsFd as _,
};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, MapError},
};
use pod_steer_ebpf::{
    COUNT_OF_ALL, LEFT_OUT_FAST, ListenRate, SOCKETS_MAX, common, count_of, may_take, next_listen, share,
};
use rustix::time::{ClockId, clock_gettime};

use super::{Kernel, KernelError, Result, limits::limit, object::map};
use crate::{ids::BackendIndex, sys::Counters};

/// How much of a limit one user of it has, and all have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// In use by this user.
    pub own: u32,
    /// In use by all.
    pub used: u32,
    /// The limit.
    pub limit: u32,
}

impl Usage {
    /// Whether this user may have one more.
    pub fn may_take(&self) -> bool {
        may_take(self.limit, self.used, self.own)
    }

    /// How many more this user may have.
    pub fn room(&self) -> usize {
        let of_share = share(self.limit).saturating_sub(self.own);
        of_share.max(common(self.limit).saturating_sub(self.used)) as usize
    }
}

/// As a part of a sentence.
impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { own, used, limit } = *self;
        let percent = u64::from(used) * 100 / u64::from(limit.max(1));
        write!(
            f,
            "{own} of {limit}, of which {percent} % are in use; {} are guaranteed, more only below 75 %",
            share(limit)
        )
    }
}

/// A number as the kernel program has counted it, and as it should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    counted: u64,
    expected: u64,
}

impl Seen {
    /// Whether the number is wrong: it differs, and neither number has changed since the last comparison, so no event
    /// under way explains the difference.
    fn is_wrong(self, before: Option<&Self>) -> bool {
        self.counted != self.expected && before == Some(&self)
    }
}

pub(super) struct SocketCounts {
    counts: Counters,
    rates: Array<MapData, ListenRate>,
    /// The numbers that differed at the last comparison, by their index.
    differing: HashMap<u32, Seen>,
    backends_max: u32,
}

impl SocketCounts {
    pub fn open(programs: &mut Ebpf, backends_max: u32) -> Result<Self> {
        let Some(Map::Array(counts)) = programs.take_map("SOCKET_COUNTS") else {
            return Err(KernelError::map("open", "SOCKET_COUNTS")(MapError::KeyNotFound));
        };
        let counts = Counters::open(counts.fd().as_fd(), backends_max + 1);
        Ok(Self {
            counts: counts.map_err(KernelError::io("map into memory", "SOCKET_COUNTS"))?,
            rates: map(programs, "LISTEN_RATES")?,
            differing: HashMap::new(),
            backends_max,
        })
    }

    fn get(&self, at: u32) -> u32 {
        // Below zero for a moment, if an end is counted first.
        self.counts.get(at).cast_signed().try_into().unwrap_or(0)
    }

    fn usage(&self, backend: BackendIndex) -> Usage {
        let limit = limit("LISTENERS", SOCKETS_MAX);
        Usage { own: self.get(count_of(backend.0)), used: self.get(COUNT_OF_ALL), limit }
    }

    /// A socket belongs to backend `to`, and no longer to `from`.
    pub fn moves(&self, from: Option<BackendIndex>, to: Option<BackendIndex>) {
        if from == to {
            return;
        }
        for (backend, by) in from.map(|of| (of, u64::MAX)).into_iter().chain(to.map(|of| (of, 1))) {
            self.counts.add(COUNT_OF_ALL, by);
            self.counts.add(count_of(backend.0), by);
        }
    }

    /// Resets an index that is about to go to another backend, which has no socket yet.
    pub fn reset(&mut self, backend: BackendIndex) -> Result<()> {
        let counted = self.counts.get(count_of(backend.0));
        if self.counts.replace(count_of(backend.0), counted, 0) {
            self.counts.add(COUNT_OF_ALL, counted.wrapping_neg());
        }
        let written = self.rates.set(backend.0, ListenRate::default(), 0);
        written.map_err(KernelError::map("reset", "LISTEN_RATES"))
    }

    fn correct(&mut self, expected: &BTreeMap<BackendIndex, u64>) {
        let before = std::mem::take(&mut self.differing);
        let mut sum = 0u64;
        for backend in 0..self.backends_max {
            let at = count_of(backend);
            let now = Seen {
                counted: self.counts.get(at),
                expected: expected.get(&BackendIndex(backend)).copied().unwrap_or(0),
            };
            sum = sum.wrapping_add(now.counted);
            if now.is_wrong(before.get(&at)) && self.counts.replace(at, now.counted, now.expected) {
                self.counts.add(COUNT_OF_ALL, now.expected.wrapping_sub(now.counted));
            } else if now.counted != now.expected {
                self.differing.insert(at, now);
            }
        }
        let now = Seen { counted: self.counts.get(COUNT_OF_ALL), expected: sum };
        if now.is_wrong(before.get(&COUNT_OF_ALL)) {
            self.counts.replace(COUNT_OF_ALL, now.counted, now.expected);
        } else if now.counted != now.expected {
            self.differing.insert(COUNT_OF_ALL, now);
        }
    }
}

impl Kernel {
    /// Numbers of registered sockets: of a backend, and of all.
    pub fn socket_usage(&self, backend: BackendIndex) -> Usage {
        self.socket_counts.usage(backend)
    }

    /// Counts a listener that is about to be registered for the rate of its backend, or returns why it must not be. A
    /// program may do the same at this moment, and one of the two is then not counted.
    pub fn take_rate(&mut self, backend: BackendIndex) -> std::result::Result<(), u32> {
        let rates = &mut self.socket_counts.rates;
        let Ok(rate) = rates.get(&backend.0, 0) else { return Ok(()) };
        let now = clock_gettime(ClockId::Monotonic);
        let now_ns = now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned();
        let next_ns = next_listen(rate.next_ns, now_ns).ok_or(LEFT_OUT_FAST)?;
        let _ = rates.set(backend.0, ListenRate { next_ns, ..rate }, 0);
        Ok(())
    }

    /// Number of listeners of a backend that the kernel program has left out.
    pub fn left_out(&self, backend: BackendIndex) -> u64 {
        self.socket_counts.rates.get(&backend.0, 0).map_or(0, |rate| rate.left_out)
    }

    /// Whether the number of all registered sockets is this one, and no number was found to differ.
    pub fn is_socket_count_right(&self, expected: usize) -> bool {
        let counts = &self.socket_counts;
        counts.differing.is_empty() && counts.counts.get(COUNT_OF_ALL) == expected as u64
    }

    /// Corrects the numbers of registered sockets. To be called regularly: a number that differs twice in the same way
    /// is wrong.
    pub fn correct_socket_counts(&mut self, expected: &BTreeMap<BackendIndex, u64>) {
        self.socket_counts.correct(expected);
    }
}

#[cfg(test)]
mod tests {
    use pod_steer_ebpf::{LISTENS_BURST, LISTENS_PER_S};

    use super::*;

    #[test]
    fn greedy_use_leaves_the_shares_of_others() {
        let limit = 6_400;
        let mut greedy = 0;
        while may_take(limit, greedy, greedy) {
            greedy += 1;
        }
        assert_eq!(greedy, common(limit));
        // Sixteen others get their share.
        let mut used = greedy;
        for _ in 0..16 {
            for own in 0..share(limit) {
                assert!(may_take(limit, used, own));
                used += 1;
            }
            assert!(!may_take(limit, used, share(limit)));
        }
        assert_eq!(used, limit);
    }

    #[test]
    fn freed_room_can_be_taken_again() {
        assert!(!may_take(64, 48, 1));
        assert!(may_take(64, 47, 40));
        assert!(may_take(64, 63, 0));
    }

    #[test]
    fn each_user_gets_one_of_a_small_limit() {
        for limit in 1..64 {
            assert!(may_take(limit, limit - 1, 0), "{limit}");
            assert_eq!(share(limit), 1);
            assert!(common(limit) >= 1);
        }
        assert_eq!((share(32_768), common(32_768)), (512, 24_576));
    }

    /// How many of `per_s` listeners a second pass, for some seconds, after a quiet period.
    fn passing(per_s: u64, seconds: u64) -> u64 {
        let (mut next, mut passed) = (0, 0);
        for at in 0..per_s * seconds {
            if let Some(then) = next_listen(next, 1_000_000_000 + at * 1_000_000_000 / per_s) {
                (next, passed) = (then, passed + 1);
            }
        }
        passed
    }

    #[test]
    fn listeners_pass_at_the_rate_and_in_a_burst() {
        assert_eq!(passing(LISTENS_PER_S, 60), 60 * LISTENS_PER_S);
        assert_eq!(passing(200, 60), 60 * 200);
        let at_once = std::iter::successors(Some(0), |next| next_listen(*next, 1_000_000_000));
        assert_eq!(at_once.skip(1).take(10_000).count() as u64, LISTENS_BURST);
        let minute = LISTENS_BURST + 60 * LISTENS_PER_S;
        assert!(passing(20_000, 60).abs_diff(minute) <= 1, "{} of {minute}", passing(20_000, 60));
    }

    #[test]
    fn a_number_that_differs_twice_in_the_same_way_is_wrong() {
        let (right, wrong) = (Seen { counted: 2, expected: 2 }, Seen { counted: 3, expected: 2 });
        assert!(!right.is_wrong(Some(&right)));
        assert!(!wrong.is_wrong(None), "an event may be under way");
        assert!(!wrong.is_wrong(Some(&Seen { counted: 4, ..wrong })), "it changes");
        assert!(wrong.is_wrong(Some(&wrong)));
    }

    #[test]
    fn a_usage_names_share_and_limit() {
        let usage = Usage { own: 50, used: 49_152, limit: 65_536 };
        assert!(usage.may_take());
        assert!(!Usage { own: 1_024, ..usage }.may_take());
        let said = usage.to_string();
        assert!(said.contains("50 of 65536") && said.contains("75 % are in use") && said.contains("1024"), "{said}");
    }
}
