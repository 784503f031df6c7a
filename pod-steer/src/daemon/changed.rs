//! What is to be planned anew at the next turn.

use std::time::Instant;

use super::control::Control;
use crate::{ids::BackendIndex, world::Network};

impl Control {
    /// Something has changed that may concern every service.
    pub(super) fn touch(&mut self) {
        self.dirty.mark_all();
        self.holders.watching = true;
    }

    /// Something of this service alone has changed.
    pub(super) fn touch_service(&mut self, service: &str) {
        self.dirty.mark(service);
        self.holders.watching = true;
    }

    /// Something of the backend with this index has changed.
    pub(super) fn touch_backend(&mut self, index: BackendIndex) {
        match self.world.by_index(index).map(|backend| backend.spec.service.clone()) {
            Some(service) => self.touch_service(&service),
            None => self.touch(),
        }
    }

    /// Something of the backend with this id has changed.
    pub(super) fn touch_id(&mut self, id: &str) {
        match self.world.backends.get(id).map(|backend| backend.spec.service.clone()) {
            Some(service) => self.touch_service(&service),
            None => self.touch(),
        }
    }

    /// The sockets of a service have changed, as the kernel programs report: planned at the pace that the service may take.
    pub(super) fn sockets_changed(&mut self, service: &str) {
        self.holders.watching = true;
        self.dirty.mark_paced(service, Instant::now());
    }

    /// A backend in such a network has come or gone: one that has joined another's namespace says that clients arrive there.
    pub(super) fn touch_pod(&mut self, network: Network) {
        if network == Network::Joined {
            self.touch();
        }
    }
}
