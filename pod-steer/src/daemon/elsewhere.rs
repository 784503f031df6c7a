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

impl Elsewhere {
    /// The backends that are looked at now, of those that are silent: those that have waited for the longest time. Each is looked at ever less
    /// often.
    fn take_due(&mut self, silent: &BTreeSet<BackendId>, now: Instant) -> Vec<BackendId> {
        self.next.retain(|id, _| silent.contains(id));
        let next =
            |id: &BackendId| (*self.next.entry(id.clone()).or_insert((now + PAUSE_FIRST, PAUSE_FIRST)), id.clone());
        let mut due: Vec<((Instant, Duration), BackendId)> = silent.iter().map(next).collect();
        due.retain(|((at, _), id)| *at <= now && !self.under_way.contains(id));
        due.sort();
        due.truncate(LOOKS_MAX.saturating_sub(self.under_way.len()));
        for ((_, pause), id) in &due {
            let pause = (*pause * 2).min(PAUSE_LAST);
            self.next.insert(id.clone(), (now + pause, pause));
            self.under_way.insert(id.clone());
        }
        due.into_iter().map(|(_, id)| id).collect()
    }
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
        let backends = self.world.backends.values().filter(|backend| self.is_silent(backend.index));
        let silent: BTreeSet<BackendId> = backends.map(|backend| backend.id.clone()).collect();
        for id in self.elsewhere.take_due(&silent, Instant::now()) {
            let Some(processes) = self.world.backends.get(&id).map(|backend| self.processes_of(backend)) else {
                continue;
            };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: usize) -> BTreeSet<BackendId> {
        (0..count).map(|number| BackendId::from(number.to_string())).collect()
    }

    #[test]
    fn a_silent_backend_is_looked_at_ever_less_often() {
        let (mut elsewhere, begun) = (Elsewhere::default(), Instant::now());
        let mut looks = Vec::new();
        for second in 0..100 {
            if !elsewhere.take_due(&ids(1), begun + Duration::from_secs(second)).is_empty() {
                looks.push(second);
                elsewhere.under_way.clear();
            }
        }
        assert_eq!(looks, [2, 6, 14, 30, 60, 90]);
        // One that listens and is silent again begins anew.
        let later = begun + Duration::from_secs(100);
        assert!(elsewhere.take_due(&ids(0), later).is_empty() && elsewhere.take_due(&ids(1), later).is_empty());
        assert_eq!(elsewhere.take_due(&ids(1), later + PAUSE_FIRST).len(), 1);
    }

    #[test]
    fn few_looks_are_under_way() {
        let (mut elsewhere, begun) = (Elsewhere::default(), Instant::now());
        assert!(elsewhere.take_due(&ids(10), begun).is_empty());
        let due = elsewhere.take_due(&ids(10), begun + PAUSE_FIRST);
        assert_eq!(due.len(), LOOKS_MAX);
        assert!(elsewhere.take_due(&ids(10), begun + PAUSE_FIRST).is_empty());
        elsewhere.under_way.remove(&due[0]);
        assert_eq!(elsewhere.take_due(&ids(10), begun + PAUSE_FIRST), [BackendId::from("4".to_owned())]);
    }

    #[test]
    fn all_of_very_many_are_looked_at() {
        let (mut elsewhere, begun) = (Elsewhere::default(), Instant::now());
        let mut seen = BTreeSet::new();
        for second in 0..100 {
            seen.extend(elsewhere.take_due(&ids(300), begun + Duration::from_secs(second)));
            elsewhere.under_way.clear();
        }
        assert_eq!(seen.len(), 300);
    }
}
