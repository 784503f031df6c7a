//! Services whose option says that drains close old connections: how long each of theirs has been open is noted all the time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::warn;

use super::control::Control;
use crate::{
    connections::Question,
    idle::ages::{Ages, open},
    world::Phase,
};

/// Number of looks in the time after which a connection is old: so much of it passes at most before one is noted.
const LOOKS: u32 = 20;
/// The time from one look to the next. Each is a dump of the connections of the services' namespaces.
const EVERY_MIN: Duration = Duration::from_secs(1);
/// The longest.
const EVERY_MAX: Duration = Duration::from_secs(60);

/// What is known of services.
#[derive(Default)]
pub(super) struct Noted {
    by_service: BTreeMap<String, Arc<Mutex<Ages>>>,
    /// When the options of services were asked last.
    asked: Option<Instant>,
    /// Something has happened since then.
    is_stale: bool,
    /// When a look began last.
    looked: Option<Instant>,
    /// When the next one is due, if a service needs one.
    next: Option<Instant>,
    /// A look that is under way has a second copy.
    looking: Arc<()>,
}

impl Noted {
    /// The ages of the connections of a service; none are known if its option says nothing of them.
    pub fn of(&self, service: &str) -> Arc<Mutex<Ages>> {
        self.by_service.get(service).cloned().unwrap_or_default()
    }

    /// When to ask the options again, or to look.
    pub fn due(&self) -> Option<Instant> {
        if self.is_stale { self.asked.map(|asked| asked + EVERY_MIN) } else { self.next }
    }
}

impl Control {
    /// Looks at the connections of these services when it is time to. Called in each turn.
    pub(super) fn note_ages(&mut self) {
        let now = Instant::now();
        let noted = &mut self.orders.ages;
        noted.is_stale = noted.asked.is_some_and(|asked| now < asked + EVERY_MIN);
        if noted.is_stale {
            return;
        }
        noted.asked = Some(now);
        let services: BTreeSet<&str> = self.world.backends.values().map(|one| one.spec.service.as_str()).collect();
        let max_age = |service: &str| Duration::from_millis(self.world.options(service).drain_max_age_ms);
        let services = services.into_iter().map(|service| (service.to_owned(), max_age(service)));
        let services: BTreeMap<String, Duration> = services.filter(|(_, max_age)| !max_age.is_zero()).collect();
        let every = services.values().map(|max_age| *max_age / LOOKS).min();
        let ages = services.into_keys().map(|service| (noted.of(&service), service));
        noted.by_service = ages.map(|(ages, service)| (service, ages)).collect();
        let Some(every) = every.map(|every| every.clamp(EVERY_MIN, EVERY_MAX)) else {
            noted.next = None;
            return;
        };
        let due = noted.looked.map_or(now, |looked| looked + every);
        if due > now || Arc::strong_count(&noted.looking) > 1 {
            noted.next = Some(due.max(now + EVERY_MIN));
            return;
        }
        (noted.looked, noted.next) = (Some(now), Some(now + every));
        let looking = Arc::clone(&noted.looking);
        let looks: Vec<(Arc<Mutex<Ages>>, Vec<Question>)> = self
            .orders
            .ages
            .by_service
            .iter()
            .map(|(service, ages)| {
                let backends = self.world.backends.values().filter(|one| one.spec.service == *service);
                let backends = backends.filter(|one| one.phase != Phase::Exited);
                (Arc::clone(ages), backends.filter_map(|one| self.question(one)).collect())
            })
            .collect();
        self.effects.run_on(move |_| {
            for (ages, backends) in looks {
                match open(backends) {
                    Ok(open) => ages.lock().unwrap_or_else(PoisonError::into_inner).note(&open, now),
                    Err(error) => warn!(%error, "it is not known how long connections have been open"),
                }
            }
            drop(looking);
        });
    }
}
