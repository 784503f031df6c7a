//! Which service has which index in the kernel.

use std::collections::BTreeSet;

use pod_steer_ebpf::SERVICES_MAX;
use tracing::warn;

use super::control::Control;
use crate::{kernel::limits::limit, world::Plan};

impl Control {
    /// Gives every service an index for its counters. It has one before it listens, so that nothing waits for that then.
    pub(super) fn name_services(&mut self, plan: &Plan) {
        let mut named = BTreeSet::new();
        named.extend(plan.rules.values().filter_map(|rule| rule.service.as_ref()));
        named.extend(self.world.backends.values().map(|backend| &backend.spec.service));
        let before = self.services.len();
        self.services.retain(|name, _| named.contains(name));
        named.retain(|name| !self.services.contains_key(*name));
        if self.services.len() == before && named.is_empty() {
            return;
        }
        let used: BTreeSet<u32> = self.services.values().copied().collect();
        let free = (0..limit("SERVICES", SERVICES_MAX)).filter(|index| !used.contains(index));
        for (name, index) in named.into_iter().zip(free) {
            if let Err(error) = self.kernel.reset_service(index) {
                warn!(error = %crate::chain(&error), service = %name, "its counters do not start from zero");
            }
            self.services.insert(name.clone(), index);
        }
        if let Err(error) = self.store.put_services(&self.services) {
            warn!(error = %crate::chain(&error), "a restart may count services anew");
        }
    }
}
