//! Stopping the version that is replaced, or that has failed: an engine that cannot be reached for a moment is told again.

use std::collections::BTreeSet;

use super::{
    Recreation,
    back::{because, finish_back, go_back},
    is_up, names,
    start::start,
};
use crate::{
    ids::BackendId,
    rollout::{
        Decision, Operation, Phase, View,
        deploy::{AGAIN_MS, stop_max_ms},
        step::{Effect, Progress, done},
        words,
    },
    state::State,
    time::Now,
};

/// Tells backends to stop, also those that have ended: their engine may be restarting them.
pub(in crate::rollout) fn stop(operation: &mut Operation, view: &View, ids: BTreeSet<BackendId>, now: Now) -> Progress {
    let has_exited = |id: &BackendId| view.backends.get(id).is_some_and(|backend| backend.state == State::Exited);
    let is_uncertain = ids.iter().any(has_exited) || is_any_starting(view, &ids);
    let again_ms = is_uncertain.then(|| now.ms.saturating_add(AGAIN_MS));
    let deadline_ms = now.ms.saturating_add(stop_max_ms(view, &ids));
    operation.phase = Phase::Stopping { old: ids.clone(), deadline_ms, again_ms };
    Progress { effects: vec![Effect::Stop(ids)], ..Progress::default() }
}

/// Backends were told to stop: the next phase begins when they have ended.
pub(super) fn stopping(
    operation: &mut Operation,
    recreation: &Recreation,
    view: &View,
    decision: &Decision,
    (old, deadline_ms, again_ms): (BTreeSet<BackendId>, i64, Option<i64>),
    now: Now,
) -> Progress {
    let up = up_of(view, &old);
    if up.is_empty() && again_ms.is_none() {
        let took_ms = now.ms.saturating_sub(recreation.phase_ms);
        done(operation, "stopped", took_ms, words::count(old.len() as u64, "backend"));
        start(operation, now);
        return Progress::default();
    }
    if !up.is_empty() && now.ms >= deadline_ms {
        let names = names(up.iter().filter_map(|id| view.backends.get(id)));
        if recreation.reason.is_none() {
            return go_back(operation, view, decision, now, format!("{names} did not stop"));
        }
        let message =
            format!("{}; {names} did not stop, so the old version was not started again", because(recreation));
        return finish_back(operation, decision, now, message);
    }
    tell_again(operation, view, (old, deadline_ms, again_ms), now)
}

/// Tells those once more to stop that may not have heard of it.
pub(in crate::rollout) fn tell_again(
    operation: &mut Operation,
    view: &View,
    (old, deadline_ms, again_ms): (BTreeSet<BackendId>, i64, Option<i64>),
    now: Now,
) -> Progress {
    let up = up_of(view, &old);
    let later_ms = now.ms.saturating_add(AGAIN_MS);
    let (again_ms, effects) = match again_ms {
        Some(again_ms) if now.ms < again_ms => return Progress::default(),
        // One that is starting may run only after it was told to stop.
        Some(_) => (is_any_starting(view, &old).then_some(later_ms), tell(view, &up)),
        None if up.iter().any(|id| is_unanswered(view, id)) => (Some(later_ms), Vec::new()),
        None => return Progress::default(),
    };
    operation.phase = Phase::Stopping { old, deadline_ms, again_ms };
    Progress { effects, ..Progress::default() }
}

/// Tells those of these to stop that were not told yet, as far as is known: many a server takes a second signal for an order to end at once.
pub(super) fn tell(view: &View, up: &BTreeSet<BackendId>) -> Vec<Effect> {
    let stops = |id: &BackendId| view.backends.get(id).is_some_and(|backend| backend.state == State::Stopping);
    let untold: BTreeSet<BackendId> = up.iter().filter(|id| !stops(id) || is_unanswered(view, id)).cloned().collect();
    if untold.is_empty() { Vec::new() } else { vec![Effect::Stop(untold)] }
}

fn is_unanswered(view: &View, id: &BackendId) -> bool {
    view.backends.get(id).is_some_and(|backend| backend.stop_unanswered)
}

pub(in crate::rollout) fn up_of(view: &View, ids: &BTreeSet<BackendId>) -> BTreeSet<BackendId> {
    ids.iter().filter(|id| view.backends.get(*id).is_some_and(is_up)).cloned().collect()
}

fn is_any_starting(view: &View, ids: &BTreeSet<BackendId>) -> bool {
    ids.iter().filter_map(|id| view.backends.get(id)).any(|backend| backend.is_starting)
}
