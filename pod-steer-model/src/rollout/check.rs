//! Checks an order, before anything is changed.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{
    AtDeadline, CanaryOrder, Decision, DeployOrder, Operation, Order, Part, PartOrder, ShiftOrder, View, Watch, idle,
    recreate, words,
};
use crate::{
    ids::BackendId,
    judge::{Judging, Mode, SLOWDOWN_MAX},
    near,
    state::State,
    text::quoted,
    weight::WEIGHT_MAX,
};

/// 100 %, in hundredths of a percent.
pub(super) const WHOLE: u32 = 10_000;

/// Why an order is refused, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The order is invalid.
    #[error("{0}")]
    Input(String),
    /// Another operation holds the service.
    #[error("{0}")]
    Held(String),
}

pub(super) fn refuse<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Input(text.into()))
}

/// Checks an order against the current state of the service. `services` are the names of all services.
pub fn check(
    order: &Order,
    view: &View,
    services: &[&str],
    decision: &Decision,
    running: Option<&Operation>,
    last: Option<&Operation>,
) -> Result<(), Refusal> {
    let closes = matches!(order, Order::Unpause | Order::Wake(_) | Order::Resume(_) | Order::Rollback | Order::Forget);
    if view.backends.is_empty() && !(closes && *decision != Decision::default()) {
        return refuse(near::no_service(&view.service, services));
    }
    if let Some(held) = running
        && !matches!(order, Order::Rollback)
        && !resumes(order, held, view)
    {
        return Err(Refusal::Held(format!(
            "{} is held by {}: {} has been running since {}; wait for it, or end it: pod-steer rollback {}",
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
        return refuse(format!("all of {service} is drained; end the drain first: pod-steer resume {service}"));
    }
    let drained = |version: &&&String| decision.drained.contains(&Part::Version((**version).clone()));
    if !matches!(order, Order::Deploy(_))
        && let Some(version) = target.iter().find(drained)
    {
        return refuse(format!(
            "{version} of {service} is drained; end the drain first: pod-steer resume {service} --version {version}"
        ));
    }
    match order {
        Order::Deploy(deploy) => {
            match deploy.recreate {
                true => recreate::check(view, decision, deploy)?,
                false => version(view, &deploy.version)?,
            }
            if deploy.timeout_ms == 0 {
                return refuse("the time-out is zero; give a longer one, as in 60s");
            }
            check_closing(order)?;
            if let Some(watch) = &deploy.watch {
                check_watch(view, decision, deploy, watch)?;
            }
            if deploy.backends == Some(0) {
                return refuse("the number of backends to wait for is zero; give at least one");
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
            Some(last) if last.recreation.is_some() => return refuse(recreate::no_rollback(service, last)),
            Some(last) => check_before(view, last)?,
        },
        Order::Drain(drain) => {
            check_part(view, &drain.part())?;
            if drain.at_deadline == AtDeadline::Reset && drain.drain_timeout_ms.is_none() {
                return refuse("connections can be reset only at a deadline; give one, as in --drain-timeout 30s");
            }
            let closes = order.closes();
            if (closes.is_any() || closes.rate.is_some()) && drain.drain_timeout_ms.is_none() {
                return refuse("connections are closed until a deadline; give one, as in --drain-timeout 30s");
            }
            check_closing(order)?;
        }
        Order::Resume(part) => drop(drained_part(view, decision, part)?),
        Order::Idle => idle::check(view, decision)?,
        Order::Wake(wake) if wake.max_hold_ms == Some(0) => {
            return refuse("clients would be held for no time at all; give a longer one, as in 30000");
        }
        Order::Pause(_) | Order::Unpause | Order::Wake(_) | Order::Forget => {}
    }
    Ok(())
}

/// Whether an order ends the drain that an operation waits for.
fn resumes(order: &Order, held: &Operation, view: &View) -> bool {
    let (Order::Resume(part), Order::Drain(drain)) = (order, &held.order) else { return false };
    matches!((check_part(view, part), check_part(view, &drain.part())), (Ok(part), Ok(drained)) if part == drained)
}

/// Refuses a pace at which nothing would be closed.
fn check_closing(order: &Order) -> Result<(), Refusal> {
    let closes = order.closes();
    match closes.rate {
        Some(_) if !closes.is_any() => {
            refuse("a rate is that of closing connections, and none are closed; give --close-idle or --max-age too")
        }
        Some(0) => refuse("the rate is zero; give at least one a second, as in --rate 200/s"),
        _ => Ok(()),
    }
}

/// Refuses to undo an operation if no backend would serve that did before it.
pub(super) fn check_before(view: &View, last: &Operation) -> Result<(), Refusal> {
    let before = format!("before {}", last.title());
    let (Order::Deploy(DeployOrder { version, .. }) | Order::Canary(CanaryOrder { version, .. }), None) =
        (&last.order, &last.before.weights)
    else {
        return last.before.weights.as_ref().map_or(Ok(()), |weights| check_served(view, weights, &before));
    };
    // Without weights, all versions shared; but this one has everything now.
    if view.backends.values().any(|other| other.version != *version && view.would_serve(&other.version)) {
        return Ok(());
    }
    refuse(format!(
        "{before}, all versions of {0} shared, and no backend of another one is ready: start one first, or see why: pod-steer status {0}",
        view.service
    ))
}

/// Refuses shares with which no backend would serve.
fn check_served(view: &View, weights: &BTreeMap<String, u32>, whose: &str) -> Result<(), Refusal> {
    let named: Vec<&str> = weights.iter().filter(|(_, weight)| **weight > 0).map(|(v, _)| v.as_str()).collect();
    if named.iter().any(|version| view.would_serve(version)) {
        return match view.uncovered(&named) {
            None => Ok(()),
            Some(title) => {
                refuse(format!("{whose}, no version would listen for {title} of {}, which is served now", view.service))
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
    // A stopping backend becomes ready again if it still runs after its stop time-out: operations wait for that.
    let (mut there, service) =
        (of_version().filter(|backend| backend.state != State::Exited).peekable(), &view.service);
    if there.peek().is_some() {
        return match there.any(|backend| backend.weight > 0) {
            true => Ok(()),
            false => refuse(format!(
                "every backend of version {version} of {service} has the weight 0, so none would get connections; start one with another \
                 weight (pod-steer.weight)"
            )),
        };
    }
    let ended: Vec<&str> = of_version().map(|backend| backend.name.as_str()).collect();
    if !ended.is_empty() {
        let ended = ended.join(", ");
        return refuse(format!("every backend of version {version} of {service} has ended ({ended}); start one"));
    }
    let known = view.versions().join(", ");
    refuse(format!(
        "{0} has no backend of version {1}; its versions: {known}; see pod-steer status {0}",
        view.service,
        quoted(version)
    ))
}

fn check_judging(judging: &Judging) -> Result<(), Refusal> {
    match judging.max_slowdown_percent {
        1..=SLOWDOWN_MAX => Ok(()),
        _ => refuse(format!(
            "a version may be slower by 1 % to {SLOWDOWN_MAX} %; give one of these, as in --max-slowdown 25%"
        )),
    }
}

fn check_watch(view: &View, decision: &Decision, deploy: &DeployOrder, watch: &Watch) -> Result<(), Refusal> {
    check_judging(&watch.judge)?;
    if watch.for_ms == 0 {
        return refuse("the version would be watched for no time at all; give a longer one, as in --watch 5m");
    }
    if watch.for_ms > Watch::MAX_MS {
        return refuse("the version would be watched for too long; give at most 24 hours, as in --watch 5m");
    }
    if decision.paused {
        return refuse(format!(
            "{0} is paused, so no client would come to the version; leave out --watch, or end the pause first: pod-steer unpause {0}",
            view.service
        ));
    }
    if deploy.recreate {
        return refuse(
            "a version that replaces one that has been stopped cannot be compared with it; leave out --watch, or --recreate",
        );
    }
    if !view.backends.values().any(|backend| backend.version != deploy.version && backend.state.could_serve()) {
        return refuse(format!(
            "only {} serves {}: there is no other version to compare it with; leave out --watch",
            deploy.version, view.service
        ));
    }
    Ok(())
}

fn check_canary(view: &View, canary: &CanaryOrder) -> Result<(), Refusal> {
    version(view, &canary.version)?;
    if let Some(share) = canary.steps.iter().find(|share| **share > WHOLE) {
        return refuse(format!("a step of {} is too large; give at most 100 %", words::share(*share)));
    }
    if !canary.steps.is_sorted_by(|a, b| a < b) || canary.steps.last() != Some(&WHOLE) {
        return refuse("the steps of a canary must increase, and the last must be 100 %; as in 1%,5%,25%,100%");
    }
    if canary.timeout_ms == 0 || canary.every_ms == 0 {
        return refuse("the time of a canary's step and its time-out must not be zero; as in --every 2m --timeout 60s");
    }
    check_judging(&canary.judge)?;
    if canary.judge.mode == Mode::Required && canary.steps.len() == 1 {
        return refuse(
            "in its only step the version has everything, so there is nothing to compare it with; give one before that, as in --steps 10%,100%",
        );
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
        return refuse(format!("the weight {weight} of {version} is too large; give at most {WEIGHT_MAX}"));
    }
    if !shift.weights.is_empty() && shift.weights.values().all(|weight| *weight == 0) {
        return refuse(
            "all weights are zero, so no version would serve; to stop new connections, drain or pause the service",
        );
    }
    if !shift.weights.is_empty() {
        check_served(view, &shift.weights, "with these weights")?;
    }
    if shift.balance && !shift.weights.is_empty() {
        return refuse("weights and --balance contradict each other; give one of the two");
    }
    if let Some(network) = shift.from.keys().find(|network| network.trunc() != **network) {
        return refuse(format!(
            "the network {network} has address bits beyond its prefix length; did you mean {}?",
            network.trunc()
        ));
    }
    let mapped = |network: &&IpNet| matches!(network, IpNet::V6(net) if net.addr().to_ipv4_mapped().is_some());
    if let Some(network) = shift.from.keys().find(mapped) {
        return refuse(format!(
            "the network {network} has IPv4-mapped addresses; write it in IPv4 form, as in 10.0.0.0/8"
        ));
    }
    if let Some(network) = shift.not_from.iter().find(|network| !decision.traffic.from.contains_key(*network)) {
        let known: Vec<String> = decision.traffic.from.keys().map(ToString::to_string).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return refuse(format!("the network {network} has no version of its own; networks that have one: {known}"));
    }
    if shift.weights.is_empty() && !shift.balance && shift.from.is_empty() && shift.not_from.is_empty() {
        return refuse("nothing to shift; give weights, as in v1=90 v2=10, or a network, as in --from 10.0.0.0/8=v2");
    }
    Ok(())
}

/// The part whose drain an order ends: also a backend that is gone, by its id.
pub(super) fn drained_part(view: &View, decision: &Decision, part: &PartOrder) -> Result<Part, Refusal> {
    let known = check_part(view, part);
    let (Err(_), Some(named)) = (&known, part.backend.as_ref().filter(|named| !named.is_empty())) else { return known };
    let is_it = |drained: &&Part| matches!(drained, Part::Backend(id) if id.starts_with(named.as_str()));
    let mut gone = decision.drained.iter().filter(is_it);
    match (gone.next(), gone.next()) {
        (Some(part), None) => Ok(part.clone()),
        (Some(_), Some(_)) => refuse(format!("{} matches several backends; give the full id", quoted(named))),
        (None, _) => known,
    }
}

/// The part that an order names.
pub(super) fn check_part(view: &View, part: &PartOrder) -> Result<Part, Refusal> {
    match (&part.version, &part.backend) {
        (Some(_), Some(_)) => refuse("both a version and a backend are given; give one of the two"),
        (None, None) => Ok(Part::Service),
        (Some(named), None) => match view.backends.values().any(|backend| backend.version == *named) {
            true => Ok(Part::Version(named.clone())),
            false => version(view, named).map(|()| Part::Version(named.clone())),
        },
        (None, Some(named)) => {
            let of_name: Vec<&BackendId> =
                view.backends.iter().filter(|(_, backend)| backend.name == *named).map(|(id, _)| id).collect();
            let of_id: Vec<&BackendId> =
                view.backends.keys().filter(|id| !named.is_empty() && id.starts_with(named.as_str())).collect();
            let found = if of_name.is_empty() { of_id } else { of_name };
            match found.as_slice() {
                [id] => Ok(Part::Backend((*id).clone())),
                [] => {
                    let known: Vec<&str> = view.backends.values().map(|backend| backend.name.as_str()).collect();
                    let (service, named) = (&view.service, quoted(named));
                    refuse(format!("{service} has no backend {named}; its backends: {}", known.join(", ")))
                }
                _ => refuse(format!("{} matches several backends; give the full id", quoted(named))),
            }
        }
    }
}

/// A time of day, for messages.
fn clock(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map(|time| time.strftime("%H:%M:%S UTC").to_string()).unwrap_or_default()
}
