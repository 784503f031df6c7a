//! What a canary and a watched deploy have in common: a version is tried for a while, and how it treats its clients is compared.

use std::collections::BTreeMap;

use super::{DeployOrder, Operation, Order, Phase, View, check::check_before, step::done, words};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    ids::BackendId,
    judge::{Compared, Judging, Mode, judge},
    state::State,
    time::Now,
};

/// The versions are compared at least so often.
const LOOK_EVERY_MS: i64 = 30_000;
/// The step of a version that was found worse.
const WORSE: &str = "worse";
/// The step of a version that was found slower than the others were at another time.
const SLOWER: &str = "slower";
/// After so many of them a watched deploy goes back, and not after fewer: a machine that is busy for a while makes every version slower.
const SLOWER_IN_A_ROW: usize = 3;

/// See [`DeployOrder::watch`](super::DeployOrder::watch).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Watch {
    /// How long, in milliseconds.
    #[schema(minimum = 1, maximum = 86_400_000)]
    pub for_ms: u64,
    /// How they are compared.
    #[serde(default)]
    pub judge: Judging,
}

impl Watch {
    /// How long the old version is observed before the switch at most, in milliseconds.
    pub const BEFORE_MAX_MS: u64 = 30_000;
    /// How long a version may be watched, in milliseconds.
    pub const MAX_MS: u64 = 24 * 60 * 60 * 1_000;

    /// How long the old version is observed before the switch, in milliseconds: no longer than the new one.
    pub fn before_ms(&self) -> u64 {
        self.for_ms.min(Self::BEFORE_MAX_MS)
    }

    /// In how many parts the new version is compared with that, each of which lasts no longer: connections of the same age are compared.
    pub fn windows(&self) -> usize {
        usize::try_from(self.for_ms.div_ceil(self.before_ms().max(1))).unwrap_or(usize::MAX).max(1)
    }
}

impl Order {
    /// The version that is compared with the others, how, and in how many steps; nothing if none is.
    pub fn judged(&self) -> Option<(&str, &Judging, usize)> {
        match self {
            Self::Canary(order) => Some((order.version.as_str(), &order.judge, order.steps.len())),
            Self::Deploy(order) => {
                order.watch.as_ref().map(|watch| (order.version.as_str(), &watch.judge, watch.windows()))
            }
            _ => None,
        }
        .filter(|(_, judging, _)| judging.mode != Mode::Off)
    }
}

impl Operation {
    /// Whether it is a deploy that compares the versions.
    pub fn is_watched(&self) -> bool {
        matches!(self.order, Order::Deploy(DeployOrder { watch: Some(_), .. }))
    }
}

/// A step begins, which lasts for so long.
pub(super) fn stepping(step: usize, version: &str, view: &View, for_ms: u64, now: Now) -> Phase {
    let next_ms = now.ms.saturating_add(i64::try_from(for_ms).unwrap_or(i64::MAX));
    let watched = view.ready(version).map(|(id, backend)| (id.clone(), backend.name.clone())).collect();
    Phase::Stepping { step, watched, since_ms: now.ms, next_ms, looks: 0, looked_at: 0, looked_ms: now.ms }
}

/// Compares the version with the others, whenever there is so much more to compare, and at the end of the step. Returns why it has to go
/// back, if it has to.
pub(super) fn look(operation: &mut Operation, view: &View, is_last: bool, now: Now) -> Option<String> {
    let (version, judging, steps) = operation.order.judged()?;
    let (version, judging) = (version.to_owned(), *judging);
    let Phase::Stepping { looks, looked_at, looked_ms, since_ms, .. } = &mut operation.phase else { return None };
    let unobserved = Compared { unobserved: Some("nothing was observed".to_owned()), ..Compared::default() };
    let compared = view.compared.as_deref().unwrap_or(&unobserved);
    let is_due = compared.is_due(*looked_at) || compared.is_enough() && now.ms - *looked_ms >= LOOK_EVERY_MS;
    if !is_last && !is_due {
        return None;
    }
    (*looks, *looked_at, *looked_ms) = (looks.saturating_add(1), compared.size(), now.ms);
    let mut judgement = judge(&version, compared, &judging, steps, *looks);
    let (looks, took_ms) = (u64::from(*looks), now.ms - *since_ms);
    let is_slower = judgement.worse.is_none() && is_last;
    if let Some(slower) = judgement.slower.take().filter(|_| is_slower) {
        let before = operation.steps.iter().rev().take_while(|step| step.name == SLOWER).count();
        if !operation.is_watched() || before + 1 < SLOWER_IN_A_ROW {
            done(operation, SLOWER, took_ms, format!("{slower}; {}", judgement.figures));
            return None;
        }
        judgement.worse = Some(slower);
    }
    if let Some(worse) = judgement.worse {
        if check_before(view, operation).is_ok() {
            done(operation, WORSE, took_ms, judgement.figures);
            return Some(worse);
        }
        // There is no way back.
        if operation.steps.last().is_none_or(|step| step.name != WORSE) {
            done(operation, WORSE, took_ms, format!("{worse}; it stays, since no backend from before is ready"));
        }
        return None;
    }
    if !is_last {
        return None;
    }
    let (figures, unjudged) = (judgement.figures, judgement.unjudged.join("; "));
    if judgement.is_blind {
        let detail = if figures.is_empty() { unjudged.clone() } else { format!("{figures}; not judged: {unjudged}") };
        judged(operation, "not judged", took_ms, detail);
        return (judging.mode == Mode::Required).then(|| format!("{version} could not be judged ({unjudged})"));
    }
    let but = if unjudged.is_empty() { String::new() } else { format!("; not judged: {unjudged}") };
    judged(operation, "no worse", took_ms, format!("{figures} (compared {}){but}", words::count(looks, "time")));
    None
}

/// Records how a step was judged. A watch may have very many parts: of those in a row that end alike, the last one is kept, with the time of all.
fn judged(operation: &mut Operation, name: &str, took_ms: i64, detail: String) {
    let is_alike = operation.is_watched() && operation.steps.last().is_some_and(|last| last.name == name);
    let before_us = if is_alike { operation.steps.pop().map_or(0, |last| last.took_us) } else { 0 };
    done(operation, name, took_ms, detail);
    if let Some(last) = operation.steps.last_mut() {
        last.took_us = last.took_us.saturating_add(before_us);
    }
}

/// What is wrong with the version that is being tried, if anything is.
pub(super) fn failure(view: &View, watched: &BTreeMap<BackendId, String>, since_ms: i64) -> Option<String> {
    for (id, name) in watched {
        let Some(backend) = view.backends.get(id) else { return Some(format!("{name} is gone")) };
        if backend.state == State::Starting && !backend.steered {
            return Some(format!("the network namespace of {name} is no longer steered"));
        }
        if matches!(backend.state, State::Starting | State::NotListening) {
            return Some(format!("{name} has stopped listening"));
        }
        if !backend.state.could_serve() {
            return Some(format!("{name} is {}{}", backend.state.word(), backend.condition_in_brackets()));
        }
        if backend.ready_since_ms.is_some_and(|since| since > since_ms) {
            return Some(format!("{name} was not ready for a while"));
        }
        if backend.overflows > 0 {
            let clients = words::count(backend.overflows, "client");
            return Some(format!("the accept queue of {name} overflowed, {clients} turned away"));
        }
    }
    None
}
