//! Compares the registered sockets with those that listen, and with the processes that hold them.
//!
//! The kernel programs report a socket that a backend makes. They do not see one that a backend's process inherits or is
//! passed, and none that was made outside of an attached cgroup. Those are found here, beside the loop.

mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
    time::Instant,
};

use tracing::{debug, info};

pub(super) use state::{Holders, Refused};

use super::{Event, control::Control};
use crate::{
    condition::{Condition, Reason},
    holders::{self, Answer, Asked, Candidate, Holding, Known, Question},
    ids::{BackendIndex, NetnsCookie, SocketCookie},
    netns::Netns,
    ports::Port,
    procs::FoundSocket,
    world::{Backend, Kind, Phase, Sockets},
};

/// Namespaces that one look is about, unless something has happened in more.
const AT_ONCE_MAX: usize = 16;

/// Listeners of one backend that one look registers: the loop has other things to do.
const FOUND_MAX: usize = 64;

/// What a look found, by the cookie of each namespace.
pub type Answers = Vec<(NetnsCookie, io::Result<Answer>)>;

impl Control {
    /// Makes the next look one at everything.
    pub(super) fn compare_holders(&mut self) {
        self.holders.due.extend(self.netns_by_cookie().into_keys().map(|cookie| (cookie, true)));
    }

    /// Every second, as long as there is something that only a look can tell.
    pub(super) fn watch_holders(&mut self) {
        if self.holders.pauses() {
            return;
        }
        let sockets = Sockets::new(&self.world.sockets);
        let misses =
            |backend: &&Backend| backend.phase == Phase::Running && !self.missing(backend, &sockets).is_empty();
        let missing = self.world.backends.values().filter(misses).filter_map(|backend| Some(backend.netns?.cookie));
        let silent = self.holders.silent.iter().filter_map(|cookie| Some(self.world.sockets.get(cookie)?.netns_cookie));
        let refused = self.holders.refused.values().map(|refused| refused.netns_cookie);
        let ending = self.holders.ending.keys().filter_map(|id| Some(self.world.backends.get(id)?.netns?.cookie));
        let left_out = self.holders.left_out.values().map(|left_out| left_out.netns_cookie);
        let all: BTreeSet<NetnsCookie> = missing.chain(silent).chain(refused).chain(ending).chain(left_out).collect();
        self.holders.watching = !all.is_empty();
        // In turn, if there are many.
        let last = self.holders.last;
        let turn = all.range((Excluded(last), Unbounded)).chain(all.range(..=last)).take(AT_ONCE_MAX);
        turn.for_each(|cookie| self.holders.look_at(*cookie));
        for (cookie, thorough) in std::mem::take(&mut self.holders.left) {
            *self.holders.due.entry(cookie).or_default() |= thorough;
        }
    }

    /// The ports that a backend is to listen on and does not, or on which it may have further listeners that are left out.
    fn missing(&self, backend: &Backend, sockets: &Sockets<'_>) -> BTreeSet<Port> {
        let mut ports = self.world.configured.listening_ports(&backend.spec);
        if self.holders.left_out.contains_key(&backend.index) {
            return ports;
        }
        for (_, socket) in sockets.of(backend.index) {
            ports.remove(&socket.port);
        }
        ports
    }

    /// Ports of registered processes that have ended.
    fn vacant_ports(&self, netns: Netns) -> BTreeSet<Port> {
        let ending = self.holders.ending.keys().filter_map(|id| self.world.backends.get(id));
        let here = ending.filter(|backend| backend.netns == Some(netns));
        // Skip it if the process that listens there has been reported.
        let is_told = |backend: &Backend| self.holders.refused.values().any(|refused| refused.index == backend.index);
        let registered = here.filter(|backend| matches!(backend.kind, Kind::Registered { .. }) && !is_told(backend));
        registered.flat_map(|backend| self.world.configured.listening_ports(&backend.spec)).collect()
    }

    fn netns_by_cookie(&self) -> BTreeMap<NetnsCookie, Netns> {
        self.world.backends.values().filter_map(|backend| backend.netns).map(|netns| (netns.cookie, netns)).collect()
    }

    /// Begins a look if one is due and none is under way.
    pub(super) fn look_for_holders(&mut self) {
        if self.holders.under_way.is_some() || self.holders.due.is_empty() {
            return;
        }
        let due = std::mem::take(&mut self.holders.due);
        let sockets = Sockets::new(&self.world.sockets);
        // It listens again, and the engine's word that it runs is under way.
        let is_starting = |backend: &Backend| {
            matches!((&backend.kind, backend.phase), (Kind::Container { .. }, Phase::Created | Phase::Exited))
                && !self.holders.ending.contains_key(&backend.id)
                && sockets.of(backend.index).next().is_some()
        };
        let runs =
            |backend: &&Backend| !matches!(backend.phase, Phase::Created | Phase::Exited) || is_starting(backend);
        let candidates = self.world.backends.values().filter(runs);
        let candidate = |backend: &Backend| {
            Some(Candidate {
                index: backend.index,
                netns: backend.netns?,
                ports: self.world.configured.listening_ports(&backend.spec),
                missing: self.missing(backend, &sockets),
                processes: self.processes_of(backend),
                room: self.kernel.socket_usage(backend.index).room().min(FOUND_MAX),
            })
        };
        let candidates: Arc<Vec<Candidate>> = Arc::new(candidates.filter_map(candidate).collect());
        let by_cookie = self.netns_by_cookie();
        let question = |(cookie, thorough): (&NetnsCookie, &bool)| {
            let here = self.world.sockets.iter().filter(|(_, socket)| socket.netns_cookie == *cookie);
            let known = here.map(|(cookie, socket)| {
                let seat = self.holders.seats.get(cookie).copied();
                let owner = self.world.by_index(socket.backend);
                let stays = |owner: &Backend| {
                    let holds_only = owner.process.is_some_and(|process| process.holds_only);
                    let runs = owner.phase == Phase::Running || is_starting(owner);
                    runs && !holds_only && !self.holders.ending.contains_key(&owner.id)
                };
                let orphan = !owner.is_some_and(stays);
                (*cookie, Known { port: socket.port, seat, owner: socket.backend, orphan })
            });
            let (netns, known) = (*by_cookie.get(cookie)?, known.collect());
            let vacant = self.vacant_ports(netns);
            Some(Question { netns, known, candidates: Arc::clone(&candidates), vacant, thorough: *thorough })
        };
        let last = self.holders.last;
        let turn = due.range((Excluded(last), Unbounded)).chain(due.range(..=last));
        let questions: Vec<Question> = turn.filter_map(question).collect();
        if questions.is_empty() {
            return;
        }
        self.holders.under_way = Some(Instant::now());
        self.holders.renewed.clear();
        let failure = |netns_cookie| (netns_cookie, Err(io::Error::other("the look failed")));
        let failed = Event::Held(questions.iter().map(|question| failure(question.netns.cookie)).collect());
        self.holders.asked = questions.iter().map(|question| (question.netns.cookie, question.thorough)).collect();
        self.effects.run(failed, move || Event::Held(holders::look(&questions)));
    }

    /// Takes what a look found.
    pub(super) fn held(&mut self, answers: Answers) {
        let began = self.holders.under_way.take().unwrap_or_else(Instant::now);
        let took = began.elapsed();
        self.holders.ended = Some((Instant::now(), took));
        let mut left = std::mem::take(&mut self.holders.asked);
        left.retain(|cookie, _| answers.iter().all(|(answered, _)| answered != cookie));
        self.holders.watching |= !left.is_empty();
        self.holders.left = left;
        for (netns_cookie, answer) in answers {
            self.holders.last = netns_cookie;
            match answer {
                Ok(answer) => {
                    self.holders.failed.remove(&netns_cookie);
                    self.expect_left_out(netns_cookie);
                    self.held_in(answer);
                    self.clear_left_out(netns_cookie, began);
                }
                Err(error) => {
                    debug!(%netns_cookie, %error, "cannot tell which processes hold the listeners of a namespace");
                    // Once may be for want of a thread, or a descriptor.
                    if !self.holders.failed.insert(netns_cookie) {
                        self.conclude_unheld(netns_cookie);
                    }
                }
            }
        }
        let known = self.netns_by_cookie();
        self.holders.failed.retain(|cookie| known.contains_key(cookie));
    }

    fn held_in(&mut self, answer: Answer) {
        let Answer { netns_cookie, mut asked, listening, held, mptcp, beyond, is_complete } = answer;
        let refused = self.holders.refused.iter().filter(|(_, of)| of.netns_cookie == netns_cookie);
        asked.extend(refused.map(|(cookie, _)| *cookie));
        let Holders { renewed, missed, .. } = &mut self.holders;
        asked.retain(|cookie| !renewed.contains(cookie));
        missed.retain(|cookie| !renewed.contains(cookie));
        // The kernel removes a socket that is closed from the map by itself, but not one that shutdown(2) has ended.
        for cookie in self.holders.note_missed(&asked, &listening) {
            self.holders.refused.remove(&cookie);
            if let Some(index) = self.world.sockets.get(&cookie).map(|socket| socket.backend) {
                debug!(%cookie, "no longer listens");
                self.forget_socket(cookie);
                self.touch_backend(index);
            }
        }
        if asked.iter().any(|cookie| self.holders.missed.contains(cookie)) {
            self.holders.look_at(netns_cookie);
        }
        let mut shared: BTreeMap<BackendIndex, (Port, BackendIndex)> = BTreeMap::new();
        for (cookie, holding) in held {
            self.held_by(cookie, netns_cookie, holding, &mut shared);
        }
        beyond.into_iter().for_each(|index| self.found_beyond(index, netns_cookie));
        self.tell_what_is_not_steered(netns_cookie, &mptcp, &shared, is_complete);
        self.clear_refusals();
        self.conclude_ended();
        self.tell_left_out();
    }

    /// Decides about one listener. `shared` collects backends that hold one of another backend, with its port and owner.
    fn held_by(
        &mut self,
        cookie: SocketCookie,
        netns_cookie: NetnsCookie,
        holding: Holding,
        shared: &mut BTreeMap<BackendIndex, (Port, BackendIndex)>,
    ) {
        let Holding { port, asked, mut backends, strangers } = holding;
        backends.retain(|(index, _)| {
            self.world.by_index(*index).is_some_and(|backend| !self.holders.ending.contains_key(&backend.id))
        });
        let owner = self.world.sockets.get(&cookie).map(|socket| socket.backend);
        if let (Asked::Settled, Some(owner)) = (asked, owner) {
            let others = backends.iter().filter(|(index, _)| *index != owner);
            shared.extend(others.map(|(index, _)| (*index, (port, owner))));
            return;
        }
        let refused = self.holders.refused.get(&cookie).filter(|refused| refused.was_registered);
        let former = owner.or(refused.map(|refused| refused.index));
        let service = former.and_then(|index| self.world.by_index(index)).map(|backend| backend.spec.service.clone());
        let indices: Vec<BackendIndex> = backends.iter().map(|(index, _)| *index).collect();
        let Some(holder) = self.world.holder(&indices, port, service.as_deref()).map(|backend| backend.index) else {
            match former {
                Some(former) => self.held_by_strangers(cookie, port, former, strangers),
                None => self.replaced_by(cookie, netns_cookie, port, &strangers),
            }
            return;
        };
        let Some((_, socket)) = backends.into_iter().find(|(index, _)| *index == holder) else { return };
        if owner == Some(holder) {
            self.holders.seats.insert(cookie, socket.seat);
            return;
        }
        self.hand_over(holder, socket);
        shared.extend(indices.iter().filter(|index| **index != holder).map(|index| (*index, (port, holder))));
    }

    /// A listener is this backend's from now on.
    pub(super) fn hand_over(&mut self, index: BackendIndex, socket: FoundSocket) {
        let Some(backend) = self.world.by_index(index) else { return };
        let (service, name, port) = (backend.spec.service.clone(), backend.name.clone(), socket.port());
        if let Some(backend) = self.world.by_index_mut(index) {
            backend.end_condition(Reason::ListenerShared);
        }
        if self.found_left_out(index) && !self.world.sockets.contains_key(&socket.cookie) {
            if let Err(reason) = self.kernel.take_rate(index) {
                return self.leave_out(index, socket.netns_cookie, reason);
            }
            // Made by the backend itself, as a rule: its programs count what is opened from now on.
            self.note_incomplete_counts(index);
            self.register_found(index, socket);
            return self.touch_backend(index);
        }
        let is_new = !self.world.sockets.contains_key(&socket.cookie);
        if is_new && self.kernel.socket(socket.cookie).is_some_and(|registered| registered.backend == index.0) {
            // Its kernel program has registered it, and the report is under way.
            self.register_found(index, socket);
            return self.touch_backend(index);
        }
        let former = self.world.sockets.get(&socket.cookie).and_then(|socket| self.world.by_index(socket.backend));
        match former.map(|backend| backend.name.clone()) {
            Some(former) => {
                info!(%service, backend = %name, %port, %former, "holds a listener of another backend, and serves by it");
                self.tell(&service, &name, "inherited", &format!("the listener on port {port} of {former}"));
            }
            None => info!(%service, backend = %name, %port, "holds a listener that it did not make, and serves by it"),
        }
        self.register_inherited(index, socket);
        self.touch_backend(index);
    }

    /// Says of the backends of a namespace why listeners that they hold are not steered to. Most looks are about a part of the
    /// descriptors: only a complete one ends such a condition.
    fn tell_what_is_not_steered(
        &mut self,
        netns_cookie: NetnsCookie,
        mptcp: &BTreeMap<BackendIndex, BTreeSet<Port>>,
        shared: &BTreeMap<BackendIndex, (Port, BackendIndex)>,
        is_complete: bool,
    ) {
        let name = |index: BackendIndex| self.world.by_index(index).map(|owner| owner.name.clone()).unwrap_or_default();
        let shared: BTreeMap<BackendIndex, Condition> = shared
            .iter()
            .map(|(index, (port, owner))| {
                let owner = name(*owner);
                let message = format!(
                    "its listener on port {port} is also held by {owner}, which is older: clients that come to it count \
                     as those of {owner} until {owner} closes it or ends"
                );
                (*index, Condition::without_remedy(Reason::ListenerShared, message))
            })
            .collect();
        let here = |backend: &&mut Backend| backend.netns.is_some_and(|netns| netns.cookie == netns_cookie);
        let mut changed = Vec::new();
        for backend in self.world.backends.values_mut().filter(here) {
            let mptcp = mptcp.get(&backend.index).map(mptcp_condition);
            let shared = shared.get(&backend.index).cloned();
            for (reason, condition) in [(Reason::Mptcp, mptcp), (Reason::ListenerShared, shared)] {
                let before = backend.conditions.get(&reason);
                if before == condition.as_ref() || (condition.is_none() && !is_complete) {
                    continue;
                }
                match condition {
                    Some(condition) => backend.set_condition(condition),
                    None => {
                        backend.end_condition(reason);
                    }
                }
                changed.push(backend.spec.service.clone());
            }
        }
        changed.iter().for_each(|service| self.touch_service(service));
    }
}

/// The condition of a backend that listens on these ports by MPTCP.
pub(super) fn mptcp_condition(ports: &BTreeSet<Port>) -> Condition {
    let ports: Vec<String> = ports.iter().map(Port::to_string).collect();
    Condition::new(
        Reason::Mptcp,
        format!("it listens on port {} by MPTCP, which no socket map takes", ports.join(" and ")),
        "let pod-steer start it, since managed processes get TCP instead; or make it use TCP (GODEBUG=multipathtcp=0 for a Go \
         program, or sysctl net.mptcp.enabled=0), and restart it",
    )
}
