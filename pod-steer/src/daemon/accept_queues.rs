//! Looks at the accept queues of the backends: a server that does not accept, since it is frozen say, passes a check that
//! only connects, as the kernel completes the handshake. When its queue is full, the status says so. The listeners of a namespace are
//! enumerated only after a queue there has turned a client away, which the kernel counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tracing::debug;

use super::{Event, control::Control};
use crate::{
    condition::{Condition, Reason},
    ids::{BackendIndex, NetnsCookie, SocketCookie},
    listening::{self, Listener},
    netns::Netns,
    process_set::{ProcessSet, open_netns},
    world::Backend,
};

/// Namespaces that are looked at in one second: each may be a dump of its listeners.
const NAMESPACES_AT_ONCE: usize = 8;
/// After a look the next one waits so many times as long as that took: with tens of thousands of listeners it takes a while.
const REST: u32 = 100;
/// It waits no longer, however long that took: other programs may have kept it from running.
const REST_MAX: Duration = Duration::from_secs(3);
/// Looks in a row that find a queue full before it is a condition: a burst fills one for a moment.
const LOOKS: u32 = 2;

/// The accept queues that are full.
#[derive(Default)]
pub(super) struct AcceptQueues {
    /// By the cookie of the listener.
    full: BTreeMap<SocketCookie, Full>,
    /// The same listeners by their backend: there may be thousands, and conditions are collected in every turn.
    of_backend: BTreeMap<BackendIndex, Vec<SocketCookie>>,
    /// By the cookie of a namespace: how many clients full queues had turned away there when it was looked at last.
    overflows: BTreeMap<NetnsCookie, u64>,
    /// The cookie of the namespace that is looked at next, or the first behind it.
    next: NetnsCookie,
    /// A look has not ended: when it began.
    under_way: Option<Instant>,
    /// When the next look may begin.
    rests_until: Option<Instant>,
}

/// A listener whose queue is full: its cookie, how many connections wait, and its backlog.
pub type FullQueue = (SocketCookie, u32, u32);

/// What a look found in a namespace.
#[derive(Debug)]
pub struct Look {
    /// Its cookie.
    netns_cookie: NetnsCookie,
    /// How many clients full queues have turned away there so far.
    overflows: u64,
    /// The listeners whose queue is full; nothing if none has turned a client away since the last look.
    full: Option<Vec<FullQueue>>,
}

/// What is to be looked at.
struct Question {
    netns: Netns,
    sets: Vec<ProcessSet>,
    /// The listeners are enumerated if the number of overflows is another.
    overflows: Option<u64>,
}

impl Question {
    fn look(self) -> std::io::Result<Look> {
        let netns_cookie = self.netns.cookie;
        let ns = open_netns(self.netns, &self.sets)?;
        let overflows = listening::overflows(&ns, netns_cookie)?;
        let is_news = self.overflows != Some(overflows);
        let listeners = is_news.then(|| listening::listeners(&ns, netns_cookie)).transpose()?;
        Ok(Look { netns_cookie, overflows, full: listeners.map(|listeners| full(&listeners)) })
    }
}

/// An accept queue that is full.
struct Full {
    netns_cookie: NetnsCookie,
    waiting: u32,
    backlog: u32,
    looks: u32,
}

impl AcceptQueues {
    /// The number of overflows at which nothing is to be enumerated: none if a queue was full at the last look, or may have been.
    fn known_overflows(&self, netns_cookie: NetnsCookie) -> Option<u64> {
        let was_full = self.full.values().any(|full| full.netns_cookie == netns_cookie);
        self.overflows.get(&netns_cookie).copied().filter(|_| !was_full)
    }

    /// Takes what a look found in a namespace.
    fn note(&mut self, netns_cookie: NetnsCookie, found: &[FullQueue]) {
        let mut before = std::mem::take(&mut self.full);
        self.full = before.extract_if(.., |_, full| full.netns_cookie != netns_cookie).collect();
        for (cookie, waiting, backlog) in found.iter().copied() {
            let looks = before.get(&cookie).map_or(0, |full| full.looks).saturating_add(1);
            self.full.insert(cookie, Full { netns_cookie, waiting, backlog, looks });
        }
    }

    /// Forgets what was found in other namespaces than these: nothing looks there any more.
    fn keep(&mut self, steered: &BTreeSet<NetnsCookie>) {
        self.overflows.retain(|netns_cookie, _| steered.contains(netns_cookie));
        self.full.retain(|_, full| steered.contains(&full.netns_cookie));
    }
}

/// As the kernel asks (`sk_acceptq_is_full` in `include/net/sock.h`): one more than the backlog may wait, also with a backlog of zero. A
/// listener of `/proc/net`, which has no cookie, has no backlog to compare with.
fn is_full(listener: &Listener) -> bool {
    listener.cookie.is_some() && listener.waiting > listener.backlog
}

impl Control {
    /// Looks at the queues in some of the namespaces in which something is steered, beside the loop.
    pub(super) fn look_at_accept_queues(&mut self) {
        let now = Instant::now();
        if self.accept_queues.under_way.is_some() || self.accept_queues.rests_until.is_some_and(|at| now < at) {
            return;
        }
        let (mut steered, next) = (self.plan.namespaces(), self.accept_queues.next);
        steered.extend(self.plan.destinations.values().map(|destination| destination.netns));
        self.accept_queues.keep(&steered);
        let chosen = steered.range(next..).chain(steered.range(..next)).copied();
        let chosen: Vec<NetnsCookie> = chosen.take(NAMESPACES_AT_ONCE).collect();
        let Some(last) = chosen.last() else { return };
        (self.accept_queues.next, self.accept_queues.under_way) = (NetnsCookie(last.0.wrapping_add(1)), Some(now));
        let places = self.places_of(chosen.into_iter()).into_iter();
        let questions: Vec<Question> = places
            .map(|(netns, sets)| Question { netns, sets, overflows: self.accept_queues.known_overflows(netns.cookie) })
            .collect();
        self.effects.run(Event::AcceptQueues(Vec::new()), move || {
            let looks = questions.into_iter().filter_map(|question| {
                let netns = question.netns;
                let failed =
                    |error: &std::io::Error| debug!(%netns, %error, "cannot look at the accept queues of a namespace");
                question.look().inspect_err(failed).ok()
            });
            Event::AcceptQueues(looks.collect())
        });
    }

    /// Takes what the look found: by namespace, the listeners whose queue is full.
    pub(super) fn accept_queues_seen(&mut self, looks: Vec<Look>) {
        let took = self.accept_queues.under_way.take().map(|began| began.elapsed());
        self.accept_queues.rests_until = took.map(|took| Instant::now() + (took * REST).min(REST_MAX));
        for Look { netns_cookie, overflows, full } in looks {
            self.accept_queues.overflows.insert(netns_cookie, overflows);
            if let Some(full) = full {
                self.accept_queues.note(netns_cookie, &full);
            }
        }
        let mut of_backend: BTreeMap<BackendIndex, Vec<SocketCookie>> = BTreeMap::new();
        for cookie in self.accept_queues.full.keys() {
            if let Some(socket) = self.world.sockets.get(cookie) {
                of_backend.entry(socket.backend).or_default().push(*cookie);
            }
        }
        self.accept_queues.of_backend = of_backend;
    }

    /// The conditions of a backend.
    pub(super) fn full_queues(&self, backend: &Backend) -> Vec<Condition> {
        let own = |cookie: &&SocketCookie| {
            self.world.sockets.get(cookie).is_some_and(|socket| socket.backend == backend.index)
        };
        let full = self.accept_queues.of_backend.get(&backend.index).into_iter().flatten();
        full.filter(own).filter_map(|cookie| self.full_queue(*cookie)).collect()
    }

    fn full_queue(&self, cookie: SocketCookie) -> Option<Condition> {
        let full = self.accept_queues.full.get(&cookie).filter(|full| full.looks >= LOOKS)?;
        let Full { waiting, backlog, .. } = full;
        let port = self.world.sockets.get(&cookie)?.port;
        let message = format!(
            "its accept queue on port {port} is full ({waiting} connections wait, its backlog is {backlog}): the server accepts \
             too slowly or not at all, and further clients wait"
        );
        let remedy = "look at the server, or raise its backlog and net.core.somaxconn";
        Some(Condition::new(Reason::AcceptQueueFull, message, remedy))
    }
}

/// The full ones: cookie, how many wait, and the backlog.
fn full(listeners: &[Listener]) -> Vec<FullQueue> {
    let full = listeners.iter().filter(|listener| is_full(listener));
    full.filter_map(|listener| Some((listener.cookie?, listener.waiting, listener.backlog))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_a_condition_at_the_second_look_and_until_it_is_not_full() {
        let mut queues = AcceptQueues::default();
        let mut shown = |netns, found: &[(u64, u32, u32)]| {
            let found: Vec<FullQueue> =
                found.iter().map(|(cookie, waiting, backlog)| (SocketCookie(*cookie), *waiting, *backlog)).collect();
            queues.note(NetnsCookie(netns), &found);
            let full = queues.full.iter().filter(|(_, full)| full.looks >= LOOKS);
            full.map(|(cookie, _)| cookie.0).collect::<Vec<_>>()
        };
        assert!(shown(1, &[(7, 3, 2)]).is_empty());
        assert!(shown(2, &[(9, 3, 2)]).is_empty(), "another namespace");
        assert_eq!(shown(1, &[(7, 3, 2)]), [7]);
        assert_eq!(shown(1, &[(7, 3, 2), (8, 5, 4)]), [7]);
        assert_eq!(shown(1, &[(8, 5, 4)]), [8]);
        assert!(shown(1, &[]).is_empty());
        assert_eq!(shown(2, &[(9, 3, 2)]), [9]);
    }

    #[test]
    fn listeners_are_enumerated_after_an_overflow_and_while_a_queue_is_full() {
        let mut queues = AcceptQueues::default();
        assert_eq!(queues.known_overflows(NetnsCookie(1)), None, "nothing is known yet");
        queues.overflows.insert(NetnsCookie(1), 5);
        assert_eq!((queues.known_overflows(NetnsCookie(1)), queues.known_overflows(NetnsCookie(2))), (Some(5), None));
        queues.note(NetnsCookie(1), &[(SocketCookie(7), 3, 2)]);
        assert_eq!(queues.known_overflows(NetnsCookie(1)), None);
        queues.note(NetnsCookie(1), &[]);
        assert_eq!(queues.known_overflows(NetnsCookie(1)), Some(5));
    }

    #[test]
    fn a_queue_is_forgotten_with_the_steering_of_its_namespace() {
        let mut queues = AcceptQueues::default();
        for netns_cookie in [1, 2].map(NetnsCookie) {
            queues.overflows.insert(netns_cookie, 5);
            queues.note(netns_cookie, &[(SocketCookie(netns_cookie.0), 3, 2)]);
        }
        queues.keep(&BTreeSet::from([NetnsCookie(2)]));
        assert_eq!(queues.full.keys().collect::<Vec<_>>(), [&SocketCookie(2)]);
        assert_eq!(queues.overflows.keys().collect::<Vec<_>>(), [&NetnsCookie(2)]);
    }
}
