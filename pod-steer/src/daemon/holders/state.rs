//! What is known of the processes that hold listeners, and when to look again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use crate::{
    daemon::{ended::Ending, left_out::LeftOut},
    ids::{BackendId, BackendIndex, NetnsCookie, SocketCookie},
    procs::Seat,
};

/// The looks of every second take no more than one part of so many of the time: a look goes through all descriptors of backends that
/// may have tens of thousands.
const PAUSE_FACTOR: u32 = 20;
/// The same while a backend has ended whose listener may be held by another process: its clients wait until that is found.
const PAUSE_FACTOR_ENDING: u32 = 4;

/// The processes that hold sockets, as far as they are known.
#[derive(Default)]
pub(in crate::daemon) struct Holders {
    /// A look is under way, since then.
    pub(super) under_way: Option<Instant>,
    /// When the last look ended, and how long it took.
    pub(super) ended: Option<(Instant, Duration)>,
    /// Cookies of the namespaces that the next look is about; true if it is to be thorough.
    pub(super) due: BTreeMap<NetnsCookie, bool>,
    /// Sockets that did not listen at the last look. A dump of sock_diag(7) may miss a socket that listens, if others close meanwhile: what
    /// two looks in a row do not find is gone.
    pub(super) missed: BTreeSet<SocketCookie>,
    /// Namespaces whose last look failed.
    pub(super) failed: BTreeSet<NetnsCookie>,
    /// Something has changed since the last time that nothing had to be looked at every second.
    pub(in crate::daemon) watching: bool,
    /// The last of the namespaces that were looked at: the next look begins behind it.
    pub(super) last: NetnsCookie,
    /// Sockets that began to listen while a look was under way, which may have seen them closed.
    pub(in crate::daemon) renewed: BTreeSet<SocketCookie>,
    /// Where each socket was found, by cookie.
    pub(in crate::daemon) seats: HashMap<SocketCookie, Seat>,
    /// Registered sockets of which no kernel program reports the end.
    pub(in crate::daemon) silent: BTreeSet<SocketCookie>,
    /// The namespaces of the look that is under way, as in `due`.
    pub(super) asked: BTreeMap<NetnsCookie, bool>,
    /// Those that the last look has not come to: they wait until the pause is over.
    pub(super) left: BTreeMap<NetnsCookie, bool>,
    /// Backends that have ended while a socket of theirs listens.
    pub(in crate::daemon) ending: BTreeMap<BackendId, Ending>,
    /// Listeners that would be a backend's and that only a process of no backend holds, by cookie.
    pub(in crate::daemon) refused: BTreeMap<SocketCookie, Refused>,
    /// Backends of which listeners are left out, by index.
    pub(in crate::daemon) left_out: BTreeMap<BackendIndex, LeftOut>,
    /// Of those the ones that are to be told, each with the namespace and the reason.
    pub(in crate::daemon) left_out_now: BTreeMap<BackendIndex, (NetnsCookie, u32)>,
}

/// A listener that clients are not given to.
#[derive(Clone, Copy, Debug)]
pub(in crate::daemon) struct Refused {
    /// Cookie of its namespace.
    pub netns_cookie: NetnsCookie,
    /// Index of the backend.
    pub index: BackendIndex,
    /// It was the backend's before.
    pub was_registered: bool,
}

impl Holders {
    /// An event in a namespace may have changed which processes hold its listeners.
    pub fn look_at(&mut self, netns_cookie: NetnsCookie) {
        self.due.entry(netns_cookie).or_default();
    }

    /// A listener was not found where it should be: the next look asks for the holder of each.
    pub fn look_closely_at(&mut self, netns_cookie: NetnsCookie) {
        self.due.insert(netns_cookie, true);
    }

    /// A look has not come to all: the next one is about this namespace too, when it is time for one.
    pub fn look_later_at(&mut self, netns_cookie: NetnsCookie) {
        self.left.insert(netns_cookie, true);
        self.watching = true;
    }

    /// Whether it is too early for a look that nothing but time asks for.
    pub(super) fn pauses(&self) -> bool {
        let factor = if self.ending.is_empty() { PAUSE_FACTOR } else { PAUSE_FACTOR_ENDING };
        self.ended.is_some_and(|(at, took)| at.elapsed() < took * factor)
    }

    /// Of registered sockets that a look was about, takes those that do not listen; returns those that are gone.
    pub(super) fn note_missed(
        &mut self,
        asked: &BTreeSet<SocketCookie>,
        listening: &BTreeSet<SocketCookie>,
    ) -> Vec<SocketCookie> {
        let missed: Vec<SocketCookie> = asked.difference(listening).copied().collect();
        let (gone, news): (Vec<SocketCookie>, Vec<SocketCookie>) =
            missed.into_iter().partition(|cookie| self.missed.contains(cookie));
        self.missed.retain(|cookie| !asked.contains(cookie));
        self.missed.extend(news);
        gone
    }

    /// A socket is registered no more.
    pub fn forget(&mut self, cookie: SocketCookie) {
        self.missed.remove(&cookie);
        self.seats.remove(&cookie);
        self.silent.remove(&cookie);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookies(of: &[u64]) -> BTreeSet<SocketCookie> {
        of.iter().copied().map(SocketCookie).collect()
    }

    #[test]
    fn a_listener_is_gone_when_two_looks_in_a_row_miss_it() {
        let mut holders = Holders::default();
        let asked = cookies(&[1, 2]);
        assert!(holders.note_missed(&asked, &cookies(&[2])).is_empty(), "the dump may have missed it");
        assert!(holders.note_missed(&cookies(&[3]), &cookies(&[3])).is_empty(), "another namespace");
        assert!(holders.note_missed(&asked, &cookies(&[1])).is_empty(), "it was there all the time");
        assert!(holders.note_missed(&asked, &cookies(&[1, 2])).is_empty());
        assert!(holders.note_missed(&asked, &cookies(&[2])).is_empty());
        assert_eq!(holders.note_missed(&asked, &cookies(&[2])), [SocketCookie(1)]);
        assert!(holders.note_missed(&asked, &cookies(&[2])).is_empty(), "it is said once");
    }

    #[test]
    fn looks_take_a_part_of_the_time_and_more_while_a_backend_ends() {
        let mut holders = Holders::default();
        assert!(!holders.pauses());
        let took = Duration::from_secs(1);
        let ended_ago = |factor: u32| Instant::now().checked_sub(took * factor).map(|at| (at, took));
        holders.ended = ended_ago(PAUSE_FACTOR_ENDING + 1);
        assert!(holders.pauses());
        holders.ending.insert("a".into(), Ending::Removed);
        assert!(!holders.pauses());
        holders.ended = ended_ago(0);
        assert!(holders.pauses(), "also then");
    }
}
