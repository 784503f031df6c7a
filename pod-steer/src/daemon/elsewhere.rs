//! Running backends that do not listen where they should: on which ports do their processes listen instead? Looked at beside
//! the loop, a few at a time, and less often the longer it lasts.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use super::{Event, control::Control};
use crate::{
    ids::{BackendId, BackendIndex},
    ports::Port,
    world::{Phase, State},
};

/// Time from one look to the next; doubled up to the last.
const PAUSE_FIRST: Duration = Duration::from_secs(2);
const PAUSE_LAST: Duration = Duration::from_secs(30);
/// Most looks that are under way at a time.
const LOOKS_MAX: usize = 4;

/// When each backend is looked at next.
#[derive(Default)]
pub(super) struct Elsewhere {
    next: HashMap<BackendId, (Instant, Duration)>,
    under_way: BTreeSet<BackendId>,
    /// Some backend does not listen.
    pub is_due: bool,
}

impl Control {
    fn is_silent(&self, index: BackendIndex) -> bool {
        matches!(self.plan.states.get(&index), Some(State::Starting | State::NotListening))
            && self.world.backends.values().any(|b| b.index == index && b.phase == Phase::Running)
    }

    /// Notes whether any backend does not listen; called with every new plan.
    pub(super) fn note_silent(&mut self) {
        let silent = |state: &State| matches!(state, State::Starting | State::NotListening);
        self.elsewhere.is_due = self.plan.states.values().any(silent);
        if !self.elsewhere.is_due {
            self.elsewhere.next.clear();
        }
    }

    /// Looks where silent backends listen.
    pub(super) fn look_elsewhere(&mut self) {
        if !self.elsewhere.is_due {
            return;
        }
        let now = Instant::now();
        let backends = self.world.backends.values();
        let silent: Vec<(BackendId, BackendIndex)> =
            backends.filter(|b| self.is_silent(b.index)).map(|b| (b.id.clone(), b.index)).collect();
        self.elsewhere.next.retain(|id, _| silent.iter().any(|(silent, _)| silent == id));
        for (id, index) in silent {
            if self.elsewhere.under_way.len() >= LOOKS_MAX {
                return;
            }
            let Some(processes) = self.world.by_index(index).map(|backend| self.processes_of(backend)) else {
                continue;
            };
            let (at, pause) = *self.elsewhere.next.entry(id.clone()).or_insert((now + PAUSE_FIRST, PAUSE_FIRST));
            if at > now || !self.elsewhere.under_way.insert(id.clone()) {
                continue;
            }
            let pause = (pause * 2).min(PAUSE_LAST);
            self.elsewhere.next.insert(id.clone(), (now + pause, pause));
            self.effects.run(Event::Elsewhere { id: id.clone(), ports: None }, move || {
                let mut ports = BTreeSet::new();
                processes.listeners(|socket| {
                    ports.insert(socket.port());
                    false
                });
                Event::Elsewhere { id, ports: Some(ports) }
            });
        }
    }

    /// A look has found on which ports a backend listens.
    pub(super) fn found_elsewhere(&mut self, id: &str, ports: Option<BTreeSet<Port>>) {
        self.elsewhere.under_way.remove(id);
        let (Some(backend), Some(ports)) = (self.world.backends.get(id), ports) else { return };
        let index = backend.index;
        if !self.is_silent(index) {
            return;
        }
        let known = self.world.listening.entry(index).or_default();
        if known.elsewhere != ports {
            known.elsewhere = ports;
            self.touch_backend(index);
        }
    }
}
