//! A service that sleeps is woken before its containers are looked at: they are stopped, and would be taken for containers that are not used.

use std::collections::BTreeSet;

use super::{compose::Compose, containers::Container, interrupt::Interrupt};
use crate::{
    api::{
        client,
        types::{ServiceStatus, Status},
    },
    cli::{
        Failure,
        args::{rollout::OutputFormat, up::UpArgs},
        follow::Follower,
        orders::{conclude, give},
        terminal::note,
    },
    rollout::{Order, WakeOrder},
};

/// Wakes the service of these containers of a Compose service. Returns them as they are then; after a dry run, as they would be.
pub(super) async fn awake(
    args: &UpArgs,
    compose: &Compose,
    mut containers: Vec<Container>,
    interrupt: &Interrupt,
) -> Result<Vec<Container>, Failure> {
    let socket = &args.socket.socket;
    let status: Status = client::get(socket, "/v1/status").await?;
    let asleep: Vec<&ServiceStatus> =
        status.services.iter().filter(|of| sleeps(of) && has_any(of, &containers)).collect();
    for of in &asleep {
        if args.dry_run {
            note(&format!("{} sleeps, and is woken before anything is done", of.name));
            let stopped = of.decision.asleep.iter().flat_map(|asleep| &asleep.containers);
            let stopped: BTreeSet<&str> = stopped.map(|id| id.as_str()).collect();
            containers.iter_mut().filter(|one| stopped.contains(one.id.as_str())).for_each(|one| one.is_up = true);
            continue;
        }
        let begun = give(socket, &of.name, &Order::Wake(WakeOrder::default())).await?;
        let ended = match begun.end {
            Some(_) => begun,
            None => Follower::new(socket, begun, OutputFormat::Text).follow_unless(interrupt.wait()).await??,
        };
        conclude(&ended, OutputFormat::Text)?;
    }
    if asleep.is_empty() || args.dry_run {
        return Ok(containers);
    }
    let (project, service) = containers.first().map(|one| (one.project(), one.service())).unwrap_or_default();
    let mut own = compose.containers(project).await?;
    own.retain(|one| one.service() == service);
    Ok(own)
}

/// Whether a service sleeps, or is falling asleep or waking.
fn sleeps(of: &ServiceStatus) -> bool {
    of.decision.asleep.is_some() || of.operation.as_ref().is_some_and(|running| running.operation.is_of_sleep())
}

fn has_any(of: &ServiceStatus, containers: &[Container]) -> bool {
    of.backends.iter().any(|backend| containers.iter().any(|one| one.id == backend.id))
}
