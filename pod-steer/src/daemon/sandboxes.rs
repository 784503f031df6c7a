//! Containers in the network namespace of another one, a pod's sandbox: one whose sandbox was started again still lives in
//! the namespace of the earlier start, where no client arrives.

use tracing::warn;

use super::control::Control;
use crate::{engine::Sandbox, netns, procs::Process};

impl Control {
    /// Compares a container's namespace with the one that its sandbox has now.
    pub(super) fn note_sandbox(&mut self, id: &str, sandbox: Option<Sandbox>) {
        let netns = self.world.backends.get(id).and_then(|backend| backend.netns);
        let left = sandbox.filter(|sandbox| {
            let now = sandbox.pid.and_then(|pid| netns::identify(&Process::open(pid).ok()?.netns().ok()?).ok());
            now.zip(netns).is_some_and(|(now, netns)| now != netns)
        });
        let changed = match left {
            Some(sandbox) => {
                warn!(container = %id, sandbox = %sandbox.name, "its sandbox was started again without it");
                self.world.abandoned.insert(id.to_owned(), sandbox.name.clone()) != Some(sandbox.name)
            }
            None => self.world.abandoned.remove(id).is_some(),
        };
        if changed {
            self.touch();
        }
    }
}
