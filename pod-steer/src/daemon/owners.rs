//! Which engine a container belongs to. No two engines have a container of one id: the second one that names it has the same socket
//! under another path, or lies. What it says of the container is ignored, which is a condition.

use super::control::Control;
use crate::{
    condition::{Condition, Reason},
    engine,
    world::Kind,
};

impl Control {
    /// Whether this container is a backend of another engine that is followed. A backend of an engine that is not followed any more, as
    /// its address has changed, belongs to the one that names it.
    pub(super) fn is_of_another_engine(&mut self, id: &str, engine: &str) -> bool {
        let Some(backend) = self.world.backends.get_mut(id) else { return false };
        let Kind::Container { engine: owner } = &mut backend.kind else { return false };
        if owner == engine {
            return false;
        }
        if !self.engines.follows(owner) {
            engine.clone_into(owner);
            return false;
        }
        self.engines.note_foreign(engine, id);
        self.tell_foreign_containers(engine);
        true
    }

    /// An engine does not have these containers any more, or is about to describe all that it has.
    pub(super) fn names_no_longer(&mut self, engine: &str, is_named: impl Fn(&str) -> bool) {
        if self.engines.retain_foreign(engine, is_named) {
            self.tell_foreign_containers(engine);
        }
    }

    /// A backend is gone. An engine that has named it too may have it by now.
    pub(super) fn belongs_to_no_engine(&mut self, id: &str) {
        let engines = self.engines.naming(id);
        for engine in &engines {
            self.names_no_longer(engine, |named| named != id);
        }
        if !engines.is_empty() {
            self.effects.describe(id.to_owned());
        }
    }

    fn tell_foreign_containers(&mut self, engine: &str) {
        let subject = format!("engine {engine}");
        let first = self.engines.foreign_of(engine).and_then(|(count, id)| Some((count, self.world.backends.get(id)?)));
        let Some((count, backend)) = first else {
            return self.conditions.clear(Reason::ContainersOfOtherEngine, &subject);
        };
        let Kind::Container { engine: owner } = &backend.kind else { return };
        let message = format!(
            "{count} of its containers, among them {}, already belong to {}, so its reports about them are ignored",
            backend.name,
            engine::name(owner)
        );
        let remedy = "if both are one engine, name it once (`--engine`)";
        self.conditions.set(subject, Condition::new(Reason::ContainersOfOtherEngine, message, remedy));
    }
}
