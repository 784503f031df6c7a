//! Waking: the containers of a service that sleeps are started, and its clients are held until they can be served.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Asleep, BackendView, Decision, Operation, Outcome, Phase, View,
    recreate::is_up,
    step::{Effect, Progress, decide, done, end},
    words,
};
use crate::{ids::BackendId, state::State, time::Now};

/// How long clients wait for the other containers once the first one can serve.
const OTHERS_MS: i64 = 10_000;
/// Shortest and longest pause before a container is started once more that could not be.
const AGAIN_MS: (i64, i64) = (1_000, 60_000);

/// See [`Order::Wake`](super::Order::Wake).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WakeOrder {
    /// Refuse clients that have been held for so many milliseconds. Without it, the option `idle-max-hold` of the service applies.
    #[serde(default)]
    pub max_hold_ms: Option<u64>,
}

fn awake(next: &mut Decision) {
    (next.paused, next.pause_until_ms, next.asleep) = (false, None, None);
}

/// Starts the containers.
pub(super) fn begin(
    operation: &mut Operation,
    order: WakeOrder,
    view: &View,
    decision: &Decision,
    now: Now,
) -> Progress {
    let max_ms = order.max_hold_ms.map(|max_ms| i64::try_from(max_ms).unwrap_or(i64::MAX));
    let until_ms = max_ms.map(|max_ms| now.ms.saturating_add(max_ms));
    let (since_ms, deadline_ms) = (now.ms, until_ms.unwrap_or(i64::MAX));
    operation.phase = Phase::Starting { since_ms, deadline_ms, told: false, again_ms: None };
    let next = decide(decision, |next| next.pause_until_ms = until_ms);
    Progress { decision: next, effects: tell(operation, view, decision.asleep.as_ref(), now) }
}

/// Ends it, whatever has been started: clients are served by the backends that there are, or refused.
pub(super) fn give_up(operation: &mut Operation, decision: &Decision, now: Now) -> Progress {
    let message = format!("{} sleeps no longer, whether its containers run or not", operation.service);
    end(operation, Outcome::Done, now, message);
    Progress { decision: decide(decision, awake), effects: Vec::new() }
}

pub(super) fn step(operation: &mut Operation, view: &View, decision: &Decision, now: Now) -> Progress {
    let Phase::Starting { since_ms, .. } = operation.phase else { return Progress::default() };
    let Some(asleep) = &decision.asleep else { return give_up(operation, decision, now) };
    let able = able(view);
    if can_end(view, decision, asleep, now) {
        let took_ms = now.ms.saturating_sub(since_ms);
        done(operation, "ready", took_ms, words::count(able.len() as u64, "backend"));
        let mut message = format!(
            "{} is awake after {}; {} held",
            operation.service,
            words::time(took_ms),
            if view.held == 1 { "1 client was".to_owned() } else { format!("{} clients were", view.held) }
        );
        if let Some(failures) = failures(view, asleep) {
            message.push_str(&format!("; {failures}"));
        }
        end(operation, Outcome::Done, now, message);
        let failed = asleep.containers.iter().filter(|id| view.backends.get(*id).is_some_and(has_failed));
        let failed: BTreeSet<BackendId> = failed.cloned().collect();
        let effects = if failed.is_empty() { Vec::new() } else { vec![Effect::StartLater(failed)] };
        return Progress { decision: decide(decision, awake), effects };
    }
    let is_any_up = view.backends.values().any(is_up);
    let is_any_left = view.is_partial || asleep.containers.iter().any(|id| view.backends.contains_key(id));
    // A container that has been created in their place may be about to be started.
    if !is_any_up && !is_any_left && (view.backends.is_empty() || decision.is_pause_over(now.ms)) {
        let message = format!("the containers of {0} were removed while it slept; start one", operation.service);
        end(operation, Outcome::Failed, now, message);
        return Progress { decision: decide(decision, awake), effects: Vec::new() };
    }
    let runs = |one: &BackendView| !one.is_starting && !matches!(one.state, State::Created | State::Exited);
    let own = || asleep.containers.iter().filter_map(|id| view.backends.get(id));
    if decision.is_pause_over(now.ms) && is_any_up && own().all(runs) {
        let (service, after) = (&operation.service, words::time(now.ms.saturating_sub(since_ms)));
        let message = format!("{service} runs, and cannot serve after {after}; see why: pod-steer status {service}");
        end(operation, Outcome::Failed, now, message);
        return Progress { decision: decide(decision, awake), effects: Vec::new() };
    }
    Progress { effects: tell(operation, view, Some(asleep), now), ..Progress::default() }
}

/// Why not all of its containers run.
pub fn failures(view: &View, asleep: &Asleep) -> Option<String> {
    let own = asleep.containers.iter().filter_map(|id| view.backends.get(id));
    let failures: Vec<String> =
        own.filter_map(|one| Some(format!("{} {}", one.name, one.start_failure.as_ref()?))).collect();
    (!failures.is_empty()).then(|| failures.join(", "))
}

fn able(view: &View) -> Vec<&BackendView> {
    view.backends.values().filter(|one| can_serve(one)).collect()
}

fn can_serve(one: &BackendView) -> bool {
    one.state.could_serve() && one.steered
}

fn has_failed(one: &BackendView) -> bool {
    one.start_failure.is_some()
}

/// Whether clients need not be held any longer: each that is held gets a server, and no other container is about to serve. Some do not wait for
/// the others for long.
fn can_end(view: &View, decision: &Decision, asleep: &Asleep, now: Now) -> bool {
    let Some(first_ms) = first_ms(view, decision, asleep, now) else { return false };
    let own = || asleep.containers.iter().map(|id| (id, view.backends.get(id)));
    let will_not = |one: Option<&BackendView>| one.is_none_or(has_failed);
    let are_settled = own().all(|(id, one)| will_not(one) || asleep.unable.contains(id) || one.is_some_and(can_serve));
    let served =
        |port: &String| view.coverage.iter().any(|coverage| coverage.title() == *port && !coverage.versions.is_empty());
    let is_served = asleep.ports.iter().all(served) && view.without_heir.is_none();
    // A port that only such a container served may stay without a server.
    let may_be_served = !own().any(|(_, one)| will_not(one));
    let is_late = now.ms >= first_ms.saturating_add(OTHERS_MS) && (is_served || !may_be_served);
    is_served && are_settled || is_late || decision.is_pause_over(now.ms)
}

/// Since when a backend could serve clients, if one can. One that gets no clients counts only if no other one is left.
fn first_ms(view: &View, decision: &Decision, asleep: &Asleep, now: Now) -> Option<i64> {
    let gets =
        |one: &BackendView| one.weight > 0 && decision.traffic.has_share(&one.version) && one.state != State::Drained;
    let may_come = |id: &BackendId| {
        let own = view.backends.get(id).filter(|_| !asleep.unable.contains(id));
        own.is_some_and(|one| gets(one) && one.start_failure.is_none())
    };
    let is_any_left = asleep.containers.iter().any(may_come);
    let able = able(view);
    let served = able.iter().any(|one| gets(one));
    let counts = able.into_iter().filter(|one| gets(one) || !served && !is_any_left);
    counts.map(|one| one.ready_since_ms.unwrap_or(now.ms)).min()
}

/// Has the engine start those that do not run: at once, and again after a pause that grows.
fn tell(operation: &mut Operation, view: &View, asleep: Option<&Asleep>, now: Now) -> Vec<Effect> {
    let Phase::Starting { since_ms, told, again_ms, .. } = &mut operation.phase else { return Vec::new() };
    if *told && again_ms.is_some_and(|again_ms| now.ms < again_ms) {
        return Vec::new();
    }
    let is_down = |id: &&BackendId| view.backends.get(*id).is_some_and(|one| one.can_start && !is_up(one));
    let down: BTreeSet<BackendId> =
        asleep.iter().flat_map(|asleep| &asleep.containers).filter(is_down).cloned().collect();
    if *told && down.is_empty() {
        return Vec::new();
    }
    let pause_ms = (now.ms.saturating_sub(*since_ms) / 2).clamp(AGAIN_MS.0, AGAIN_MS.1);
    (*told, *again_ms) = (true, Some(now.ms.saturating_add(pause_ms)));
    if down.is_empty() { Vec::new() } else { vec![Effect::Start(down)] }
}
