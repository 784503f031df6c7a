//! Puts back what a failed replacement has changed.

use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use tokio::time::sleep;

use super::{
    containers::{self, Container},
    swap::{LOOK, Swap, backend, ids, names},
};
use crate::{
    api::{
        client,
        types::{OperationStatus, Status},
    },
    cli::{
        orders::give,
        terminal::{note, warn},
    },
    rollout::{DrainOrder, Operation, Order, PartOrder},
};

/// Longest wait for an operation to end after its rollback.
const ENDED_MAX: Duration = Duration::from_secs(10);
/// Longest wait for old containers to serve again.
const AGAIN_MAX: Duration = Duration::from_secs(60);

impl Swap<'_> {
    /// Ends the deploy, removes the new containers, and starts old ones again that were stopped.
    pub(super) async fn put_back(&mut self) {
        let new = std::mem::take(&mut self.new);
        if !new.is_empty()
            && let Err(error) = self.try_put_back(&new).await
        {
            warn(&format!("{}: {} left: {error:#}", self.service, names(&new)));
            return;
        }
        if !self.keeps_old {
            return;
        }
        self.start_old().await;
    }

    async fn start_old(&self) {
        for old in &self.old {
            match containers::start_again(&old.id).await {
                Ok(true) => note(&format!("{}: {} did not run, and is started again", self.service, old.name)),
                Ok(false) => {}
                Err(error) => warn(&format!("{}: {} cannot be started again: {error:#}", self.service, old.name)),
            }
        }
    }

    /// Starts old containers again that have stopped after a deploy, and undoes it.
    pub(super) async fn start_old_again(&self, deploy: &Operation) {
        self.start_old().await;
        let steered = &deploy.service;
        let can_serve =
            |one: &Container, status: &Status| backend(status, &one.id).is_some_and(|(_, one)| one.state.could_serve());
        let began = Instant::now();
        loop {
            if self.status().await.is_ok_and(|status| self.old.iter().any(|one| can_serve(one, &status))) {
                break;
            }
            if began.elapsed() >= AGAIN_MAX {
                warn(&format!(
                    "{}: the old containers do not serve either: see `pod-steer status {steered}`",
                    self.service
                ));
                break;
            }
            sleep(LOOK).await;
        }
        if self.is_last(deploy).await {
            let _ = give(self.socket(), steered, &Order::Rollback).await;
        } else {
            note(&format!("{steered}: not rolled back, since another order has come after this deploy"));
        }
    }

    /// A rollback undoes the last order of a service: whether that is this one.
    async fn is_last(&self, deploy: &Operation) -> bool {
        let path = format!("/v1/history?service={}", client::encoded(&deploy.service));
        let all = client::get::<Vec<Operation>>(self.socket(), &path).await;
        all.is_ok_and(|all| all.iter().all(|one| one.id <= deploy.id))
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
        let is_quiet = self.wait_quiet(new, || Ok(())).await.map_err(|_| anyhow!("the daemon does not answer"))?;
        containers::remove(&ids(new), true).await?;
        for (steered, part) in parts {
            // Its drain ends with it, or has ended.
            let _ = give(self.socket(), steered, &Order::Resume(part)).await;
        }
        let cut = if is_quiet { "" } else { ", with connections that were open when --drain-timeout was over" };
        note(&format!("{}: {} removed{cut}; the others serve as before", self.service, names(new)));
        Ok(())
    }

    /// Ends an operation. If it has ended, a rollback would undo the one before it.
    pub(super) async fn end(&self, deploy: &Operation) -> anyhow::Result<()> {
        let path = format!("/v1/operations/{}", deploy.id);
        let status: OperationStatus = client::get(self.socket(), &path).await?;
        if status.operation.end.is_some() {
            return Ok(());
        }
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
