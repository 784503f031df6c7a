//! Keeps what the daemon counts itself in the kernel's notes: the next daemon continues, and `pod-steer metrics` reads it without one. No
//! client is told a number before it is kept: a counter that fell after a crash would look as if it had begun anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use pod_steer_ebpf::{
    EVENT_CLOSED, EVENT_LEFT_OUT, EVENT_LISTENING, EVENT_MPTCP_REFUSED, EVENT_NOT_REGISTERED, EVENT_NOT_SHARED,
    NOTE_BACKEND_TOTALS, NOTE_SERVICE_TOTALS, NOTE_TOTALS,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{Store, control::Control};
use crate::{
    api::metrics::totals::{BackendTotals, ColdStarts, EFFECT_S, OPERATION_S, ServiceTotals, Totals, order_name},
    clock::boot_ms,
    ids::{BackendId, BackendIndex, ServiceIndex, SocketCookie},
    rollout::{Operation, Order, Outcome, Quiet},
};

/// The numbers, and which of them are not kept yet.
#[derive(Default)]
pub(super) struct Kept {
    all: Totals,
    services: BTreeMap<String, ServiceTotals>,
    backends: BTreeMap<BackendId, BackendTotals>,
    all_changed: bool,
    services_changed: BTreeSet<String>,
    backends_changed: BTreeSet<BackendId>,
}

impl Kept {
    /// Takes what an earlier daemon has kept. `adopted` tells whether there was one.
    pub fn read(store: &Store, adopted: bool) -> Self {
        let all = store.totals(NOTE_TOTALS).remove(&0).and_then(|text| read(&text)).unwrap_or_default();
        let services = store.totals(NOTE_SERVICE_TOTALS).into_values().filter_map(|text| read::<ServiceTotals>(&text));
        let backends = store.totals(NOTE_BACKEND_TOTALS).into_values().filter_map(|text| read::<BackendTotals>(&text));
        let mut kept = Self {
            all,
            services: services.map(|own| (own.service.clone(), own)).collect(),
            backends: backends.map(|own| (BackendId::from(own.id.as_str()), own)).collect(),
            ..Self::default()
        };
        if adopted {
            kept.all_mut().restarts += 1;
        }
        kept
    }

    /// Those of the daemon as a whole.
    pub fn all(&self) -> &Totals {
        &self.all
    }

    /// Those of services.
    pub fn services(&self) -> impl Iterator<Item = &ServiceTotals> {
        self.services.values()
    }

    /// Since when a service has had no connection, as it was stored last.
    pub fn quiet(&self, service: &str) -> Option<Quiet> {
        self.services.get(service)?.quiet
    }

    /// Stores that.
    pub fn set_quiet(&mut self, service: &str, quiet: Quiet) {
        if self.quiet(service) != Some(quiet) {
            self.service_mut(service).quiet = Some(quiet);
        }
    }

    /// How often a service was woken; nothing if it never was.
    pub fn cold_starts(&self, service: &str) -> Option<ColdStarts> {
        self.services.get(service)?.cold_starts
    }

    /// The drops of backends.
    pub fn drops(&self) -> impl Iterator<Item = (&BackendId, u64)> {
        self.backends.iter().map(|(id, own)| (id, own.drops()))
    }

    fn all_mut(&mut self) -> &mut Totals {
        self.all_changed = true;
        &mut self.all
    }

    fn service_mut(&mut self, service: &str) -> &mut ServiceTotals {
        self.services_changed.insert(service.to_owned());
        self.services.entry(service.to_owned()).or_insert_with(|| ServiceTotals::new(service))
    }

    /// A kernel program has reported a listener of this service.
    pub fn count_listener(&mut self, service: &str, kind: u32) {
        let event = match kind {
            EVENT_LISTENING => "listening",
            EVENT_CLOSED => "closed",
            EVENT_NOT_REGISTERED => "not_registered",
            EVENT_LEFT_OUT => "left_out",
            EVENT_NOT_SHARED => "not_shared",
            EVENT_MPTCP_REFUSED => "mptcp_refused",
            _ => return,
        };
        self.service_mut(service).count_listener(event);
    }

    /// Tables were published, so long after the plan for them began.
    pub fn count_tables(&mut self, tables: u64, took: Option<Duration>) {
        let all = self.all_mut();
        all.tables_published += tables;
        if let Some(took) = took {
            all.backends_effect.add(took, &EFFECT_S);
        }
    }

    /// A decision about a service is in force, after so long if the kernel has switched.
    pub fn count_decision(&mut self, service: &str, took: Option<Duration>) {
        self.service_mut(service).decisions += 1;
        if let Some(took) = took {
            self.all_mut().decision_effect.add(took, &EFFECT_S);
        }
    }

    /// An operation has begun, goes on or has ended. `began` is when its decision was made.
    pub fn count_operation(&mut self, operation: &Operation, began: Option<Instant>) {
        let Some(end) = &operation.end else {
            if !self.all.begun_ms.contains_key(&operation.id) {
                self.all_mut().begun_ms.insert(operation.id, boot_ms());
            }
            return;
        };
        let name = order_name(&operation.order);
        let is_woken = matches!(operation.order, Order::Wake(_)) && end.outcome == Outcome::Done;
        self.service_mut(&operation.service).count_operation(name, end.outcome.word());
        let all = self.all_mut();
        let took = match all.begun_ms.remove(&operation.id) {
            Some(begun_ms) => Duration::from_millis((boot_ms() - begun_ms).max(0).unsigned_abs()),
            None => began.map(|began| began.elapsed()).unwrap_or_default(),
        };
        all.operations.entry(name.to_owned()).or_default().add(took, &OPERATION_S);
        if is_woken {
            self.service_mut(&operation.service).count_cold_start(took);
        }
    }

    /// What the listeners of a backend have dropped, each since it was made.
    pub fn see_drops(&mut self, backend: &BackendId, listeners: &[(SocketCookie, u32)]) {
        if !self.backends.contains_key(backend) && listeners.iter().all(|(_, drops)| *drops == 0) {
            return;
        }
        let new = || BackendTotals { id: backend.to_string(), ..BackendTotals::default() };
        let own = self.backends.entry(backend.clone()).or_insert_with(new);
        let changes = listeners.iter().filter(|(cookie, drops)| own.see(cookie.0, *drops)).count();
        if changes > 0 {
            self.backends_changed.insert(backend.clone());
        }
    }

    /// Which listeners are still open.
    pub fn close_listeners(&mut self, is_open: impl Fn(SocketCookie) -> bool) {
        for (id, own) in &mut self.backends {
            if own.close(|cookie| is_open(SocketCookie(cookie))) {
                self.backends_changed.insert(id.clone());
            }
        }
    }

    /// Forgets a backend. Its note goes with the backend's own.
    pub fn forget_backend(&mut self, id: &str) {
        self.backends.remove(id);
        self.backends_changed.remove(id);
    }

    /// Forgets all services but these.
    pub fn retain_services(&mut self, stays: impl Fn(&str) -> bool) {
        self.services.retain(|service, _| stays(service));
        self.services_changed.retain(|service| stays(service));
    }

    /// Writes what has changed. Failed writes are retried.
    pub fn keep(
        &mut self,
        store: &Store,
        service: impl Fn(&str) -> Option<ServiceIndex>,
        backend: impl Fn(&BackendId) -> Option<BackendIndex>,
    ) {
        if self.all_changed {
            self.all_changed = !write(store, NOTE_TOTALS, 0, &self.all);
        }
        self.services_changed.retain(|name| {
            let own = self.services.get(name).zip(service(name));
            own.is_none_or(|(own, index)| !write(store, NOTE_SERVICE_TOTALS, index.0, own))
                && self.services.contains_key(name)
        });
        self.backends_changed.retain(|id| {
            let own = self.backends.get(id).zip(backend(id));
            own.is_some_and(|(own, index)| !write(store, NOTE_BACKEND_TOTALS, index.0, own))
        });
    }
}

/// Nothing of a note that cannot be parsed: another release has written it, or it was cut off.
fn read<T: DeserializeOwned>(text: &[u8]) -> Option<T> {
    serde_json::from_slice(text).ok()
}

fn write(store: &Store, kind: u32, index: u32, totals: &impl Serialize) -> bool {
    serde_json::to_vec(totals).is_ok_and(|text| store.put_totals(kind, index, &text))
}

impl Control {
    /// Keeps what was counted in this turn.
    pub(super) fn keep_totals(&mut self) {
        let backends = &self.world.backends;
        self.totals.keep(
            &self.store,
            |name| self.services.index(name),
            |id| backends.get(id.as_str()).map(|backend| backend.index),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(end: &serde_json::Value) -> Operation {
        let json = serde_json::json!({
            "id": 7, "service": "web", "who": "root", "begun_ms": 0, "order": "pause", "before": {}, "phase": {"name": "ended"},
            "steps_done": [], "end": end,
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn an_operation_is_counted_once_when_it_has_ended() {
        let mut kept = Kept::default();
        let running = operation(&serde_json::Value::Null);
        kept.count_operation(&running, None);
        kept.count_operation(&running, None);
        assert!(kept.all.begun_ms.contains_key(&7) && kept.services.is_empty());
        kept.count_operation(&operation(&serde_json::json!({"outcome": "done", "at_ms": 0, "message": ""})), None);
        assert_eq!((kept.all.begun_ms.len(), kept.services["web"].operations["pause"]["done"]), (0, 1));
        assert_eq!(kept.all.operations["pause"].buckets(&OPERATION_S).1.iter().map(|(_, count)| count).sum::<u64>(), 1);
    }

    #[test]
    fn drops_belong_to_a_backend_and_end_with_it() {
        let (mut kept, id) = (Kept::default(), BackendId::from("a"));
        kept.see_drops(&id, &[(SocketCookie(1), 0)]);
        assert_eq!(kept.drops().count(), 0, "most backends drop nothing");
        kept.see_drops(&id, &[(SocketCookie(1), 2), (SocketCookie(2), 3)]);
        kept.close_listeners(|cookie| cookie == SocketCookie(2));
        kept.see_drops(&id, &[(SocketCookie(2), 4)]);
        assert_eq!(kept.drops().collect::<Vec<_>>(), [(&id, 6)]);
        kept.forget_backend("a");
        assert_eq!(kept.drops().count(), 0);
    }

    #[test]
    fn reports_that_are_not_known_are_not_counted() {
        let mut kept = Kept::default();
        kept.count_listener("web", u32::MAX);
        assert!(kept.services.is_empty());
        kept.count_listener("web", EVENT_LISTENING);
        assert_eq!(kept.services["web"].listeners["listening"], 1);
        kept.retain_services(|service| service != "web");
        assert!(kept.services.is_empty() && kept.services_changed.is_empty());
    }
}
