//! Starting the version that takes over, or the one that is put back. While one starts, the other one must not run.

use std::collections::BTreeSet;

use super::{
    Recreation,
    back::{go_back, started_again},
    change, finish, is_up, names, of_others,
    stop::{stop, tell},
};
use crate::{
    ids::BackendId,
    rollout::{
        BackendView, Decision, Operation, Order, Phase, View,
        deploy::AGAIN_MS,
        step::{Effect, Progress, done, reasons},
        words,
    },
    time::Now,
};

pub(super) fn start(operation: &mut Operation, now: Now) {
    let timeout_ms = operation.recreation.as_ref().map_or(0, |recreation| recreation.timeout_ms);
    let deadline_ms = now.ms.saturating_add(i64::try_from(timeout_ms).unwrap_or(i64::MAX));
    operation.phase = Phase::Starting { since_ms: now.ms, deadline_ms, told: false, again_ms: None };
    change(operation, now, |_| {});
}

/// One version is to be started, and then has to become ready.
pub(super) fn starting(
    operation: &mut Operation,
    recreation: &Recreation,
    view: &View,
    decision: &Decision,
    now: Now,
) -> Progress {
    let Phase::Starting { since_ms, deadline_ms, told, again_ms } = operation.phase else {
        return Progress::default();
    };
    let goes_back = recreation.reason.is_some();
    let others = if goes_back { of_version(view, recreation) } else { ids(of_others(view, &recreation.version)) };
    let is_due = !told || now.ms < deadline_ms && again_ms.is_none_or(|again_ms| now.ms >= again_ms);
    let effects = match (others.is_empty(), goes_back) {
        // Something has started one of them again.
        (false, false) if !told => {
            change(operation, now, |recreation| recreation.old.extend(others.iter().cloned()));
            return stop(operation, view, others, now);
        }
        (false, false) => {
            let names = names(others.iter().filter_map(|id| view.backends.get(id)));
            return go_back(
                operation,
                view,
                decision,
                now,
                format!("{names} was started meanwhile, and not by pod-steer"),
            );
        }
        (false, true) if is_due => tell(view, &others),
        (true, _) if is_due => {
            let down = down(view, if goes_back { &recreation.old } else { &recreation.new });
            if down.is_empty() { Vec::new() } else { vec![Effect::Start(down)] }
        }
        _ => Vec::new(),
    };
    if !told || !effects.is_empty() {
        let again_ms = (!effects.is_empty()).then(|| now.ms.saturating_add(AGAIN_MS));
        operation.phase = Phase::Starting { since_ms, deadline_ms, told: true, again_ms };
        return Progress { effects, ..Progress::default() };
    }
    if goes_back {
        started_again(operation, recreation, view, decision, deadline_ms, now)
    } else {
        started(operation, recreation, view, decision, (since_ms, deadline_ms), now)
    }
}

/// Those of these that their engine can start, and that it was not told to start, or could not be.
fn down(view: &View, wanted: &BTreeSet<BackendId>) -> BTreeSet<BackendId> {
    let is_down =
        |id: &&BackendId| view.backends.get(*id).is_some_and(|one| one.can_start && !is_up(one) && !one.told_to_start);
    wanted.iter().filter(is_down).cloned().collect()
}

/// Backends of the version that was to take over and that run.
pub(super) fn of_version(view: &View, recreation: &Recreation) -> BTreeSet<BackendId> {
    ids(view.backends.iter().filter(|(_, one)| one.version == recreation.version && is_up(one)))
}

fn ids<'a>(backends: impl Iterator<Item = (&'a BackendId, &'a BackendView)>) -> BTreeSet<BackendId> {
    backends.map(|(id, _)| id.clone()).collect()
}

/// The first place of those where clients were served before that no version of these serves.
pub(super) fn unserved<'a>(
    recreation: &'a Recreation,
    view: &View,
    is_one: impl Fn(&str) -> bool,
) -> Option<&'a String> {
    let serves = |port: &&String| {
        let mut there = view.coverage.iter().filter(|coverage| coverage.title() == **port);
        there.any(|coverage| coverage.versions.iter().any(|version| is_one(version)))
    };
    recreation.ports.iter().find(|port| !serves(port))
}

/// The new version was started: it takes over at the instant when it can.
fn started(
    operation: &mut Operation,
    recreation: &Recreation,
    view: &View,
    decision: &Decision,
    (since_ms, deadline_ms): (i64, i64),
    now: Now,
) -> Progress {
    let version = &recreation.version;
    let failed = recreation.new.iter().find_map(|id| match view.backends.get(id) {
        None => Some(format!("a container of {version} was removed")),
        Some(backend) => backend.start_failure.as_ref().map(|failure| format!("{} {failure}", backend.name)),
    });
    if let Some(reason) = failed {
        return go_back(operation, view, decision, now, reason);
    }
    let ready = view.able(version).filter(|(_, backend)| backend.steered).count();
    let unserved = unserved(recreation, view, |other| other == version);
    let allows_drop = matches!(&operation.order, Order::Deploy(order) if order.allow_drop);
    let stranded = view.without_heir.as_ref().filter(|_| !allows_drop);
    if ready >= recreation.wanted as usize && unserved.is_none() && stranded.is_none() {
        let detail = format!("{ready} of {} backends of {version}", recreation.wanted);
        done(operation, "ready", now.ms.saturating_sub(since_ms), detail);
        return finish(operation, recreation, view, decision, now);
    }
    if now.ms < deadline_ms {
        return Progress::default();
    }
    let why = match (unserved, stranded) {
        _ if ready < recreation.wanted as usize => reasons(view, version),
        (Some(title), _) => format!("{version} does not listen for {title}, as the old version did"),
        (None, Some(place)) => format!("clients are held at {place}, and no listener of {version} could get them"),
        (None, None) => String::new(),
    };
    let after = words::time(now.ms.saturating_sub(since_ms));
    let reason = format!("{ready} of {} backends of {version} are ready after {after}: {why}", recreation.wanted);
    go_back(operation, view, decision, now, reason)
}
