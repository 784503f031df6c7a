//! What the daemon tells of backends: lines of the log, and records for those that follow the events.

use tracing::{info, warn};

use super::control::Control;
use crate::{api::types::EventRecord, world::Plan};

impl Control {
    /// Says what has changed for a backend.
    pub(super) fn report(&self, plan: &Plan) {
        for backend in self.world.backends.values() {
            let index = &backend.index;
            let Some(state) = plan.states.get(index) else { continue };
            if self.plan.states.get(index) != Some(state) {
                let word =
                    serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
                info!(service = %backend.spec.service, version = %backend.spec.version, backend = %backend.name, state = %word);
                self.tell(&backend.spec.service, &backend.name, &word, "");
            }
            let (now, before) = (plan.hindrances.get(index), self.plan.hindrances.get(index));
            if let Some(text) = plan.silences.get(index).filter(|text| self.plan.silences.get(index) != Some(text)) {
                warn!(service = %backend.spec.service, backend = %backend.name, "{text}");
                self.tell(&backend.spec.service, &backend.name, "problem", text);
            }
            for text in now.into_iter().flatten().filter(|text| !before.is_some_and(|b| b.contains(text))) {
                warn!(service = %backend.spec.service, backend = %backend.name, "{text}");
                self.tell(&backend.spec.service, &backend.name, "problem", text);
            }
        }
    }

    /// Sends an event to all followers.
    pub(super) fn tell(&self, service: &str, backend: &str, event: &str, detail: &str) {
        let _ = self.events.send(EventRecord {
            time: jiff::Timestamp::now().to_string(),
            service: service.to_owned(),
            backend: backend.to_owned(),
            event: event.to_owned(),
            detail: detail.to_owned(),
        });
    }
}
