//! The way back: the new version is stopped, and then the old one is started again. It gets the clients that were held.

use std::collections::BTreeSet;

use super::{
    Recreation, change, held, names, of_others,
    start::{of_version, start, unserved},
    stop::stop,
};
use crate::{
    ids::BackendId,
    rollout::{
        BackendView, Decision, Operation, Order, Outcome, Phase, View,
        deploy::stop_max_ms,
        step::{Progress, can_serve, decide, end},
    },
    time::Now,
};

/// Why the old version is put back.
pub(super) fn because(recreation: &Recreation) -> String {
    recreation.reason.clone().unwrap_or_default()
}

/// The new version has failed, or is given up: it is stopped, and then the old one is started again.
pub(super) fn go_back(
    operation: &mut Operation,
    view: &View,
    decision: &Decision,
    now: Now,
    reason: String,
) -> Progress {
    let Some(recreation) = operation.recreation.clone() else { return Progress::default() };
    change(operation, now, |recreation| recreation.reason = Some(reason));
    let new: BTreeSet<BackendId> = of_version(view, &recreation).union(&recreation.new).cloned().collect();
    match operation.phase.clone() {
        // Nothing has been stopped.
        Phase::Draining { .. } => serve_again(operation, view, decision, now),
        // Those that do not stop serve on; the others are started again.
        Phase::Stopping { deadline_ms, .. } if now.ms >= deadline_ms => {
            start(operation, now);
            Progress::default()
        }
        // One that was told to stop will end, and can be started only then.
        Phase::Stopping { old, .. } => {
            let progress = stop(operation, view, new, now);
            if let Phase::Stopping { old: stopping, deadline_ms, .. } = &mut operation.phase {
                *deadline_ms = (*deadline_ms).max(now.ms.saturating_add(stop_max_ms(view, &old)));
                stopping.extend(old);
            }
            progress
        }
        _ => stop(operation, view, new, now),
    }
}

/// The old version was started again: it serves as soon as it can.
pub(super) fn started_again(
    operation: &mut Operation,
    recreation: &Recreation,
    view: &View,
    decision: &Decision,
    deadline_ms: i64,
    now: Now,
) -> Progress {
    let startable: Vec<(&BackendId, &BackendView)> = recreation
        .old
        .iter()
        .filter_map(|id| Some((id, view.backends.get(id)?)))
        .filter(|(_, one)| one.can_start)
        .collect();
    let is_back = |(id, backend): &(&BackendId, &BackendView)| can_serve(view, id) && backend.steered;
    let is_hopeless =
        |(id, backend): &(&BackendId, &BackendView)| backend.start_failure.is_some() || recreation.idle.contains(*id);
    let is_alone = of_version(view, recreation).is_empty();
    let is_served = unserved(recreation, view, |version| version != recreation.version).is_none();
    let any = of_others(view, &recreation.version).any(|(id, _)| can_serve(view, id));
    let are_settled = startable.iter().all(|one| is_back(one) || is_hopeless(one));
    if any && is_alone && is_served && are_settled && view.without_heir.is_none() {
        return serve_again(operation, view, decision, now);
    }
    let failed: Vec<String> =
        startable.iter().filter_map(|(_, one)| Some(format!("{} {}", one.name, one.start_failure.as_ref()?))).collect();
    let is_gone = recreation.old.iter().all(|id| !view.backends.contains_key(id));
    if now.ms < deadline_ms && !is_gone && (failed.is_empty() || failed.len() < startable.len()) {
        return Progress::default();
    }
    if any {
        return serve_again(operation, view, decision, now);
    }
    let why = match (is_gone, failed.is_empty()) {
        (true, _) => "it was removed".to_owned(),
        (false, true) => "it is not ready".to_owned(),
        (false, false) => failed.join(", "),
    };
    let service = &operation.service;
    let message = format!(
        "{}; the old version could not be put back: {why}; nothing serves {service}: start a version, see pod-steer status {service}",
        because(recreation)
    );
    finish_back(operation, decision, now, message)
}

/// The old version serves, and gets the clients that were held.
fn serve_again(operation: &mut Operation, view: &View, decision: &Decision, now: Now) -> Progress {
    let Some(recreation) = operation.recreation.clone() else { return Progress::default() };
    let service = &operation.service;
    let mut message =
        format!("{}; {service} is as it was before; {}", because(&recreation), held(&recreation, view, now));
    let new = of_version(view, &recreation);
    if !new.is_empty() && matches!(operation.phase, Phase::Starting { .. }) {
        let names = names(new.iter().filter_map(|id| view.backends.get(id)));
        message.push_str(&format!("; {names} of {} did not stop, and runs beside it", recreation.version));
    }
    finish_back(operation, decision, now, message)
}

pub(super) fn finish_back(operation: &mut Operation, decision: &Decision, now: Now, message: String) -> Progress {
    let decision = decide(decision, |next| (next.paused, next.pause_until_ms) = (false, None));
    let outcome = if operation.order == Order::Rollback { Outcome::Done } else { Outcome::WentBack };
    end(operation, outcome, now, message);
    Progress { decision, effects: Vec::new() }
}

/// Begins the rollback of a deploy that is running, or goes on with the way back that it is on.
pub(in crate::rollout) fn roll_back(
    operation: &mut Operation,
    last: &Operation,
    view: &View,
    decision: &Decision,
    now: Now,
) -> Progress {
    operation.recreation = last.recreation.clone();
    operation.phase = last.phase.clone();
    if last.goes_back() {
        return Progress::default();
    }
    go_back(operation, view, decision, now, format!("{} is ended", last.title()))
}
