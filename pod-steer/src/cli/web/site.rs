//! The state that all requests share.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, Semaphore, watch};

use super::{access::Access, model::Model};

/// Pages that are updated at a time.
const FOLLOWERS_MAX: usize = 16;

/// See the module.
pub(super) struct Site {
    /// Who may see it.
    pub access: Access,
    /// The daemon's API socket.
    pub socket: PathBuf,
    /// Whether it may give orders.
    pub allow_orders: bool,
    /// Makes the next sample due at once.
    pub hurry: Notify,
    /// Places of pages that are updated.
    pub followers: Arc<Semaphore>,
    model: Mutex<Model>,
    ticks: watch::Sender<()>,
}

impl Site {
    /// A site that shows this model.
    pub(super) fn new(access: Access, socket: PathBuf, allow_orders: bool, model: Model) -> Self {
        let followers = Arc::new(Semaphore::new(FOLLOWERS_MAX));
        let (hurry, ticks) = (Notify::new(), watch::Sender::new(()));
        Self { access, socket, allow_orders, hurry, followers, model: Mutex::new(model), ticks }
    }

    /// The model. Hold it for a moment only, and never while waiting.
    pub(super) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model has changed.
    pub(super) fn changed(&self) {
        self.ticks.send_replace(());
    }

    /// Is notified when the model has changed.
    pub(super) fn ticks(&self) -> watch::Receiver<()> {
        self.ticks.subscribe()
    }
}
