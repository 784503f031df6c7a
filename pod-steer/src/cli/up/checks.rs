//! What must hold before a step of a replacement, on values that the step has just read.

use std::collections::BTreeSet;

use anyhow::anyhow;

use super::{
    containers::{COMPOSE_HASH, Container},
    plan::Why,
    swap::{Swap, backend},
};
use crate::{
    api::types::{BackendStatus, ServiceStatus, Status},
    cli::Failure,
    text::{PREFIX, quoted},
};

impl Swap<'_> {
    /// What Compose is told of the services that this one depends on: their number, since it would else make them as many as the file says.
    /// It is told nothing, and leaves them alone, if all of them run; but older versions of Compose 2 then make containers with another hash
    /// than `docker compose up` does, which would replace them.
    pub(super) fn others(&self, all: &[Container]) -> Result<Option<Vec<(String, usize)>>, Failure> {
        let dependencies = &self.definition.dependencies;
        let of = |name: &String| all.iter().filter(|one| one.is_of(name)).collect::<Vec<_>>();
        let is_running = |one: &&Container| one.is_up && !one.is_paused;
        let all_run = dependencies.iter().all(|name| !of(name).is_empty() && of(name).iter().all(is_running));
        let counts = dependencies.iter().map(|name| (name.clone(), of(name).len())).filter(|(_, count)| *count > 0);
        if self.definition.counts_dependencies() && all_run {
            return Ok(Some(counts.collect()));
        }
        if !self.old.is_empty() || dependencies.iter().all(|name| of(name).iter().any(|one| one.is_up)) {
            return Ok(None);
        }
        match dependencies.iter().flat_map(of).find(|one| one.is_paused) {
            Some(paused) => {
                Err(Failure::Input(format!("{0} is paused; end that first: docker unpause {0}", paused.name)))
            }
            None => Ok(Some(counts.collect())),
        }
    }

    /// Compose is told a number of containers, and removes those that are too many: so it must be told of all of them.
    pub(super) fn ensure_unchanged(&self, all: &[Container]) -> anyhow::Result<()> {
        let known: BTreeSet<&str> =
            self.old.iter().chain(&self.stopped).chain(&self.new).map(|one| one.id.as_str()).collect();
        let own: Vec<&Container> = all.iter().filter(|one| one.is_of(self.service)).collect();
        let come = own.iter().filter(|one| !known.contains(one.id.as_str())).map(|one| one.name.as_str());
        let new_of_others = self.new.iter().filter(|one| !one.is_of(self.service)).count();
        let come: Vec<&str> = come.collect();
        match (&come[..], own.len() + new_of_others == known.len() + come.len()) {
            ([], true) => Ok(()),
            ([], false) => {
                Err(anyhow!("a container of {} has been removed meanwhile; run the command again", self.service))
            }
            (come, _) => Err(anyhow!("{} has been created meanwhile; run the command again", come.join(", "))),
        }
    }

    /// Whether Compose, by its own hash, has made the new containers of the same configuration as the old ones. Not every difference between
    /// what it prints before and that hash is a change.
    pub(super) fn is_same(&self) -> bool {
        let is_as_before = |one: &Container| {
            let hash = |new: &Container| new.labels.get(COMPOSE_HASH) == one.hash();
            self.new.iter().all(|new| new.image_id == one.image_id && hash(new))
        };
        self.why == Why::Configuration && self.old.len() == self.count && self.old.iter().all(is_as_before)
    }

    /// Why the daemon will not know some of the new containers: they have no label of its, or a wrong one.
    pub(super) fn refused(&self, status: &Status, own: &[&Container]) -> Option<String> {
        if own.iter().any(|one| !one.labels.keys().any(|label| label.starts_with(PREFIX))) {
            return Some(format!(
                "the containers of {} lack the labels pod-steer.service and pod-steer.ports; add them to the Compose file",
                self.service
            ));
        }
        let unknown = own.iter().filter(|one| backend(status, &one.id).is_none());
        let names: BTreeSet<&str> = unknown.map(|one| one.name.as_str()).collect();
        let is_named = |subject: &str| subject.split([' ', '/', ',']).any(|word| names.contains(word));
        let about = status.conditions.iter().find(|one| is_named(&one.subject))?;
        Some(format!("{}: {}", about.subject, about.condition.message))
    }

    /// A deploy takes the traffic of all other versions; those of other containers are not this command's.
    pub(super) fn refuse_others(&self, of: &ServiceStatus, version: &str) -> anyhow::Result<()> {
        let is_ours = |one: &BackendStatus| self.old.iter().chain(&self.new).any(|own| own.id == one.id);
        let other = of.backends.iter().find(|one| one.share > 0.0 && one.version != version && !is_ours(one));
        match other {
            None => Ok(()),
            Some(other) => Err(anyhow!(
                "{} is served by {} too, which is no container of {}; move the traffic with `pod-steer shift` or `deploy`",
                quoted(&of.name),
                quoted(&other.name),
                self.service
            )),
        }
    }
}
