//! Whether an order makes sense, before anything is changed.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{CanaryOrder, Decision, Operation, Order, Part, PartOrder, ShiftOrder, View, words};
use crate::{near, state::State, text::quoted, weight::WEIGHT_MAX};

/// The whole, in hundredths of a percent.
pub(super) const WHOLE: u32 = 10_000;

/// Why an order is refused; one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It makes no sense.
    #[error("{0}")]
    Input(String),
    /// Somebody else holds the service.
    #[error("{0}")]
    Held(String),
}

fn refuse<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Input(text.into()))
}

/// Checks an order against the service as it is. `services` are all that there are.
pub fn check(
    order: &Order,
    view: &View,
    services: &[&str],
    decision: &Decision,
    running: Option<&Operation>,
    last: Option<&Operation>,
) -> Result<(), Refusal> {
    let closes = matches!(order, Order::Unpause | Order::Resume(_) | Order::Rollback | Order::Forget);
    if view.backends.is_empty() && !(closes && *decision != Decision::default()) {
        return refuse(near::no_service(&view.service, services));
    }
    if let Some(held) = running
        && !matches!(order, Order::Rollback)
    {
        return Err(Refusal::Held(format!(
            "{} is held by {}: {} goes on since {}; wait for it, or end it: pod-steer rollback {}",
            view.service,
            held.who,
            held.title(),
            clock(held.begun_ms),
            view.service
        )));
    }
    let target = match order {
        Order::Deploy(deploy) => vec![&deploy.version],
        Order::Canary(canary) => vec![&canary.version],
        Order::Shift(shift) => shift.weights.iter().filter(|(_, weight)| **weight > 0).map(|(v, _)| v).collect(),
        _ => Vec::new(),
    };
    let service = &view.service;
    if !target.is_empty() && decision.drained.contains(&Part::Service) {
        return refuse(format!("{service} is drained as a whole; let it in first: pod-steer resume {service}"));
    }
    let drained = |version: &&&String| decision.drained.contains(&Part::Version((**version).clone()));
    if !matches!(order, Order::Deploy(_))
        && let Some(version) = target.iter().find(drained)
    {
        return refuse(format!(
            "{version} of {service} is drained; let it in first: pod-steer resume {service} --version {version}"
        ));
    }
    match order {
        Order::Deploy(deploy) => {
            version(view, &deploy.version)?;
            if deploy.timeout_ms == 0 {
                return refuse("the time-out is over already; give it some time, as in 60s");
            }
            if deploy.backends == Some(0) {
                return refuse("no backend is to be ready; ask for one at least");
            }
        }
        Order::Canary(canary) => check_canary(view, canary)?,
        Order::Shift(shift) => check_shift(view, decision, shift)?,
        Order::Rollback => match last {
            _ if running.is_some() => {}
            None => {
                return refuse(format!(
                    "nothing to roll back: {service} has had no deploy, canary or shift; see pod-steer history {service}"
                ));
            }
            Some(last) => somebody_serves(view, last.before.weights.as_ref(), &format!("before {}", last.title()))?,
        },
        Order::Drain(part) => drop(check_part(view, part)?),
        Order::Resume(part) => drop(check_part(view, part)?),
        Order::Pause | Order::Unpause | Order::Forget => {}
    }
    Ok(())
}

/// Refuses shares that would leave nobody to serve.
pub(super) fn somebody_serves(
    view: &View,
    weights: Option<&BTreeMap<String, u32>>,
    whose: &str,
) -> Result<(), Refusal> {
    let Some(weights) = weights else { return Ok(()) };
    let named: Vec<&str> = weights.iter().filter(|(_, weight)| **weight > 0).map(|(v, _)| v.as_str()).collect();
    if named.iter().any(|version| view.ready(version).next().is_some()) {
        return match view.uncovered(&named) {
            None => Ok(()),
            Some(title) => {
                refuse(format!("{whose}, nobody would listen for {title} of {}, as others do now", view.service))
            }
        };
    }
    let stopping = view.backends.values().filter(|backend| backend.state == State::Stopping);
    let stopping: Vec<&str> =
        stopping.filter(|b| named.contains(&b.version.as_str())).map(|backend| backend.name.as_str()).collect();
    let named = named.join(" nor ");
    if !stopping.is_empty() {
        return refuse(format!(
            "{whose}, {named} would serve {}, and {} was told to stop: wait until it is ready again, or has ended and can be \
             started",
            view.service,
            stopping.join(", ")
        ));
    }
    refuse(format!(
        "{whose}, {named} would serve {0}, and no backend of it is ready: start one first, or see why: pod-steer status {0}",
        view.service
    ))
}

fn version(view: &View, version: &str) -> Result<(), Refusal> {
    let of_version = || view.backends.values().filter(|backend| backend.version == version);
    // One that is stopping is ready again if it goes on after its stop time-out: operations wait for that.
    if of_version().any(|backend| backend.state != State::Exited) {
        return Ok(());
    }
    let ended: Vec<&str> = of_version().map(|backend| backend.name.as_str()).collect();
    if !ended.is_empty() {
        let (service, ended) = (&view.service, ended.join(", "));
        return refuse(format!("every backend of version {version} of {service} has ended ({ended}); start one"));
    }
    let known = view.versions().join(", ");
    refuse(format!(
        "{0} has no backend of version {1}; its versions: {known}; see pod-steer status {0}",
        view.service,
        quoted(version)
    ))
}

fn check_canary(view: &View, canary: &CanaryOrder) -> Result<(), Refusal> {
    version(view, &canary.version)?;
    if let Some(share) = canary.steps.iter().find(|share| **share > WHOLE) {
        return refuse(format!("a step of {} is more than there is; give 100 % at the most", words::share(*share)));
    }
    if !canary.steps.is_sorted_by(|a, b| a < b) || canary.steps.last() != Some(&WHOLE) {
        return refuse("the steps of a canary grow, and the last is 100 %; as in 1%,5%,25%,100%");
    }
    if canary.timeout_ms == 0 || canary.every_ms == 0 {
        return refuse("a canary's steps and its time-out last longer than nothing; as in --every 2m --timeout 60s");
    }
    if !view.backends.values().any(|backend| backend.version != canary.version && backend.state.could_serve()) {
        return refuse(format!(
            "only {} serves {}: a canary needs another version beside it; deploy it instead",
            canary.version, view.service
        ));
    }
    Ok(())
}

fn check_shift(view: &View, decision: &Decision, shift: &ShiftOrder) -> Result<(), Refusal> {
    for named in shift.weights.keys().chain(shift.from.values()) {
        version(view, named)?;
    }
    if let Some((version, weight)) = shift.weights.iter().find(|(_, weight)| **weight > WEIGHT_MAX) {
        return refuse(format!("the weight {weight} of {version} is too large; give {WEIGHT_MAX} at the most"));
    }
    if !shift.weights.is_empty() && shift.weights.values().all(|weight| *weight == 0) {
        return refuse("all weights are zero: nobody would serve; to let nobody in, drain or pause the service");
    }
    if !shift.weights.is_empty() {
        somebody_serves(view, Some(&shift.weights), "with these weights")?;
    }
    if shift.balance && !shift.weights.is_empty() {
        return refuse("weights and --balance contradict each other; give one of the two");
    }
    if let Some(network) = shift.from.keys().find(|network| network.trunc() != **network) {
        return refuse(format!("the network {network} has bits beyond its length; you mean {}", network.trunc()));
    }
    let mapped = |network: &&IpNet| matches!(network, IpNet::V6(net) if net.addr().to_ipv4_mapped().is_some());
    if let Some(network) = shift.from.keys().find(mapped) {
        return refuse(format!("the network {network} is one of IPv4 addresses; write it as such, as in 10.0.0.0/8"));
    }
    if let Some(network) = shift.not_from.iter().find(|network| !decision.traffic.from.contains_key(*network)) {
        let known: Vec<String> = decision.traffic.from.keys().map(ToString::to_string).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return refuse(format!("the network {network} is not treated apart; those that are: {known}"));
    }
    if shift.weights.is_empty() && !shift.balance && shift.from.is_empty() && shift.not_from.is_empty() {
        return refuse("nothing to shift; give weights, as in v1=90 v2=10, or a network, as in --from 10.0.0.0/8=v2");
    }
    Ok(())
}

/// The part that is meant.
pub(super) fn check_part(view: &View, part: &PartOrder) -> Result<Part, Refusal> {
    match (&part.version, &part.backend) {
        (Some(_), Some(_)) => refuse("a version and a backend at once; give one of the two"),
        (None, None) => Ok(Part::Service),
        (Some(named), None) => match view.backends.values().any(|backend| backend.version == *named) {
            true => Ok(Part::Version(named.clone())),
            false => version(view, named).map(|()| Part::Version(named.clone())),
        },
        (None, Some(named)) => {
            let of_name: Vec<&String> =
                view.backends.iter().filter(|(_, backend)| backend.name == *named).map(|(id, _)| id).collect();
            let of_id: Vec<&String> =
                view.backends.keys().filter(|id| !named.is_empty() && id.starts_with(named.as_str())).collect();
            let found = if of_name.is_empty() { of_id } else { of_name };
            match found.as_slice() {
                [id] => Ok(Part::Backend((*id).clone())),
                [] => {
                    let known: Vec<&str> = view.backends.values().map(|backend| backend.name.as_str()).collect();
                    let (service, named) = (&view.service, quoted(named));
                    refuse(format!("{service} has no backend {named}; its backends: {}", known.join(", ")))
                }
                _ => refuse(format!("{} could be one of several backends; give its whole id", quoted(named))),
            }
        }
    }
}

/// A time of day, for people.
fn clock(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map(|time| time.strftime("%H:%M:%S UTC").to_string()).unwrap_or_default()
}
