//! At the start the daemon waits, for a while, until every engine has described its containers.

use tracing::warn;

use super::{ENGINES_MAX, control::Control, deferred::Deferred};
use crate::{
    condition::{Condition, Reason},
    engine::{self, Container},
    ids::BackendIndex,
    kernel::Cgroup,
};

/// Subject of a condition.
const AWAITED: &str = "steering of an earlier daemon";

impl Control {
    /// Changes nothing before the engines have said what is there.
    pub(super) fn await_engines(&mut self) {
        self.engines.await_all();
        if self.engines.is_awaiting() {
            self.conditions.set(AWAITED, self.awaited_condition());
        }
    }

    /// An engine has described its containers, or is not there: nothing of the steering that was found is its any more. Once no
    /// engine is awaited, what belongs to no backend is detached.
    pub(super) fn no_longer_awaited(&mut self, is_over: impl Fn(&str) -> bool) {
        if !self.engines.is_awaiting() {
            return;
        }
        self.engines.await_no_longer(is_over);
        if !self.engines.is_awaiting() {
            self.conditions.clear(Reason::EngineAwaited, AWAITED);
            // The listeners of those that were described, before any rule is changed.
            self.read_sockets();
            self.detach_unknown();
            self.touch();
        } else {
            self.conditions.set(AWAITED, self.awaited_condition());
        }
    }

    /// The index by which an earlier daemon attached to a container's cgroup, if the files that said so are gone.
    pub(super) fn attached_before(&mut self, container: &Container) -> Option<BackendIndex> {
        if !self.engines.is_awaiting() {
            return None;
        }
        let owner = engine::owner(&container.engine);
        let path = self.cgroups.expect(&container.id, &container.cgroup_parent, owner)?;
        let cgroup = Cgroup::open(&path).ok()?.id;
        let attached = self.kernel.attached_backends().into_iter();
        attached
            .filter(|(of, _)| *of == cgroup)
            .map(|(_, index)| index)
            .find(|index| self.world.by_index(*index).is_none())
    }

    /// Why no process can become a backend now, if none can: it could not be put in force.
    pub(super) fn refuse_while_waiting(&self) -> Result<(), String> {
        if self.engines.is_awaiting() { Err(format!("pod-steer waits: {}", self.awaited_condition())) } else { Ok(()) }
    }

    fn awaited_condition(&self) -> Condition {
        let names: Vec<String> = self.engines.awaited().iter().map(|engine| engine::name(engine)).collect();
        let message = format!(
            "the files that say which backends it belongs to are gone, so nothing is changed before {} has described its \
             containers",
            names.join(" and ")
        );
        let remedy = "start that engine, or restart pod-steer without it (`--engine`)";
        Condition::new(Reason::EngineAwaited, message, remedy)
    }

    /// Whether every engine has described its containers or is known to be unreachable.
    pub(super) fn has_heard_all(&self) -> bool {
        self.engines.unheard().is_empty()
    }

    /// An engine has described its containers or cannot be reached. Once all have, the initial sync is complete.
    pub(super) fn heard(&mut self, engine: &str) {
        if self.engines.hear(engine) {
            self.deferred.push_back(Deferred::Synced);
        }
    }

    /// Begins without the engines that have not answered yet.
    pub(super) fn start_without_engines(&mut self) {
        for engine in self.engines.unheard().clone() {
            let reason = format!("no answer (timed out after {} s)", ENGINES_MAX.as_secs());
            warn!(
                "{} does not answer (timed out after {} s); starting without it",
                engine::name(&engine),
                ENGINES_MAX.as_secs()
            );
            self.engines.lose(engine, reason);
        }
        // An engine that is not installed, or was stopped for good, never answers.
        self.no_longer_awaited(|engine| !engine::is_there(engine));
        self.deferred.push_back(Deferred::Synced);
    }
}
