//! Checks such a deploy before anything is changed.

use super::{is_up, names, of_others, wanted};
use crate::{
    rollout::{BackendView, Decision, DeployOrder, Operation, Refusal, View, check::refuse, words},
    text::quoted,
};

/// Checks that the old version can be stopped and the new one started, one after the other.
pub(in crate::rollout) fn check(view: &View, decision: &Decision, order: &DeployOrder) -> Result<(), Refusal> {
    let (service, version) = (&view.service, &order.version);
    if order.stop_old || order.keep_old_ms.is_some() {
        return refuse(
            "--recreate stops the old version before the new one starts; leave out --stop-old and --keep-old",
        );
    }
    if order.max_hold_ms == Some(0) {
        return refuse("clients would be held for no time at all; give a longer one, as in --max-hold 30s");
    }
    if decision.paused {
        return refuse(format!("{service} is paused; end the pause first: pod-steer unpause {service}"));
    }
    let of_version = || view.backends.values().filter(|backend| backend.version == *version);
    let running = names(of_version().filter(|backend| is_up(backend)));
    if !running.is_empty() {
        return refuse(format!(
            "{running} of version {version} of {service} runs already, and with --recreate it must not before the old version has ended: \
             stop it first, or deploy it without --recreate"
        ));
    }
    let others: Vec<&BackendView> = of_others(view, version).map(|(_, backend)| backend).collect();
    let fixed = names(others.iter().copied().filter(|backend| !backend.can_stop));
    if !fixed.is_empty() {
        return refuse(format!(
            "{fixed} of {service} was not started by pod-steer or an engine, so it cannot be told to stop"
        ));
    }
    let removed =
        names(view.backends.values().filter(|one| one.is_transient && (is_up(one) || one.version == *version)));
    // Without a container to start, the operator starts each version.
    if !removed.is_empty() && of_version().any(|backend| backend.can_start) {
        return refuse(format!(
            "{removed} of {service} is removed by its engine when it ends (--rm), so it could not be started again if {version} failed, \
             or later: create it without --rm, or stop and start the versions yourself during a pause: pod-steer pause {service}"
        ));
    }
    let wanted = wanted(view, order) as usize;
    let stopped: Vec<&BackendView> = of_version().filter(|backend| backend.can_start).collect();
    if stopped.is_empty() {
        return match order.backends {
            // The operator starts it.
            Some(_) => Ok(()),
            None => refuse(format!(
                "{service} has no stopped container of version {} (its versions: {}): create it first (docker create), or, if you start it yourself once \
                 the old version has ended, give the number of backends to wait for, as in --backends 1",
                quoted(version),
                view.versions().join(", ")
            )),
        };
    }
    if stopped.len() != wanted {
        let stopped_names = names(stopped.iter().copied());
        let (number, wanted) = (words::count(stopped.len() as u64, "stopped container"), wanted);
        return refuse(format!(
            "version {version} of {service} has {number} ({stopped_names}), and {wanted} would replace the old version: remove those that \
             are not to run, or give their number, as in --backends {}",
            stopped.len()
        ));
    }
    if stopped.iter().all(|backend| backend.weight == 0) {
        return refuse(format!(
            "every container of version {version} of {service} has the weight 0, so none would get connections"
        ));
    }
    Ok(())
}

/// Whether a version serves alone, with nothing beside it that could be started instead.
pub(in crate::rollout) fn is_alone(view: &View, decision: &Decision, version: &str) -> bool {
    let is_new = |backend: &BackendView| backend.version == version && !is_up(backend);
    decision.traffic.is_all_of(version)
        && !decision.paused
        && view.would_serve(version)
        && of_others(view, version).next().is_none()
        && !view.backends.values().any(is_new)
}

/// Why a deploy that has ended cannot be rolled back, and what to do instead.
pub(in crate::rollout) fn no_rollback(service: &str, last: &Operation) -> String {
    let title = last.title();
    let before =
        last.before.weights.iter().flatten().find(|(_, weight)| **weight > 0).map(|(version, _)| version.as_str());
    let before = before.unwrap_or("VERSION");
    format!(
        "{title} stopped the version before it; to go back, stop the new one and start the old one in the same way: pod-steer deploy \
         {service} {before} --recreate"
    )
}
