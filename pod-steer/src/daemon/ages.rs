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
    /// When the next look is due.
    next: Option<Instant>,
    /// Something has happened since the last one, perhaps to a service that needs one.
    is_needed: bool,
    /// A look that is under way has a second copy.
    looking: Arc<()>,
}

impl Noted {
    /// The ages of the connections of a service; none are known if its option says nothing of them.
    pub fn of(&self, service: &str) -> Arc<Mutex<Ages>> {
        self.by_service.get(service).cloned().unwrap_or_default()
    }

    /// When the next look is due, if a service may need one.
    pub fn due(&self) -> Option<Instant> {
        self.next.filter(|_| self.is_needed || !self.by_service.is_empty())
    }
}

impl Control {
    /// Looks at the connections of these services when it is time to.
    pub(super) fn note_ages(&mut self) {
        let now = Instant::now();
        let noted = &mut self.orders.ages;
        noted.is_needed = true;
        if noted.next.is_some_and(|next| now < next) {
            return;
        }
        noted.next = Some(now + EVERY_MIN);
        if Arc::strong_count(&noted.looking) > 1 {
            return;
        }
        noted.is_needed = false;
        let services: BTreeSet<&str> = self.world.backends.values().map(|one| one.spec.service.as_str()).collect();
        let max_age = |service: &str| Duration::from_millis(self.world.options(service).drain_max_age_ms);
        let services = services.into_iter().map(|service| (service.to_owned(), max_age(service)));
        let services: BTreeMap<String, Duration> = services.filter(|(_, max_age)| !max_age.is_zero()).collect();
        let every = services.values().map(|max_age| *max_age / LOOKS).min();
        let looks: Vec<(Arc<Mutex<Ages>>, Vec<Question>)> = services
            .keys()
            .map(|service| {
                let backends = self.world.backends.values().filter(|one| one.spec.service == *service);
                (self.orders.ages.of(service), backends.filter_map(|one| self.question(one)).collect())
            })
            .collect();
        let noted = &mut self.orders.ages;
        noted.next = Some(now + every.unwrap_or(EVERY_MIN).clamp(EVERY_MIN, EVERY_MAX));
        let ages = looks.iter().map(|(ages, _)| Arc::clone(ages));
        noted.by_service = services.into_keys().zip(ages).collect();
        if looks.is_empty() {
            return;
        }
        let looking = Arc::clone(&noted.looking);
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
