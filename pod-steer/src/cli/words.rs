//! Formats orders, progress and outcomes.

use std::time::Duration;

use super::given::{Percent, ms};
use crate::{
    api::types::OperationStatus,
    duration::{Took, Written},
    rollout::{Order, Outcome, PartOrder, Phase, ShiftOrder, Step},
};

/// An order: `canary v2 1%,5%,100% every 2m`.
pub(super) fn order(order: &Order) -> String {
    match order {
        Order::Deploy(deploy) => {
            format!("deploy {}{}", deploy.version, if deploy.recreate { " --recreate" } else { "" })
        }
        Order::Canary(canary) => {
            let steps: Vec<String> = canary.steps.iter().map(|step| Percent(*step).to_string()).collect();
            let every = Written(Duration::from_millis(canary.every_ms));
            format!("canary {} {} every {every}", canary.version, steps.join(","))
        }
        Order::Shift(shift) => format!("shift {}", shifted(shift)),
        Order::Rollback => "rollback".to_owned(),
        Order::Drain(drain) => format!("drain{}", part_of(&drain.part())),
        Order::Resume(part) => format!("resume{}", part_of(part)),
        Order::Pause(pause) => match pause.max_ms {
            Some(max_ms) => format!("pause --max {}", Written(Duration::from_millis(max_ms))),
            None => "pause".to_owned(),
        },
        Order::Unpause => "unpause".to_owned(),
        Order::Idle => "idle".to_owned(),
        Order::Wake(_) => "wake".to_owned(),
        Order::Forget => "forget".to_owned(),
    }
}

fn shifted(shift: &ShiftOrder) -> String {
    let mut words: Vec<String> = shift.weights.iter().map(|(version, weight)| format!("{version}={weight}")).collect();
    if shift.balance {
        words.push("--balance".to_owned());
    }
    words.extend(shift.from.iter().map(|(network, version)| format!("--from {network}={version}")));
    words.extend(shift.not_from.iter().map(|network| format!("--no-from {network}")));
    words.join(" ")
}

fn part_of(part: &PartOrder) -> String {
    match (&part.version, &part.backend) {
        (_, Some(backend)) => format!(" {backend}"),
        (Some(version), None) => format!(" {version}"),
        (None, None) => String::new(),
    }
}

/// The progress of an operation: `step 2 of 4, 5%, next in 1m 40s`.
pub(super) fn progress(status: &OperationStatus, now_ms: i64) -> String {
    let operation = &status.operation;
    let left = |deadline_ms: i64| countdown(deadline_ms - now_ms);
    let text = match &operation.phase {
        Phase::Waiting { .. } if operation.is_of_sleep() => "waiting for the last connections to end".to_owned(),
        Phase::Stopping { old, .. } if operation.is_of_sleep() => format!("stopping {} backends", old.len()),
        Phase::Starting { .. } if operation.is_of_sleep() => "starting its containers".to_owned(),
        Phase::Waiting { deadline_ms, .. } => {
            let limit = left(*deadline_ms);
            format!("{} of {} backends are ready (time limit in {limit})", status.ready, status.wanted)
        }
        Phase::Draining { deadline_ms, .. } => {
            let s = if status.left == 1 { "" } else { "s" };
            format!("waiting for {} connection{s} to end (time limit in {})", status.left, left(*deadline_ms))
        }
        Phase::Stepping { step: 0, next_ms, .. } if operation.is_watched() => {
            format!("observing the old version (switch in {})", left(*next_ms))
        }
        Phase::Stepping { step, next_ms, .. } if operation.is_watched() => {
            let parts = operation.order.judged().map_or(0, |(.., parts)| parts);
            format!("comparing the new version with it, part {step} of {parts} (next in {})", left(*next_ms))
        }
        Phase::Stepping { step, next_ms, .. } => {
            let steps = match &operation.order {
                Order::Canary(canary) => canary.steps.as_slice(),
                _ => &[],
            };
            let share = steps.get(*step).map(|share| format!(", {}", Percent(*share))).unwrap_or_default();
            format!("step {} of {}{share}, next in {}", step + 1, steps.len(), left(*next_ms))
        }
        Phase::Stopping { old, .. } if operation.goes_back() => format!("stopping {} backends", old.len()),
        Phase::Stopping { old, .. } => format!("stopping {} old backends", old.len()),
        Phase::Starting { deadline_ms, .. } if operation.goes_back() => {
            format!("starting the old version again (time limit in {})", left(*deadline_ms))
        }
        Phase::Starting { deadline_ms, .. } => {
            let limit = left(*deadline_ms);
            format!("starting: {} of {} backends are ready (time limit in {limit})", status.ready, status.wanted)
        }
        Phase::Ended => "ended".to_owned(),
    };
    match status.held {
        0 => text,
        1 => format!("{text}, 1 client is held"),
        held => format!("{text}, {held} clients are held"),
    }
}

/// How much of its present phase an operation has done, 0 to 1: backends that are ready, connections that have ended, or the steps of a
/// canary with the time of the present one. Nothing if that cannot be told.
pub(super) fn part_done(status: &OperationStatus, now_ms: i64) -> Option<f64> {
    let part = |done: f64, all: f64| (all > 0.0).then(|| (done / all).clamp(0.0, 1.0));
    match (&status.operation.phase, &status.operation.order) {
        (Phase::Waiting { .. } | Phase::Starting { .. }, _) if !status.operation.goes_back() => {
            part(status.ready.into(), status.wanted.into())
        }
        (Phase::Draining { connections, .. }, _) => {
            // It grows while connections that had been opened before are counted.
            let all = (*connections).max(status.left) as f64;
            part(all - status.left as f64, all)
        }
        (Phase::Stepping { since_ms, next_ms, .. }, Order::Deploy(_)) => {
            part((now_ms - since_ms) as f64, (next_ms - since_ms) as f64)
        }
        (Phase::Stepping { step, since_ms, next_ms, .. }, Order::Canary(canary)) => {
            let within = part((now_ms - since_ms) as f64, (next_ms - since_ms) as f64).unwrap_or(0.0);
            // At the last step nothing is left to wait for.
            part(*step as f64 + within, canary.steps.len().saturating_sub(1).max(1) as f64)
        }
        _ => None,
    }
}

/// Rounds up to whole seconds, so that the display changes once a second.
fn countdown(left_ms: i64) -> String {
    match ms(left_ms.saturating_add(999)).as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds => Took(Duration::from_secs(seconds)).to_string(),
    }
}

/// The line of a completed step: `drained   412 connections, after 2.1 s`.
pub(super) fn step(step: &Step) -> String {
    let took = Took(Duration::from_micros(step.took_us));
    match step.detail.as_str() {
        "" => format!("{:<9} in {took}", step.name),
        detail => format!("{:<9} {detail}, after {took}", step.name),
    }
}

/// An outcome, in one word.
pub(super) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Left => "undrained",
        Outcome::Failed => "failed",
        Outcome::WentBack => "rolled back",
        Outcome::Aborted => "aborted",
    }
}

/// The operator's name, without uid and pid.
pub(super) fn name(who: &str) -> &str {
    who.split(" (").next().unwrap_or(who)
}

/// Quotes an argument for a shell.
pub(super) fn shell(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    match !arg.is_empty() && arg.chars().all(plain) {
        true => arg.to_owned(),
        false => format!("'{}'", arg.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_countdown_is_calm() {
        for (left_ms, text) in [(-5, "0s"), (1, "1s"), (29_000, "29s"), (59_001, "1m"), (99_500, "1m 40s")] {
            assert_eq!(countdown(left_ms), text, "{left_ms}");
        }
        assert!(!countdown(i64::MAX).is_empty());
    }

    #[test]
    fn a_bar_is_of_the_present_phase() {
        let status = |phase: serde_json::Value, order: serde_json::Value, left: u64| -> OperationStatus {
            let mut json = serde_json::json!({
                "id": 1, "service": "web", "who": "root", "begun_ms": 0, "before": {}, "phase": phase, "steps_done": [], "end": null,
                "ready": 1, "wanted": 4, "left": left, "waiting_for": "",
            });
            json.as_object_mut().unwrap().extend(order.as_object().unwrap().clone());
            serde_json::from_value(json).unwrap()
        };
        let deploy = serde_json::json!({ "order": "deploy", "version": "v2", "timeout_ms": 1, "drain_timeout_ms": 1 });
        let steps = [100, 500, 10_000];
        let canary =
            serde_json::json!({ "order": "canary", "version": "v2", "steps": steps, "every_ms": 1, "timeout_ms": 1 });
        let waiting = serde_json::json!({ "name": "waiting", "deadline_ms": 9 });
        assert_eq!(part_done(&status(waiting, deploy.clone(), 0), 0), Some(0.25));
        let draining =
            serde_json::json!({ "name": "draining", "since_ms": 0, "deadline_ms": 9, "old": [], "connections": 10 });
        assert_eq!(part_done(&status(draining.clone(), deploy.clone(), 4), 0), Some(0.6));
        assert_eq!(part_done(&status(draining, deploy.clone(), 20), 0), Some(0.0), "more than were seen before");
        let stepping = |step: usize| serde_json::json!({ "name": "stepping", "step": step, "watched": {}, "since_ms": 100, "next_ms": 200 });
        assert_eq!(part_done(&status(stepping(0), canary.clone(), 0), 150), Some(0.25));
        assert_eq!(part_done(&status(stepping(2), canary, 0), 900), Some(1.0));
        let stopping = serde_json::json!({ "name": "stopping", "old": [], "deadline_ms": 9 });
        assert_eq!(part_done(&status(stopping, deploy, 0), 0), None);
    }
}
