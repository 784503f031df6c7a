//! What the daemon tells of backends: lines of the log, and records for those that follow the events.

use std::collections::BTreeMap;

use tracing::info;

use super::control::Control;
use crate::{
    ids::BackendIndex,
    labels::Spec,
    world::{Plan, State},
};

impl Control {
    /// Says what has changed for backends. `before` has the earlier states, by index.
    pub(super) fn report(&self, plan: &Plan, before: &BTreeMap<BackendIndex, State>) {
        for (index, state) in plan.states.iter().filter(|(index, state)| before.get(index) != Some(state)) {
            let Some(backend) = self.world.by_index(*index) else { continue };
            let Spec { service, version, .. } = &backend.spec;
            info!(%service, %version, backend = %backend.name, state = %state.word());
            self.tell(service, &backend.name, state.word(), "");
        }
    }

    /// Tells which conditions have appeared and which have ended.
    pub(super) fn tell_conditions(&mut self) {
        let now = self.warnings();
        self.conditions.tell_changes(now);
    }

    /// Tells the followers of events.
    pub(super) fn tell(&self, service: &str, backend: &str, event: &str, detail: &str) {
        self.effects.tell(service, backend, event, detail);
    }
}
