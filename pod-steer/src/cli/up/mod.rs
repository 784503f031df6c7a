//! `up`: replaces the containers of a Compose service by new ones, without a lost request.

mod amendment;
mod checks;
mod compose;
mod containers;
mod definition;
mod forecast;
mod interrupt;
mod lock;
mod mend;
mod plan;
mod programs;
mod quiet;
mod swap;
mod wake;

use std::collections::BTreeMap;

use anyhow::anyhow;

use super::{
    Failure, Outcome,
    args::{
        rollout::{DeployArgs, OutputFormat, ServiceArgs},
        up::UpArgs,
    },
    block_on, given,
    terminal::{note, print},
};
use crate::{
    api::{client, types::Status},
    rollout::DeployOrder,
};
use compose::Compose;
use containers::Container;
use definition::Renewal;
use interrupt::Interrupt;
use plan::{Found, Plan};
use swap::{Swap, Target};

pub(super) fn up(args: &UpArgs) -> Outcome {
    // What is wrong with the times is said before anything is done.
    order(args, "version", 1).map_err(Failure::Input)?;
    block_on(run(args))
}

async fn run(args: &UpArgs) -> Outcome {
    let interrupt = Interrupt::watch()?;
    let compose = Compose::find(args).await.map_err(input)?;
    let enabled = compose.services().await.map_err(without_file)?;
    let containers = compose.containers(None).await?;
    let project = containers.iter().find_map(Container::project);
    let mut targets = Vec::new();
    for service in wanted(args, &compose, &enabled, &containers).await? {
        let definition = compose.definition(&service, enabled.get(&service)).await.map_err(input)?;
        targets.push(Target { service, definition });
    }
    let mut are_left = false;
    for target in &targets {
        renew(args, &compose, target).await?;
        // It may have been scaled while others were replaced.
        let mut own = compose.containers(project).await?;
        own.retain(|one| one.is_of(&target.service));
        let own = wake::awake(args, &compose, own, &interrupt).await?;
        match one(args, &compose, target, own, &interrupt).await {
            // Others do not wait for its connections.
            Err(Failure::Said(3)) => are_left = true,
            done => done?,
        }
    }
    if are_left { Err(Failure::Said(3)) } else { Ok(()) }
}

/// Builds or pulls the image, if that is wanted each time.
async fn renew(args: &UpArgs, compose: &Compose, target: &Target) -> Outcome {
    let Target { service, definition } = target;
    match (if args.build { Some(Renewal::Build) } else { definition.renewal }, args.dry_run) {
        (None, _) => {}
        (Some(_), true) => note(&format!("{service}: a dry run builds and pulls no image, so a new one is not seen")),
        (Some(Renewal::Build), false) => compose.build(service).await?,
        (Some(Renewal::Pull), false) => compose.pull(service).await?,
    }
    Ok(())
}

/// The services that are named, or else those that are steered. As with `docker compose up`, a name enables a service that a profile disables.
async fn wanted(
    args: &UpArgs,
    compose: &Compose,
    enabled: &BTreeMap<String, String>,
    containers: &[Container],
) -> Result<Vec<String>, Failure> {
    let is_steered =
        |service: &str| containers.iter().any(|one| one.is_of(service) && one.labels.contains_key("pod-steer.service"));
    let of_containers = || containers.iter().filter_map(Container::service);
    let are_enabled = match &args.services[..] {
        [] => of_containers().all(|service| enabled.contains_key(service)),
        named => named.iter().all(|service| enabled.contains_key(service)),
    };
    let all =
        if are_enabled { enabled.keys().cloned().collect() } else { compose.all_services().await.map_err(input)? };
    let names = || all.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if let Some(unknown) = args.services.iter().find(|service| !all.contains(*service)) {
        return Err(Failure::Input(format!("the Compose file has no service {unknown}; it has: {}", names())));
    }
    let (wanted, disabled): (Vec<String>, Vec<String>) = if args.services.is_empty() {
        all.iter().filter(|service| is_steered(service)).cloned().partition(|service| enabled.contains_key(service))
    } else {
        (all.iter().filter(|service| args.services.contains(service)).cloned().collect(), Vec::new())
    };
    for service in &disabled {
        note(&format!(
            "{service} is left as it is, since its profile is not active; name it to replace it: pod-steer up {service}"
        ));
    }
    if wanted.is_empty() {
        let none =
            if disabled.is_empty() { "no container of this project is steered yet" } else { "no service is replaced" };
        return Err(Failure::Input(format!(
            "{none}; name the service that is to be, as in `pod-steer up web`: {}",
            names()
        )));
    }
    Ok(wanted)
}

/// Compose says in its own way that it has found no file.
fn without_file(error: anyhow::Error) -> Failure {
    let text = crate::chain(error.as_ref());
    let is_missing = ["no configuration file", "suitable configuration file"].iter().any(|part| text.contains(part));
    Failure::Input(if is_missing { format!("{text}; name the Compose file: pod-steer up -f FILE") } else { text })
}

fn input(error: anyhow::Error) -> Failure {
    Failure::Input(crate::chain(error.as_ref()))
}

/// Replaces the containers of one service.
async fn one(
    args: &UpArgs,
    compose: &Compose,
    target: &Target,
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
    let paused = containers.iter().find(|one| one.is_paused).map(|one| one.name.clone());
    let definition = target.definition.clone();
    let plan = plan::plan(Found { containers, shares, versions, definition, images, scale });
    if let (Some(paused), true) = (paused, plan != Plan::UpToDate) {
        return Err(Failure::Input(format!("{paused} is paused; end that first: docker unpause {paused}")));
    }
    for line in plan.lines(&target.service) {
        print(&format!("{line}\n"))?;
    }
    match plan {
        Plan::Replace { why, old, stopped, count, .. } if !args.dry_run => {
            Swap::new(args, compose, target, interrupt).replacing(why, old, stopped, count).run().await
        }
        Plan::Clean { unused, stopped } if !args.dry_run => {
            Swap::new(args, compose, target, interrupt).clean(&unused, &stopped).await
        }
        _ => Ok(()),
    }
}

/// The order by which a new version of so many containers takes over. It stops nothing: the service may have backends of others.
fn order(args: &UpArgs, version: &str, count: usize) -> Result<DeployOrder, String> {
    // Services may differ in their option, and a refusal in the middle would leave a part undone.
    if args.ending.rate.is_some() && args.ending.close_idle.is_none() && args.ending.max_age.is_none() {
        return Err("--rate is refused: it is that of --close-idle and --max-age; give one too".to_owned());
    }
    given::deploy(&DeployArgs {
        service: ServiceArgs { socket: args.socket.clone(), service: String::new() },
        version: version.to_owned(),
        backends: u32::try_from(count).ok(),
        timeout: args.timeout.clone(),
        drain_timeout: args.drain_timeout.clone(),
        ending: args.ending.clone(),
        stop_old: false,
        keep_old: None,
        recreate: false,
        allow_drop: false,
        watch: None,
        max_slowdown: "25%".to_owned(),
        max_hold: None,
        output: OutputFormat::Text,
    })
}
