//! At the start the daemon waits, for a while, until every engine has described its containers.

use tracing::warn;

use super::{ENGINES_MAX, control::Control};
use crate::engine;

impl Control {
    /// Whether every engine has described its containers or is known to be unreachable.
    pub(super) fn has_heard_all(&self) -> bool {
        self.unheard.is_empty()
    }

    /// An engine has described its containers or cannot be reached. Once all have, the initial sync is complete.
    pub(super) fn heard(&mut self, engine: &str) {
        self.unheard.remove(engine);
        if self.unheard.is_empty()
            && let Some(ready) = self.ready.take()
        {
            self.converge();
            let _ = ready.send(());
        }
    }

    /// Begins without the engines that have not answered yet.
    pub(super) fn start_without_engines(&mut self) {
        for engine in &self.unheard {
            let reason = format!("no answer (timed out after {} s)", ENGINES_MAX.as_secs());
            warn!(
                "{} does not answer (timed out after {} s); starting without it",
                engine::name(engine),
                ENGINES_MAX.as_secs()
            );
            self.lost_engines.entry(engine.clone()).or_insert(reason);
        }
        if let Some(ready) = self.ready.take() {
            self.converge();
            let _ = ready.send(());
        }
    }
}
