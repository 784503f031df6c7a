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
        let Some(new) = self.services.follow(&named, limit("SERVICES", SERVICES_MAX)) else { return };
        self.totals.retain_services(|service| self.services.index(service).is_some());
        for (service, index) in new {
            if let Err(error) = self.kernel.reset_service(index) {
                warn!(error = %crate::chain(&error), %service, "its counters do not start from zero");
            }
        }
        if let Err(error) = self.store.put_services(self.services.all()) {
            warn!(error = %crate::chain(&error), "a restart may count services anew");
        }
    }
}
