//! What metrics have beside the status. The accept queues of all listeners are read beside the loop when a client asks. On a machine with
//! many network namespaces that takes a while: then the client gets the numbers of the last time, and the next one these.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, time::sleep};
use tracing::debug;

use super::{Event, control::Control};
use crate::{
    api::metrics::measured::{Lost, Measured, Queues},
    ids::{BackendId, NetnsCookie, SocketCookie},
    listening::{self, Listener, TurnedAway},
    netns::Netns,
    process_set::{ProcessSet, open_netns},
};

/// Longest wait of a client for the accept queues.
const WAIT_MAX: Duration = Duration::from_millis(10);
/// The next look waits so many times as long as the last one took, however often clients ask.
const REST: u32 = 20;

/// The accept queues as they were seen last.
#[derive(Default)]
pub(super) struct Measures {
    namespaces: BTreeMap<NetnsCookie, Seen>,
    under_way: Option<Instant>,
    rests_until: Option<Instant>,
    /// Clients that wait for the look that is under way.
    asked: Vec<oneshot::Sender<Measured>>,
}

/// What was seen in a network namespace.
#[derive(Debug)]
pub struct Seen {
    netns: Netns,
    turned_away: TurnedAway,
    listeners: Vec<Queue>,
}

/// The accept queue of a listener.
#[derive(Clone, Copy, Debug)]
struct Queue {
    cookie: SocketCookie,
    waiting: u32,
    backlog: u32,
    drops: u32,
}

impl Queue {
    fn of(listener: &Listener) -> Option<Self> {
        let Listener { cookie, waiting, backlog, drops, .. } = *listener;
        Some(Self { cookie: cookie?, waiting, backlog, drops })
    }
}

fn look(netns: Netns, sets: &[ProcessSet]) -> std::io::Result<Seen> {
    let ns = open_netns(netns, sets)?;
    let turned_away = listening::turned_away(&ns, netns.cookie)?;
    let listeners = listening::listeners(&ns, netns.cookie)?;
    Ok(Seen { netns, turned_away, listeners: listeners.iter().filter_map(Queue::of).collect() })
}

impl Control {
    /// Answers with the measures, after a look at the accept queues if that is short.
    pub(super) fn answer_measured(&mut self, answer: oneshot::Sender<Measured>) {
        let now = Instant::now();
        let rests = self.measures.rests_until.is_some_and(|at| now < at);
        if self.measures.under_way.is_none() && rests {
            return drop(answer.send(self.measured()));
        }
        self.measures.asked.push(answer);
        self.effects.send_later(async {
            sleep(WAIT_MAX).await;
            Event::MeasuresDue
        });
        if self.measures.under_way.is_none() {
            self.measures.under_way = Some(now);
            let (mut cookies, destinations) = (self.plan.namespaces(), self.plan.destinations.values());
            cookies.extend(destinations.map(|destination| destination.netns));
            let places = self.places_of(cookies.iter().copied());
            self.effects.run(Event::Measured(Vec::new()), move || {
                let seen = places.into_iter().filter_map(|(netns, sets)| {
                    let failed =
                        |error: &std::io::Error| debug!(%netns, %error, "cannot measure the accept queues of a namespace");
                    look(netns, &sets).inspect_err(failed).ok()
                });
                Event::Measured(seen.collect())
            });
        }
    }

    /// The look has ended.
    pub(super) fn queues_measured(&mut self, seen: Vec<Seen>) {
        let took = self.measures.under_way.take().map(|began| began.elapsed()).unwrap_or_default();
        self.measures.rests_until = Some(Instant::now() + took * REST);
        let mut of_backends: BTreeMap<&BackendId, Vec<(SocketCookie, u32)>> = BTreeMap::new();
        for Queue { cookie, drops, .. } in seen.iter().flat_map(|seen| &seen.listeners) {
            let socket = self.world.sockets.get(cookie);
            let Some(backend) = socket.and_then(|socket| self.world.by_index(socket.backend)) else { continue };
            of_backends.entry(&backend.id).or_default().push((*cookie, *drops));
        }
        of_backends.into_iter().for_each(|(id, listeners)| self.totals.see_drops(id, &listeners));
        self.totals.close_listeners(|cookie| self.world.sockets.contains_key(&cookie));
        self.measures.namespaces = seen.into_iter().map(|seen| (seen.netns.cookie, seen)).collect();
        self.answer_measures();
    }

    /// Answers the clients that wait, whether the look has ended or not.
    pub(super) fn answer_measures(&mut self) {
        if self.measures.asked.is_empty() {
            return;
        }
        let measured = self.measured();
        for answer in std::mem::take(&mut self.measures.asked) {
            let _ = answer.send(measured.clone());
        }
    }

    fn measured(&mut self) -> Measured {
        self.keep_totals();
        let mut queues: BTreeMap<BackendId, Queues> = BTreeMap::new();
        for Queue { cookie, waiting, backlog, .. } in self.measures.namespaces.values().flat_map(|seen| &seen.listeners)
        {
            let socket = self.world.sockets.get(cookie);
            let Some(backend) = socket.and_then(|socket| self.world.by_index(socket.backend)) else { continue };
            queues.entry(backend.id.clone()).or_default().add(*waiting, *backlog);
        }
        let counters = self.kernel.counters();
        Measured {
            totals: self.totals.all().clone(),
            services: self.totals.services().cloned().collect(),
            engines: self.engines.reachable().map(|(engine, is_up)| (engine.to_owned(), is_up)).collect(),
            queues,
            drops: self.totals.drops().map(|(id, drops)| (id.clone(), drops)).collect(),
            namespaces: self
                .measures
                .namespaces
                .values()
                .map(|seen| (seen.netns.to_string(), seen.turned_away))
                .collect(),
            lost: Lost { events: counters.events_lost(), descriptions: counters.descriptions_lost() },
        }
    }
}
