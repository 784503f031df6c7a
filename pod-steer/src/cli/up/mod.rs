//! `up`: replaces the containers of a Compose service by new ones, without a lost request.

mod compose;
mod containers;
mod interrupt;
mod plan;
mod programs;
mod swap;

use std::collections::BTreeMap;

use anyhow::anyhow;

use super::{
    Failure, Outcome,
    args::{
        rollout::{DeployArgs, OutputFormat, ServiceArgs},
        up::UpArgs,
    },
    block_on, given,
    terminal::print,
};
use crate::{
    api::{client, types::Status},
    rollout::DeployOrder,
};
use compose::Compose;
use containers::Container;
use interrupt::Interrupt;
use plan::{Found, Plan};
use swap::Swap;

pub(super) fn up(args: &UpArgs) -> Outcome {
    // What is wrong with the times is said before anything is done.
    order(args, "version").map_err(Failure::Input)?;
    block_on(run(args))
}

async fn run(args: &UpArgs) -> Outcome {
    let interrupt = Interrupt::watch()?;
    let compose = Compose::find(args).await.map_err(input)?;
    let all = compose.services().await.map_err(input)?;
    let names = || all.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    if let Some(unknown) = args.services.iter().find(|service| !all.contains_key(*service)) {
        return Err(Failure::Input(format!("the Compose file has no service {unknown}; it has: {}", names())));
    }
    let containers = containers::inspect(&compose.ids().await?).await?;
    let is_wanted = |service: &&String| match args.services.is_empty() {
        true => containers.iter().any(|one| one.is_of(service) && one.labels.contains_key("pod-steer.service")),
        false => args.services.contains(service),
    };
    let wanted: Vec<&String> = all.keys().filter(is_wanted).collect();
    if wanted.is_empty() {
        let names = names();
        return Err(Failure::Input(format!(
            "no container of this project is steered yet; name the service that is to be, as in `pod-steer up web`: {names}"
        )));
    }
    for service in wanted {
        if args.build && !args.dry_run {
            compose.build(service).await?;
        }
        let own = containers.iter().filter(|one| one.is_of(service)).cloned().collect();
        one(args, &compose, (service, &all[service]), own, &interrupt).await?;
    }
    Ok(())
}

fn input(error: anyhow::Error) -> Failure {
    Failure::Input(crate::chain(error.as_ref()))
}

/// Replaces the containers of one service, which is given with the hash of its configuration.
async fn one(
    args: &UpArgs,
    compose: &Compose,
    (service, hash): (&str, &str),
    containers: Vec<Container>,
    interrupt: &Interrupt,
) -> Outcome {
    let status: Status = client::get(&args.socket.socket, "/v1/status").await?;
    let mut images = BTreeMap::new();
    for one in &containers {
        if let Some(id) = containers::image_id(&one.image).await {
            images.insert(one.image.clone(), id);
        }
    }
    let backends = || status.services.iter().flat_map(|of| of.backends.iter().map(move |backend| (of, backend)));
    let own = || backends().filter(|(_, backend)| containers.iter().any(|one| one.id == backend.id));
    if let Some((of, _)) = own().find(|(of, _)| of.operation.is_some()) {
        return Err(Failure::Failed(anyhow!(
            "an operation of {0} is under way; wait for its end, or end it: pod-steer rollback {0}",
            of.name
        )));
    }
    let versions = own().map(|(_, backend)| (backend.id.clone(), backend.version.clone())).collect();
    let shares = own().map(|(_, backend)| (backend.id.clone(), backend.share)).collect();
    let scale = args.scale.map(usize::from);
    let plan = plan::plan(Found { containers, shares, versions, hash: hash.to_owned(), images, scale });
    for line in plan.lines(service) {
        print(&format!("{line}\n"))?;
    }
    match plan {
        Plan::Replace { old, stopped, count, .. } if !args.dry_run => {
            Swap::new(args, compose, service, hash, old, count, interrupt).run(&stopped).await
        }
        Plan::Clean { unused, created } if !args.dry_run => {
            Swap::new(args, compose, service, hash, Vec::new(), 0, interrupt).clean(&unused, &created).await
        }
        _ => Ok(()),
    }
}

/// The order by which a new version takes over.
fn order(args: &UpArgs, version: &str) -> Result<DeployOrder, String> {
    given::deploy(&DeployArgs {
        service: ServiceArgs { socket: args.socket.clone(), service: String::new() },
        version: version.to_owned(),
        backends: None,
        timeout: args.timeout.clone(),
        drain_timeout: args.drain_timeout.clone(),
        ending: args.ending.clone(),
        stop_old: true,
        keep_old: None,
        recreate: false,
        allow_drop: false,
        max_hold: None,
        output: OutputFormat::Text,
    })
}
