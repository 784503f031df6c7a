//! What the daemon tells of backends: lines of the log, and records for those that follow the events.

use std::collections::BTreeMap;

use tracing::{info, warn};

use super::control::Control;
use crate::{
    ids::BackendIndex,
    labels::Spec,
    world::{Plan, State},
};

/// What has been told of backends, by index.
pub(super) struct Told {
    states: BTreeMap<BackendIndex, State>,
    hindrances: BTreeMap<BackendIndex, Vec<String>>,
    silences: BTreeMap<BackendIndex, String>,
}

impl Told {
    /// What a plan says.
    pub fn of(plan: &Plan) -> Self {
        let Plan { states, hindrances, silences, .. } = plan;
        Self { states: states.clone(), hindrances: hindrances.clone(), silences: silences.clone() }
    }
}

impl Control {
    /// Says what has changed for backends.
    pub(super) fn report(&self, plan: &Plan, before: &Told) {
        for (index, state) in plan.states.iter().filter(|(index, state)| before.states.get(index) != Some(state)) {
            let Some(backend) = self.world.by_index(*index) else { continue };
            let Spec { service, version, .. } = &backend.spec;
            info!(%service, %version, backend = %backend.name, state = %state.word());
            self.tell(service, &backend.name, state.word(), "");
        }
        for (index, text) in plan.silences.iter().filter(|(index, text)| before.silences.get(index) != Some(text)) {
            self.report_problem(*index, text);
        }
        for (index, texts) in &plan.hindrances {
            let before = before.hindrances.get(index);
            for text in texts.iter().filter(|text| !before.is_some_and(|before| before.contains(text))) {
                self.report_problem(*index, text);
            }
        }
    }

    fn report_problem(&self, index: BackendIndex, text: &str) {
        let Some(backend) = self.world.by_index(index) else { return };
        warn!(service = %backend.spec.service, backend = %backend.name, "{text}");
        self.tell(&backend.spec.service, &backend.name, "problem", text);
    }

    /// Tells the followers of events.
    pub(super) fn tell(&self, service: &str, backend: &str, event: &str, detail: &str) {
        self.effects.tell(service, backend, event, detail);
    }
}
