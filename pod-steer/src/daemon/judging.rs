//! Observes the versions of the services that a canary or a watched deploy is under way in, and tells `rollout` how they compare
//! (`pod-steer-model/src/judge`).
//!
//! Each step has programs of its own. So it counts the connections that were opened in it, of both sides, and both are equally old: those
//! of an earlier step would have been opened under other shares. In a step in which the others get nothing, the version is compared
//! with what they did in the step before, up to the same age.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use tracing::warn;

mod sides;

use sides::{Old, Sides, Version};

use super::{Event, control::Control};
use crate::{
    ids::{BackendIndex, CgroupId},
    judge::Compared,
    kernel::{Cgroup, KernelError, observer::Observer},
    rollout::{Operation, Order, Phase},
    settings::Observe,
};

/// The services whose versions are compared.
#[derive(Default)]
pub(super) struct Judgings {
    by_service: BTreeMap<String, Step>,
}

/// A step of an operation.
struct Step {
    operation: u64,
    number: usize,
    began: Instant,
    /// How many connections the service had had when it began.
    opened: u64,
    sides: State,
}

enum State {
    /// The programs are being loaded; what the others did before, if the new version is compared with that.
    Loading {
        old: Option<Old>,
        per_s: [f64; 2],
    },
    Observing(Box<Sides>),
    /// Nothing is compared, and why.
    Unobserved(String),
}

/// The programs for a step that are loaded.
#[derive(Debug)]
pub struct Loaded {
    service: String,
    operation: u64,
    number: usize,
    /// For the new version, and for the others if they are observed now; or why not.
    observers: Result<(Observer, Option<Observer>), String>,
    reads_http: bool,
}

impl Control {
    /// Begins, goes on with and ends the observation of versions, as operations do.
    pub(super) fn follow_judgings(&mut self) {
        let mut judgings = std::mem::take(&mut self.orders.judgings);
        judgings.by_service.retain(|service, step| {
            let operation = self.orders.operations.get(service).filter(|operation| operation.id == step.operation);
            operation.and_then(number).is_some()
        });
        let now = Instant::now();
        for (service, operation) in &self.orders.operations {
            let Some(number) = number(operation) else { continue };
            let mut step = match judgings.by_service.remove(service) {
                Some(step) if step.number == number => step,
                before => self.begin_judging(before, service, operation, number, now),
            };
            if let State::Observing(sides) = &mut step.sides {
                self.attach_observers(sides, service, operation);
                sides.note(now.duration_since(step.began), now);
                if let Some(per_s) = sides.crowd(now) {
                    self.load_observers(service, operation, number, true);
                    step.sides = State::Loading { old: None, per_s };
                }
            }
            judgings.by_service.insert(service.clone(), step);
        }
        self.orders.judgings = judgings;
    }

    /// Has the programs of a step loaded.
    fn begin_judging(
        &self,
        before: Option<Step>,
        service: &str,
        operation: &Operation,
        number: usize,
        now: Instant,
    ) -> Step {
        let opened = self.opened(service);
        let part = match &operation.order {
            Order::Canary(order) => order.steps.get(number).map_or(0.0, |share| f64::from(*share) / 10_000.0),
            // Before the switch, and after it.
            _ => f64::from(u8::from(number > 0)),
        };
        let age = before.as_ref().map_or(Duration::ZERO, |before| now.duration_since(before.began));
        let per_s = before
            .as_ref()
            .map_or(0.0, |before| opened.saturating_sub(before.opened) as f64 / age.as_secs_f64().max(0.001));
        let unobserved = |why: &str| Step {
            operation: operation.id,
            number,
            began: now,
            opened,
            sides: State::Unobserved(why.to_owned()),
        };
        let old = match before {
            _ if part < 1.0 => None,
            Some(Step { sides: State::Observing(sides), .. }) => Some(sides.old.then(age)),
            Some(Step { sides: State::Loading { old: Some(old), .. }, .. }) => Some(old.then(age)),
            Some(Step { sides: State::Loading { .. }, .. }) => return unobserved("the step before was too short"),
            Some(Step { sides: State::Unobserved(why), .. }) => return unobserved(&why),
            None if number > 0 => return unobserved("the daemon was restarted after the step before"),
            None => return unobserved("the others got nothing in any step"),
        };
        self.load_observers(service, operation, number, old.is_none());
        let sides = State::Loading { old, per_s: [per_s * part, per_s * (1.0 - part)] };
        Step { operation: operation.id, number, began: now, opened, sides }
    }

    /// Loads the programs for a step, for both sides or for the new version alone.
    fn load_observers(&self, service: &str, operation: &Operation, number: usize, is_pair: bool) {
        let reads_http = self.world.options(service).observe == Observe::Http;
        let load = move || {
            let new = Observer::load(reads_http)?;
            let old = if is_pair { Some(Observer::load(reads_http)?) } else { None };
            Ok::<_, KernelError>((new, old))
        };
        let (service, operation) = (service.to_owned(), operation.id);
        self.effects.run_then(load, move |observers| {
            let observers = match observers {
                Some(observers) => observers.map_err(|error| crate::chain(&error)),
                None => Err("to load them has failed".to_owned()),
            };
            Event::Observers(Box::new(Loaded { service, operation, number, observers, reads_http }))
        });
    }

    /// The programs of a step are loaded: from now on it counts.
    pub(super) fn observers_loaded(&mut self, loaded: Loaded) {
        let Loaded { service, operation, number, observers, reads_http } = loaded;
        let opened = self.opened(&service);
        let Some(step) = self.orders.judgings.by_service.get_mut(&service) else { return };
        if (step.operation, step.number) != (operation, number) {
            return;
        }
        let State::Loading { old, per_s } = std::mem::replace(&mut step.sides, State::Unobserved(String::new())) else {
            return;
        };
        let now = Instant::now();
        step.sides = match observers {
            Ok((new, others)) => {
                let of_now = others.map(|others| Old::Now {
                    version: Box::new(Version::new(others, per_s[1], now)),
                    before: Vec::new(),
                });
                let new = Version::new(new, per_s[0], now);
                match old.or(of_now) {
                    Some(old) => {
                        State::Observing(Box::new(Sides { reads_http, new, old, sampled: (now, [0; 2]), failed: None }))
                    }
                    None => State::Unobserved("the others are not observed".to_owned()),
                }
            }
            Err(error) => {
                warn!(%service, %error, "its versions cannot be observed");
                State::Unobserved(format!("the versions cannot be observed ({error})"))
            }
        };
        (step.began, step.opened) = (now, opened);
        self.touch_service(&service);
    }

    /// Attaches to the cgroups of both sides that are not attached to.
    fn attach_observers(&self, sides: &mut Sides, service: &str, operation: &Operation) {
        let Some((version, ..)) = operation.order.judged() else { return };
        let own = || self.world.backends.values().filter(|backend| backend.spec.service == service);
        let placed = |is_new: bool| -> BTreeMap<CgroupId, (BackendIndex, &PathBuf)> {
            let own = own().filter(|backend| (backend.spec.version == version) == is_new && backend.netns.is_some());
            own.filter_map(|backend| {
                let path = self.places.path(backend.index)?;
                // That of a command of `exec` is not kept.
                let id = self.places.id(backend.index).or_else(|| Cgroup::open(path).ok().map(|cgroup| cgroup.id))?;
                Some((id, (backend.index, path)))
            })
            .collect()
        };
        let old = match &mut sides.old {
            Old::Now { version, .. } => Some(&mut **version),
            Old::Then { .. } => None,
        };
        let mut failed = None;
        for (side, cgroups) in
            std::iter::once((&mut sides.new, placed(true))).chain(old.map(|old| (old, placed(false))))
        {
            side.attached.retain(|id, _| cgroups.contains_key(id));
            for (id, (index, path)) in cgroups {
                // `tcp_events` tells clients from others, and has to be attached before.
                if side.attached.contains_key(&id) || !self.kernel.is_attached(id, index) {
                    continue;
                }
                // One that is gone, or has been replaced, is another one in a later turn.
                let Some(cgroup) = Cgroup::open(path).ok().filter(|cgroup| cgroup.id == id) else { continue };
                match side.observer.attach(&cgroup) {
                    Ok(attachment) => drop(side.attached.insert(id, (path.clone(), attachment))),
                    Err(error) => failed = Some(crate::chain(&error)),
                }
            }
        }
        let without = own().find(|backend| backend.netns.is_some() && self.places.path(backend.index).is_none());
        let without =
            without.map(|backend| format!("{} has no cgroup of its own, so it is not observed", backend.name));
        let failed = failed.or(without);
        if let Some(error) = failed.as_ref().filter(|error| sides.failed.as_ref() != Some(error)) {
            warn!(%service, %error, "a backend is not observed");
        }
        sides.failed = failed;
    }

    /// How the versions of a service compare in the present step of its operation.
    pub(super) fn compared(&self, service: &str) -> Option<Compared> {
        let operation = self.orders.operations.get(service)?;
        let (version, ..) = operation.order.judged()?;
        let step = self.orders.judgings.by_service.get(service)?;
        if step.operation != operation.id || number(operation) != Some(step.number) {
            return None;
        }
        let unknown = |why: String| Some(Compared { unobserved: Some(why), ..Compared::default() });
        let sides = match &step.sides {
            State::Observing(sides) => sides,
            State::Loading { .. } => {
                return unknown("the programs that observe the versions are not loaded yet".to_owned());
            }
            State::Unobserved(why) => return unknown(why.clone()),
        };
        let (new, old, one_of, is_before) = match &sides.old {
            Old::Now { version, .. } => (sides.new.side(), version.side(), version.one_of, false),
            Old::Then { before, one_of, reached } => {
                let (new, at) = reached.as_ref()?;
                (**new, before.get(*at)?.side, *one_of, true)
            }
        };
        let own = self.world.backends.values().filter(|backend| backend.spec.service == service);
        let mut others: Vec<&str> =
            own.map(|backend| backend.spec.version.as_str()).filter(|other| *other != version).collect();
        others.sort_unstable();
        others.dedup();
        let (others, reads_http) = (others.join(" and "), sides.reads_http);
        let one_of = [sides.new.one_of, one_of];
        Some(Compared { new, old, others, is_before, one_of, reads_http, unobserved: sides.failed.clone() })
    }

    /// How many connections the backends of a service have got.
    fn opened(&self, service: &str) -> u64 {
        let own = self.world.backends.values().filter(|backend| backend.spec.service == service);
        own.map(|backend| self.kernel.counters().backend(backend.index).opened).sum()
    }
}

/// The step that an operation compares versions in.
fn number(operation: &Operation) -> Option<usize> {
    let Phase::Stepping { step, .. } = operation.phase else { return None };
    operation.order.judged().map(|_| step)
}
