//! Which engine a container belongs to. No two engines have a container of one id: the second one that names it has the same socket
//! under another path, or lies. What it says of the container is ignored, which is a condition.

use std::collections::{BTreeMap, BTreeSet};

use super::control::Control;
use crate::{engine, world::Kind};

/// Topic of a condition.
const FOREIGN: &str = "containers of another engine";

/// The engines that are followed.
#[derive(Default)]
pub(super) struct Engines {
    /// Their addresses.
    pub followed: Vec<String>,
    /// By engine: ids that it has named, and that are backends of another one.
    named: BTreeMap<String, BTreeSet<String>>,
}

impl Engines {
    /// These are followed.
    pub fn new(followed: Vec<String>) -> Self {
        Self { followed, named: BTreeMap::new() }
    }
}

impl Control {
    /// Whether this container is a backend of another engine that is followed. A backend of an engine that is not followed any more, as
    /// its address has changed, belongs to the one that names it.
    pub(super) fn is_of_another_engine(&mut self, id: &str, engine: &str) -> bool {
        let Some(backend) = self.world.backends.get_mut(id) else { return false };
        let Kind::Container { engine: owner } = &mut backend.kind else { return false };
        if owner == engine {
            return false;
        }
        if !self.engines.followed.contains(owner) {
            engine.clone_into(owner);
            return false;
        }
        self.engines.named.entry(engine.to_owned()).or_default().insert(id.to_owned());
        self.tell_foreign_containers(engine);
        true
    }

    /// An engine does not have these containers any more, or is about to describe all that it has.
    pub(super) fn names_no_longer(&mut self, engine: &str, is_named: impl Fn(&str) -> bool) {
        if let Some(named) = self.engines.named.get_mut(engine) {
            named.retain(|id| is_named(id));
            self.tell_foreign_containers(engine);
        }
    }

    /// A backend is gone. An engine that has named it too may have it by now.
    pub(super) fn belongs_to_no_engine(&mut self, id: &str) {
        let engines: Vec<String> = self
            .engines
            .named
            .iter()
            .filter(|(_, named)| named.contains(id))
            .map(|(engine, _)| engine.clone())
            .collect();
        for engine in &engines {
            self.names_no_longer(engine, |named| named != id);
        }
        if !engines.is_empty() {
            let _ = self.wanted.send(id.to_owned());
        }
    }

    fn tell_foreign_containers(&mut self, engine: &str) {
        let subject = format!("engine {engine}");
        let first = self.engines.named.get(engine).and_then(|named| Some((named.len(), named.first()?)));
        let first = first.and_then(|(count, id)| Some((count, self.world.backends.get(id)?)));
        let Some((count, backend)) = first else {
            self.engines.named.remove(engine);
            return self.conditions.clear(FOREIGN, &subject);
        };
        let Kind::Container { engine: owner } = &backend.kind else { return };
        let message = format!(
            "{count} of its containers, among them {}, already belong to {}, so its reports about them are ignored; if \
             both are one engine, name it once (`--engine`)",
            backend.name,
            engine::name(owner)
        );
        self.conditions.set(FOREIGN, subject, message);
    }
}
