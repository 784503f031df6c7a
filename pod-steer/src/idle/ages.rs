//! How long connections have been open. The kernel does not tell when one began, so each is noted when it is first seen.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    time::{Duration, Instant},
};

use crate::{
    connections::{Question, by_netns},
    ids::SocketCookie,
    listening,
    ports::Port,
    process_set::{ProcessSet, open_netns},
};

/// When connections were first seen. One that was open before the first look counts from that look.
#[derive(Debug, Default)]
pub struct Ages {
    first_seen: HashMap<SocketCookie, Instant>,
}

impl Ages {
    /// Notes these, and returns those that have been open for so long.
    pub(super) fn older(
        &mut self,
        seen: impl Iterator<Item = SocketCookie>,
        age: Duration,
        now: Instant,
    ) -> BTreeSet<SocketCookie> {
        let mut is_older = |cookie| now.duration_since(*self.first_seen.entry(cookie).or_insert(now)) >= age;
        seen.filter(|cookie| is_older(*cookie)).collect()
    }

    /// Notes all that are open, and forgets the others.
    pub fn note(&mut self, open: &HashSet<SocketCookie>, now: Instant) {
        self.first_seen.retain(|cookie, _| open.contains(cookie));
        for cookie in open {
            self.first_seen.entry(*cookie).or_insert(now);
        }
    }
}

/// The connections of backends. Each namespace is dumped once.
pub fn open(backends: Vec<Question>) -> io::Result<HashSet<SocketCookie>> {
    let mut open = HashSet::new();
    for questions in by_netns(backends) {
        let Some(netns) = questions.first().map(|question| question.netns) else { continue };
        let ports: BTreeSet<Port> = questions.iter().flat_map(|question| question.ports.iter().copied()).collect();
        let sets: Vec<ProcessSet> = questions.into_iter().map(|question| question.processes).collect();
        // One that is gone has no connection any more.
        let Ok(ns) = open_netns(netns, &sets) else { continue };
        listening::each_established(&ns, netns.cookie, &ports, |one| {
            open.insert(one.cookie);
            Ok(())
        })?;
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_as_old_as_the_first_look_at_it() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let age = Duration::from_secs(60);
        let [one, two, three] = [1, 2, 3].map(SocketCookie);
        let mut ages = Ages::default();
        ages.note(&HashSet::from([one, two]), at(0));
        assert!(ages.older([one, two, three].into_iter(), age, at(59)).is_empty());
        assert_eq!(ages.older([one, three].into_iter(), age, at(60)), BTreeSet::from([one]));
        // What is not asked about is not forgotten; what has ended is.
        ages.note(&HashSet::from([two, three]), at(61));
        assert_eq!(ages.older([one, two, three].into_iter(), age, at(118)), BTreeSet::from([two]));
        assert_eq!(ages.older([three].into_iter(), age, at(119)), BTreeSet::from([three]));
    }
}
