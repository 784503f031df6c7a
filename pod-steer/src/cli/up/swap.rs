//! Replaces the containers of one service. If a step fails before the new version has everything, the new containers are removed.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{anyhow, ensure};
use tokio::time::sleep;

use super::{
    compose::Compose,
    containers::{self, Container},
    interrupt::Interrupt,
    plan::distinct,
};
use crate::{
    api::{
        client,
        types::{BackendStatus, OperationStatus, ServiceStatus, Status},
    },
    cli::{
        Failure, Outcome,
        args::{
            rollout::{AtDeadline, OutputFormat},
            up::UpArgs,
        },
        follow::Follower,
        orders::{conclude, give},
        terminal::{note, print_if_read, warn},
    },
    rollout::{DrainOrder, Operation, Order, PartOrder},
    text::quoted,
};

/// Longest wait for the daemon to know containers that the engine has just created.
const KNOWN_MAX: Duration = Duration::from_secs(10);
/// Longest wait for an operation to end after its rollback.
const ENDED_MAX: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// See the module.
pub(super) struct Swap<'a> {
    args: &'a UpArgs,
    compose: &'a Compose,
    service: &'a str,
    hash: &'a str,
    old: Vec<Container>,
    count: usize,
    interrupt: &'a Interrupt,
    /// Containers that were created, and are to be removed if this fails.
    new: Vec<Container>,
    /// The deploy, until it has ended.
    deploy: Option<Operation>,
}

impl<'a> Swap<'a> {
    pub fn new(
        args: &'a UpArgs,
        compose: &'a Compose,
        service: &'a str,
        hash: &'a str,
        old: Vec<Container>,
        count: usize,
        interrupt: &'a Interrupt,
    ) -> Self {
        Self { args, compose, service, hash, old, count, interrupt, new: Vec::new(), deploy: None }
    }

    fn socket(&self) -> &'a Path {
        &self.args.socket.socket
    }

    /// Removes what does not run, and replaces what does.
    pub async fn run(&mut self, stopped: &[Container]) -> Outcome {
        self.interrupt.check()?;
        containers::remove(&ids(stopped), false).await?;
        let done = self.replace().await;
        if done.is_err() {
            self.put_back().await;
        }
        done
    }

    /// Removes containers of versions that get no traffic, once their connections have ended, and those that never ran.
    pub async fn clean(&self, unused: &[Container], created: &[Container]) -> Outcome {
        containers::remove(&ids(created), false).await?;
        if !self.wait_quiet(unused, || self.interrupt.check()).await?
            && self.args.ending.at_deadline == AtDeadline::Leave
        {
            note(&format!("{}: {} left: connections are open", self.service, names(unused)));
            return Err(Failure::Said(3));
        }
        Ok(containers::remove(&ids(unused), false).await?)
    }

    async fn replace(&mut self) -> Outcome {
        self.create(None).await?;
        let (mut steered, mut version) = self.known().await?;
        let status = self.status().await?;
        let of_old = self.old.iter().filter_map(|one| backend(&status, &one.id));
        let used: BTreeSet<&str> = of_old.map(|(_, one)| one.version.as_str()).collect();
        if used.contains(version.as_str()) {
            let other = distinct(&version, &self.new[0], &self.old, self.hash, &used);
            containers::remove(&ids(&std::mem::take(&mut self.new)), true).await?;
            self.create(Some(&other)).await?;
            (steered, version) = self.known().await?;
        }
        self.interrupt.check()?;
        // The order comes first: a policy of the service could give one of its own as soon as they listen.
        let begun = self.order(&steered, &version).await?;
        self.deploy = Some(begun.clone());
        if !self.old.is_empty() {
            containers::start(&ids(&self.new)).await?;
        }
        let ended = match begun.end {
            Some(_) => begun,
            None => {
                let follower = Follower::new(self.socket(), begun, OutputFormat::Text);
                match follower.follow_unless(self.interrupt.wait()).await {
                    Ok(ended) => ended?,
                    Err(failure) => {
                        // The daemon, or the next one, continues it: nothing may be taken away from it.
                        self.new.clear();
                        return Err(failure);
                    }
                }
            }
        };
        self.deploy = None;
        match conclude(&ended, OutputFormat::Text) {
            Ok(()) => {
                self.new.clear();
                containers::remove(&ids(&self.old), false).await?;
                let removed =
                    if self.old.is_empty() { String::new() } else { format!(", {} removed", names(&self.old)) };
                print_if_read(&format!("{}: version {version} serves{removed}\n", self.service))
            }
            Err(Failure::Said(3)) => {
                self.new.clear();
                note(&format!("{}: {} left; the next `pod-steer up` removes it", self.service, names(&self.old)));
                Err(Failure::Said(3))
            }
            failed => failed,
        }
    }

    /// Orders the deploy. If it is not known whether the order takes effect, the new containers are left to it.
    async fn order(&mut self, steered: &str, version: &str) -> Result<Operation, Failure> {
        let order = Order::Deploy(super::order(self.args, version).map_err(Failure::Input)?);
        let failure = match give(self.socket(), steered, &order).await {
            Ok(begun) => return Ok(begun),
            Err(failure) => failure,
        };
        let Ok(status) = self.status().await else {
            self.new.clear();
            return Err(failure);
        };
        let running = status.services.into_iter().find(|of| of.name == steered).and_then(|of| of.operation);
        let is_it =
            |operation: &Operation| matches!(&operation.order, Order::Deploy(deploy) if deploy.version == version);
        running.map(|status| status.operation).filter(is_it).ok_or(failure)
    }

    /// Creates the new containers. With a version, their labels are amended by it.
    async fn create(&mut self, version: Option<&str>) -> Outcome {
        self.interrupt.check()?;
        let before: BTreeSet<String> = self.ids().await?.into_iter().collect();
        let created = if self.old.is_empty() {
            // Others that it depends on are created too.
            self.compose.start_first(self.service, self.count).await
        } else {
            let amended = version.map(|version| (version, self.hash));
            self.compose.create(self.service, self.old.len() + self.count, amended).await
        };
        let mut after = self.ids().await?;
        after.retain(|id| !before.contains(id));
        self.new = containers::inspect(&after).await?;
        if !self.old.is_empty() {
            // Others of the project are not this command's.
            self.new.retain(|one| one.is_of(self.service));
        }
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

    /// The ids of the project's containers.
    async fn ids(&self) -> anyhow::Result<Vec<String>> {
        match self.old.first().and_then(Container::project) {
            Some(project) => containers::of_project(project).await,
            None => self.compose.ids().await,
        }
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
            if began.elapsed() > KNOWN_MAX {
                return Err(Failure::Failed(self.unknown(&status, &own)));
            }
            sleep(LOOK).await;
        }
    }

    /// Why the daemon does not know containers.
    fn unknown(&self, status: &Status, own: &[&Container]) -> anyhow::Error {
        let about = status.conditions.iter().find(|one| own.iter().any(|own| one.subject.contains(&own.name)));
        let has_label = own.iter().any(|one| one.labels.contains_key("pod-steer.service"));
        match about {
            Some(about) => anyhow!("{}: {}", about.subject, about.condition.message),
            None if !has_label => anyhow!(
                "the containers of {} lack the labels pod-steer.service and pod-steer.ports; add them to the Compose file",
                self.service
            ),
            None => {
                anyhow!("the daemon does not see the new containers of {}: does it follow this engine?", self.service)
            }
        }
    }

    /// A deploy takes the traffic of all other versions; those of other containers are not this command's.
    fn refuse_others(&self, of: &ServiceStatus, version: &str) -> anyhow::Result<()> {
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

    async fn status(&self) -> Result<Status, Failure> {
        Ok(client::get(self.socket(), "/v1/status").await?)
    }

    /// Waits until containers have no connection; false if the time for it is over. `go_on` may end it before.
    async fn wait_quiet(&self, some: &[Container], go_on: impl Fn() -> Outcome) -> Result<bool, Failure> {
        let limit = super::order(self.args, "version").map_err(Failure::Input)?.drain_timeout_ms;
        let began = Instant::now();
        loop {
            let status = self.status().await?;
            if some.iter().filter_map(|one| backend(&status, &one.id)).all(|(_, one)| one.live == 0) {
                return Ok(true);
            }
            if began.elapsed() >= Duration::from_millis(limit) {
                return Ok(false);
            }
            go_on()?;
            sleep(LOOK).await;
        }
    }

    /// Ends the deploy, and removes the new containers.
    async fn put_back(&mut self) {
        if self.new.is_empty() {
            return;
        }
        let new = std::mem::take(&mut self.new);
        if let Err(error) = self.try_put_back(&new).await {
            warn(&format!("{}: {} left: {error:#}", self.service, names(&new)));
        }
    }

    async fn try_put_back(&mut self, new: &[Container]) -> anyhow::Result<()> {
        if let Some(deploy) = self.deploy.take() {
            self.end(&deploy).await?;
        }
        let status: Status = client::get(self.socket(), "/v1/status").await?;
        let serves = |some: &[Container]| {
            some.iter().filter_map(|one| backend(&status, &one.id)).any(|(_, one)| one.share > 0.0)
        };
        ensure!(
            !serves(new) || serves(&self.old),
            "the traffic has moved to it; run the command again to remove what is old"
        );
        // Without a deploy before, they had a share as soon as they listened.
        let parts: Vec<(&str, PartOrder)> = new
            .iter()
            .filter_map(|one| backend(&status, &one.id))
            .map(|(of, one)| (of.name.as_str(), PartOrder { version: None, backend: Some(one.id.clone()) }))
            .collect();
        for (steered, part) in &parts {
            let drain = DrainOrder { backend: part.backend.clone(), ..DrainOrder::default() };
            give(self.socket(), steered, &Order::Drain(drain)).await.map_err(|_| anyhow!("it could not be drained"))?;
        }
        // A signal is why this is done: only a second one ends it.
        self.wait_quiet(new, || Ok(())).await.map_err(|_| anyhow!("the daemon does not answer"))?;
        containers::remove(&ids(new), true).await?;
        for (steered, part) in parts {
            // Its drain ends with it, or has ended.
            let _ = give(self.socket(), steered, &Order::Resume(part)).await;
        }
        note(&format!("{}: {} removed; the others serve as before", self.service, names(new)));
        Ok(())
    }

    async fn end(&self, deploy: &Operation) -> anyhow::Result<()> {
        let path = format!("/v1/operations/{}", deploy.id);
        // It may have ended in this moment.
        let _ = give(self.socket(), &deploy.service, &Order::Rollback).await;
        let began = Instant::now();
        loop {
            let status: OperationStatus = client::get(self.socket(), &path).await?;
            if status.operation.end.is_some() {
                return Ok(());
            }
            ensure!(began.elapsed() < ENDED_MAX, "the deploy has not ended after its rollback");
            sleep(LOOK).await;
        }
    }
}

fn ids(some: &[Container]) -> Vec<String> {
    some.iter().map(|one| one.id.clone()).collect()
}

fn names(some: &[Container]) -> String {
    some.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn backend<'s>(status: &'s Status, id: &str) -> Option<(&'s ServiceStatus, &'s BackendStatus)> {
    let of = |service: &'s ServiceStatus| service.backends.iter().find(|one| one.id == id).map(|one| (service, one));
    status.services.iter().find_map(of)
}
