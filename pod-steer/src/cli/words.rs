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
        Order::Deploy(deploy) => format!("deploy {}", deploy.version),
        Order::Canary(canary) => {
            let steps: Vec<String> = canary.steps.iter().map(|step| Percent(*step).to_string()).collect();
            let every = Written(Duration::from_millis(canary.every_ms));
            format!("canary {} {} every {every}", canary.version, steps.join(","))
        }
        Order::Shift(shift) => format!("shift {}", shifted(shift)),
        Order::Rollback => "rollback".to_owned(),
        Order::Drain(part) => format!("drain{}", part_of(part)),
        Order::Resume(part) => format!("resume{}", part_of(part)),
        Order::Pause => "pause".to_owned(),
        Order::Unpause => "unpause".to_owned(),
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
    match &operation.phase {
        Phase::Waiting { deadline_ms, .. } => {
            let waits = if status.waiting_for.is_empty() {
                format!("{} of {} backends are ready", status.ready, status.wanted)
            } else {
                format!("waiting for {}", status.waiting_for)
            };
            format!("{waits} (time limit in {})", left(*deadline_ms))
        }
        Phase::Draining { deadline_ms, .. } => {
            let s = if status.left == 1 { "" } else { "s" };
            format!("waiting for {} connection{s} to end (time limit in {})", status.left, left(*deadline_ms))
        }
        Phase::Stepping { step, next_ms, .. } => {
            let steps = match &operation.order {
                Order::Canary(canary) => canary.steps.as_slice(),
                _ => &[],
            };
            let share = steps.get(*step).map(|share| format!(", {}", Percent(*share))).unwrap_or_default();
            format!("step {} of {}{share}, next in {}", step + 1, steps.len(), left(*next_ms))
        }
        Phase::Stopping { old, .. } => format!("stopping {} old backends", old.len()),
        Phase::Ended => "ended".to_owned(),
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
}
