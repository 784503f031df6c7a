//! Replaces the containers of one service. If a step fails before the new version has everything, the new containers are removed.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use tokio::time::sleep;

use super::{
    amendment::{self, Amendment},
    compose::{Compose, Wanted},
    containers::{self, COMPOSE_HASH, Container},
    definition::Definition,
    interrupt::Interrupt,
    plan::{Why, distinct},
};
use crate::{
    api::{
        client,
        types::{BackendStatus, ServiceStatus, Status},
    },
    cli::{
        Failure, Outcome,
        args::{rollout::OutputFormat, up::UpArgs},
        follow::Follower,
        orders::{conclude, give},
        terminal::{note, print_if_read},
    },
    rollout::{Operation, Order},
};

/// Longest wait for the daemon to know containers that the engine has just created.
const KNOWN_MAX: Duration = Duration::from_secs(10);
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// A service that is to be replaced.
#[derive(Debug)]
pub(super) struct Target {
    /// Its name in the Compose file.
    pub service: String,
    /// What the files say of it.
    pub definition: Definition,
}

/// See the module.
pub(super) struct Swap<'a> {
    pub(super) args: &'a UpArgs,
    compose: &'a Compose,
    pub(super) service: &'a str,
    pub(super) definition: &'a Definition,
    pub(super) why: Why,
    pub(super) old: Vec<Container>,
    /// Those that do not run. They are removed when the new ones have been created.
    pub(super) stopped: Vec<Container>,
    pub(super) count: usize,
    pub(super) interrupt: &'a Interrupt,
    /// Containers that were created, and are to be removed if this fails.
    pub(super) new: Vec<Container>,
    /// The deploy, until it has ended.
    pub(super) deploy: Option<Operation>,
    /// Old containers that do not run are to be started again if this fails.
    pub(super) keeps_old: bool,
}

impl<'a> Swap<'a> {
    pub fn new(args: &'a UpArgs, compose: &'a Compose, target: &'a Target, interrupt: &'a Interrupt) -> Self {
        let Target { service, definition } = target;
        Self {
            args,
            compose,
            service,
            definition,
            why: Why::NoneRuns,
            old: Vec::new(),
            stopped: Vec::new(),
            count: 0,
            interrupt,
            new: Vec::new(),
            deploy: None,
            keeps_old: false,
        }
    }

    /// What is to be replaced, and by how many.
    pub fn replacing(mut self, why: Why, old: Vec<Container>, stopped: Vec<Container>, count: usize) -> Self {
        (self.why, self.old, self.stopped, self.count) = (why, old, stopped, count);
        self
    }

    pub(super) fn socket(&self) -> &'a Path {
        &self.args.socket.socket
    }

    /// Replaces what runs, and removes what does not.
    pub async fn run(&mut self) -> Outcome {
        self.interrupt.check()?;
        let others = self.others(&self.containers().await?)?;
        let forecast = self.compose.forecast(&Wanted { service: self.service, total: self.total(), others }).await;
        if let Some(refusal) = forecast.refusal(self.service) {
            return Err(Failure::Input(refusal));
        }
        for volume in &forecast.volumes {
            note(&format!("the volume {volume} is not as the Compose file defines it, and stays as it is"));
        }
        if self.old.is_empty() && self.definition.is_named {
            // The name is in use as long as one has it.
            self.remove_stopped().await?;
        }
        self.keeps_old = true;
        let done = self.replace().await;
        if done.is_err() {
            self.put_back().await;
        }
        done
    }

    async fn replace(&mut self) -> Outcome {
        self.create(None).await?;
        if self.is_same() {
            let new = std::mem::take(&mut self.new);
            containers::remove(&ids(&new), true).await?;
            self.remove_stopped().await?;
            return print_if_read(&format!(
                "{}: {} has the same configuration, and is removed: it is up to date\n",
                self.service,
                names(&new)
            ));
        }
        let (mut steered, mut version) = self.known().await?;
        let status = self.status().await?;
        let of_old = self.old.iter().filter_map(|one| backend(&status, &one.id));
        let used: BTreeSet<&str> = of_old.map(|(_, one)| one.version.as_str()).collect();
        if used.contains(version.as_str()) {
            self.create_amended(&version, &used).await?;
            (steered, version) = self.known().await?;
        }
        self.interrupt.check()?;
        if self.old.is_empty() {
            // Those that it depends on are started before, which may take long.
            self.start().await?;
        }
        // Else the order comes first: a policy of the service could give one of its own as soon as they listen.
        let begun = self.order(&steered, &version).await?;
        self.deploy = Some(begun.clone());
        if !self.old.is_empty() {
            self.start().await?;
        }
        let ended = match begun.end {
            Some(_) => begun,
            None => {
                let follower = Follower::new(self.socket(), begun, OutputFormat::Text);
                match follower.follow_unless(self.interrupt.wait()).await {
                    Ok(ended) => ended?,
                    Err(failure) => {
                        // The daemon, or the next one, continues it: nothing may be taken away from it.
                        self.let_go();
                        return Err(failure);
                    }
                }
            }
        };
        self.deploy = None;
        match conclude(&ended, OutputFormat::Text) {
            // If connections are left, they may be those of containers that are not this command's.
            Ok(()) | Err(Failure::Said(3)) => self.retire(&ended, &version).await,
            failed => failed,
        }
    }

    /// Orders the deploy. If it is not known whether the order takes effect, the new containers are left to it.
    async fn order(&mut self, steered: &str, version: &str) -> Result<Operation, Failure> {
        let order = Order::Deploy(super::order(self.args, version, self.count).map_err(Failure::Input)?);
        let failure = match give(self.socket(), steered, &order).await {
            Ok(begun) => return Ok(begun),
            Err(failure) => failure,
        };
        let Ok(status) = self.status().await else {
            self.let_go();
            return Err(failure);
        };
        let running = status.services.into_iter().find(|of| of.name == steered).and_then(|of| of.operation);
        let is_it =
            |operation: &Operation| matches!(&operation.order, Order::Deploy(deploy) if deploy.version == version);
        running.map(|status| status.operation).filter(is_it).ok_or(failure)
    }

    /// Nothing is put back any more.
    fn let_go(&mut self) {
        self.new.clear();
        self.keeps_old = false;
    }

    /// Creates the new containers.
    async fn create(&mut self, amendment: Option<&Amendment>) -> Outcome {
        self.interrupt.check()?;
        let before = self.containers().await?;
        self.ensure_unchanged(&before)?;
        let wanted = Wanted { service: self.service, total: self.total(), others: self.others(&before)? };
        let created = self.compose.create(&wanted, amendment).await;
        self.new = self.containers().await?;
        // If there are old ones, others of the project are not this command's. Else those that it depends on are created too.
        let is_ours = |one: &Container| self.old.is_empty() || one.is_of(self.service);
        self.new.retain(|one| is_ours(one) && !before.iter().any(|known| known.id == one.id));
        created?;
        let own = self.new.iter().filter(|one| one.is_of(self.service)).count();
        let (service, count) = (self.service, self.count);
        if own != count {
            return Err(Failure::Failed(anyhow!("Compose created {own} containers of {service} instead of {count}")));
        }
        let shared = self.old.len() + count > 1;
        if let Some(port) = self.new.iter().filter(|one| one.is_of(self.service)).find_map(|one| one.publishes.first())
            && shared
        {
            return Err(Failure::Input(format!(
                "{service} publishes port {port} by `ports:`, which only one container can do; remove that from the Compose file: the label \
                 pod-steer.ports brings clients to the container"
            )));
        }
        Ok(())
    }

    /// Creates them once more, with a version that is not in use. Nothing else may differ.
    async fn create_amended(&mut self, version: &str, used: &BTreeSet<&str>) -> Outcome {
        let plain = self.new.first().cloned().context("no container was created")?;
        let label = plain.labels.get(COMPOSE_HASH).cloned().unwrap_or_default();
        let hash = if self.definition.is_label_alone(&label) { self.definition.hash().to_owned() } else { label };
        let version = distinct(version, &plain, &self.old, &hash, used);
        let amendment = Amendment { files: amendment::files(&plain)?, version, hash };
        containers::remove(&ids(&std::mem::take(&mut self.new)), true).await?;
        self.create(Some(&amendment)).await?;
        for amended in &self.new {
            amendment::ensure_same(&plain, amended)?;
        }
        Ok(())
    }

    /// Starts the new containers. Those that do not run are removed first, or they would be started too.
    async fn start(&mut self) -> Outcome {
        self.ensure_unchanged(&self.containers().await?)?;
        self.remove_stopped().await?;
        let others = if self.old.is_empty() { self.others(&self.containers().await?)? } else { None };
        let wanted = Wanted { service: self.service, total: self.total(), others };
        Ok(self.compose.start(&wanted).await?)
    }

    async fn remove_stopped(&mut self) -> Outcome {
        Ok(containers::remove(&ids(&std::mem::take(&mut self.stopped)), false).await?)
    }

    /// Number of all containers of the service, with the new ones.
    fn total(&self) -> usize {
        self.old.len() + self.stopped.len() + self.count
    }

    /// The containers of the project.
    async fn containers(&self) -> anyhow::Result<Vec<Container>> {
        self.compose.containers(self.old.first().and_then(Container::project)).await
    }

    /// The service and the version that the daemon knows the new containers by.
    async fn known(&self) -> Result<(String, String), Failure> {
        let began = Instant::now();
        let own: Vec<&Container> = self.new.iter().filter(|one| one.is_of(self.service)).collect();
        loop {
            self.interrupt.check()?;
            let status = self.status().await?;
            let found: Vec<_> = own.iter().filter_map(|one| backend(&status, &one.id)).collect();
            if let ([(of, first), ..], true) = (&found[..], found.len() == own.len()) {
                if found.iter().any(|(other, one)| other.name != of.name || one.version != first.version) {
                    let service = self.service;
                    return Err(anyhow!("the new containers of {service} are of several versions or services").into());
                }
                self.refuse_others(of, &first.version)?;
                return Ok((of.name.clone(), first.version.clone()));
            }
            if let Some(refused) = self.refused(&status, &own) {
                return Err(Failure::Input(refused));
            }
            if began.elapsed() > KNOWN_MAX {
                let service = self.service;
                return Err(anyhow!(
                    "the daemon does not see the new containers of {service}: does it follow this engine?"
                )
                .into());
            }
            sleep(LOOK).await;
        }
    }

    pub(super) async fn status(&self) -> Result<Status, Failure> {
        Ok(client::get(self.socket(), "/v1/status").await?)
    }
}

pub(super) fn ids(some: &[Container]) -> Vec<String> {
    some.iter().map(|one| one.id.clone()).collect()
}

pub(super) fn names(some: &[Container]) -> String {
    some.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ")
}

pub(super) fn backend<'s>(status: &'s Status, id: &str) -> Option<(&'s ServiceStatus, &'s BackendStatus)> {
    let of = |service: &'s ServiceStatus| service.backends.iter().find(|one| one.id == id).map(|one| (service, one));
    status.services.iter().find_map(of)
}
