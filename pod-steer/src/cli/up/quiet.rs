//! Removes old containers when their connections have ended.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use tokio::time::sleep;

use super::{
    containers::{self, Container},
    swap::{LOOK, Swap, backend, ids, names},
};
use crate::{
    cli::{
        Failure, Outcome as Ended,
        args::rollout::{AtDeadline, OutputFormat},
        follow::Follower,
        orders::give,
        terminal::{note, print_if_read},
    },
    rollout::{DrainOrder, Operation, Order, Outcome, PartOrder},
    world::State,
};

impl Swap<'_> {
    /// Removes containers of versions that get no traffic, once their connections have ended, and those that do not run.
    pub async fn clean(&self, unused: &[Container], stopped: &[Container]) -> Ended {
        containers::remove(&ids(stopped), false).await?;
        let ending = &self.args.ending;
        let order = super::order(self.args, "version", 1).map_err(Failure::Input)?;
        let of_services = self.closes(unused).await?;
        let given = [order.close_idle_ms, order.max_age_ms];
        let closes = given.into_iter().zip(of_services).any(|(given, of_service)| given.unwrap_or(of_service) > 0);
        let left = match !closes && ending.at_deadline == AtDeadline::Leave {
            true if self.wait_quiet(unused, || self.interrupt.check()).await? => Vec::new(),
            true => unused.to_vec(),
            false => self.drain(unused).await?,
        };
        if !left.is_empty() {
            note(&format!("{}: {} left: connections are open", self.service, names(&left)));
            return Err(Failure::Said(3));
        }
        self.remove(unused).await
    }

    /// Removes the old containers after a deploy. Those with connections stay.
    pub(super) async fn retire(&mut self, deploy: &Operation, version: &str) -> Ended {
        // The new containers serve: they are removed only if they end.
        let new = std::mem::take(&mut self.new);
        self.keeps_old = false;
        let status = self.status().await?;
        let (known, unknown): (Vec<_>, Vec<_>) =
            self.old.iter().cloned().partition(|one| backend(&status, &one.id).is_some());
        let is_here = |one: &Container| backend(&status, &one.id).is_some_and(|(of, _)| of.name == deploy.service);
        let (here, elsewhere): (Vec<_>, Vec<_>) = known.into_iter().partition(is_here);
        let is_busy = |one: &Container| backend(&status, &one.id).is_some_and(|(_, one)| one.live > 0);
        let (mut left, mut quiet): (Vec<_>, Vec<_>) = here.into_iter().partition(is_busy);
        // The deploy has moved no connection of another service.
        let busy = self.drain(&elsewhere).await?;
        quiet.extend(elsewhere.into_iter().filter(|one| !busy.contains(one)));
        left.extend(busy);
        containers::stop(&ids(&quiet)).await?;
        let status = self.status().await?;
        let serves = |one: &Container| backend(&status, &one.id).is_some_and(|(_, one)| one.share > 0.0);
        if !new.iter().any(serves) && !quiet.is_empty() {
            (self.new, self.keeps_old) = (new, true);
            self.start_old_again(deploy).await;
            let (service, old) = (self.service, names(&quiet));
            return Err(anyhow!("no new container of {service} served any more when {old} had stopped").into());
        }
        self.remove(&quiet).await?;
        let removed = if quiet.is_empty() { String::new() } else { format!(", {} removed", names(&quiet)) };
        print_if_read(&format!("{}: version {version} serves{removed}\n", self.service))?;
        if !left.is_empty() {
            note(&format!("{}: {} left; the next `pod-steer up` removes it", self.service, names(&left)));
        }
        if !unknown.is_empty() {
            let all = unknown.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(" ");
            note(&format!(
                "{}: {} left: it is not steered, so its connections are not counted; remove it when they have ended: \
                 docker stop {all} && docker rm {all}",
                self.service,
                names(&unknown)
            ));
        }
        if left.is_empty() && unknown.is_empty() { Ok(()) } else { Err(Failure::Said(3)) }
    }

    /// Stops and removes containers, and ends their drains.
    async fn remove(&self, some: &[Container]) -> Ended {
        let status = self.status().await?;
        containers::remove(&ids(some), false).await?;
        for (of, one) in some.iter().filter_map(|one| backend(&status, &one.id)) {
            if one.state == State::Drained {
                // It may have ended with the container.
                let part = PartOrder { version: None, backend: Some(one.id.clone()) };
                let _ = give(self.socket(), &of.name, &Order::Resume(part)).await;
            }
        }
        Ok(())
    }

    /// Lets the connections of containers end, one after the other, in the way that was asked for. Returns those that have some left.
    async fn drain(&self, some: &[Container]) -> Result<Vec<Container>, Failure> {
        let of = super::order(self.args, "version", 1).map_err(Failure::Input)?;
        let mut left = Vec::new();
        for one in some {
            let status = self.status().await?;
            let Some((service, is)) = backend(&status, &one.id) else { continue };
            if is.live == 0 && is.share == 0.0 {
                continue;
            }
            let order = Order::Drain(DrainOrder {
                version: None,
                backend: Some(one.id.clone()),
                drain_timeout_ms: Some(of.drain_timeout_ms),
                at_deadline: of.at_deadline,
                close_idle_ms: of.close_idle_ms,
                max_age_ms: of.max_age_ms,
                close_rate: of.close_rate,
            });
            let begun = give(self.socket(), &service.name, &order).await?;
            let follower = Follower::new(self.socket(), begun.clone(), OutputFormat::Text);
            let ended = match follower.follow_unless(self.interrupt.wait()).await? {
                Ok(ended) => ended,
                Err(interrupted) => {
                    self.end(&begun).await?;
                    return Err(interrupted);
                }
            };
            if ended.end.is_none_or(|end| end.outcome != Outcome::Done) {
                left.push(one.clone());
            }
        }
        Ok(left)
    }

    /// The times after which a service of theirs has idle and old connections closed, without an order to do so, in milliseconds.
    async fn closes(&self, some: &[Container]) -> Result<[u64; 2], Failure> {
        let status = self.status().await?;
        let services = some.iter().filter_map(|one| backend(&status, &one.id)).map(|(service, _)| &service.options);
        let times = services.map(|options| [options.drain_close_idle_ms, options.drain_max_age_ms]);
        Ok(times.fold([0; 2], |[idle, old], [more_idle, more_old]| [idle.max(more_idle), old.max(more_old)]))
    }

    /// Waits until containers have no connection; false if the time for it is over. `go_on` may end it before.
    pub(super) async fn wait_quiet(&self, some: &[Container], go_on: impl Fn() -> Ended) -> Result<bool, Failure> {
        let limit = super::order(self.args, "version", 1).map_err(Failure::Input)?.drain_timeout_ms;
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
}
